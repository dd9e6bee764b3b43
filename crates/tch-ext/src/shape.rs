use tch::{Kind, Tensor};

use crate::{Result, TensorError, kind_name};

/// Checks that `tensor` has the shape that `axes` names, as in `expect_shape("W_enc", &w, &[("d_in", 24), ("d_sae", 96)])`.
///
/// # Errors
/// [`TensorError::Shape`], with the axes' names.
pub fn expect_shape(what: &str, tensor: &Tensor, axes: &[(&str, i64)]) -> Result<()> {
    let got = tensor.size();
    if got.len() == axes.len() && got.iter().zip(axes).all(|(size, (_, expected))| size == expected) {
        return Ok(());
    }
    let expected = axes.iter().map(|(name, size)| format!("{name}={size}")).collect::<Vec<_>>().join(", ");
    Err(TensorError::Shape { what: what.to_owned(), expected: format!("[{expected}]"), got })
}

/// Checks that `tensor` has one of the dtypes `kinds`.
///
/// # Errors
/// [`TensorError::Dtype`].
pub fn expect_kind(what: &str, tensor: &Tensor, kinds: &[Kind]) -> Result<()> {
    let got = tensor.f_kind()?;
    if kinds.contains(&got) {
        return Ok(());
    }
    let expected = kinds.iter().map(|k| kind_name(*k)).collect::<Vec<_>>().join(" or ");
    Err(TensorError::Dtype { what: what.to_owned(), expected, got: kind_name(got).to_owned() })
}

/// Checks that no entry of `tensor` is NaN or infinite.
///
/// A sum is tried first, since it reads memory once: NaN and infinity survive a sum. Only a sum that is not finite (which
/// large finite entries can also give) leads to the count. Large tensors go piece by piece, since libtorch sums bfloat16
/// through a copy in float32.
///
/// # Errors
/// [`TensorError::NotFinite`].
pub fn expect_finite(what: &str, tensor: &Tensor) -> Result<()> {
    const PIECE: i64 = 1 << 22;
    let flat = if tensor.is_contiguous() { tensor.f_view(-1)? } else { tensor.f_reshape(-1)? };
    let n = flat.numel() as i64;
    let mut count = 0;
    for start in (0..n).step_by(PIECE as usize) {
        let piece = flat.f_narrow(0, start, PIECE.min(n - start))?;
        if !piece.f_sum(Kind::Float)?.f_double_value(&[])?.is_finite() {
            count += piece.f_isfinite()?.f_logical_not()?.f_sum(Kind::Int64)?.f_int64_value(&[])?;
        }
    }
    if count == 0 { Ok(()) } else { Err(TensorError::NotFinite { what: what.to_owned(), count }) }
}
