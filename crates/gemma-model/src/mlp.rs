use hooks::{HookPoint, HookSet, LayerIdx};
use tch::Tensor;

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

impl Mlp {
    /// `[batch, pos, d_model]` to the same.
    pub(crate) fn forward(&self, x: &Tensor, l: LayerIdx, hooks: &mut HookSet<'_>) -> Result<Tensor> {
        let gate = hooks.at(HookPoint::MlpPre(l), x.f_linear(&self.w_gate, None::<Tensor>)?)?; // [batch, pos, d_mlp]
        let up = hooks.at(HookPoint::MlpPreLinear(l), x.f_linear(&self.w_up, None::<Tensor>)?)?;
        let post = hooks.at(HookPoint::MlpPost(l), gate.f_gelu("tanh")?.f_mul(&up)?)?;
        Ok(post.f_linear(&self.w_down, None::<Tensor>)?)
    }
}
