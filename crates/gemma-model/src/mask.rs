use tch::{Device, Kind, Tensor};

use crate::Result;

/// Where a query may not look: true hides. `window` is `None` for a global block.
///
/// Key k is seen by query q iff `q - window < k <= q` and it is no padding. Queries to which this leaves no key (padding)
/// see themselves, so that no row of the softmax is empty; nothing that counts ever looks at them.
///
/// # Shapes
/// `[batch, 1, query_pos, key_pos]`, with batch 1 where there is no padding. The axis of heads is broadcast.
pub(crate) fn hidden(
    pos: i64,
    window: Option<i64>,
    attended: Option<&Tensor>,
    device: Device,
) -> Result<Tensor> {
    let ones = Tensor::f_ones([pos, pos], (Kind::Bool, device))?;
    let mut visible = ones.f_tril(0)?;
    if let Some(window) = window {
        visible = visible.f_logical_and(&ones.f_triu(1 - window)?)?;
    }
    let visible = visible.f_view([1, 1, pos, pos])?;
    let Some(attended) = attended else { return Ok(visible.f_logical_not()?) };
    let visible = visible.f_logical_and(&attended.f_view([-1, 1, 1, pos])?)?;
    let empty = visible.f_any_dim(-1, true)?.f_logical_not()?;
    let own = Tensor::f_eye(pos, (Kind::Bool, device))?;
    Ok(visible.f_logical_or(&empty.f_logical_and(&own)?)?.f_logical_not()?)
}
