//! A model of 2B's shapes with random weights, one sequence.

use anyhow::Result;
use gemma_scope::{
    eval::loss_per_token,
    hooks::{ActivationCache, HookPoint, HookSet, HookedModelExt as _, TokenBatch},
    model::{Gemma2, Gemma2Config},
    tch::{self, Device, Kind, Tensor},
};

use crate::timing::{median, say};

pub(crate) fn run(layers: usize, seq: usize) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let mut config = Gemma2Config::gemma_2_2b();
    config.dims.n_layers = layers;
    config.layer_kinds = Gemma2Config::alternating(layers);
    let model = Gemma2::from_fn(config, |_, axes| {
        let size: Vec<i64> = axes.iter().map(|(_, n)| *n).collect();
        Ok(Tensor::f_randn(size, (Kind::Float, Device::Cpu))?.f_mul_scalar_(0.02)?)
    })?;
    let ids =
        Vec::<i64>::try_from(Tensor::f_randint_low(5, 256_000, [seq as i64], (Kind::Int64, Device::Cpu))?)?;
    let tokens = TokenBatch::new(&[ids], &[])?;
    let none = HookSet::new;
    let items = seq as f64;
    say("ours.backbone", median(3, || Ok(model.residual(&tokens, layers, &mut none())?))?, items);
    say("ours.logits", median(3, || Ok(model.logits(&tokens)?))?, items);
    let loss = || {
        let resid = model.residual(&tokens, layers, &mut none())?;
        Ok(loss_per_token(&model, &resid, &tokens, &mut none())?)
    };
    say("ours.loss", median(3, loss)?, items);
    // What TransformerLens caches by default: every site up to the last block but the per-head results.
    let sites: Vec<HookPoint> = HookPoint::all(layers)
        .filter(|site| !site.is_final() && !matches!(site, HookPoint::AttnResult(_)))
        .collect();
    let cache_all = || {
        let mut cache = ActivationCache::default();
        let mut hooks = HookSet::new();
        hooks.on_each(sites.iter().copied(), &mut cache);
        let resid = model.residual(&tokens, layers, &mut hooks)?;
        hooks.finish()?;
        Ok((resid, cache))
    };
    say("ours.cache_all", median(3, cache_all)?, items);
    Ok(())
}
