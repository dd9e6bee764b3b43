use tch::{Kind, Tensor};

use crate::Result;

/// Which entries are among the `k` largest of their row: `[rows, n]` of 0 and 1 in the kind of `scores`. Of equal entries the
/// one of lower index comes first, which libtorch's own choice does not promise.
pub(super) fn strongest(scores: &Tensor, k: i64) -> Result<Tensor> {
    let (scores, kind) = (scores.f_detach()?, scores.f_kind()?);
    let k = k.min(scores.size().last().copied().unwrap_or(0));
    if k <= 0 {
        return Ok(scores.f_zeros_like()?);
    }
    let weakest = scores.f_topk(k, -1, true, false)?.0.f_amin([-1i64], true)?; // [rows, 1]
    let reached = scores.f_ge_tensor(&weakest)?;
    if reached.f_sum(Kind::Int64)?.f_int64_value(&[])? == k * weakest.numel() as i64 {
        return Ok(reached.f_to_kind(kind)?);
    }
    let above = scores.f_gt_tensor(&weakest)?;
    let tied = scores.f_eq_tensor(&weakest)?;
    let free = above.f_sum_dim_intlist(-1, true, Kind::Int64)?.f_neg()?.f_add_scalar(k)?; // [rows, 1]
    let first = tied.f_cumsum(-1, Kind::Int64)?.f_le_tensor(&free)?;
    Ok(above.f_logical_or(&tied.f_logical_and(&first)?)?.f_to_kind(kind)?)
}
