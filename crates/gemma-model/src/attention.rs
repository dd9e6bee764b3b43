use hooks::{HookPoint, HookSet, LayerIdx};
use tch::{Kind, Tensor};

use crate::{Gemma2Config, Result, rope::Rope};

/// Grouped-query attention with soft-capped scores.
#[derive(Debug)]
pub(crate) struct Attention {
    /// `[n_heads · d_head, d_model]`.
    pub(crate) w_q: Tensor,
    /// `[n_kv_heads · d_head, d_model]`.
    pub(crate) w_k: Tensor,
    /// `[n_kv_heads · d_head, d_model]`.
    pub(crate) w_v: Tensor,
    /// `[d_model, n_heads · d_head]`.
    pub(crate) w_o: Tensor,
}

/// What all blocks of one run share.
#[derive(Debug)]
pub(crate) struct Surroundings<'c> {
    pub(crate) config: &'c Gemma2Config,
    pub(crate) rope: Rope,
    /// Hidden keys of global blocks.
    pub(crate) global: Tensor,
    /// Hidden keys of sliding blocks.
    pub(crate) sliding: Tensor,
}

impl Attention {
    /// The normalised residual, `[batch, pos, d_model]`, to `W_O z`, `[batch, pos, d_model]`.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        l: LayerIdx,
        hidden: &Tensor,
        around: &Surroundings<'_>,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        let q = hooks.at(HookPoint::AttnQ(l), self.heads(x, &self.w_q, around)?)?; // [batch, pos, n_heads, d_head]
        let k = hooks.at(HookPoint::AttnK(l), self.heads(x, &self.w_k, around)?)?; // [batch, pos, n_kv_heads, d_head]
        let v = hooks.at(HookPoint::AttnV(l), self.heads(x, &self.w_v, around)?)?;
        let q = hooks.at(HookPoint::AttnRotQ(l), around.rope.rotate(&q)?)?;
        let k = hooks.at(HookPoint::AttnRotK(l), around.rope.rotate(&k)?)?;

        let scores = self.scores(&q, &k, around.config)?.f_masked_fill(hidden, f64::NEG_INFINITY)?;
        let scores = hooks.at(HookPoint::AttnScores(l), scores)?; // [batch, n_heads, query_pos, key_pos]
        // In float32 whatever the dtype, then back: Hugging Face `modeling_gemma2.py`, `eager_attention_forward`.
        let pattern = scores.f_softmax(-1, Kind::Float)?.f_to_kind(q.f_kind()?)?;
        let pattern = hooks.at(HookPoint::AttnPattern(l), pattern)?;

        let z = hooks.at(HookPoint::AttnZ(l), self.mix(&pattern, &v)?)?; // [batch, pos, n_heads, d_head]
        let out = z.f_flatten(2, 3)?.f_linear(&self.w_o, None::<Tensor>)?;
        self.result(out, &z, l, hooks)
    }

    /// `[batch, pos, d_model]` to `[batch, pos, heads, d_head]`.
    fn heads(&self, x: &Tensor, w: &Tensor, around: &Surroundings<'_>) -> Result<Tensor> {
        let d_head = around.config.dims.d_head as i64;
        Ok(x.f_linear(w, None::<Tensor>)?.f_unflatten(-1, [-1, d_head])?)
    }

    /// `c · tanh(q·k / (√s · c))`: scale, then soft-cap; the mask comes after both.
    fn scores(&self, q: &Tensor, k: &Tensor, config: &Gemma2Config) -> Result<Tensor> {
        let size = q.size();
        let k = k.f_permute([0, 2, 3, 1])?; // [batch, n_kv_heads, d_head, key_pos]
        let q = grouped(&q.f_transpose(1, 2)?, &k)?; // [batch, n_kv_heads, group · query_pos, d_head]
        let scores = q.f_matmul(&k)?.f_mul_scalar(config.query_pre_attn_scalar.sqrt().recip())?;
        let scores = match config.attn_softcap {
            Some(cap) => scores.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)?,
            None => scores,
        };
        match size[..] {
            [batch, pos, n_heads, _] => Ok(scores.f_view([batch, n_heads, pos, -1])?),
            _ => Ok(scores),
        }
    }

    /// Values weighted by the pattern: `[batch, pos, n_heads, d_head]`.
    fn mix(&self, pattern: &Tensor, v: &Tensor) -> Result<Tensor> {
        let v = v.f_transpose(1, 2)?; // [batch, n_kv_heads, key_pos, d_head]
        let z = grouped(pattern, &v)?.f_matmul(&v)?; // [batch, n_kv_heads, group · query_pos, d_head]
        let size = pattern.size();
        match size[..] {
            [batch, n_heads, pos, _] => {
                Ok(z.f_view([batch, n_heads, pos, -1])?.f_transpose(1, 2)?.f_contiguous()?)
            }
            _ => Ok(z),
        }
    }

    /// `hook_result`: each head's share of `out`. Computed only where a hook looks, and then `out` moves by the sum of
    /// what the hooks changed, so that looking alone changes no bit.
    fn result(&self, out: Tensor, z: &Tensor, l: LayerIdx, hooks: &mut HookSet<'_>) -> Result<Tensor> {
        let site = HookPoint::AttnResult(l);
        if !hooks.wants(site) {
            return Ok(out);
        }
        let n_heads = z.size().get(2).copied().unwrap_or(1);
        let w_o = self.w_o.f_unflatten(1, [n_heads, -1])?; // [d_model, n_heads, d_head]
        let result = Tensor::f_einsum("bphd,mhd->bphm", &[z, &w_o], None::<i64>)?;
        let edited = hooks.at(site, result.shallow_clone())?;
        let change = edited.f_sub(&result)?.f_sum_dim_intlist(2, false, out.f_kind()?)?;
        Ok(out.f_add(&change)?)
    }
}

/// Puts the query heads that share a key-value head side by side: `[batch, n_heads, pos, x]` to
/// `[batch, n_kv_heads, group · pos, x]`. Query head j reads key-value head ⌊j / group⌋.
fn grouped(by_head: &Tensor, kv: &Tensor) -> Result<Tensor> {
    let n_kv_heads = kv.size().get(1).copied().unwrap_or(1);
    Ok(by_head.f_unflatten(1, [n_kv_heads, -1])?.f_flatten(2, 3)?)
}
