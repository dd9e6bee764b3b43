//! A model of 2B's shapes with random weights, one sequence.

use anyhow::Result;
use gemma_scope::{
    eval::loss_per_token,
    hooks::{ActivationCache, HookPoint, HookSet, HookedModelExt as _},
    tch,
};

use crate::{
    timing::Clock,
    work::{On, finish, model, tokens},
};

pub(crate) fn run(layers: usize, seq: usize, on: On) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let (model, tokens) = (model(layers, on)?, tokens(seq)?);
    warm_up(on)?;
    let none = HookSet::new;
    let clock = Clock::new(3, seq as f64);
    let backbone = || {
        let resid = model.residual(&tokens, layers, &mut none())?;
        finish(on);
        Ok(resid)
    };
    clock.time("ours.backbone", backbone)?;
    clock.time("ours.loss", || {
        let resid = model.residual(&tokens, layers, &mut none())?;
        let losses = loss_per_token(&model, &resid, &tokens, &mut none())?;
        finish(on);
        Ok(losses)
    })?;
    clock.time("ours.logits", || {
        let logits = model.logits(&tokens)?;
        finish(on);
        Ok(logits)
    })?;
    let caching = |sites: Vec<HookPoint>| {
        let (model, tokens) = (&model, &tokens);
        move || {
            let mut cache = ActivationCache::default();
            let mut hooks = HookSet::new();
            hooks.on_each(sites.iter().copied(), &mut cache);
            let resid = model.residual(tokens, layers, &mut hooks)?;
            hooks.finish()?;
            finish(on);
            Ok((resid, cache))
        }
    };
    clock.time("ours.cache_resid", caching(HookPoint::resid_posts(layers).collect()))?;
    // What TransformerLens caches by default: every site up to the last block but the per-head results.
    let sites: Vec<_> = HookPoint::all(layers).filter(|site| !site.is_final()).collect();
    let by_default = sites.iter().copied().filter(|site| !matches!(site, HookPoint::AttnResult(_)));
    clock.time("ours.cache_all", caching(by_default.collect()))?;
    clock.time("ours.cache_every_site", caching(sites))?;
    clock.time("ours.backbone", backbone)
}

/// A long context: one run after a short one.
pub(crate) fn context(layers: usize, seq: usize, on: On) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let (model, tokens) = (model(layers, on)?, tokens(seq)?);
    warm_up(on)?;
    Clock::new(1, seq as f64).time("ours.context", || {
        let resid = model.residual(&tokens, layers, &mut HookSet::new())?;
        finish(on);
        Ok(resid)
    })
}

/// Brings libtorch's code into memory, so that a rise of memory is one of tensors.
fn warm_up(on: On) -> Result<()> {
    let (model, tokens) = (model(1, on)?, tokens(32)?);
    let resid = model.residual(&tokens, 1, &mut HookSet::new())?;
    let _losses = loss_per_token(&model, &resid, &tokens, &mut HookSet::new())?;
    Ok(())
}
