//! A splice that sees a text in pieces, as in generation, makes of it what it makes of the whole.

use hooks::{HookPoint, HookSet, LayerIdx, Positions, TokenBatch};
use proptest::prelude::*;
use sae_core::{FeatureId, Sae, Splice};
use tch::Tensor;
use testkit::{assert_close, assert_same, normal};

use crate::common::{ROUNDING, cases, random_sae, refused};

const SITE: HookPoint = HookPoint::ResidPost(LayerIdx(1));
const D_MODEL: i64 = 6;

/// How many columns there are, of which the first four are the prompt's.
const LEN: i64 = 9;
const PROMPT: usize = 4;

/// The prompt and the whole text: two sequences that begin with BOS.
fn prompt_and_whole() -> (TokenBatch, TokenBatch) {
    let rows = [vec![2, 5, 9, 2, 8, 7, 6, 5, 4], vec![2, 7, 7, 3, 3, 3, 11, 12, 13]];
    let prompt = rows.each_ref().map(|row| row[..PROMPT].to_vec());
    (TokenBatch::new(&prompt, &[2]).unwrap(), TokenBatch::new(&rows, &[2]).unwrap())
}

/// What a splice makes of an activation that it is shown in pieces of these lengths.
fn in_pieces(splice: Splice<'_>, act: &Tensor, lengths: &[i64]) -> hooks::Result<Tensor> {
    let mut hooks = HookSet::new();
    hooks.on(SITE, splice);
    let mut first = 0;
    let mut made = Vec::new();
    for &len in lengths {
        hooks.begin_at(first);
        made.push(hooks.at(SITE, act.narrow(1, first, len))?);
        first += len;
    }
    Ok(Tensor::cat(&made, 1))
}

/// A reconstruction, a clamp in it, and a clamp that keeps the error.
fn splices(sae: &Sae) -> [Splice<'_>; 3] {
    let clamped = || Splice::reconstruction(sae).clamp(FeatureId(3), 2.5).unwrap();
    [Splice::reconstruction(sae), clamped(), clamped().keep_error()]
}

#[test]
fn every_piece_is_spliced_without_positions() {
    let (sae, act) = (random_sae(D_MODEL, 20, D_MODEL, 1), normal(&[2, LEN, D_MODEL], 2));
    for (whole, pieces) in splices(&sae).into_iter().zip(splices(&sae)) {
        let whole = in_pieces(whole, &act, &[LEN]).unwrap();
        assert!(!whole.equal(&act), "nothing was spliced");
        assert_close("pieces", &in_pieces(pieces, &act, &[4, 1, 1, 3]).unwrap(), &whole, ROUNDING);
    }
}

#[test]
fn a_mask_ends_where_the_prompt_ends() {
    let (sae, act) = (random_sae(D_MODEL, 20, D_MODEL, 1), normal(&[2, LEN, D_MODEL], 2));
    let mask = Positions::All.mask(&prompt_and_whole().0).unwrap();
    refused(
        in_pieces(Splice::reconstruction(&sae).at(mask), &act, &[4, 1]),
        &["`blocks.1.hook_resid_post`", "covers 4 positions", "goes on to 5"],
    );
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn a_splice_at_positions_in_pieces_is_the_splice_of_the_whole(
        cuts in prop::collection::btree_set(1..LEN, 0..5),
        which in 0usize..3,
        positions in prop_oneof![
            Just(Positions::Counted),
            Just(Positions::All),
            (0..LEN, prop::option::of(1..=LEN)).prop_map(|(start, n)| {
                Positions::Range { start, end: n.map(|n| LEN.min(start + n)) }
            }),
        ],
    ) {
        // Of what was generated, nothing is special: a set over the prompt can't know it.
        let (prompt, whole) = prompt_and_whole();
        let (sae, act) = (random_sae(D_MODEL, 20, D_MODEL, 1), normal(&[2, LEN, D_MODEL], 2));
        let splice = || splices(&sae).into_iter().nth(which).unwrap();
        let ends: Vec<i64> = cuts.into_iter().chain([LEN]).collect();
        let starts = [0].iter().chain(&ends);
        let lengths: Vec<i64> = ends.iter().zip(starts).map(|(end, start)| end - start).collect();

        let mask = positions.mask(&whole).unwrap();
        let want = in_pieces(splice().at(mask.shallow_clone()), &act, &[LEN]).unwrap();
        let got = in_pieces(splice().at(positions.over(&prompt).unwrap()), &act, &lengths).unwrap();
        assert_close(&format!("{positions} in {lengths:?}"), &got, &want, ROUNDING);
        // Elsewhere it is the activation to the last bit.
        let off = mask.logical_not().unsqueeze(-1);
        assert_same("elsewhere", &got.masked_select(&off), &act.masked_select(&off));
    }
}
