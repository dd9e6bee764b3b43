//! A sequence that a model sees in pieces, as in generation: hooks make of it what they make of the whole.

use hooks::{
    ActivationCache, BoxError, Hook, HookPoint, HookSet, HookedModelExt as _, LayerIdx, Positions,
    TokenBatch, Visit, edit,
};
use proptest::prelude::*;
use tch::Tensor;
use testkit::{assert_same, normal};

use crate::common::{cases, refused, site, tokens, toy};

const SITE: HookPoint = HookPoint::ResidPost(LayerIdx(1));

/// How many columns there are in all.
const LEN: i64 = 8;

/// The first columns of the sequence, and all of them.
fn prompt_and_whole() -> (TokenBatch, TokenBatch) {
    let rows = [vec![2, 7, 8, 2, 5, 6, 9, 11], vec![2, 7, 8, 3, 4, 5, 6, 7]];
    let prompt = rows.each_ref().map(|row| row[..4].to_vec());
    (TokenBatch::new(&prompt, &[0, 1, 2]).unwrap(), TokenBatch::new(&rows, &[0, 1, 2]).unwrap())
}

/// What a hook makes of an activation that it is shown in pieces of these lengths.
fn in_pieces(hook: impl Hook, act: &Tensor, lengths: &[i64]) -> hooks::Result<Tensor> {
    let mut hooks = HookSet::new();
    hooks.on(SITE, hook);
    let mut first = 0;
    let mut made = Vec::new();
    for &len in lengths {
        hooks.begin_at(first);
        made.push(hooks.at(SITE, act.narrow(1, first, len))?);
        first += len;
    }
    hooks.finish()?;
    Ok(Tensor::cat(&made, 1))
}

/// Lengths that sum to `LEN`.
fn any_pieces() -> impl Strategy<Value = Vec<i64>> {
    prop::collection::vec(any::<bool>(), LEN as usize - 1).prop_map(|cuts| {
        let mut lengths = vec![1];
        for cut in cuts {
            match lengths.last_mut() {
                Some(last) if !cut => *last += 1,
                _ => lengths.push(1),
            }
        }
        lengths
    })
}

/// Notes where it was called.
struct Notes(Vec<Visit>);

impl Hook for Notes {
    fn visit(&mut self, at: Visit, _act: &Tensor) -> Result<Option<Tensor>, BoxError> {
        self.0.push(at);
        Ok(None)
    }
}

#[test]
fn a_plain_run_begins_at_the_first_column() {
    let mut notes = Notes(Vec::new());
    let mut hooks = HookSet::new();
    hooks.on_each([HookPoint::Embed, SITE], &mut notes);
    let _logits = toy().run(&tokens(), hooks).unwrap();
    assert_eq!(notes.0, [Visit::of(HookPoint::Embed), Visit::of(SITE)]);
    assert_eq!(Visit::of(SITE), Visit { site: SITE, first_pos: 0 });
}

#[test]
fn each_piece_says_where_it_begins() {
    let mut notes = Notes(Vec::new());
    let _whole = in_pieces(&mut notes, &normal(&[2, LEN, 6], 1), &[3, 1, 4]).unwrap();
    assert_eq!(notes.0.iter().map(|at| at.first_pos).collect::<Vec<_>>(), [0, 3, 4]);
}

#[test]
fn a_mask_does_not_go_on_behind_its_end() {
    let act = normal(&[2, LEN, 6], 1);
    let (prompt, whole) = prompt_and_whole();
    let mask = |tokens| Positions::Counted.mask(tokens).unwrap();
    refused(
        in_pieces(edit::zero().at(mask(&prompt)), &act, &[4, 1, 3]),
        &["`blocks.1.hook_resid_post`", "covers 4 positions", "goes on to 5"],
    );
    // Nor does it begin before its end: the prompt is not the text that it is a mask of.
    refused(
        in_pieces(edit::zero().at(mask(&whole)), &act, &[4, 4]),
        &["`blocks.1.hook_resid_post`", "[2, 8]", "[2, 4, 6]"],
    );
}

#[test]
fn a_set_over_another_batch_is_refused_in_every_piece() {
    let other = TokenBatch::new(&[vec![2, 7, 8, 9]], &[]).unwrap();
    for lengths in [&[LEN][..], &[4, 4], &[1, 7]] {
        let edit = edit::zero().at(Positions::All.over(&other).unwrap());
        refused(in_pieces(edit, &normal(&[2, LEN, 6], 1), lengths), &["`blocks.1.hook_resid_post`", "[1, "]);
    }
}

#[test]
fn a_cache_holds_the_pieces_of_one_run_as_a_whole() {
    for (name, shape) in [
        ("blocks.0.hook_resid_pre", &[2, LEN, 6][..]),
        ("blocks.0.ln1.hook_scale", &[2, LEN, 1]),
        ("blocks.0.attn.hook_z", &[2, LEN, 3, 4]),
        ("ln_final.hook_normalized", &[2, LEN, 6]),
    ] {
        let (at, act, mut cache) = (site(name), normal(shape, 1), ActivationCache::default());
        let mut hooks = HookSet::new();
        hooks.on(at, &mut cache);
        for (first, len) in [(0, 5), (5, 1), (6, 2)] {
            hooks.begin_at(first);
            let shown = hooks.at(at, act.narrow(1, first, len)).unwrap();
            assert_same("handed on", &shown, &act.narrow(1, first, len));
        }
        drop(hooks);
        assert_same(name, cache.get(at).unwrap(), &act);
    }
}

#[test]
fn a_run_that_begins_anew_overwrites_what_a_cache_holds() {
    let (old, new) = (normal(&[2, LEN, 6], 1), normal(&[2, LEN, 6], 2));
    let mut cache = ActivationCache::default();
    let _old = in_pieces(&mut cache, &old, &[5, 3]).unwrap();
    let _new = in_pieces(&mut cache, &new, &[2, 1]).unwrap();
    assert_same("the second run", cache.get(SITE).unwrap(), &new.narrow(1, 0, 3));
}

#[test]
fn attention_patterns_are_those_of_the_last_step() {
    for name in ["blocks.0.attn.hook_pattern", "blocks.0.attn.hook_attn_scores"] {
        let (at, mut cache) = (site(name), ActivationCache::default());
        // Two heads: the second axis is as long as the prompt, and no axis of positions all the same.
        let steps = [normal(&[1, 2, 2, 2], 1), normal(&[1, 2, 1, 3], 2)];
        let mut hooks = HookSet::new();
        hooks.on(at, &mut cache);
        for (first, step) in [0, 2].into_iter().zip(&steps) {
            hooks.begin_at(first);
            let _step = hooks.at(at, step.shallow_clone()).unwrap();
        }
        drop(hooks);
        assert_same(name, cache.get(at).unwrap(), &steps[1]);
    }
}

proptest! {
    #![proptest_config(cases(96))]

    /// The mask of the whole text says where the edit acts, and the set over the prompt must say the same.
    /// (No generated token is special here: a set over the prompt can't know them.)
    #[test]
    fn an_edit_in_pieces_is_the_edit_of_the_whole(
        lengths in any_pieces(),
        which in 0..4,
        positions in prop_oneof![
            Just(Positions::Counted),
            Just(Positions::All),
            (0..LEN, prop::option::of(1..=LEN)).prop_map(|(start, n)| {
                Positions::Range { start, end: n.map(|n| LEN.min(start + n)) }
            }),
        ],
    ) {
        let (prompt, whole) = prompt_and_whole();
        let act = normal(&[2, LEN, 6], 1);
        let edit = || match which {
            0 => edit::add(normal(&[6], 2), 1.5),
            1 => edit::set(normal(&[6], 3)),
            2 => edit::zero(),
            _ => edit::scale(-0.5),
        };
        let want = in_pieces(edit().at(positions.mask(&whole).unwrap()), &act, &[LEN]).unwrap();
        let got = in_pieces(edit().at(positions.over(&prompt).unwrap()), &act, &lengths).unwrap();
        prop_assert!(got.equal(&want), "{} in {:?}", positions, lengths);
    }

    #[test]
    fn a_cache_of_any_pieces_holds_the_whole(lengths in any_pieces()) {
        let act = normal(&[2, LEN, 6], 4);
        let mut cache = ActivationCache::default();
        let _whole = in_pieces(&mut cache, &act, &lengths).unwrap();
        prop_assert!(cache.get(SITE).unwrap().equal(&act), "{:?}", lengths);
    }
}
