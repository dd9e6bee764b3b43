//! An edit at a site reaches what lies behind it, by the site's own meaning, and nothing else.

use hooks::{ActivationCache, HookPoint, HookSet, HookedModelExt as _, edit, replace};
use tch::{Kind, Tensor};
use testkit::{assert_close, assert_same, normal};

use crate::common::{ONE_STEP, Run, WHOLE_MODEL, refused};

/// Logits and all activations of a run with one hook, added before those that look.
fn edited(run: &Run, at: &str, hook: impl hooks::Hook) -> (Tensor, ActivationCache) {
    let mut cache = ActivationCache::default();
    let mut hooks = HookSet::new();
    hooks.on(at.parse().unwrap(), hook);
    hooks.on_each(HookPoint::all(run.layers().end), &mut cache);
    let logits = run.model.run(&run.tokens, hooks).unwrap();
    (logits, cache)
}

fn get<'c>(cache: &'c ActivationCache, site: &str) -> &'c Tensor {
    cache.get(site.parse().unwrap()).unwrap()
}

/// A hook that replaces a head by zeros.
fn without_head(head: i64) -> impl hooks::Hook {
    replace(move |_, act| {
        let kept = act.copy();
        let _ = kept.select(2, head).zero_();
        Ok(kept)
    })
}

#[test]
fn an_edit_of_mlp_in_leaves_the_stream_alone() {
    let run = Run::of("mini-9b");
    let (_, cache) = edited(&run, "blocks.1.hook_mlp_in", edit::add(normal(&[56], 1), 3.0));
    assert_same("resid_mid", get(&cache, "blocks.1.hook_resid_mid"), run.raw("blocks.1.hook_resid_mid"));
    let mlp_out = get(&cache, "blocks.1.hook_mlp_out");
    assert!(!mlp_out.equal(run.raw("blocks.1.hook_mlp_out")));
    let post = run.raw("blocks.1.hook_resid_mid") + mlp_out;
    assert_same("resid_post", get(&cache, "blocks.1.hook_resid_post"), &post);
}

#[test]
fn an_edit_of_resid_mid_reaches_both_paths() {
    let run = Run::of("mini-9b");
    let (_, cache) = edited(&run, "blocks.1.hook_resid_mid", edit::scale(1.5));
    let mid = run.raw("blocks.1.hook_resid_mid") * 1.5;
    assert_same("mlp_in", get(&cache, "blocks.1.hook_mlp_in"), &mid);
    assert_same(
        "resid_post",
        get(&cache, "blocks.1.hook_resid_post"),
        &(mid + get(&cache, "blocks.1.hook_mlp_out")),
    );
}

#[test]
fn the_embedding_is_what_enters_block_0() {
    let run = Run::of("mini-2b");
    let edit = || edit::add(normal(&[48], 2), 1.0);
    let (by_embed, _) = edited(&run, "hook_embed", edit());
    let (by_resid, _) = edited(&run, "blocks.0.hook_resid_pre", edit());
    assert_same("logits", &by_embed, &by_resid);
    assert!(!by_embed.equal(&run.logits));
}

#[test]
fn a_sub_layer_that_adds_nothing_is_passed_over() {
    let run = Run::of("mini-2b");
    let mut hooks = HookSet::new();
    let outs =
        HookPoint::parse_list("blocks.*.hook_attn_out,blocks.*.hook_mlp_out", run.layers().end).unwrap();
    hooks.on_each(outs, edit::zero());
    let logits = run.model.run(&run.tokens, hooks).unwrap();
    let straight = run.model.unembed(run.raw("hook_embed"), &mut HookSet::new()).unwrap();
    assert_same("logits", &logits, &straight);
}

#[test]
fn removing_a_heads_result_is_removing_its_z() {
    for case in ["mini-2b", "mini-27b", "mini-padded"] {
        let run = Run::of(case);
        for head in [0, run.config().dims.n_heads as i64 - 1] {
            let (by_result, cache) = edited(&run, "blocks.1.attn.hook_result", without_head(head));
            let (by_z, _) = edited(&run, "blocks.1.attn.hook_z", without_head(head));
            assert_close(&format!("{case}: head {head}"), &by_result, &by_z, WHOLE_MODEL);
            assert!(
                testkit::relative_error(&by_z, &run.logits) > 100.0 * WHOLE_MODEL,
                "the head does nothing"
            );
            assert_eq!(
                get(&cache, "blocks.1.attn.hook_result").select(2, head).abs().max().double_value(&[]),
                0.0
            );
        }
    }
}

#[test]
fn an_edit_of_results_moves_the_output_by_what_it_changed() {
    let run = Run::of("mini-padded");
    let step = normal(&run.raw("blocks.0.attn.hook_result").size(), 3);
    let (_, cache) = edited(&run, "blocks.0.attn.hook_result", edit::add(step.copy(), 1.0));
    let entered =
        |normalized: &Tensor, scale: &Tensor| normalized.to_kind(Kind::Double) * scale.to_kind(Kind::Double);
    let after = entered(
        get(&cache, "blocks.0.ln1_post.hook_normalized"),
        get(&cache, "blocks.0.ln1_post.hook_scale"),
    );
    let before =
        entered(run.raw("blocks.0.ln1_post.hook_normalized"), run.raw("blocks.0.ln1_post.hook_scale"));
    let moved = step.to_kind(Kind::Double).sum_dim_intlist(2, false, Kind::Double);
    assert_close("sum of the steps", &after, &(before + moved), ONE_STEP);
}

#[test]
fn doubling_a_scale_halves_what_it_divides() {
    let run = Run::of("mini-9b");
    for norm in ["blocks.1.ln1", "blocks.1.ln1_post", "blocks.1.ln2", "blocks.1.ln2_post", "ln_final"] {
        let (_, cache) = edited(&run, &format!("{norm}.hook_scale"), edit::scale(2.0));
        let normalized = format!("{norm}.hook_normalized");
        // A division by a power of two is exact.
        assert_same(norm, get(&cache, &normalized), &(run.raw(&normalized) * 0.5));
    }
}

#[test]
fn a_key_that_scores_hide_is_not_seen() {
    let run = Run::of("mini-27b");
    let hide = replace(|_, scores: &Tensor| {
        let kept = scores.copy();
        let _ = kept.select(3, 0).narrow(2, 1, kept.size()[2] - 1).fill_(f64::NEG_INFINITY);
        Ok(kept)
    });
    let (_, cache) = edited(&run, "blocks.1.attn.hook_attn_scores", hide);
    let pattern = get(&cache, "blocks.1.attn.hook_pattern");
    assert_eq!(pattern.select(3, 0).narrow(2, 1, 39).abs().max().double_value(&[]), 0.0);
    let sums = pattern.sum_dim_intlist(-1, false, Kind::Double);
    assert_close("sums", &sums, &sums.ones_like(), ONE_STEP);
}

#[test]
fn a_pattern_that_looks_at_itself_copies_the_values() {
    let run = Run::of("mini-2b");
    let (b, h, p) = (2, 4, 24);
    let eye = Tensor::eye(p, (Kind::Float, tch::Device::Cpu)).expand([b, h, p, p], false);
    let (_, cache) = edited(&run, "blocks.1.attn.hook_pattern", edit::set(eye));
    let values = run.raw("blocks.1.attn.hook_v").repeat_interleave_self_int(2, 2, None);
    assert_same("z", get(&cache, "blocks.1.attn.hook_z"), &values);
}

#[test]
fn an_edit_that_does_nothing_changes_no_bit() {
    let run = Run::of("mini-sharded");
    let (logits, _) = edited(&run, "blocks.2.hook_mlp_out", edit::scale(1.0));
    assert_same("logits", &logits, &run.logits);
}

#[test]
fn an_edit_at_a_position_leaves_earlier_ones_alone() {
    let run = Run::of("mini-2b");
    let mask = hooks::Positions::Range { start: 10, end: Some(11) }.mask(&run.tokens).unwrap();
    let (logits, _) = edited(&run, "blocks.1.hook_resid_pre", edit::add(normal(&[48], 2), 5.0).at(mask));
    assert_same("before", &logits.narrow(1, 0, 10), &run.logits.narrow(1, 0, 10));
    for p in 10..24 {
        assert!(!logits.select(1, p).equal(&run.logits.select(1, p)), "position {p} sees the edit");
    }
}

#[test]
fn a_replacement_of_another_shape_or_dtype_names_its_site() {
    let run = Run::of("mini-padded");
    for site in HookPoint::all(run.layers().end) {
        let with = |hook: &mut dyn hooks::Hook| {
            let mut hooks = HookSet::new();
            hooks.on(site, hook);
            run.model.run(&run.tokens, hooks)
        };
        let name = format!("`{site}`");
        refused(with(&mut replace(|_, act| Ok(act.unsqueeze(0)))), &[&name, "F32"]);
        refused(with(&mut replace(|_, act| Ok(act.to_kind(Kind::Half)))), &[&name, "F32", "F16"]);
        refused(
            with(&mut replace(|_, _| Err("a reason of its own".into()))),
            &[&name, "a reason of its own"],
        );
    }
}

#[test]
fn a_misspelt_hook_cannot_be_asked_for() {
    refused(
        "blocks.1.hook_resid_psot".parse::<HookPoint>(),
        &["blocks.1.hook_resid_psot", "blocks.1.hook_resid_post"],
    );
    let run = Run::of("mini-sharded");
    let far = "blocks.4.hook_resid_post".parse().unwrap();
    refused(run.model.harvest(&run.tokens, &[far]), &["`blocks.4.hook_resid_post`", "layers 0 to 3"]);
}
