//! What can't be evaluated: the error names the site, the numbers or what is missing.

use eval::{EvalError, EvalOptions, Judged, Means, Suite, evaluate};
use hooks::{HookError, HookPoint, HookedModel, LayerIdx, Positions, TokenBatch};
use testkit::ToyModel;

use crate::{
    common::{all, at, batch, gemma, judge, means, random_sae, refused, suite, tokens},
    counting::Counting,
};

const L: LayerIdx = LayerIdx(1);

/// A suite at some sites, with the mean of the residual stream alone.
fn new(model: &dyn HookedModel, judged: Judged<'_>) -> Result<(), EvalError> {
    let means = Means::new(model, [HookPoint::ResidPost(L)]).unwrap();
    Suite::new(model, vec![judged], &means, EvalOptions::default()).map(|_| ())
}

#[track_caller]
fn new_refused(site: HookPoint, d_in: i64, d_out: i64, at_fault: &[&str]) -> EvalError {
    let (model, sae) = (gemma(), random_sae(d_in, 16, d_out, 1));
    let refuse = || new(&model, Judged::new("sae-1", site, &sae)).unwrap_err();
    refused(Err::<(), _>(refuse()), &[&[site.to_string().as_str()], at_fault].concat());
    refuse()
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
        let error = new_refused(site, d_in, d_in, &["sae-1", &d_in.to_string(), &width.to_string()]);
        assert!(matches!(error, EvalError::Misfit { .. }), "{error}");
    }
}

#[test]
fn an_output_of_another_width() {
    let (model, sae) = (gemma(), random_sae(48, 16, 48, 1));
    let error = new(&model, Judged::new("sae-1", HookPoint::ResidPre(L), &sae).put_at(HookPoint::AttnZ(L)));
    let error = error.unwrap_err();
    assert!(matches!(error, EvalError::MisfitOut { d_out: 48, width: 64, .. }), "{error}");
    refused(Err::<(), _>(error), &["sae-1", "blocks.1.attn.hook_z", "48", "64"]);
}

#[test]
fn a_transcoder_that_no_other_site_is_named_for() {
    let (model, sae) = (gemma(), random_sae(48, 16, 40, 1));
    let run =
        || evaluate(&model, HookPoint::Ln2Normalized(L), &sae, all(vec![tokens()]), &EvalOptions::default());
    let error = run().unwrap_err();
    assert!(matches!(error, EvalError::Transcoder { d_in: 48, d_out: 40 }), "{error}");
    refused(run(), &["transcoder", "d_in = 48", "d_out = 40"]);
}

#[test]
fn an_output_before_the_input() {
    let (model, sae) = (gemma(), random_sae(48, 16, 48, 1));
    let [l0, l2] = [0, 2].map(LayerIdx);
    // In one block, in another, and where the order within a block is the other way round.
    for (site, site_out) in [
        (HookPoint::MlpOut(L), HookPoint::Ln2Normalized(L)),
        (HookPoint::ResidPre(l0), HookPoint::Embed),
        (HookPoint::ResidPost(l2), HookPoint::ResidPost(L)),
        (HookPoint::ResidPre(l2), HookPoint::ResidPost(L)),
        (HookPoint::Ln2Normalized(l2), HookPoint::MlpOut(L)),
    ] {
        let error = new(&model, Judged::new("sae-1", site, &sae).put_at(site_out)).unwrap_err();
        assert!(matches!(error, EvalError::Backwards { .. }), "{site} to {site_out}: {error}");
        refused(Err::<(), _>(error), &["sae-1", &format!("`{site}`"), &format!("`{site_out}`"), "before"]);
    }
}

/// A mean that is missing is what is refused, and so not the order.
#[test]
fn an_output_in_a_later_block_may_lie_earlier_in_it() {
    let (model, sae) = (gemma(), random_sae(48, 16, 48, 1));
    for (site, site_out) in [
        (HookPoint::MlpOut(L), HookPoint::ResidPre(LayerIdx(2))),
        (HookPoint::ResidPost(LayerIdx(0)), HookPoint::ResidMid(L)),
        (HookPoint::Embed, HookPoint::ResidPre(LayerIdx(0))),
    ] {
        let error = new(&model, Judged::new("sae-1", site, &sae).put_at(site_out)).unwrap_err();
        assert!(matches!(error, EvalError::NoMean(missing) if missing == site_out), "{error}");
        refused(Err::<(), _>(error), &[&site_out.to_string(), "mean"]);
    }
}

#[test]
fn sites_behind_the_blocks() {
    for (site, d_in) in [(HookPoint::LnFinalNormalized, 48), (HookPoint::LnFinalScale, 1)] {
        let error = new_refused(site, d_in, d_in, &[]);
        assert!(matches!(error, EvalError::Site(s) if s == site), "{error}");
        refused(Means::new(&gemma(), [site]), &[&site.to_string()]);
    }
}

/// An SAE reads a row of numbers for each position: attention's scores and patterns have no such rows.
#[test]
fn sites_without_positions() {
    for site in [HookPoint::AttnScores(L), HookPoint::AttnPattern(L)] {
        let error = new_refused(site, 1, 1, &[]);
        assert!(matches!(error, EvalError::Site(s) if s == site), "{error}");
        refused(Means::new(&gemma(), [site]), &[&site.to_string()]);
    }
}

#[test]
fn layers_that_the_model_does_not_have() {
    for site in
        [HookPoint::ResidPost(LayerIdx(4)), HookPoint::ResidPre(LayerIdx(4)), HookPoint::MlpOut(LayerIdx(99))]
    {
        let error = new_refused(site, 48, 48, &["out of range", "0 to 3"]);
        assert!(matches!(error, EvalError::Hook(HookError::OutOfRange { .. })), "{error}");
        refused(Means::new(&gemma(), [site]), &["out of range"]);
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
fn no_sae() {
    let model = gemma();
    let means = Means::new(&model, []).unwrap();
    let got = Suite::new(&model, vec![], &means, EvalOptions::default());
    refused(got, &["no SAE"]);
}

#[test]
fn means_of_nothing() {
    let (model, site) = (gemma(), HookPoint::ResidPost(L));
    let means = Means::new(&model, [site]).unwrap();
    assert!(matches!(means.of(site), Err(EvalError::Empty)));
    refused(means.of(HookPoint::MlpOut(L)), &["blocks.1.hook_mlp_out", "mean"]);
    let sae = random_sae(48, 16, 48, 1);
    refused(new(&model, Judged::new("sae-1", site, &sae)), &["no position counts"]);
    let error = new(&model, Judged::new("sae-1", HookPoint::MlpOut(L), &sae)).unwrap_err();
    assert!(matches!(error, EvalError::NoMean(HookPoint::MlpOut(L))), "{error}");
}

#[test]
fn nothing_that_counts() {
    let (model, sae) = (gemma(), random_sae(48, 16, 48, 1));
    let run = |batches: Vec<TokenBatch>, positions| {
        evaluate(&model, HookPoint::ResidPost(L), &sae, all(batches), &at(positions))
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
fn positions_that_no_batch_has() {
    let (model, sae) = (gemma(), random_sae(48, 16, 48, 1));
    let run = |start, end| {
        let options = at(Positions::Range { start, end });
        evaluate(&model, HookPoint::ResidPost(L), &sae, all(vec![tokens()]), &options)
    };
    let error = run(20, None).unwrap_err();
    assert!(matches!(error, EvalError::Empty), "{error}");
    refused(run(6, Some(6)), &["6:6", "range"]);
    // A range that ends beyond a batch takes what is there: the last rows of a text are shorter than the others.
    assert_eq!(run(5, Some(21)).unwrap().metrics, run(5, None).unwrap().metrics);
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

/// The model breaks at each of its calls in turn.
#[test]
fn a_run_that_breaks_off_leaves_no_trace() {
    let saes = [random_sae(6, 16, 6, 1), random_sae(6, 16, 6, 9)];
    let judged = [
        Judged::new("out", HookPoint::MlpOut(L), &saes[0]),
        Judged::new("post", HookPoint::ResidPost(L), &saes[1]),
    ];
    let options = EvalOptions { uniformity: 1, ..EvalOptions::default() };
    let model = Counting::new(ToyModel::new(3, 6, 320, 1));
    let means = means(&model, &judged, &[tokens()], Positions::Counted);
    model.take();
    let mut suite = Suite::new(&model, judged.to_vec(), &means, options).unwrap();
    suite.add(&tokens(), None).unwrap();
    let calls = model.take().calls;
    // The embedding and the blocks, six branches, logits, and two passes for the gradients at each of two sites.
    assert_eq!(calls, 2 + 6 + 1 + 2 * 2 * 2);
    for call in 0..calls {
        let model = Counting::breaking(ToyModel::new(3, 6, 320, 1), calls + call);
        let mut suite = Suite::new(&model, judged.to_vec(), &means, options).unwrap();
        suite.add(&tokens(), None).unwrap();
        let (before, sums) = (suite.reports().unwrap(), suite.sums().clone());
        refused(suite.add(&tokens(), None), &["out of order"]);
        assert_eq!(suite.reports().unwrap(), before, "after {call} of {calls} calls");
        assert_eq!(*suite.sums(), sums, "after {call} of {calls} calls");
    }
}

#[test]
fn evaluations_of_different_things_are_not_merged() {
    let model = gemma();
    let (sae, wider) = (random_sae(48, 16, 48, 1), random_sae(48, 17, 48, 1));
    let (post, out) = (HookPoint::ResidPost(L), HookPoint::MlpOut(L));
    let new = |judged: Judged<'_>, rows: &[Vec<i64>], positions| {
        let mut suite = suite(&model, &[judged], &[batch(rows)], at(positions));
        suite.add(&tokens(), None).unwrap();
        suite.sums().clone()
    };
    let all_tokens = tokens();
    let rows = all_tokens.rows();
    let mut ours = new(Judged::new("sae-1", post, &sae), rows, Positions::Counted);
    let before = ours.clone();
    for (what, theirs) in [
        ("another site", new(Judged::new("sae-1", out, &sae), rows, Positions::Counted)),
        (
            "another site to put it at",
            new(Judged::new("sae-1", out, &sae).put_at(post), rows, Positions::Counted),
        ),
        ("other positions", new(Judged::new("sae-1", post, &sae), rows, Positions::All)),
        ("another width", new(Judged::new("sae-1", post, &wider), rows, Positions::Counted)),
        ("another SAE", new(Judged::new("sae-2", post, &sae), rows, Positions::Counted)),
        // Mean ablation put another activation there, and the sums are about it.
        ("another mean", new(Judged::new("sae-1", post, &sae), &rows[..3], Positions::Counted)),
    ] {
        println!("{what}: {}", refused(ours.merge(&theirs), &["can't be merged"]));
        assert_eq!(ours, before, "{what} left a trace");
        let mut suite =
            suite(&model, &[Judged::new("sae-1", post, &sae)], &[tokens()], at(Positions::Counted));
        let empty = suite.sums().clone();
        refused(suite.resume(&theirs), &["can't be merged"]);
        assert_eq!(*suite.sums(), empty, "{what} left a trace");
    }
}

/// What is not a number is not counted, and the SAE that made it is named.
#[test]
fn weights_that_are_not_finite() {
    use sae_core::Sae;
    use tch::{Device, Kind, Tensor};
    use testkit::normal;
    let model = gemma();
    // What is NaN is refused by the SAE itself; this overflows in float32.
    let huge = Tensor::full([48], 3e38, (Kind::Float, Device::Cpu));
    let one = |b_dec: Tensor| {
        let threshold = Tensor::full([16], 0.1, (Kind::Float, Device::Cpu));
        Sae::jumprelu(normal(&[48, 16], 1), normal(&[16], 2), normal(&[16, 48], 3) * 1e38, b_dec, threshold)
            .unwrap()
    };
    let (good, bad) = (random_sae(48, 16, 48, 1), one(huge));
    let judged = [
        Judged::new("good", HookPoint::ResidPost(L), &good),
        Judged::new("bad", HookPoint::ResidPost(L), &bad),
        Judged::new("also good", HookPoint::ResidPost(LayerIdx(2)), &good),
    ];
    let mut suite = suite(&model, &judged, &[tokens()], EvalOptions::default());
    let before = suite.sums().clone();
    let text = refused(suite.add(&tokens(), None), &["`bad`", "not finite"]);
    assert!(!text.contains("good"), "{text}");
    assert_eq!(*suite.sums(), before, "what was refused left a trace");
    assert_eq!(judge(&model, &judged[..1], &[tokens()], EvalOptions::default()).len(), 1);
}
