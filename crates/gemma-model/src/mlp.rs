use hooks::{HookPoint, HookSet, LayerIdx};
use tch::Tensor;
use tch_ext::linear;

use crate::Result;

/// GeGLU: `W_down (gelu_tanh(W_gate x) ⊙ W_up x)` (arXiv 2002.05202), with GELU in its tanh form.
#[derive(Debug)]
pub(crate) struct Mlp {
    /// `[d_mlp, d_model]`.
    pub(crate) w_gate: Tensor,
    /// `[d_mlp, d_model]`.
    pub(crate) w_up: Tensor,
    /// `[d_model, d_mlp]`.
    pub(crate) w_down: Tensor,
}

/// Positions that go through the hidden layer at a time: it is four times as wide as the residual stream, and a few hundred
/// rows are all that a matrix product needs to be at its best.
const ROWS_AT_A_TIME: i64 = 256;

impl Mlp {
    /// `[batch, pos, d_model]` to the same.
    ///
    /// Where nobody looks inside, the hidden layer exists for a few rows at a time. Where somebody does, it is made of the
    /// same pieces, so that looking changes no bit.
    pub(crate) fn forward(&self, x: &Tensor, l: LayerIdx, hooks: &mut HookSet<'_>) -> Result<Tensor> {
        let inside = [HookPoint::MlpPre(l), HookPoint::MlpPreLinear(l), HookPoint::MlpPost(l)];
        let trained = x.requires_grad() || self.w_gate.requires_grad();
        if trained || inside.into_iter().any(|site| hooks.wants(site)) {
            let gate = hooks.at(HookPoint::MlpPre(l), by_rows(x, |x| Ok(linear(x, &self.w_gate)?))?)?; // [batch, pos, d_mlp]
            let up = hooks.at(HookPoint::MlpPreLinear(l), by_rows(x, |x| Ok(linear(x, &self.w_up)?))?)?;
            let post = hooks.at(HookPoint::MlpPost(l), gate.f_gelu("tanh")?.f_mul(&up)?)?;
            return self.down(&post);
        }
        by_rows(x, |x| {
            let mut gate = linear(x, &self.w_gate)?;
            let post = gate.f_gelu_("tanh")?.f_mul_(&linear(x, &self.w_up)?)?;
            Ok(linear(&post, &self.w_down)?)
        })
    }

    /// `[batch, pos, d_mlp]` to `[batch, pos, d_model]`.
    pub(crate) fn down(&self, post: &Tensor) -> Result<Tensor> {
        by_rows(post, |post| Ok(linear(post, &self.w_down)?))
    }
}

/// Puts `[batch, pos, n]` through `f` some rows at a time, and the results side by side again: `[batch, pos, m]`.
fn by_rows(x: &Tensor, mut f: impl FnMut(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    let (batch, pos) = match x.size()[..] {
        [batch, pos, _] => (batch, pos),
        _ => return f(x),
    };
    if batch * pos <= ROWS_AT_A_TIME {
        return f(x);
    }
    let rows = x.f_flatten(0, 1)?;
    let parts = rows.f_split(ROWS_AT_A_TIME, 0)?;
    let parts = parts.iter().map(&mut f).collect::<Result<Vec<_>>>()?;
    Ok(Tensor::f_cat(&parts, 0)?.f_unflatten(0, [batch, pos])?)
}
