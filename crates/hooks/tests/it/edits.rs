//! The edits that need no autoencoder: what they do is a formula, and only where they are asked to.

use hooks::{HookPoint, HookSet, HookedModelExt as _, Positions, TokenBatch, edit};
use proptest::prelude::*;
use tch::{Device, Kind, Tensor};
use testkit::{assert_same, normal};

use crate::common::{after, cases, refused, site, tokens, toy};

const SITE: &str = "blocks.1.hook_resid_pre";

/// What stands at the site without an edit.
fn plain() -> Tensor {
    toy().harvest(&tokens(), &[site(SITE)]).unwrap().take(site(SITE)).unwrap()
}

#[test]
fn each_edit_is_its_formula() {
    let (act, v) = (plain(), normal(&[6], 3));
    let run = |edit| after(edit, site(SITE)).unwrap();
    assert_same("add", &run(edit::add(v.copy(), 2.5)), &(&act + &v * 2.5));
    assert_same("add nothing", &run(edit::add(v.copy(), 0.0)), &act);
    assert_same("set", &run(edit::set(v.copy())), &v.expand_as(&act).contiguous());
    assert_same("set whole", &run(edit::set(&act * 3.0)), &(&act * 3.0));
    assert_same("zero", &run(edit::zero()), &act.zeros_like());
    assert_same("scale", &run(edit::scale(-0.5)), &(&act * -0.5));
    // One direction a position, and one a sequence.
    let by_pos = normal(&[5, 6], 4);
    assert_same("add by position", &run(edit::add(by_pos.copy(), 1.0)), &(&act + &by_pos));
    let by_sequence = normal(&[2, 1, 6], 5);
    assert_same("add by sequence", &run(edit::add(by_sequence.copy(), 1.0)), &(&act + &by_sequence));
}

#[test]
fn a_direction_of_another_dtype_is_cast() {
    let v = normal(&[6], 3);
    let got = after(edit::add(v.to_kind(Kind::Double), 1.0), site(SITE)).unwrap();
    assert_same("from float64", &got, &(plain() + &v));
    let got = after(edit::set(Tensor::from(1i64)), site(SITE)).unwrap();
    assert_same("from int64", &got, &plain().ones_like());
}

#[test]
fn zero_of_nan_is_zero() {
    let act = plain();
    let poison = Tensor::from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, 1.0, -1.0]);
    for zero in [edit::zero(), edit::scale(0.0), edit::scale(-0.0)] {
        let at = site(SITE);
        let mut cache = hooks::ActivationCache::default();
        let mut hooks = HookSet::new();
        hooks.on(at, edit::set(poison.copy())).on(at, zero).on(at, &mut cache);
        let logits = toy().run(&tokens(), hooks).unwrap();
        assert_same("zero", cache.get(at).unwrap(), &act.zeros_like());
        assert_eq!(logits.isnan().any().int64_value(&[]), 0);
    }
}

#[test]
fn a_direction_that_does_not_fit_is_refused() {
    for shape in [&[7][..], &[5], &[4, 6], &[3, 5, 6]] {
        refused(after(edit::add(normal(shape, 1), 1.0), site(SITE)), &[&format!("`{SITE}`")]);
        refused(after(edit::set(normal(shape, 1)), site(SITE)), &[&format!("`{SITE}`")]);
    }
    // More axes than the activation has would make it grow.
    refused(after(edit::add(normal(&[1, 2, 5, 6], 1), 1.0), site(SITE)), &[&format!("`{SITE}`")]);
    refused(after(edit::set(normal(&[1, 2, 5, 6], 1)), site(SITE)), &[&format!("`{SITE}`")]);
}

#[test]
fn counted_positions_leave_bos_and_padding_alone() {
    let batch = TokenBatch::padded(&[vec![2, 7, 4], vec![2, 5]], 0, &[0, 1, 2]).unwrap();
    let at = HookPoint::Embed;
    let plain = toy().harvest(&batch, &[at]).unwrap().take(at).unwrap();
    let mut cache = hooks::ActivationCache::default();
    let mut hooks = HookSet::new();
    hooks.on(at, edit::zero().at(Positions::Counted.mask(&batch).unwrap())).on(at, &mut cache);
    let _logits = toy().run(&batch, hooks).unwrap();
    let kept = [[true, false, false], [true, false, true]];
    for (b, row) in kept.iter().enumerate() {
        for (p, &kept) in row.iter().enumerate() {
            let of = |t: &Tensor| t.get(b as i64).get(p as i64);
            let want = if kept { of(&plain) } else { of(&plain).zeros_like() };
            assert_same(&format!("sequence {b}, position {p}"), &of(cache.get(at).unwrap()), &want);
        }
    }
}

#[test]
fn positions_of_another_batch_are_refused() {
    for shape in [&[2, 4][..], &[1, 5], &[5], &[2, 5, 1]] {
        let mask = Tensor::ones(shape, (Kind::Bool, Device::Cpu));
        refused(
            after(edit::zero().at(mask), site(SITE)),
            &[&format!("`{SITE}`"), &format!("{shape:?}"), "[2, 5, 6]"],
        );
    }
}

#[test]
fn a_site_without_positions_has_none_to_edit() {
    let mask = Tensor::ones([1, 3], (Kind::Bool, Device::Cpu));
    for name in ["blocks.0.attn.hook_attn_scores", "blocks.0.attn.hook_pattern"] {
        let mut hooks = HookSet::new();
        hooks.on(site(name), edit::zero().at(mask.copy()));
        let scores = normal(&[1, 2, 3, 3], 1);
        refused(hooks.at(site(name), scores.copy()), &[&format!("`{name}`"), "no position axis"]);
        // The whole of it may be edited.
        let mut hooks = HookSet::new();
        hooks.on(site(name), edit::zero());
        assert_same(name, &hooks.at(site(name), scores.copy()).unwrap(), &scores.zeros_like());
    }
}

#[test]
fn a_mask_spreads_over_heads() {
    let at = site("blocks.0.attn.hook_z");
    let (z, mask) = (normal(&[1, 3, 2, 4], 1), Tensor::from_slice(&[true, false, true]).view([1, 3]));
    let mut hooks = HookSet::new();
    hooks.on(at, edit::zero().at(mask));
    let edited = hooks.at(at, z.copy()).unwrap();
    assert_same("position 0", &edited.select(1, 0), &z.select(1, 0).zeros_like());
    assert_same("position 1", &edited.select(1, 1), &z.select(1, 1));
    assert_same("position 2", &edited.select(1, 2), &z.select(1, 2).zeros_like());
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn only_the_chosen_positions_change(
        chosen in prop::collection::vec(any::<bool>(), 10),
        which in 0..4,
        strength in -3.0f64..3.0,
    ) {
        let mask = Tensor::from_slice(&chosen).view([2, 5]);
        let (act, v) = (plain(), normal(&[6], 8));
        let (edit, want) = match which {
            0 => (edit::add(v.copy(), strength), &act + &v * strength),
            1 => (edit::set(v.copy()), v.expand_as(&act)),
            2 => (edit::zero(), act.zeros_like()),
            _ => (edit::scale(strength), &act * strength),
        };
        let got = after(edit.at(mask), site(SITE)).unwrap();
        for (i, &chosen) in chosen.iter().enumerate() {
            let of = |t: &Tensor| t.get(i as i64 / 5).get(i as i64 % 5);
            let want = if chosen { of(&want) } else { of(&act) };
            assert_same(&format!("position {i}"), &of(&got), &want);
        }
    }
}
