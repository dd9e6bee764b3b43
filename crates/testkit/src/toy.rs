use std::ops::Range;

use hooks::{HookError, HookPoint, HookSet, HookedModel, LayerIdx, ModelDims, Result, TokenBatch};
use tch::{Kind, Tensor};

use crate::normal;

/// The smallest model with hooks: each block adds to a position a linear map of the mean of all positions up to it.
///
/// Its sites are `hook_embed`, and `hook_resid_pre`, `hook_resid_mid`, `hook_mlp_out` and `hook_resid_post` of each block.
#[derive(Debug)]
pub struct ToyModel {
    dims: ModelDims,
    /// `[d_vocab, d_model]`.
    w_e: Tensor,
    /// `[n_layers, d_model, d_model]`.
    w: Tensor,
    /// `[d_model, d_vocab]`.
    w_u: Tensor,
}

impl ToyModel {
    /// A model with weights from a seed.
    pub fn new(n_layers: usize, d_model: usize, d_vocab: usize, seed: u64) -> Self {
        let (l, d, v) = (n_layers as i64, d_model as i64, d_vocab as i64);
        let dims = ModelDims {
            n_layers,
            d_model,
            n_heads: 1,
            n_kv_heads: 1,
            d_head: d_model,
            d_mlp: d_model,
            d_vocab,
            n_ctx: 64,
        };
        Self {
            dims,
            w_e: normal(&[v, d], seed),
            w: normal(&[l, d, d], seed + 1) / (d as f64).sqrt(),
            w_u: normal(&[d, v], seed + 2) / (d as f64).sqrt(),
        }
    }

    /// The sites that this model has, in the order in which it meets them.
    pub fn sites(&self) -> Vec<HookPoint> {
        let layers = (0..self.dims.n_layers).map(LayerIdx);
        let of = |l| {
            [HookPoint::ResidPre(l), HookPoint::ResidMid(l), HookPoint::MlpOut(l), HookPoint::ResidPost(l)]
        };
        std::iter::once(HookPoint::Embed).chain(layers.flat_map(of)).collect()
    }

    fn branch(
        &self,
        x: &Tensor,
        tokens: &TokenBatch,
        l: LayerIdx,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        let on = (Kind::Float, tch::Device::Cpu);
        let counts = Tensor::f_arange_start(1, tokens.pos() + 1, on)?.f_view([1, -1, 1])?;
        let mean = x.f_cumsum(1, Kind::Float)?.f_div(&counts)?;
        hooks.at(HookPoint::MlpOut(l), mean.f_matmul(&self.w.f_select(0, l.0 as i64)?)?.f_tanh()?)
    }
}

impl HookedModel for ToyModel {
    fn dims(&self) -> &ModelDims {
        &self.dims
    }

    fn embed(&self, tokens: &TokenBatch, hooks: &mut HookSet<'_>) -> Result<Tensor> {
        tokens.check(&self.dims)?;
        hooks.at(HookPoint::Embed, Tensor::f_embedding(&self.w_e, tokens.ids(), -1, false, false)?)
    }

    fn blocks(
        &self,
        resid: &Tensor,
        tokens: &TokenBatch,
        range: Range<usize>,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        if range.end > self.dims.n_layers {
            return Err(HookError::Model("no such block".into()));
        }
        let mut x = resid.shallow_clone();
        for l in range.map(LayerIdx) {
            x = hooks.at(HookPoint::ResidPre(l), x)?;
            // There is no attention between the two.
            x = hooks.at(HookPoint::ResidMid(l), x)?;
            let out = self.branch(&x, tokens, l, hooks)?;
            x = hooks.at(HookPoint::ResidPost(l), x.f_add(&out)?)?;
        }
        Ok(x)
    }

    fn resume(
        &self,
        site: HookPoint,
        act: &Tensor,
        stream: &Tensor,
        tokens: &TokenBatch,
        end: usize,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        match site {
            HookPoint::Embed => self.blocks(act, tokens, 0..end, hooks),
            HookPoint::ResidPre(l) => {
                let mid = hooks.at(HookPoint::ResidMid(l), act.shallow_clone())?;
                self.resume(HookPoint::ResidMid(l), &mid, &mid, tokens, end, hooks)
            }
            HookPoint::ResidMid(l) => {
                let out = self.branch(act, tokens, l, hooks)?;
                self.resume(HookPoint::MlpOut(l), &out, act, tokens, end, hooks)
            }
            HookPoint::MlpOut(LayerIdx(l)) => {
                let resid = hooks.at(HookPoint::ResidPost(LayerIdx(l)), stream.f_add(act)?)?;
                self.blocks(&resid, tokens, l + 1..end, hooks)
            }
            HookPoint::ResidPost(LayerIdx(l)) => self.blocks(act, tokens, l + 1..end, hooks),
            _ => Err(HookError::NoResume(site)),
        }
    }

    fn final_norm(&self, resid: &Tensor, _hooks: &mut HookSet<'_>) -> Result<Tensor> {
        Ok(resid.shallow_clone())
    }

    fn readout(&self, normed: &Tensor, vocab: Range<usize>) -> Result<Tensor> {
        let w_u = self.w_u.f_narrow(1, vocab.start as i64, vocab.len() as i64)?;
        Ok(normed.f_matmul(&w_u)?)
    }
}
