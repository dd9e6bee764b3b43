use hooks::{HookPoint, HookSet, LayerIdx};
use tch::Tensor;

use crate::{
    LayerKind, Result,
    attention::{Attention, Surroundings},
    mlp::Mlp,
    norm::RmsNorm,
};

/// One block: attention and MLP, each between two norms, each added to the residual stream.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) kind: LayerKind,
    pub(crate) ln1: RmsNorm,
    pub(crate) attn: Attention,
    pub(crate) ln1_post: RmsNorm,
    pub(crate) ln2: RmsNorm,
    pub(crate) mlp: Mlp,
    pub(crate) ln2_post: RmsNorm,
}

impl Block {
    /// `[batch, pos, d_model]` to the same (Gemma 2, section 2; order as in `modeling_gemma2.py`).
    pub(crate) fn forward(
        &self,
        x: Tensor,
        l: LayerIdx,
        around: &Surroundings<'_>,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        let hidden = match self.kind {
            LayerKind::Sliding => &around.sliding,
            LayerKind::Global => &around.global,
        };
        let x = hooks.at(HookPoint::ResidPre(l), x)?;
        let normed = self.ln1.forward(&x, HookPoint::Ln1Scale(l), HookPoint::Ln1Normalized(l), hooks)?;
        let attn = self.attn.forward(&normed, l, hidden, around, hooks)?;
        let attn = self.ln1_post.forward(
            &attn,
            HookPoint::Ln1PostScale(l),
            HookPoint::Ln1PostNormalized(l),
            hooks,
        )?;
        let attn = hooks.at(HookPoint::AttnOut(l), attn)?;
        let x = hooks.at(HookPoint::ResidMid(l), x.f_add(&attn)?)?;

        let mlp_in = hooks.at(HookPoint::MlpIn(l), x.shallow_clone())?;
        let normed = self.ln2.forward(&mlp_in, HookPoint::Ln2Scale(l), HookPoint::Ln2Normalized(l), hooks)?;
        let mlp = self.mlp.forward(&normed, l, hooks)?;
        let mlp = self.ln2_post.forward(
            &mlp,
            HookPoint::Ln2PostScale(l),
            HookPoint::Ln2PostNormalized(l),
            hooks,
        )?;
        let mlp = hooks.at(HookPoint::MlpOut(l), mlp)?;
        Ok(hooks.at(HookPoint::ResidPost(l), x.f_add(&mlp)?)?)
    }
}
