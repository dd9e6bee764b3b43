use safetensors::Dtype;
use tch::{Kind, Tensor};

use crate::{Result, TensorError, kind_name};

/// Integers that safetensors has and tch can't name: they are written from int64 and read into it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsigned {
    /// Two bytes.
    U16,
    /// Four bytes.
    U32,
}

impl Unsigned {
    pub(crate) fn dtype(self) -> Dtype {
        match self {
            Self::U16 => Dtype::U16,
            Self::U32 => Dtype::U32,
        }
    }

    pub(crate) fn of(dtype: Dtype) -> Option<Self> {
        [Self::U16, Self::U32].into_iter().find(|unsigned| unsigned.dtype() == dtype)
    }

    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::U16 => 2,
            Self::U32 => 4,
        }
    }

    /// The elements, little-endian.
    pub(crate) fn read(self, bytes: &[u8]) -> Vec<i64> {
        match self {
            Self::U16 => bytes.as_chunks().0.iter().map(|b| i64::from(u16::from_le_bytes(*b))).collect(),
            Self::U32 => bytes.as_chunks().0.iter().map(|b| i64::from(u32::from_le_bytes(*b))).collect(),
        }
    }

    /// The elements of an int64 tensor, little-endian, given piece by piece.
    pub(crate) fn write(
        self,
        name: &str,
        tensor: &Tensor,
        mut write: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        const PIECE: i64 = 1 << 20;
        let flat = tensor.f_detach()?.f_reshape([-1])?;
        let n = flat.numel() as i64;
        for start in (0..n).step_by(PIECE as usize) {
            let piece = Vec::<i64>::try_from(&flat.f_narrow(0, start, PIECE.min(n - start))?)?;
            let mut bytes = Vec::with_capacity(piece.len() * self.bytes());
            for value in piece {
                let fits = match self {
                    Self::U16 => u16::try_from(value).map(|v| bytes.extend(v.to_le_bytes())),
                    Self::U32 => u32::try_from(value).map(|v| bytes.extend(v.to_le_bytes())),
                };
                fits.map_err(|_| TensorError::format(name, format!("{value} is no {:?}", self.dtype())))?;
            }
            write(&bytes)?;
        }
        Ok(())
    }
}

/// What becomes a tensor of a safetensors file.
#[derive(Debug, Clone, Copy)]
pub enum Member<'t> {
    /// A tensor, in its own dtype.
    Tensor(&'t Tensor),
    /// An int64 tensor, in a dtype that it does not have here.
    Unsigned(&'t Tensor, Unsigned),
}

impl<'t> From<&'t Tensor> for Member<'t> {
    fn from(tensor: &'t Tensor) -> Self {
        Self::Tensor(tensor)
    }
}

impl<'t> Member<'t> {
    pub(crate) fn tensor(self) -> &'t Tensor {
        match self {
            Self::Tensor(tensor) | Self::Unsigned(tensor, _) => tensor,
        }
    }

    /// The dtype in the file, and how many bytes an element takes there.
    pub(crate) fn dtype(self, name: &str, of: impl Fn(Kind) -> Option<Dtype>) -> Result<(Dtype, usize)> {
        let kind = self.tensor().f_kind()?;
        let bad = |expected: &str| TensorError::Dtype {
            what: name.to_owned(),
            expected: expected.to_owned(),
            got: kind_name(kind).to_owned(),
        };
        match self {
            Self::Tensor(_) => {
                let dtype = of(kind).ok_or_else(|| bad("a dtype that safetensors has"))?;
                Ok((dtype, kind.elt_size_in_bytes()))
            }
            Self::Unsigned(_, unsigned) if kind == Kind::Int64 => Ok((unsigned.dtype(), unsigned.bytes())),
            Self::Unsigned(..) => Err(bad("I64")),
        }
    }
}
