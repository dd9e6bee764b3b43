//! `c · tanh(x / c)`, for logits and for scores.

use gemma_model::{Gemma2, Gemma2Config};
use hooks::{HookPoint, HookedModelExt as _, LayerIdx};
use tch::Kind;
use testkit::{assert_close, relative_error};

use crate::common::{CASES, ONE_STEP, model, tokens, with_config};

/// What a cap must change for its formula to be tested: a hundred times the tolerance.
const BENT: f64 = 100.0 * ONE_STEP;

#[test]
fn logits_stay_within_the_cap_whatever_the_weights() {
    for case in CASES {
        let plain = model(case);
        let cap = plain.config().final_softcap.unwrap();
        for factor in [1.0, 100.0, 1e6] {
            let large = Gemma2::from_fn(plain.config().clone(), |name, _| {
                let parameters = plain.parameters();
                Ok(parameters.iter().find(|(n, _)| n == name).unwrap().1 * factor)
            });
            let logits = large.unwrap().logits(&tokens(case)).unwrap();
            let largest = logits.abs().max().double_value(&[]);
            assert!(largest <= cap, "{case} × {factor}: {largest}");
            assert_eq!(logits.isnan().any().int64_value(&[]), 0, "{case} × {factor}");
        }
    }
}

#[test]
fn the_final_cap_bends_the_logits_by_its_formula() {
    for case in CASES {
        let capped = model(case);
        let bare = with_config(&capped, Gemma2Config { final_softcap: None, ..capped.config().clone() });
        let raw = bare.logits(&tokens(case)).unwrap().to_kind(Kind::Double);
        let cap = capped.config().final_softcap.unwrap();
        let want = (&raw / cap).tanh() * cap;
        assert_close(case, &capped.logits(&tokens(case)).unwrap(), &want, ONE_STEP);
        assert!(relative_error(&raw, &want) > BENT, "{case}: the cap does not bend these logits");
    }
}

#[test]
fn logits_are_the_embeddings_products_with_the_normed_stream() {
    for case in CASES {
        let run = crate::common::Run::of(case);
        let x = run.normed("ln_final.hook_normalized", "model.norm");
        let raw = x.matmul(&run.weight("model.embed_tokens").tr());
        let cap = run.config().final_softcap.unwrap();
        assert_close(case, &run.logits, &((raw / cap).tanh() * cap), ONE_STEP);
    }
}

#[test]
fn the_attention_cap_bends_the_scores_by_its_formula() {
    let capped = model("mini-2b");
    let bare = with_config(&capped, Gemma2Config { attn_softcap: None, ..capped.config().clone() });
    // The first block's scores come from the same queries and keys in both.
    let site = HookPoint::AttnScores(LayerIdx(0));
    let scores = |model: &Gemma2| {
        let scores =
            model.harvest(&tokens("mini-2b"), &[site]).unwrap().take(site).unwrap().to_kind(Kind::Double);
        let hidden = scores.isinf();
        scores.masked_fill(&hidden, 0.0)
    };
    let (raw, cap) = (scores(&bare), 50.0);
    assert_close("scores", &scores(&capped), &((&raw / cap).tanh() * cap), ONE_STEP);
    assert!(relative_error(&raw, &((&raw / cap).tanh() * cap)) > BENT, "the cap does not bend these scores");
}

#[test]
fn the_scale_of_scores_is_its_own_number_and_not_d_head() {
    // 27B divides by √144 with heads of 128; here √9 with heads of 12.
    let own = model("mini-27b");
    assert_ne!(own.config().query_pre_attn_scalar, own.config().dims.d_head as f64);
    let config = |scalar: f64| Gemma2Config {
        attn_softcap: None,
        query_pre_attn_scalar: scalar,
        ..own.config().clone()
    };
    let site = HookPoint::AttnScores(LayerIdx(0));
    let scores = |scalar: f64| {
        let model = with_config(&own, config(scalar));
        let scores = model.harvest(&tokens("mini-27b"), &[site]).unwrap().take(site).unwrap();
        scores.masked_fill(&scores.isinf(), 0.0)
    };
    assert_close("four times the scalar", &(scores(36.0) * 2.0), &scores(9.0), ONE_STEP);
}
