//! What goes wrong between a model and its hooks is one sentence that names the site.

use std::{cell::Cell, error::Error};

use hooks::{
    Hook, HookError, HookPoint, HookSet, HookedModelExt as _, LayerIdx, TokenBatch, edit, observe, replace,
};
use tch::{Kind, Tensor};

use crate::common::{after, refused, site, tokens, toy};

/// A hook that leaves a mark.
fn marks(flag: &Cell<bool>) -> impl Hook {
    observe(move |_, _| {
        flag.set(true);
        Ok(())
    })
}

#[test]
fn a_hook_that_did_not_fire_is_named() {
    // The toy has no attention.
    let missing = [site("blocks.0.attn.hook_z"), site("blocks.2.attn.hook_q")];
    let mut hooks = HookSet::new();
    hooks.on_each(missing, edit::zero()).on(HookPoint::Embed, observe(|_, _| Ok(())));
    let text = refused(
        toy().run(&tokens(), hooks),
        &["2 hooks did not fire", "`blocks.0.attn.hook_z`", "`blocks.2.attn.hook_q`"],
    );
    assert!(!text.contains("hook_embed"));
    refused(toy().harvest(&tokens(), &[missing[0]]), &["a hook did not fire", "`blocks.0.attn.hook_z`"]);
    refused(toy().run_with_cache(&tokens(), &missing), &["2 hooks"]);

    let many = HookPoint::parse_list("blocks.*.attn.hook_z,blocks.*.attn.hook_q", 3).unwrap();
    refused(toy().run_with_cache(&tokens(), &many), &["6 hooks did not fire", "…"]);
}

#[test]
fn a_run_that_stops_early_leaves_deeper_hooks_unfired() {
    let mut hooks = HookSet::new();
    hooks.on(site("blocks.2.hook_resid_post"), edit::zero());
    let _resid = toy().residual(&tokens(), 2, &mut hooks).unwrap();
    refused(hooks.finish(), &["`blocks.2.hook_resid_post`"]);
}

#[test]
fn a_site_out_of_range_is_refused_before_the_run() {
    let called = Cell::new(false);
    for layer in [3, 26, usize::MAX] {
        let far = HookPoint::ResidPost(LayerIdx(layer));
        let set = || {
            let mut hooks = HookSet::new();
            hooks.on_each([HookPoint::Embed, far], marks(&called));
            hooks
        };
        let at_fault = [&*format!("`{far}`"), "layers 0 to 2"];
        refused(toy().run(&tokens(), set()), &at_fault);
        refused(toy().run_to(&tokens(), set()), &at_fault);
        refused(toy().forward(&tokens(), &mut set()), &at_fault);
        refused(toy().harvest(&tokens(), &[far]), &at_fault);
        refused(toy().run_with_cache(&tokens(), &[far]), &at_fault);
    }
    assert!(!called.get(), "a hook was called");
    let empty = testkit::ToyModel::new(0, 2, 3, 0);
    let batch = TokenBatch::new(&[vec![1]], &[]).unwrap();
    refused(
        empty.harvest(&batch, &[site("blocks.0.hook_resid_pre")]),
        &["`blocks.0.hook_resid_pre`", "no layers"],
    );
}

#[test]
fn a_replacement_must_be_like_what_it_replaces() {
    let at = site("blocks.1.hook_resid_post");
    for (what, wrong) in [
        ("a shorter sequence", Tensor::zeros([2, 4, 6], (Kind::Float, tch::Device::Cpu))),
        ("no batch", Tensor::zeros([5, 6], (Kind::Float, tch::Device::Cpu))),
        ("a wider stream", Tensor::zeros([2, 5, 7], (Kind::Float, tch::Device::Cpu))),
        ("a number", Tensor::from(0.0f32)),
        ("nothing", Tensor::zeros([0], (Kind::Float, tch::Device::Cpu))),
    ] {
        let got = format!("{:?}", wrong.size());
        let made = after(replace(|_, _| Ok(wrong.shallow_clone())), at);
        println!("{what}: {}", refused(made, &["`blocks.1.hook_resid_post`", "[2, 5, 6] F32", &got]));
    }
    for (kind, name) in
        [(Kind::Double, "F64"), (Kind::Half, "F16"), (Kind::Int64, "I64"), (Kind::Bool, "BOOL")]
    {
        refused(
            after(replace(|_, act| Ok(act.to_kind(kind))), at),
            &["`blocks.1.hook_resid_post`", "F32", name],
        );
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the disk is full")]
struct DiskFull;

#[test]
fn a_hooks_own_error_carries_the_site() {
    let at = site("blocks.1.hook_mlp_out");
    for failed in [
        after(observe(|_, _| Err("the disk is full".into())), at),
        after(replace(|_, _| Err(DiskFull.into())), at),
    ] {
        refused(failed, &["`blocks.1.hook_mlp_out`", "the disk is full"]);
    }
    // libtorch's own error has pages of C++ below its first line, which say nothing to a user.
    let failed =
        after(replace(|_, act| Ok(act.f_add(&Tensor::zeros([7], (Kind::Float, tch::Device::Cpu)))?)), at);
    refused(failed, &["`blocks.1.hook_mlp_out`", "size of tensor a (6) must match"]);
    // The hook's error itself can be got back.
    let error = after(observe(|_, _| Err(DiskFull.into())), at).unwrap_err();
    assert!(matches!(error, HookError::Hook { site, .. } if site == at));
    assert!(error.source().is_some_and(|source| source.is::<DiskFull>()));
}

#[test]
fn a_failing_hook_stops_the_run() {
    let reached = Cell::new(false);
    let mut hooks = HookSet::new();
    hooks
        .on(site("blocks.0.hook_mlp_out"), observe(|_, _| Err("no".into())))
        .on(site("blocks.0.hook_mlp_out"), marks(&reached))
        .on(site("blocks.1.hook_resid_pre"), marks(&reached));
    refused(toy().run(&tokens(), hooks), &["`blocks.0.hook_mlp_out`"]);
    assert!(!reached.get());
}

#[test]
fn tokens_that_the_model_does_not_have_are_refused() {
    let batch = |row: Vec<i64>| TokenBatch::new(&[row], &[]).unwrap();
    refused(toy().logits(&batch(vec![2, 20])), &["token id 20", "vocabulary of 20"]);
    refused(toy().logits(&batch(vec![2, i64::MAX])), &[&i64::MAX.to_string(), "vocabulary of 20"]);
    let _longest = toy().logits(&batch(vec![3; 64])).unwrap();
    refused(toy().logits(&batch(vec![3; 65])), &["65 tokens", "context of 64"]);
    // Padding that the vocabulary does not have is a token that it does not have.
    let padded = TokenBatch::padded(&[vec![1, 2], vec![1]], 99, &[]).unwrap();
    refused(toy().logits(&padded), &["token id 99"]);
}
