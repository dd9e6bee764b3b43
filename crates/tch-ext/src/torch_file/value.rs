use std::ops::Range;

use tch::Kind;

/// What a `torch.save` file holds: plain values, and tensors by where they lie.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum TorchValue {
    /// Python's `None`.
    None,
    /// A `bool`.
    Bool(bool),
    /// An `int` that 64 bits hold.
    Int(i64),
    /// A `float`.
    Float(f64),
    /// A `str`; also a dtype (`torch.float32`) or a device (`cuda:0`), by name.
    Str(String),
    /// A `list`.
    List(Vec<Self>),
    /// A `tuple`, or a `torch.Size`.
    Tuple(Vec<Self>),
    /// A `dict` or an `OrderedDict`, in the order of the file. No key stands twice.
    Dict(Vec<(Self, Self)>),
    /// A tensor or a parameter, not read yet.
    Tensor(TorchTensor),
}

impl TorchValue {
    /// What a dict holds under this name.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.as_dict()?.iter().find(|(k, _)| k.as_str() == Some(key)).map(|(_, value)| value)
    }

    /// Whether this is `None`.
    pub fn is_none(&self) -> bool {
        matches!(self, Self::None)
    }

    /// The truth value, of a `bool` alone.
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(b) = self { Some(*b) } else { None }
    }

    /// The number, of an `int` alone.
    pub fn as_int(&self) -> Option<i64> {
        if let Self::Int(n) = self { Some(*n) } else { None }
    }

    /// The number, of a `float` or an `int`: Python writes `1` where `1.0` is meant.
    pub fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(x) => Some(*x),
            Self::Int(n) => Some(*n as f64),
            _ => None,
        }
    }

    /// The text.
    pub fn as_str(&self) -> Option<&str> {
        if let Self::Str(text) = self { Some(text) } else { None }
    }

    /// The entries of a list or a tuple.
    pub fn as_items(&self) -> Option<&[Self]> {
        if let Self::List(items) | Self::Tuple(items) = self { Some(items) } else { None }
    }

    /// The entries of a dict.
    pub fn as_dict(&self) -> Option<&[(Self, Self)]> {
        if let Self::Dict(entries) = self { Some(entries) } else { None }
    }

    /// The tensor.
    pub fn as_tensor(&self) -> Option<&TorchTensor> {
        if let Self::Tensor(tensor) = self { Some(tensor) } else { None }
    }
}

/// What a `torch.save` file says of one tensor: a view of a storage, which other tensors may share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TorchTensor {
    /// The keys that lead to it, joined by dots.
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) shape: Vec<i64>,
    pub(super) stride: Vec<i64>,
    /// Elements of the storage before the first.
    pub(super) offset: i64,
    /// The storage is the member `data/<key>`.
    pub(super) key: String,
    /// Elements that the pickle says the storage has.
    pub(super) storage_len: i64,
}

impl TorchTensor {
    /// The keys that lead to it, joined by dots; empty for a file that is one tensor.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The dtype.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The sizes.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// The elements of the storage that it reaches, or what is wrong with it; `bytes` is what the storage really has.
    /// A tensor without elements reaches none.
    pub(super) fn span(&self, bytes: u64) -> Result<Range<i64>, String> {
        let claimed = i128::from(self.storage_len) * self.kind.elt_size_in_bytes() as i128;
        if claimed != i128::from(bytes) {
            return Err(format!("claims a storage of {claimed} bytes, but `data/{}` has {bytes}", self.key));
        }
        let empty = self.shape.contains(&0);
        // As libtorch multiplies when it lays out strides: that must not overflow even where there is nothing to lay out.
        let volume = self.shape.iter().try_fold(1_i64, |n, &size| n.checked_mul(size.max(1)));
        // An expanded tensor could claim any size, and the first copy of it would have to be that large.
        if volume.is_none_or(|n| !empty && n > self.storage_len) {
            return Err(format!(
                "has shape {:?}, but its storage has {} values",
                self.shape, self.storage_len
            ));
        }
        if empty {
            return Ok(0..0);
        }
        let mut steps = self.shape.iter().zip(&self.stride);
        let reach = |at: i128, (&size, &stride): (&i64, &i64)| {
            at.checked_add((i128::from(size) - 1).checked_mul(stride.into())?)
        };
        let last = steps.try_fold(self.offset.into(), reach).and_then(|last| i64::try_from(last).ok());
        match last {
            Some(last) if last < self.storage_len => Ok(self.offset..last + 1),
            _ => Err(format!("reaches beyond the {} values of its storage", self.storage_len)),
        }
    }

    /// How errors call it.
    pub(super) fn label(&self) -> String {
        label(&self.name)
    }
}

pub(super) fn label(name: &str) -> String {
    if name.is_empty() { "its tensor".to_owned() } else { format!("tensor `{name}`") }
}
