//! The splice on a Gemma 2 checkpoint, at the sites that Gemma Scope has.

use gemma_model::{Gemma2, LoadOptions};
use hooks::{
    ActivationCache, HookPoint, HookSet, HookedModel as _, HookedModelExt as _, LayerIdx, TokenBatch,
};
use sae_core::{FeatureId, Sae, SaeExt as _, SparseAutoencoder as _, Splice, as_input};
use tch::{Kind, Tensor};
use testkit::{assert_close, assert_same, fixture, read_tokens};

use crate::common::{ROUNDING, random_sae};

const L: LayerIdx = LayerIdx(1);
const SITES: [HookPoint; 5] = [
    HookPoint::ResidPost(L),
    HookPoint::MlpOut(L),
    HookPoint::AttnZ(L),
    HookPoint::Embed,
    HookPoint::ResidPre(L),
];

fn load(kind: Kind) -> (Gemma2, TokenBatch) {
    let options = LoadOptions { kind, ..LoadOptions::default() };
    (Gemma2::load(&fixture("gemma2/mini-2b"), &options).unwrap(), read_tokens("gemma2/mini-2b/tokens.json"))
}

fn sae_for(model: &Gemma2, site: HookPoint) -> Sae {
    let d_in = site.shape(model.dims(), 1, 1).iter().product();
    random_sae(d_in, 64, d_in, 4)
}

fn spliced(model: &Gemma2, tokens: &TokenBatch, site: HookPoint, splice: Splice<'_>) -> (Tensor, Tensor) {
    let mut cache = ActivationCache::default();
    let mut hooks = HookSet::new();
    hooks.on(site, splice).on(site, &mut cache);
    let logits = model.run(tokens, hooks).unwrap();
    (cache.take(site).unwrap(), logits)
}

#[test]
fn the_reconstruction_keeps_the_sites_shape() {
    let (model, tokens) = load(Kind::Float);
    for site in SITES {
        let sae = sae_for(&model, site);
        let (logits, cache) = model.run_with_cache(&tokens, &[site]).unwrap();
        let act = cache.get(site).unwrap();
        let (seen, spliced_logits) = spliced(&model, &tokens, site, Splice::reconstruction(&sae));
        assert_eq!(seen.size(), act.size(), "{site}");
        // Flattened by hand: [batch, pos, n_heads, d_head] lies in memory as [batch, pos, n_heads · d_head].
        let flat = act.contiguous().view([2, 24, -1]);
        assert_same(&site.to_string(), &seen, &sae.reconstruct(&flat).unwrap().view(act.size().as_slice()));
        assert!(!spliced_logits.equal(&logits), "{site}: nothing changed downstream");
    }
}

#[test]
fn the_error_alone_leaves_every_bit() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let (model, tokens) = load(kind);
        let logits = model.logits(&tokens).unwrap();
        for site in SITES {
            let sae = sae_for(&model, site);
            let (_, spliced) = spliced(&model, &tokens, site, Splice::reconstruction(&sae).keep_error());
            assert_same(&format!("{site} in {kind:?}"), &spliced, &logits);
        }
    }
}

#[test]
fn ablating_a_silent_latent_changes_no_bit() {
    let (model, tokens) = load(Kind::Float);
    let logits = model.logits(&tokens).unwrap();
    for site in SITES {
        let sae = sae_for(&model, site);
        let act = model.harvest(&tokens, &[site]).unwrap().take(site).unwrap();
        let counts = sae.encode(&as_input(site, &act).unwrap()).unwrap().ne(0.0);
        let counts =
            Vec::<i64>::try_from(counts.flatten(0, 1).sum_dim_intlist(0, false, Kind::Int64)).unwrap();
        let mut splice = Splice::reconstruction(&sae).keep_error();
        let silent: Vec<usize> =
            counts.iter().enumerate().filter(|(_, c)| **c == 0).map(|(f, _)| f).collect();
        for f in silent {
            splice = splice.clamp(FeatureId(f), 0.0).unwrap();
        }
        assert_same(&site.to_string(), &spliced(&model, &tokens, site, splice).1, &logits);
    }
}

#[test]
fn a_clamp_moves_the_activation_along_its_direction() {
    let (model, tokens) = load(Kind::Float);
    for site in SITES {
        let sae = sae_for(&model, site);
        let act = model.harvest(&tokens, &[site]).unwrap().take(site).unwrap();
        let x = as_input(site, &act).unwrap();
        let splice = Splice::reconstruction(&sae).clamp(FeatureId(11), 6.0).unwrap().keep_error();
        let (seen, _) = spliced(&model, &tokens, site, splice);
        let f = sae.encode(&x).unwrap().select(-1, 11).unsqueeze(-1);
        let want = &x + (6.0 - f) * sae.direction(FeatureId(11)).unwrap();
        assert_close(&site.to_string(), &as_input(site, &seen).unwrap(), &want, ROUNDING);
    }
}

#[test]
fn only_the_chosen_positions_of_a_site_with_heads_change() {
    let (model, tokens) = load(Kind::Float);
    let site = HookPoint::AttnZ(L);
    let sae = sae_for(&model, site);
    let act = model.harvest(&tokens, &[site]).unwrap().take(site).unwrap();
    let mask = tokens.counted().shallow_clone();
    let (seen, _) = spliced(&model, &tokens, site, Splice::reconstruction(&sae).at(mask.shallow_clone()));
    let x_hat = sae.reconstruct(&as_input(site, &act).unwrap()).unwrap().view(act.size().as_slice());
    let four = mask.view([2, 24, 1, 1]);
    assert_same("activation", &seen, &x_hat.where_self(&four, &act));
    assert_same("BOS", &seen.select(1, 0), &act.select(1, 0));
}
