//! The splice on the toy model.

use hooks::{ActivationCache, HookPoint, HookSet, HookedModelExt as _, LayerIdx, Positions, TokenBatch};
use sae_core::{FeatureId, Sae, SaeExt as _, SparseAutoencoder as _, Splice};
use tch::Tensor;
use testkit::{ToyModel, assert_close, assert_same, uniform};

use crate::common::{ROUNDING, with_threshold};

const D_MODEL: i64 = 6;
const D_SAE: i64 = 20;

fn toy() -> ToyModel {
    ToyModel::new(3, D_MODEL as usize, 30, 1)
}

fn tokens() -> TokenBatch {
    TokenBatch::new(&[vec![2, 5, 9, 1, 8], vec![2, 7, 7, 3, 29]], &[0, 1, 2]).unwrap()
}

/// Never on: its threshold is out of reach.
const SILENT: FeatureId = FeatureId(7);

fn sae() -> Sae {
    let threshold = uniform(&[D_SAE], 0.2, 1.0, 8);
    let _ = threshold.get(SILENT.0 as i64).fill_(1e6);
    with_threshold(D_MODEL, D_SAE, D_MODEL, 3, threshold)
}

/// What the site holds after the splice, and the logits.
fn spliced(site: HookPoint, splice: Splice<'_>) -> (Tensor, Tensor) {
    let (model, mut cache) = (toy(), ActivationCache::default());
    let mut hooks = HookSet::new();
    hooks.on(site, splice).on(site, &mut cache);
    let logits = model.run(&tokens(), hooks).unwrap();
    (cache.take(site).unwrap(), logits)
}

fn clean(site: HookPoint) -> (Tensor, Tensor) {
    let (logits, mut cache) = toy().run_with_cache(&tokens(), &[site]).unwrap();
    (cache.take(site).unwrap(), logits)
}

/// A latent that is on at some of the positions and off at others.
fn sometimes(sae: &Sae, x: &Tensor) -> FeatureId {
    let on = sae.encode(x).unwrap().ne(0.0).flatten(0, 1);
    let mixed = on.any_dim(0, false).logical_and(&on.all_dim(0, false).logical_not());
    FeatureId(mixed.nonzero().int64_value(&[0, 0]) as usize)
}

#[test]
fn the_reconstruction_stands_in_the_activations_place() {
    let sae = sae();
    for site in toy().sites() {
        let (x, logits) = clean(site);
        let (seen, spliced_logits) = spliced(site, Splice::reconstruction(&sae));
        assert_same(&site.to_string(), &seen, &sae.reconstruct(&x).unwrap());
        assert!(!spliced_logits.equal(&logits), "{site}: nothing changed downstream");
    }
}

#[test]
fn only_the_chosen_positions_change() {
    let (sae, site) = (sae(), HookPoint::ResidPost(LayerIdx(1)));
    let (x, _) = clean(site);
    let x_hat = sae.reconstruct(&x).unwrap();
    for positions in [Positions::Counted, Positions::All, Positions::Range { start: 1, end: Some(3) }] {
        let mask = positions.mask(&tokens()).unwrap();
        let (seen, _) = spliced(site, Splice::reconstruction(&sae).at(mask.shallow_clone()));
        for b in 0..2 {
            for p in 0..5 {
                let on = mask.int64_value(&[b, p]) != 0;
                let want = if on { &x_hat } else { &x };
                assert_same(&format!("{positions} at {b}, {p}"), &seen.get(b).get(p), &want.get(b).get(p));
            }
        }
    }
}

#[test]
fn the_error_alone_leaves_every_bit() {
    let sae = sae();
    for site in toy().sites() {
        let (x, logits) = clean(site);
        let (seen, spliced_logits) = spliced(site, Splice::reconstruction(&sae).keep_error());
        assert_same(&site.to_string(), &seen, &x);
        assert_same(&site.to_string(), &spliced_logits, &logits);
    }
}

#[test]
fn a_clamp_moves_the_activation_along_its_direction() {
    let sae = sae();
    for site in toy().sites() {
        let (x, _) = clean(site);
        let active = sometimes(&sae, &x);
        for value in [0.0, 2.5, -1.0] {
            let splice = Splice::reconstruction(&sae).clamp(active, value).unwrap();
            let (seen, _) = spliced(site, splice.keep_error());
            // (value − f) · W_dec[f]
            let f = sae.encode(&x).unwrap().select(-1, active.0 as i64).unsqueeze(-1);
            let step = (value - f) * sae.direction(active).unwrap();
            assert_close(&format!("{site}, {value}"), &seen, &(&x + step), ROUNDING);
        }
    }
}

#[test]
fn without_the_error_a_clamp_changes_the_reconstruction() {
    let (sae, site) = (sae(), HookPoint::MlpOut(LayerIdx(0)));
    let (x, _) = clean(site);
    let active = sometimes(&sae, &x);
    let splice = Splice::reconstruction(&sae).clamp(active, 0.0).unwrap().clamp(SILENT, 3.0).unwrap();
    let (seen, _) = spliced(site, splice);
    let features = sae.encode(&x).unwrap();
    let _ = features.select(-1, active.0 as i64).fill_(0.0);
    let _ = features.select(-1, SILENT.0 as i64).fill_(3.0);
    assert_close("two clamps", &seen, &sae.decode(&features).unwrap(), ROUNDING);
}

#[test]
fn the_last_clamp_of_a_latent_holds() {
    let (sae, site) = (sae(), HookPoint::MlpOut(LayerIdx(0)));
    let active = sometimes(&sae, &clean(site).0);
    let twice = Splice::reconstruction(&sae).clamp(active, 9.0).unwrap().clamp(active, 2.0).unwrap();
    let once = Splice::reconstruction(&sae).clamp(active, 2.0).unwrap();
    assert_same("activation", &spliced(site, twice).0, &spliced(site, once).0);
}

#[test]
fn ablating_a_silent_latent_changes_no_bit() {
    let sae = sae();
    for site in toy().sites() {
        let (x, logits) = clean(site);
        let splice = Splice::reconstruction(&sae).clamp(SILENT, 0.0).unwrap().keep_error();
        let (seen, spliced_logits) = spliced(site, splice);
        assert_same(&site.to_string(), &seen, &x);
        assert_same(&site.to_string(), &spliced_logits, &logits);
    }
}

/// An error much larger or smaller than the reconstruction must not wash out what the clamp does not touch.
#[test]
fn a_clamp_leaves_positions_without_the_latent_bit_by_bit() {
    let (sae, site) = (sae(), HookPoint::ResidPost(LayerIdx(2)));
    let (x, _) = clean(site);
    let active = sometimes(&sae, &x);
    let splice = Splice::reconstruction(&sae).clamp(active, 0.0).unwrap().keep_error();
    let (seen, _) = spliced(site, splice);
    let off = sae.encode(&x).unwrap().select(-1, active.0 as i64).eq(0.0).unsqueeze(-1);
    assert_same("where it is off", &seen.masked_select(&off), &x.masked_select(&off));
}
