//! What can't be evaluated: the error names the site, the numbers or what is missing.

use eval::{EvalError, EvalOptions, Evaluation, evaluate};
use hooks::{HookError, HookPoint, LayerIdx, Positions, TokenBatch};
use testkit::ToyModel;

use crate::{
    common::{all, batch, gemma, random_sae, refused, tokens},
    counting::Counting,
};

const L: LayerIdx = LayerIdx(1);

#[track_caller]
fn new_refused(site: HookPoint, d_in: i64, d_out: i64, at_fault: &[&str]) -> EvalError {
    let (model, sae) = (gemma(), random_sae(d_in, 16, d_out, 1));
    let error = Evaluation::new(&model, site, &sae, EvalOptions::default()).err();
    refused(error.map_or(Ok(()), Err), &[&[site.to_string().as_str()], at_fault].concat());
    Evaluation::new(&model, site, &sae, EvalOptions::default()).unwrap_err()
}

#[test]
fn an_sae_of_another_width() {
    // 48 is d_model, 64 is n_heads · d_head, 160 is d_mlp.
    for (site, d_in, width) in [
        (HookPoint::ResidPost(L), 64, 48),
        (HookPoint::AttnZ(L), 48, 64),
        (HookPoint::AttnK(L), 64, 32),
        (HookPoint::MlpPost(L), 48, 160),
        (HookPoint::Embed, 47, 48),
    ] {
        let error = new_refused(site, d_in, d_in, &[&d_in.to_string(), &width.to_string()]);
        assert!(matches!(error, EvalError::Misfit { .. }), "{error}");
    }
}

#[test]
fn a_transcoder() {
    let (model, sae) = (gemma(), random_sae(48, 16, 40, 1));
    let error =
        Evaluation::new(&model, HookPoint::Ln2Normalized(L), &sae, EvalOptions::default()).unwrap_err();
    assert!(matches!(error, EvalError::Transcoder { d_in: 48, d_out: 40 }), "{error}");
    refused(Err::<(), _>(error), &["transcoder", "d_in = 48", "d_out = 40"]);
}

#[test]
fn sites_behind_the_blocks() {
    for (site, d_in) in [(HookPoint::LnFinalNormalized, 48), (HookPoint::LnFinalScale, 1)] {
        let error = new_refused(site, d_in, d_in, &[]);
        assert!(matches!(error, EvalError::Site(s) if s == site), "{error}");
    }
}

/// An SAE reads a row of numbers for each position: attention's scores and patterns have no such rows.
#[test]
fn sites_without_positions() {
    for site in [HookPoint::AttnScores(L), HookPoint::AttnPattern(L)] {
        let error = new_refused(site, 1, 1, &[]);
        assert!(matches!(error, EvalError::Site(s) if s == site), "{error}");
    }
}

#[test]
fn layers_that_the_model_does_not_have() {
    for site in
        [HookPoint::ResidPost(LayerIdx(4)), HookPoint::ResidPre(LayerIdx(4)), HookPoint::MlpOut(LayerIdx(99))]
    {
        let error = new_refused(site, 48, 48, &["out of range", "0 to 3"]);
        assert!(matches!(error, EvalError::Hook(HookError::OutOfRange { .. })), "{error}");
    }
}

#[test]
fn a_site_that_this_model_never_meets() {
    let (model, sae) = (ToyModel::new(3, 6, 320, 1), random_sae(6, 16, 6, 1));
    let site = HookPoint::AttnOut(L);
    let got = evaluate(&model, site, &sae, all(vec![tokens()]), &EvalOptions::default());
    refused(got, &["blocks.1.hook_attn_out", "did not fire"]);
}

#[test]
fn nothing_that_counts() {
    let (model, sae) = (gemma(), random_sae(48, 16, 48, 1));
    let run = |batches: Vec<TokenBatch>, positions| {
        evaluate(&model, HookPoint::ResidPost(L), &sae, all(batches), &EvalOptions { positions })
    };
    for batches in [
        vec![],
        vec![batch(&[vec![2, 1, 0, 0]])],
        vec![batch(&[vec![2, 0, 0], vec![2, 1, 2]]), batch(&[vec![2, 2]])],
        // Something counts here, but nowhere does the next token.
        vec![batch(&[vec![2, 5, 1, 7, 0]])],
        vec![batch(&[vec![5]])],
    ] {
        let error = run(batches, Positions::Counted).unwrap_err();
        assert!(matches!(error, EvalError::Empty), "{error}");
        refused(Err::<(), _>(error), &["no position counts", "next"]);
    }
    let one = run(vec![tokens()], Positions::Range { start: 4, end: Some(5) }).unwrap_err();
    assert!(matches!(one, EvalError::Empty), "{one}");
}

#[test]
fn positions_that_a_batch_does_not_have() {
    let (model, sae) = (gemma(), random_sae(48, 16, 48, 1));
    for (start, end) in [(20, None), (5, Some(21)), (6, Some(6))] {
        let options = EvalOptions { positions: Positions::Range { start, end } };
        let got = evaluate(&model, HookPoint::ResidPost(L), &sae, all(vec![tokens()]), &options);
        refused(got, &["positions", &format!("{start}:"), "20"]);
    }
}

#[test]
fn tokens_that_the_model_does_not_have() {
    let (model, sae) = (gemma(), random_sae(48, 16, 48, 1));
    let run = |rows: &[Vec<i64>]| {
        evaluate(&model, HookPoint::ResidPost(L), &sae, all(vec![batch(rows)]), &EvalOptions::default())
    };
    refused(run(&[vec![2, 5, 320]]), &["320", "vocabulary"]);
    refused(run(&[vec![5; 65]]), &["65", "64"]);
}

#[test]
fn the_error_of_a_batch_is_handed_on() {
    let (model, sae) = (gemma(), random_sae(48, 16, 48, 1));
    let batches = [Ok(tokens()), Err(HookError::Tokens("the file ends here".to_owned()))];
    let got = evaluate(&model, HookPoint::ResidPost(L), &sae, batches, &EvalOptions::default());
    refused(got, &["the file ends here"]);
}

#[test]
fn a_run_that_breaks_off_leaves_no_trace() {
    let sae = random_sae(6, 16, 6, 1);
    for lasts in 0..3 {
        let model = Counting::breaking(ToyModel::new(3, 6, 320, 1), lasts + 3);
        let mut evaluation =
            Evaluation::new(&model, HookPoint::MlpOut(L), &sae, EvalOptions::default()).unwrap();
        evaluation.add(&tokens()).unwrap();
        let before = evaluation.report().unwrap();
        refused(evaluation.add(&tokens()), &["out of order"]);
        assert_eq!(evaluation.report().unwrap(), before, "after {lasts} of three runs");
    }
}

#[test]
fn evaluations_of_different_things_are_not_merged() {
    let model = gemma();
    let (sae, wider) = (random_sae(48, 16, 48, 1), random_sae(48, 17, 48, 1));
    let options = |positions| EvalOptions { positions };
    let new = |site, sae, positions| {
        let mut evaluation = Evaluation::new(&model, site, sae, options(positions)).unwrap();
        evaluation.add(&tokens()).unwrap();
        evaluation
    };
    let (post, out) = (HookPoint::ResidPost(L), HookPoint::MlpOut(L));
    let mut ours = new(post, &sae, Positions::Counted);
    let before = ours.report().unwrap();
    let at_fault = ["`blocks.1.hook_resid_post`", "`blocks.1.hook_mlp_out`", "can't be merged"];
    refused(ours.merge(&new(out, &sae, Positions::Counted)), &at_fault);
    refused(ours.merge(&new(post, &sae, Positions::All)), &["counted", "all", "can't be merged"]);
    refused(ours.merge(&new(post, &wider, Positions::Counted)), &["16", "17", "can't be merged"]);
    assert_eq!(ours.report().unwrap(), before, "what was refused left a trace");
}
