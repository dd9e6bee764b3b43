use hooks::{HookPoint, HookSet, LayerIdx};
use tch::Tensor;
use tch_ext::linear;

use crate::{Result, lean::unseen};

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
    /// `[batch, pos, d_model]` to what the down projection reads, `[batch, pos, d_mlp]`.
    pub(crate) fn hidden(&self, x: &Tensor, l: LayerIdx, hooks: &mut HookSet<'_>) -> Result<Tensor> {
        let mut gate = hooks.at(HookPoint::MlpPre(l), linear(x, &self.w_gate)?)?; // [batch, pos, d_mlp]
        let up = hooks.at(HookPoint::MlpPreLinear(l), linear(x, &self.w_up)?)?;
        let post = if unseen(&gate, HookPoint::MlpPre(l), hooks) && !up.requires_grad() {
            gate.f_gelu_("tanh")?.f_mul_(&up)?
        } else {
            gate.f_gelu("tanh")?.f_mul(&up)?
        };
        Ok(hooks.at(HookPoint::MlpPost(l), post)?)
    }

    /// `[batch, pos, d_mlp]` to `[batch, pos, d_model]`.
    pub(crate) fn down(&self, post: &Tensor) -> Result<Tensor> {
        Ok(linear(post, &self.w_down)?)
    }
}
