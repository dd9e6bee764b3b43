//! The five norms at their two sites: `scale² = mean(x²) + ε`, `x / scale = normalized`.

use hooks::{ActivationCache, HookPoint, HookSet, HookedModelExt as _};
use tch::{Kind, Tensor};
use testkit::{assert_close, normal};

use crate::common::{CASES, ONE_STEP, Run, model};

/// The inputs of every norm of a run, with the name of its sites.
fn inputs(run: &Run) -> Vec<(String, Tensor)> {
    let mut all = Vec::new();
    for l in run.layers() {
        let at = |site: &str| run.at(&format!("blocks.{l}.{site}"));
        let attn_out = at("attn.hook_result").sum_dim_intlist(2, false, Kind::Double);
        let mlp_out =
            at("mlp.hook_post").matmul(&run.weight(&format!("model.layers.{l}.mlp.down_proj")).tr());
        all.push((format!("blocks.{l}.ln1"), at("hook_resid_pre")));
        all.push((format!("blocks.{l}.ln1_post"), attn_out));
        all.push((format!("blocks.{l}.ln2"), at("hook_mlp_in")));
        all.push((format!("blocks.{l}.ln2_post"), mlp_out));
    }
    let last = format!("blocks.{}.hook_resid_post", run.layers().end - 1);
    all.push(("ln_final".to_owned(), run.at(&last)));
    all
}

#[test]
fn scale_is_the_root_mean_square_and_normalized_the_quotient() {
    for case in CASES {
        let run = Run::of(case);
        for (norm, x) in inputs(&run) {
            let mean_square = x.square().mean_dim(-1, true, Kind::Double) + run.config().rms_eps;
            let scale = run.at(&format!("{norm}.hook_scale"));
            assert_close(&format!("{case}: {norm}.hook_scale²"), &scale.square(), &mean_square, ONE_STEP);
            let normalized = &x / mean_square.sqrt();
            assert_close(
                &format!("{case}: {norm}"),
                &run.at(&format!("{norm}.hook_normalized")),
                &normalized,
                ONE_STEP,
            );
        }
    }
}

#[test]
fn normalized_vectors_have_unit_mean_square() {
    for case in CASES {
        let run = Run::of(case);
        for (norm, x) in inputs(&run) {
            // mean(x²) / (mean(x²) + ε), which is 1 but for ε.
            let mean_square = x.square().mean_dim(-1, true, Kind::Double);
            let want = &mean_square / (&mean_square + run.config().rms_eps);
            let got = run.at(&format!("{norm}.hook_normalized")).square().mean_dim(-1, true, Kind::Double);
            assert_close(&format!("{case}: {norm}"), &got, &want, ONE_STEP);
        }
    }
}

#[test]
fn epsilon_stands_under_the_root() {
    // It matters only where the input is tiny: of zeros, the scale is √ε.
    let model = model("mini-2b");
    let eps = model.config().rms_eps;
    for size in [0.0, 1e-4, 1e-3, 1e-2] {
        let x = normal(&[1, 3, 48], 4) * size;
        let mut cache = ActivationCache::default();
        let mut hooks = HookSet::new();
        hooks.on_each([HookPoint::LnFinalScale, HookPoint::LnFinalNormalized], &mut cache);
        let logits = model.unembed(&x, &mut hooks).unwrap();
        drop(hooks);
        let x = x.to_kind(Kind::Double);
        let scale = (x.square().mean_dim(-1, true, Kind::Double) + eps).sqrt();
        assert_close(
            &format!("scale of {size}"),
            cache.get(HookPoint::LnFinalScale).unwrap(),
            &scale,
            ONE_STEP,
        );
        assert_close("normalized", cache.get(HookPoint::LnFinalNormalized).unwrap(), &(x / scale), ONE_STEP);
        assert_eq!(logits.isfinite().all().int64_value(&[]), 1);
    }
}

#[test]
fn the_gain_is_one_plus_the_weight() {
    for case in CASES {
        let run = Run::of(case);
        for l in run.layers() {
            for (norm, weight, site) in [
                ("ln1_post", "post_attention_layernorm", "hook_attn_out"),
                ("ln2_post", "post_feedforward_layernorm", "hook_mlp_out"),
            ] {
                let normalized = format!("blocks.{l}.{norm}.hook_normalized");
                let want = run.normed(&normalized, &format!("model.layers.{l}.{weight}"));
                assert_close(
                    &format!("{case}: {site}"),
                    &run.at(&format!("blocks.{l}.{site}")),
                    &want,
                    ONE_STEP,
                );
            }
        }
    }
}
