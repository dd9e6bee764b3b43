use hooks::{HookPoint, HookSet, LayerIdx};
use tch::Tensor;

use crate::{
    Result,
    attention::{Attention, Keys, Surroundings},
    kv_cache::LayerCache,
    mlp::Mlp,
    norm::RmsNorm,
};

/// One block: attention and MLP, each between two norms, each added to the residual stream (Gemma 2, section 2; order as in
/// `modeling_gemma2.py`).
///
/// The steps hand on to each other, top to bottom in the order of the mathematics. A run may begin at any of them: that is
/// what [`HookedModel::resume`](hooks::HookedModel::resume) does.
#[derive(Debug)]
pub(crate) struct Block {
    /// The window of a sliding block.
    pub(crate) window: Option<i64>,
    pub(crate) ln1: RmsNorm,
    pub(crate) attn: Attention,
    pub(crate) ln1_post: RmsNorm,
    pub(crate) ln2: RmsNorm,
    pub(crate) mlp: Mlp,
    pub(crate) ln2_post: RmsNorm,
}

impl Block {
    /// `[batch, pos, d_model]` to the same. With a cache, `x` is what follows the positions that the cache holds.
    pub(crate) fn forward(
        &self,
        x: Tensor,
        l: LayerIdx,
        around: &Surroundings<'_>,
        cache: Option<&mut LayerCache>,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        let x = hooks.at(HookPoint::ResidPre(l), x)?;
        self.after_resid_pre(x, l, around, cache, hooks)
    }

    pub(crate) fn after_resid_pre(
        &self,
        x: Tensor,
        l: LayerIdx,
        around: &Surroundings<'_>,
        cache: Option<&mut LayerCache>,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        let normed = self.ln1.forward(&x, HookPoint::Ln1Scale(l), HookPoint::Ln1Normalized(l), hooks)?;
        let (q, k, v) = self.attn.queries_keys_values(&normed, l, around, hooks)?;
        drop(normed);
        let keys = match cache {
            None => Keys::of(&k, &v, around.first_pos)?,
            Some(cache) => cache.append(&k, &v)?,
        };
        let z = self.attn.mix(&q, &keys, self.window, l, around, hooks)?;
        let z = hooks.at(HookPoint::AttnZ(l), z)?; // [batch, pos, n_heads, d_head]
        self.after_z(z, x, l, hooks)
    }

    pub(crate) fn after_z(
        &self,
        z: Tensor,
        x: Tensor,
        l: LayerIdx,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        let attn = self.attn.output(&z, l, hooks)?;
        let attn = self.ln1_post.forward(
            &attn,
            HookPoint::Ln1PostScale(l),
            HookPoint::Ln1PostNormalized(l),
            hooks,
        )?;
        let attn = hooks.at(HookPoint::AttnOut(l), attn)?;
        self.after_attn_out(attn, x, l, hooks)
    }

    pub(crate) fn after_attn_out(
        &self,
        attn: Tensor,
        x: Tensor,
        l: LayerIdx,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        let x = hooks.at(HookPoint::ResidMid(l), x.f_add(&attn)?)?;
        self.after_resid_mid(x, l, hooks)
    }

    pub(crate) fn after_resid_mid(&self, x: Tensor, l: LayerIdx, hooks: &mut HookSet<'_>) -> Result<Tensor> {
        let mlp_in = hooks.at(HookPoint::MlpIn(l), x.shallow_clone())?;
        let normed = self.ln2.forward(&mlp_in, HookPoint::Ln2Scale(l), HookPoint::Ln2Normalized(l), hooks)?;
        self.after_mlp_norm(normed, x, l, hooks)
    }

    /// After the second norm: its result, gain and cast included.
    pub(crate) fn after_mlp_norm(
        &self,
        normed: Tensor,
        x: Tensor,
        l: LayerIdx,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        let mlp = self.mlp.forward(&normed, l, hooks)?;
        drop(normed);
        self.after_mlp(mlp, x, l, hooks)
    }

    pub(crate) fn after_mlp_post(
        &self,
        post: Tensor,
        x: Tensor,
        l: LayerIdx,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        let mlp = self.mlp.down(&post)?;
        self.after_mlp(mlp, x, l, hooks)
    }

    /// After the MLP, before its norm.
    fn after_mlp(&self, mlp: Tensor, x: Tensor, l: LayerIdx, hooks: &mut HookSet<'_>) -> Result<Tensor> {
        let mlp = self.ln2_post.forward(
            &mlp,
            HookPoint::Ln2PostScale(l),
            HookPoint::Ln2PostNormalized(l),
            hooks,
        )?;
        let mlp = hooks.at(HookPoint::MlpOut(l), mlp)?;
        self.after_mlp_out(mlp, x, l, hooks)
    }

    pub(crate) fn after_mlp_out(
        &self,
        mlp: Tensor,
        x: Tensor,
        l: LayerIdx,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        Ok(hooks.at(HookPoint::ResidPost(l), x.f_add(&mlp)?)?)
    }
}
