//! The `.npy` format: a magic number, a version, a Python dict as text, then the array's bytes.
//! Source: NumPy's `numpy/lib/format.py`.

use std::io::Read;

use tch::{Kind, Tensor};

use crate::{
    Result, TensorError, expect_finite,
    stored::{PIECE, all_finite, refusal},
};

const MAGIC: &[u8] = b"\x93NUMPY";

/// What the header of an array takes at most: NumPy itself reads none of more than 10,000 bytes.
pub(crate) const MAX_HEADER: u64 = 1 << 14;

/// What the header of an array says, and where its data begin.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) shape: Vec<i64>,
    pub(crate) fortran_order: bool,
    pub(crate) data_start: usize,
}

impl Header {
    /// Checks that the array takes just the bytes that there are.
    pub(crate) fn check_length(&self, file: &str, there: u64) -> Result<()> {
        let element = self.kind.elt_size_in_bytes() as u64;
        let sizes = self.shape.iter().map(|size| u64::try_from(*size).ok());
        let wanted = sizes
            .into_iter()
            .try_fold(element, |n, size| n.checked_mul(size?))
            .ok_or_else(|| TensorError::format(file, format!("a shape of {:?} is too large", self.shape)))?;
        if there == wanted {
            return Ok(());
        }
        let problem = format!("shape {:?} needs {wanted} bytes, but {there} are there", self.shape);
        Err(TensorError::format(file, problem))
    }

    /// The sizes of a tensor in C order with the same bytes.
    pub(crate) fn sizes(&self) -> Vec<i64> {
        let sizes = self.shape.iter().copied();
        if self.fortran_order { sizes.rev().collect() } else { sizes.collect() }
    }

    /// The array, from a tensor of these [`sizes`](Self::sizes).
    pub(crate) fn in_c_order(&self, tensor: Tensor) -> Result<Tensor> {
        if !self.fortran_order {
            return Ok(tensor);
        }
        let axes: Vec<i64> = (0..self.shape.len() as i64).rev().collect();
        Ok(tensor.f_permute(axes)?.f_contiguous()?)
    }
}

/// Reads a `.npy` file of `size` bytes, which must be the array and nothing after it, straight into a tensor.
pub(crate) fn read(what: &str, from: &mut impl Read, size: u64) -> Result<Tensor> {
    let io = |source| TensorError::Io { file: what.to_owned(), source };
    let mut head = Vec::new();
    from.by_ref().take(size.min(MAX_HEADER)).read_to_end(&mut head).map_err(io)?;
    let header = parse_header(what, &head)?;
    header.check_length(what, size - header.data_start as u64)?;
    let ready = head.get(header.data_start..).unwrap_or_default();
    let (tensor, finite) = native::filled(&header.sizes(), header.kind, |bytes| {
        let (first, rest) = bytes.split_at_mut(ready.len().min(bytes.len()));
        first.copy_from_slice(&ready[..first.len()]);
        for piece in rest.chunks_mut(PIECE) {
            from.read_exact(piece).map_err(io)?;
        }
        Ok(all_finite(header.kind, bytes))
    })
    .map_err(|e| refusal(e, what))?;
    if !finite {
        expect_finite(what, &tensor)?;
    }
    header.in_c_order(tensor)
}

pub(crate) fn parse_header(file: &str, bytes: &[u8]) -> Result<Header> {
    let bad = |problem: &str| TensorError::format(file, problem);
    let short = || bad("truncated in the header of the array");
    if !bytes.starts_with(MAGIC) {
        return Err(bad("not a NumPy array"));
    }
    let (length, text_start) = match bytes.get(6).ok_or_else(short)? {
        1 => (
            u16::from_le_bytes(bytes.get(8..10).and_then(|b| b.try_into().ok()).ok_or_else(short)?).into(),
            10,
        ),
        2 | 3 => {
            (u32::from_le_bytes(bytes.get(8..12).and_then(|b| b.try_into().ok()).ok_or_else(short)?), 12)
        }
        version => return Err(bad(&format!("version {version} of the NumPy format is unknown"))),
    };
    let data_start = text_start + length as usize;
    if data_start as u64 > MAX_HEADER {
        return Err(bad(&format!("a header of {length} bytes is too long")));
    }
    let text = bytes.get(text_start..data_start).ok_or_else(short)?;
    let text = std::str::from_utf8(text).map_err(|_| bad("the header of the array is not text"))?;
    let (kind, fortran_order, shape) = parse_dict(text).map_err(|problem| bad(&problem))?;
    Ok(Header { kind, shape, fortran_order, data_start })
}

/// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (24, 96), }`, with exactly these three keys.
fn parse_dict(text: &str) -> Result<(Kind, bool, Vec<i64>), String> {
    let shown = || text.trim().chars().take(200).collect::<String>();
    let odd = || format!("the header of the array is damaged: {:?}", shown());
    let mut rest = text.trim().strip_prefix('{').and_then(|t| t.strip_suffix('}')).ok_or_else(odd)?.trim();
    let (mut descr, mut order, mut shape) = (None, None, None);
    while !rest.is_empty() {
        let (key, after) = quoted(rest).ok_or_else(odd)?;
        let after = after.trim_start().strip_prefix(':').ok_or_else(odd)?.trim_start();
        let after = match key {
            "descr" if descr.is_none() => {
                let (value, after) = quoted(after).ok_or("only plain arrays are read, no structured ones")?;
                descr = Some(value);
                after
            }
            "fortran_order" if order.is_none() => {
                let (value, after) = [("True", true), ("False", false)]
                    .iter()
                    .find_map(|(word, value)| Some((*value, after.strip_prefix(word)?)))
                    .ok_or_else(odd)?;
                order = Some(value);
                after
            }
            "shape" if shape.is_none() => {
                let (inner, after) =
                    after.strip_prefix('(').and_then(|t| t.split_once(')')).ok_or_else(odd)?;
                let sizes = inner.split(',').map(str::trim).filter(|s| !s.is_empty());
                let sizes: Vec<i64> = sizes
                    .map(|s| s.parse().ok().filter(|n| *n >= 0))
                    .collect::<Option<_>>()
                    .ok_or_else(odd)?;
                shape = Some(sizes);
                after
            }
            _ => return Err(odd()),
        };
        rest = after.trim_start();
        rest = match rest.strip_prefix(',') {
            Some(after) => after.trim_start(),
            None if rest.is_empty() => rest,
            None => return Err(odd()),
        };
    }
    let (Some(descr), Some(order), Some(shape)) = (descr, order, shape) else { return Err(odd()) };
    Ok((kind_of(descr)?, order, shape))
}

fn quoted(text: &str) -> Option<(&str, &str)> {
    let mark = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    text.get(1..)?.split_once(mark)
}

fn kind_of(descr: &str) -> Result<Kind, String> {
    Ok(match descr {
        "<f4" => Kind::Float,
        "<f2" => Kind::Half,
        "<f8" => Kind::Double,
        "<i8" => Kind::Int64,
        "<i4" => Kind::Int,
        "|u1" => Kind::Uint8,
        "|b1" => Kind::Bool,
        big if big.starts_with('>') => return Err(format!("dtype `{big}` is big-endian, which is not read")),
        other => return Err(format!("dtype `{other}` is not read")),
    })
}

/// The data begin at a multiple of this many bytes, as NumPy has it.
pub(crate) const ALIGNMENT: usize = 64;

/// The header for an array in C order, padded so that the data begin at a multiple of [`ALIGNMENT`].
pub(crate) fn header(kind: Kind, shape: &[i64]) -> Option<Vec<u8>> {
    let descr = match kind {
        Kind::Float => "<f4",
        Kind::Half => "<f2",
        Kind::Double => "<f8",
        Kind::Int64 => "<i8",
        _ => return None,
    };
    let sizes: String = match shape {
        [one] => format!("({one},)"),
        many => format!("({})", many.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")),
    };
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {sizes}, }}");
    let unpadded = MAGIC.len() + 2 + 2 + text.len() + 1;
    text.extend(std::iter::repeat_n(' ', unpadded.next_multiple_of(ALIGNMENT) - unpadded));
    text.push('\n');
    let length = u16::try_from(text.len()).ok()?;
    Some([MAGIC, &[1, 0], &length.to_le_bytes(), text.as_bytes()].concat())
}
