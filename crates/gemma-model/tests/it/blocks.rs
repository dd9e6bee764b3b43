//! Runs in pieces: a range of blocks, a saved residual, a slice of positions.

use hooks::{
    HookError, HookPoint, HookSet, HookedModel as _, HookedModelExt as _, LayerIdx, TokenBatch, observe,
};
use tch::{Kind, Tensor};
use testkit::{assert_close, assert_same, normal};

use crate::common::{CASES, ONE_STEP, Run, batch, model, refused, tokens};

fn none() -> HookSet<'static> {
    HookSet::new()
}

#[test]
fn two_ranges_are_one() {
    for case in CASES {
        let (model, tokens) = (model(case), tokens(case));
        let n = model.dims().n_layers;
        let embed = model.embed(&tokens, &mut none()).unwrap();
        let whole = model.blocks(&embed, &tokens, 0..n, &mut none()).unwrap();
        assert_same(case, &whole, &model.residual(&tokens, n, &mut none()).unwrap());
        for k in 0..=n {
            let first = model.blocks(&embed, &tokens, 0..k, &mut none()).unwrap();
            let second = model.blocks(&first, &tokens, k..n, &mut none()).unwrap();
            assert_same(&format!("{case}: split at {k}"), &second, &whole);
            // No blocks at all change nothing.
            assert_same(case, &model.blocks(&first, &tokens, k..k, &mut none()).unwrap(), &first);
        }
        assert_same(case, &model.unembed(&whole, &mut none()).unwrap(), &model.logits(&tokens).unwrap());
    }
}

#[test]
fn a_run_may_start_at_a_saved_residual() {
    let run = Run::of("mini-padded");
    let (n, site) = (run.layers().end, "blocks.0.hook_resid_post");
    let last = run.model.blocks(run.raw(site), &run.tokens, 1..n, &mut none()).unwrap();
    assert_same("last residual", &last, run.raw(&format!("blocks.{}.hook_resid_post", n - 1)));
}

#[test]
fn sites_of_a_later_range_keep_their_layers() {
    let run = Run::of("mini-9b");
    let mut met = Vec::new();
    let mut hooks = HookSet::new();
    hooks.on_each(
        HookPoint::resid_posts(5),
        observe(|site, _| {
            met.push(site);
            Ok(())
        }),
    );
    let _resid = run.model.blocks(run.raw("blocks.2.hook_resid_pre"), &run.tokens, 2..4, &mut hooks).unwrap();
    drop(hooks);
    assert_eq!(met, [HookPoint::ResidPost(LayerIdx(2)), HookPoint::ResidPost(LayerIdx(3))]);
}

#[test]
fn a_slice_of_positions_has_its_slice_of_logits() {
    let run = Run::of("mini-2b");
    let resid = run.raw("blocks.3.hook_resid_post");
    for (start, length) in [(0, 1), (5, 7), (23, 1), (0, 24)] {
        let part = run.model.unembed(&resid.narrow(1, start, length), &mut none()).unwrap();
        assert_close("slice", &part, &run.logits.narrow(1, start, length), ONE_STEP);
    }
}

#[test]
fn blocks_out_of_range_are_refused() {
    let (model, tokens) = (model("mini-2b"), tokens("mini-2b"));
    let embed = model.embed(&tokens, &mut none()).unwrap();
    #[allow(clippy::reversed_empty_ranges, reason = "that it runs backwards is the point")]
    let ranges =
        [(0..5, "0..5"), (4..5, "4..5"), (5..5, "5..5"), (3..2, "3..2"), (0..usize::MAX, "blocks 0..")];
    for (range, shown) in ranges {
        refused(model.blocks(&embed, &tokens, range, &mut none()), &[shown, "the model has 4"]);
    }
    refused(model.residual(&tokens, 5, &mut none()), &["0..5", "the model has 4"]);
}

#[test]
fn a_residual_of_another_shape_is_refused() {
    let (model, tokens) = (model("mini-2b"), tokens("mini-2b"));
    for shape in [&[2, 24, 47][..], &[2, 23, 48], &[1, 24, 48], &[24, 48], &[2, 24, 48, 1], &[48], &[]] {
        let resid = normal(shape, 1);
        let got = format!("{shape:?}");
        refused(
            model.blocks(&resid, &tokens, 0..4, &mut none()),
            &["`residual`", "[batch=2, pos=24, d_model=48]", &got],
        );
    }
    for shape in [&[2, 24, 47][..], &[24, 48], &[2, 24, 48, 1], &[48], &[]] {
        refused(
            model.unembed(&normal(shape, 1), &mut none()),
            &["`residual`", "d_model=48", &format!("{shape:?}")],
        );
    }
    // Before any hook is called.
    let mut called = false;
    let mut hooks = HookSet::new();
    hooks.on(
        "blocks.0.hook_resid_pre".parse().unwrap(),
        observe(|_, _| {
            called = true;
            Ok(())
        }),
    );
    let failed = model.blocks(&normal(&[2, 24, 47], 1), &tokens, 0..4, &mut hooks);
    drop(hooks);
    assert!(failed.is_err() && !called);
}

#[test]
fn a_residual_of_another_dtype_is_refused() {
    let (model, tokens) = (model("mini-2b"), tokens("mini-2b"));
    let resid = model.embed(&tokens, &mut none()).unwrap();
    for (kind, name) in [(Kind::Double, "F64"), (Kind::Half, "F16"), (Kind::Int64, "I64")] {
        let wrong = resid.to_kind(kind);
        refused(model.blocks(&wrong, &tokens, 0..4, &mut none()), &["`residual`", "F32", name]);
        refused(model.unembed(&wrong, &mut none()), &["`residual`", "F32", name]);
    }
}

#[test]
fn a_token_beyond_the_vocabulary_is_named() {
    let model = model("mini-2b");
    for id in [320, 256_000, i64::MAX] {
        let tokens = batch(&[vec![2, 5], vec![2, id]]);
        let at_fault = [&*format!("token id {id}"), "vocabulary of 320"];
        refused(model.logits(&tokens), &at_fault);
        refused(model.embed(&tokens, &mut none()), &at_fault);
    }
    let _last = model.logits(&batch(&[vec![319, 0]])).unwrap();
}

#[test]
fn a_sequence_beyond_the_context_is_refused() {
    let model = model("mini-2b");
    let _longest = model.logits(&batch(&[vec![5; 64]])).unwrap();
    refused(model.logits(&batch(&[vec![5; 65]])), &["65 tokens", "context of 64"]);
}

#[test]
fn the_models_own_error_can_be_got_back() {
    let (model, tokens) = (model("mini-2b"), tokens("mini-2b"));
    let error = model.residual(&tokens, 9, &mut none()).unwrap_err();
    let HookError::Model(source) = error else { panic!("{error:?}") };
    assert!(source.is::<gemma_model::ModelError>());
}

#[test]
fn a_batch_of_one_token_runs() {
    for case in CASES {
        let logits: Tensor = model(case).logits(&TokenBatch::new(&[vec![2]], &[]).unwrap()).unwrap();
        assert_eq!(logits.isfinite().all().int64_value(&[]), 1, "{case}");
    }
}
