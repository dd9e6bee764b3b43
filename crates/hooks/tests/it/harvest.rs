//! Harvesting gives what a full run gives, and runs no deeper than it must.

use std::{
    ops::Range,
    sync::{Arc, Mutex},
};

use hooks::{
    ActivationCache, HookPoint, HookSet, HookedModel, HookedModelExt as _, ModelDims, Result, TokenBatch,
    observe,
};
use tch::Tensor;
use testkit::{ToyModel, assert_same};

use crate::common::{N_LAYERS, refused, site, tokens, toy};

/// The toy model, with a note of what was asked of it.
#[derive(Debug)]
struct Watched {
    inner: ToyModel,
    calls: Arc<Mutex<Vec<String>>>,
}

impl Watched {
    fn new() -> Self {
        Self { inner: toy(), calls: Arc::default() }
    }

    fn note(&self, call: impl Into<String>) {
        self.calls.lock().unwrap().push(call.into());
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }
}

impl HookedModel for Watched {
    fn dims(&self) -> &ModelDims {
        self.inner.dims()
    }

    fn embed(&self, tokens: &TokenBatch, hooks: &mut HookSet<'_>) -> Result<Tensor> {
        self.note("embed");
        self.inner.embed(tokens, hooks)
    }

    fn blocks(
        &self,
        resid: &Tensor,
        tokens: &TokenBatch,
        range: Range<usize>,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        self.note(format!("{range:?}"));
        self.inner.blocks(resid, tokens, range, hooks)
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
        self.note(format!("{site}..{end}"));
        self.inner.resume(site, act, stream, tokens, end, hooks)
    }

    fn final_norm(&self, resid: &Tensor, hooks: &mut HookSet<'_>) -> Result<Tensor> {
        self.note("norm");
        // The toy has no final norm; this one has, so that its sites can be harvested.
        let scale = resid.square().mean_dim(-1, true, tch::Kind::Float).sqrt();
        let scale = hooks.at(HookPoint::LnFinalScale, scale)?;
        hooks.at(HookPoint::LnFinalNormalized, resid / scale)
    }

    fn readout(&self, normed: &Tensor, vocab: Range<usize>) -> Result<Tensor> {
        self.note("readout");
        self.inner.readout(normed, vocab)
    }
}

#[test]
fn harvest_equals_capture_in_a_full_run() {
    let (model, tokens) = (Watched::new(), tokens());
    let sites: Vec<_> = model
        .inner
        .sites()
        .into_iter()
        .chain([HookPoint::LnFinalScale, HookPoint::LnFinalNormalized])
        .collect();
    let (_, full) = model.run_with_cache(&tokens, &sites).unwrap();
    for subset in [&sites[..], &sites[..1], &sites[1..4], &sites[5..6], &sites[sites.len() - 2..]] {
        let harvested = model.harvest(&tokens, subset).unwrap();
        assert_eq!(harvested.len(), subset.len());
        for &site in subset {
            assert_same(&site.to_string(), harvested.get(site).unwrap(), full.get(site).unwrap());
        }
    }
}

#[test]
fn harvest_runs_no_deeper_than_the_deepest_site() {
    let (model, tokens) = (Watched::new(), tokens());
    for (sites, calls) in [
        ("hook_embed", &["embed", "0..0"][..]),
        ("blocks.0.hook_resid_pre", &["embed", "0..1"]),
        ("blocks.0.hook_resid_post", &["embed", "0..1"]),
        ("blocks.1.hook_mlp_out,hook_embed", &["embed", "0..2"]),
        ("blocks.*.hook_resid_post", &["embed", "0..3"]),
        ("ln_final.hook_scale", &["embed", "0..3", "norm"]),
        ("ln_final.hook_normalized,blocks.0.hook_resid_pre", &["embed", "0..3", "norm"]),
    ] {
        let _cache = model.harvest(&tokens, &HookPoint::parse_list(sites, N_LAYERS).unwrap()).unwrap();
        assert_eq!(model.calls(), calls, "{sites}");
    }
    let _none = model.harvest(&tokens, &[]).unwrap();
    assert!(!model.calls().contains(&"norm".to_owned()));
}

#[test]
fn run_to_shows_its_hooks_what_a_full_run_does() {
    let (model, tokens) = (Watched::new(), tokens());
    let at = site("blocks.1.hook_mlp_out");
    let mut seen = Vec::new();
    let mut hooks = HookSet::new();
    hooks.on_each(
        [site("hook_embed"), at],
        observe(|site, act| {
            seen.push((site, act.size()));
            Ok(())
        }),
    );
    model.run_to(&tokens, hooks).unwrap();
    assert_eq!(seen, [(HookPoint::Embed, vec![2, 5, 6]), (at, vec![2, 5, 6])]);
    assert_eq!(model.calls(), ["embed", "0..2"]);
}

#[test]
fn a_site_that_was_not_captured_is_named() {
    let mut cache = toy().harvest(&tokens(), &[HookPoint::Embed]).unwrap();
    let other = site("blocks.1.hook_mlp_out");
    refused(cache.get(other), &["`blocks.1.hook_mlp_out`", "not captured"]);
    refused(cache.take(other), &["`blocks.1.hook_mlp_out`", "not captured"]);
    let _taken = cache.take(HookPoint::Embed).unwrap();
    refused(cache.get(HookPoint::Embed), &["`hook_embed`", "not captured"]);
    assert!(cache.is_empty() && ActivationCache::default().is_empty());
}

#[test]
fn a_cache_lists_what_it_holds() {
    let sites = toy().sites();
    let cache = toy().harvest(&tokens(), &sites).unwrap();
    let mut listed: Vec<_> = cache.iter().map(|(site, _)| site).collect();
    let mut wanted = sites.clone();
    wanted.sort();
    listed.sort();
    assert_eq!(listed, wanted);
    assert!(cache.iter().all(|(site, act)| act.size() == site.shape(toy().dims(), 2, 5)));
}
