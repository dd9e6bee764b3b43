//! The naive way: three whole runs of the model for each site, and every metric from its definition, on all tokens at once.

use std::collections::BTreeMap;

use hooks::{HookPoint, HookSet, HookedModel, HookedModelExt as _, Positions, TokenBatch, edit};
use sae_core::{SaeExt as _, SparseAutoencoder, Splice, as_input};
use tch::{Kind, Tensor};
use testkit::ToyModel;

use crate::common::{LOSS, METRIC, assert_metric, gemma, random_sae, report, tokens, width};

/// Every metric by its name.
pub(crate) fn naive(
    model: &dyn HookedModel,
    site: HookPoint,
    sae: &dyn SparseAutoencoder,
    tokens: &TokenBatch,
    positions: Positions,
) -> BTreeMap<&'static str, f64> {
    let kept = positions.mask(tokens).unwrap();
    let loss = |hooks: HookSet<'_>| mean_loss(&model.run(tokens, hooks).unwrap(), tokens, &kept);
    let ce_clean = loss(HookSet::new());
    let mut hooks = HookSet::new();
    hooks.on(site, Splice::reconstruction(sae).at(kept.shallow_clone()));
    let ce_spliced = loss(hooks);
    let mut hooks = HookSet::new();
    hooks.on(site, edit::zero().at(kept.shallow_clone()));
    let ce_zero = loss(hooks);

    let act = model.harvest(tokens, &[site]).unwrap().take(site).unwrap();
    let x = rows(&as_input(site, &act).unwrap(), &kept); // [n, d_in]
    let features = sae.encode(&x).unwrap();
    let x_hat = sae.reconstruct(&x).unwrap().to_kind(Kind::Double);
    let x = x.to_kind(Kind::Double);
    let square = |t: Tensor| t.square().sum(Kind::Double).double_value(&[]);
    let fvu = square(&x - x_hat) / square(&x - x.mean_dim(Some([0].as_slice()), true, Kind::Double));
    let active = features.ne(0.0).to_kind(Kind::Double);
    let dead =
        active.sum_dim_intlist(0, false, Kind::Double).eq(0.0).to_kind(Kind::Double).mean(Kind::Double);
    let l0 = active.sum_dim_intlist(1, false, Kind::Double).mean(Kind::Double);
    BTreeMap::from([
        ("ce_clean", ce_clean),
        ("ce_spliced", ce_spliced),
        ("ce_zero", ce_zero),
        ("delta_loss", ce_spliced - ce_clean),
        ("loss_recovered_zero", (ce_zero - ce_spliced) / (ce_zero - ce_clean)),
        ("l0", l0.double_value(&[])),
        ("fvu", fvu),
        ("explained_variance", 1.0 - fvu),
        ("dead_fraction", dead.double_value(&[])),
    ])
}

/// The positions of `[batch, pos, d]` that are kept.
fn rows(x: &Tensor, kept: &Tensor) -> Tensor {
    x.flatten(0, 1).index_select(0, &kept.flatten(0, 1).nonzero().squeeze_dim(1))
}

/// Over the positions that are kept, and whose next position is.
fn mean_loss(logits: &Tensor, tokens: &TokenBatch, kept: &Tensor) -> f64 {
    let log_p = logits.to_kind(Kind::Double).log_softmax(-1, Kind::Double);
    let (mut sum, mut n) = (0.0, 0.0);
    for (b, row) in tokens.rows().iter().enumerate() {
        for (p, &next) in row.iter().enumerate().skip(1) {
            let (b, p) = (b as i64, p as i64);
            if kept.int64_value(&[b, p - 1]) != 0 && kept.int64_value(&[b, p]) != 0 {
                sum -= log_p.double_value(&[b, p - 1, next]);
                n += 1.0;
            }
        }
    }
    sum / n
}

#[track_caller]
fn assert_same_as_naive(model: &dyn HookedModel, site: HookPoint, tokens: TokenBatch, positions: Positions) {
    let d_in = width(model.dims(), site);
    let sae = random_sae(d_in, 32, d_in, 3);
    let want = naive(model, site, &sae, &tokens, positions);
    let got = report(model, site, &sae, vec![tokens], positions);
    let what = format!("{site}, {positions}");
    assert_eq!(got.metrics.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{what}");
    // Loss recovered divides two differences of losses: where they are small, the losses' rounding shows.
    let recovered = METRIC.max(2.0 * LOSS / (want["ce_zero"] - want["ce_clean"]).abs());
    for (name, value) in &want {
        if *name == "loss_recovered_zero" {
            assert!(
                (got.metrics[name] - value).abs() <= recovered,
                "{what}: {name} is {}, not {value}",
                got.metrics[name]
            );
        } else {
            assert_metric(&what, name, got.metrics[name], *value);
        }
    }
}

#[test]
fn sharing_the_prefix_changes_no_metric() {
    let model = gemma();
    for name in [
        "hook_embed",
        "blocks.0.hook_resid_pre",
        "blocks.2.hook_resid_pre",
        "blocks.1.attn.hook_q",
        "blocks.1.attn.hook_v",
        "blocks.0.attn.hook_z",
        "blocks.3.attn.hook_z",
        "blocks.1.hook_attn_out",
        "blocks.2.hook_resid_mid",
        "blocks.1.hook_mlp_in",
        "blocks.2.ln2.hook_normalized",
        "blocks.1.mlp.hook_post",
        "blocks.0.hook_mlp_out",
        "blocks.3.hook_mlp_out",
        "blocks.0.hook_resid_post",
        "blocks.3.hook_resid_post",
    ] {
        assert_same_as_naive(&model, name.parse().unwrap(), tokens(), Positions::Counted);
    }
}

#[test]
fn every_set_of_positions() {
    let model = gemma();
    for positions in [
        Positions::Counted,
        Positions::All,
        Positions::Range { start: 1, end: None },
        Positions::Range { start: 3, end: Some(9) },
        Positions::Range { start: 18, end: Some(20) },
    ] {
        for name in ["blocks.2.hook_resid_post", "blocks.1.hook_mlp_out", "blocks.1.attn.hook_z"] {
            assert_same_as_naive(&model, name.parse().unwrap(), tokens(), positions);
        }
    }
}

#[test]
fn a_model_of_another_kind() {
    let model = ToyModel::new(3, 6, 320, 1);
    for site in model.sites() {
        assert_same_as_naive(&model, site, tokens(), Positions::Counted);
    }
}
