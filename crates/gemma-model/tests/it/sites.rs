//! Every site fires once, in the listed order, with the listed shape, and looking changes no bit.

use gemma_model::{Gemma2, LoadOptions};
use hooks::{HookPoint, HookSet, HookedModelExt as _, observe, replace};
use tch::{Device, Kind};
use testkit::{assert_same, fixture};

use crate::common::{CASES, Run, model, tokens};

#[test]
fn every_site_fires_once_in_order_with_its_shape() {
    for case in CASES {
        let (model, tokens) = (model(case), tokens(case));
        let dims = &model.config().dims;
        let all: Vec<HookPoint> = HookPoint::all(dims.n_layers).collect();
        let mut met = Vec::new();
        let mut hooks = HookSet::new();
        hooks.on_each(
            all.iter().copied(),
            observe(|site, act| {
                met.push((site, act.size()));
                Ok(())
            }),
        );
        let _logits = model.run(&tokens, hooks).unwrap();
        let want: Vec<_> = all.iter().map(|s| (*s, s.shape(dims, tokens.batch(), tokens.pos()))).collect();
        assert_eq!(met, want, "{case}");
    }
}

#[test]
fn identity_hooks_at_all_sites_change_no_bit() {
    for case in CASES {
        for kind in [Kind::Float, Kind::BFloat16] {
            let options = LoadOptions { kind, device: Device::Cpu };
            let model = Gemma2::load(&fixture(&format!("gemma2/{case}")), &options).unwrap();
            let tokens = tokens(case);
            let all: Vec<HookPoint> = HookPoint::all(model.config().dims.n_layers).collect();
            let plain = model.logits(&tokens).unwrap();

            let (logits, cache) = model.run_with_cache(&tokens, &all).unwrap();
            assert_same(&format!("{case} {kind:?}: observed"), &logits, &plain);
            assert_eq!(cache.len(), all.len());

            let mut hooks = HookSet::new();
            hooks.on_each(all.iter().copied(), replace(|_, act| Ok(act.copy())));
            assert_same(&format!("{case} {kind:?}: replaced"), &model.run(&tokens, hooks).unwrap(), &plain);
        }
    }
}

#[test]
fn each_site_alone_changes_no_bit() {
    // `hook_result` and the others that are computed for a hook only must not move what the others see.
    let run = Run::of("mini-padded");
    for site in HookPoint::all(run.config().dims.n_layers) {
        let (logits, cache) = run.model.run_with_cache(&run.tokens, &[site]).unwrap();
        assert_same(&site.to_string(), &logits, &run.logits);
        assert_same(&site.to_string(), cache.get(site).unwrap(), run.raw(&site.to_string()));
    }
}

#[test]
fn harvesting_any_site_equals_a_full_run() {
    let run = Run::of("mini-2b");
    for site in HookPoint::all(run.config().dims.n_layers) {
        let harvested = run.model.harvest(&run.tokens, &[site]).unwrap();
        assert_same(&site.to_string(), harvested.get(site).unwrap(), run.raw(&site.to_string()));
    }
}

#[test]
fn nothing_is_nan_and_only_hidden_scores_are_infinite() {
    for case in CASES {
        let run = Run::of(case);
        for site in HookPoint::all(run.config().dims.n_layers) {
            let act = run.raw(&site.to_string());
            assert_eq!(act.isnan().any().int64_value(&[]), 0, "{case}: {site}");
            if !matches!(site, HookPoint::AttnScores(_)) {
                assert_eq!(act.isinf().any().int64_value(&[]), 0, "{case}: {site}");
            }
        }
        assert_eq!(run.logits.isfinite().all().int64_value(&[]), 1, "{case}");
    }
}

#[test]
fn the_residual_stream_is_a_sum() {
    for case in CASES {
        let run = Run::of(case);
        let name = |l: usize, site: &str| format!("blocks.{l}.{site}");
        for l in run.layers() {
            let before = if l == 0 { "hook_embed".to_owned() } else { name(l - 1, "hook_resid_post") };
            assert_same(case, run.raw(&name(l, "hook_resid_pre")), run.raw(&before));
            // One addition each, so the same bits.
            let mid = run.raw(&name(l, "hook_resid_pre")) + run.raw(&name(l, "hook_attn_out"));
            assert_same(case, run.raw(&name(l, "hook_resid_mid")), &mid);
            assert_same(case, run.raw(&name(l, "hook_mlp_in")), run.raw(&name(l, "hook_resid_mid")));
            let post = run.raw(&name(l, "hook_resid_mid")) + run.raw(&name(l, "hook_mlp_out"));
            assert_same(case, run.raw(&name(l, "hook_resid_post")), &post);
        }
    }
}

#[test]
fn the_embedding_is_scaled_by_the_root_of_d_model() {
    use crate::common::ONE_STEP;
    for case in CASES {
        let run = Run::of(case);
        let rows = run.weight("model.embed_tokens").index_select(0, &run.tokens.ids().flatten(0, -1));
        let want = rows * (run.config().dims.d_model as f64).sqrt();
        let want = want.view_as(run.raw("hook_embed"));
        testkit::assert_close(case, &run.at("hook_embed"), &want, ONE_STEP);
    }
}
