//! Batches of tokens: which positions attention sees, which count, and what is no batch.

use hooks::{ModelDims, TokenBatch};
use proptest::prelude::*;
use tch::Kind;

use crate::common::{bools, cases, ints, refused};

const SPECIAL: [i64; 3] = [0, 1, 2];

fn ids(batch: &TokenBatch) -> Vec<Vec<i64>> {
    ints(batch.ids())
}

#[test]
fn a_batch_of_one_length() {
    let rows = vec![vec![2, 5, 9], vec![2, 7, 1]];
    let batch = TokenBatch::new(&rows, &SPECIAL).unwrap();
    assert_eq!((batch.batch(), batch.pos(), batch.rows()), (2, 3, rows.as_slice()));
    assert_eq!((ids(&batch), batch.ids().kind()), (rows, Kind::Int64));
    assert!(batch.attended().is_none());
    assert_eq!(bools(batch.counted()), [[false, true, true], [false, true, false]]);
}

#[test]
fn nothing_special_counts_all() {
    let batch = TokenBatch::new(&[vec![0, 1, 2]], &[]).unwrap();
    assert_eq!(bools(batch.counted()), [[true, true, true]]);
}

#[test]
fn padding_stands_on_the_right_and_is_not_seen() {
    let batch = TokenBatch::padded(&[vec![2, 5], vec![2, 7, 8, 9], vec![2]], 0, &SPECIAL).unwrap();
    assert_eq!(ids(&batch), [[2, 5, 0, 0], [2, 7, 8, 9], [2, 0, 0, 0]]);
    let seen = [[true, true, false, false], [true; 4], [true, false, false, false]];
    assert_eq!(bools(batch.attended().unwrap()), seen);
    let counted = [[false, true, false, false], [false, true, true, true], [false; 4]];
    assert_eq!(bools(batch.counted()), counted);
}

#[test]
fn padding_never_counts_even_where_its_id_is_not_special() {
    let batch = TokenBatch::padded(&[vec![5], vec![5, 6]], 7, &[]).unwrap();
    assert_eq!(bools(batch.counted()), [[true, false], [true, true]]);
}

#[test]
fn a_pad_token_in_the_text_is_seen() {
    // Only what was added is hidden: an id 0 that the caller wrote stays visible, and counts as special.
    let batch = TokenBatch::padded(&[vec![2, 0, 5], vec![2, 0]], 0, &SPECIAL).unwrap();
    assert_eq!(bools(batch.attended().unwrap()), [[true, true, true], [true, true, false]]);
    assert_eq!(bools(batch.counted()), [[false, false, true], [false, false, false]]);
}

#[test]
fn a_batch_of_one_length_needs_no_mask() {
    let batch = TokenBatch::padded(&[vec![2, 5], vec![2, 7]], 0, &SPECIAL).unwrap();
    assert!(batch.attended().is_none());
}

#[test]
fn a_mask_of_ones_and_zeros() {
    let batch =
        TokenBatch::with_mask(&[vec![0, 2, 5], vec![2, 6, 7]], &[vec![0, 1, 1], vec![1, 1, 1]], &SPECIAL)
            .unwrap();
    assert_eq!(bools(batch.attended().unwrap()), [[false, true, true], [true, true, true]]);
    assert_eq!(bools(batch.counted()), [[false, false, true], [false, true, true]]);
}

#[test]
fn positions_that_a_caller_hides_do_not_count() {
    let batch = || TokenBatch::padded(&[vec![2, 5, 6, 7], vec![2, 8]], 0, &SPECIAL).unwrap();
    let (on, off) = (true, false);
    let hidden = [vec![off, off, on, off], vec![off, off, on, off]];
    let fewer = batch().uncounted(&hidden).unwrap();
    assert_eq!(bools(fewer.counted()), [[off, on, off, on], [off, on, off, off]]);
    assert_eq!(bools(fewer.attended().unwrap()), bools(batch().attended().unwrap()));
    assert_eq!(ids(&fewer), ids(&batch()));
    let same = batch().uncounted(&[vec![off; 4], vec![off; 4]]).unwrap();
    assert_eq!(bools(same.counted()), bools(batch().counted()));
    refused(batch().uncounted(&[vec![off; 4]]), &["1 rows", "2 sequences"]);
    refused(batch().uncounted(&[vec![off; 4], vec![off; 3]]), &["3 entries", "sequence 1", "4 tokens"]);
}

#[test]
fn what_is_no_batch_is_refused() {
    for new in [
        |rows: &[Vec<i64>]| TokenBatch::new(rows, &SPECIAL),
        |rows: &[Vec<i64>]| TokenBatch::padded(rows, 0, &SPECIAL),
    ] {
        refused(new(&[]), &["at least one sequence"]);
        refused(new(&[vec![]]), &["sequence 0", "no tokens"]);
        refused(new(&[vec![], vec![]]), &["sequence 0", "no tokens"]);
        refused(new(&[vec![2, 3], vec![]]), &["sequence 1", "no tokens"]);
        refused(new(&[vec![2, 3], vec![2, -7]]), &["sequence 1", "-7", "negative"]);
        refused(new(&[vec![i64::MIN, 3]]), &["sequence 0", &i64::MIN.to_string()]);
    }
    refused(
        TokenBatch::new(&[vec![2, 3], vec![2]], &SPECIAL),
        &["sequence 1 has 1 tokens", "sequence 0 has 2"],
    );
    refused(TokenBatch::padded(&[vec![2, 3], vec![2]], -1, &SPECIAL), &["-1", "negative"]);
}

#[test]
fn what_is_no_mask_is_refused() {
    let rows = [vec![2, 3, 4], vec![2, 5, 6]];
    let with = |mask: &[Vec<i64>]| TokenBatch::with_mask(&rows, mask, &SPECIAL);
    refused(with(&[]), &["attention mask", "0 rows for 2 sequences"]);
    refused(with(&[vec![1, 1, 1]]), &["attention mask", "1 rows for 2 sequences"]);
    refused(with(&[vec![1, 1], vec![1, 1]]), &["attention mask", "sequence 0", "2 entries for 3 tokens"]);
    refused(with(&[vec![1, 1, 1], vec![1; 4]]), &["attention mask", "sequence 1", "4 entries for 3 tokens"]);
    refused(with(&[vec![1, 1, 1], vec![1, 2, 1]]), &["attention mask", "0 and 1"]);
    refused(with(&[vec![1, 1, 1], vec![1, -1, 1]]), &["attention mask", "0 and 1"]);
    refused(with(&[vec![1, 1, 1], vec![0, 0, 0]]), &["attention mask", "sequence 1"]);
}

#[test]
fn a_batch_is_checked_against_a_model() {
    let dims = ModelDims {
        n_layers: 1,
        d_model: 2,
        n_heads: 1,
        n_kv_heads: 1,
        d_head: 2,
        d_mlp: 2,
        d_vocab: 10,
        n_ctx: 3,
    };
    TokenBatch::new(&[vec![9, 0, 9]], &[]).unwrap().check(&dims).unwrap();
    refused(
        TokenBatch::new(&[vec![1], vec![10]], &[]).unwrap().check(&dims),
        &["token id 10", "vocabulary of 10"],
    );
    refused(TokenBatch::new(&[vec![1; 4]], &[]).unwrap().check(&dims), &["4 tokens", "context of 3"]);
}

#[test]
fn moving_to_a_device_keeps_all() {
    let batch = TokenBatch::padded(&[vec![2, 5], vec![2]], 0, &SPECIAL).unwrap();
    let moved = batch.to_device(tch::Device::Cpu).unwrap();
    assert_eq!((ids(&moved), moved.rows()), (ids(&batch), batch.rows()));
    assert_eq!(bools(moved.attended().unwrap()), bools(batch.attended().unwrap()));
    assert_eq!(bools(moved.counted()), bools(batch.counted()));
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn padding_keeps_every_token_and_counts_by_rule(
        rows in prop::collection::vec(prop::collection::vec(0i64..9, 1..7), 1..5),
        pad in 0i64..9,
    ) {
        let batch = TokenBatch::padded(&rows, pad, &SPECIAL).unwrap();
        let longest = rows.iter().map(Vec::len).max().unwrap();
        prop_assert_eq!((batch.batch(), batch.pos()), (rows.len() as i64, longest as i64));
        let counted = bools(batch.counted());
        let seen = batch.attended().map_or_else(|| vec![vec![true; longest]; rows.len()], bools);
        for (b, row) in rows.iter().enumerate() {
            for p in 0..longest {
                let own = row.get(p);
                prop_assert_eq!(ids(&batch)[b][p], *own.unwrap_or(&pad));
                prop_assert_eq!(seen[b][p], own.is_some());
                prop_assert_eq!(counted[b][p], own.is_some_and(|id| !SPECIAL.contains(id)));
            }
        }
    }
}
