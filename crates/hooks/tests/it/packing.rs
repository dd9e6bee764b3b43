//! Several documents in a row: no token is lost, and each document stays by itself.

use hooks::TokenBatch;
use proptest::prelude::*;

use crate::common::{bools, cases, ints, refused};

const SPECIAL: [i64; 3] = [0, 1, 2];

fn documents() -> Vec<Vec<i64>> {
    vec![vec![2, 5, 6], vec![2, 7], vec![2, 8, 9, 10]]
}

#[test]
fn rows_are_cut_at_the_context_and_the_last_one_is_padded() {
    let batch = TokenBatch::packed(&documents(), 4, 0, &SPECIAL).unwrap();
    let rows = [vec![2, 5, 6, 2], vec![7, 2, 8, 9], vec![10, 0, 0, 0]];
    assert_eq!((batch.batch(), batch.pos(), batch.rows()), (3, 4, &rows[..]));
    assert_eq!(ints(batch.ids()), rows);
    assert_eq!(ints(batch.documents().unwrap()), [[0, 0, 0, 1], [1, 2, 2, 2], [2, -1, -1, -1]]);
    let (on, off) = (true, false);
    assert_eq!(bools(batch.attended().unwrap()), [[on; 4], [on; 4], [on, off, off, off]]);
    assert_eq!(bools(batch.counted()), [[off, on, on, off], [on, off, on, on], [on, off, off, off]]);
    // What goes on in the next row begins anew there: it sees nothing of the row before.
    let positions = ints(batch.positions().unwrap());
    assert_eq!(positions[..2], [[0, 1, 2, 0], [0, 0, 1, 2]]);
    assert_eq!(positions[2][0], 0);
}

#[test]
fn full_rows_need_no_mask() {
    let batch = TokenBatch::packed(&documents(), 3, 0, &SPECIAL).unwrap();
    assert_eq!(ints(batch.ids()), [[2, 5, 6], [2, 7, 2], [8, 9, 10]]);
    assert!(batch.attended().is_none());
    assert_eq!(ints(batch.documents().unwrap()), [[0, 0, 0], [1, 1, 2], [2, 2, 2]]);
    assert_eq!(ints(batch.positions().unwrap()), [[0, 1, 2], [0, 1, 0], [0, 1, 2]]);
}

#[test]
fn one_short_row_is_not_padded() {
    for ctx in [9, 10, 1 << 20, usize::MAX] {
        let batch = TokenBatch::packed(&documents(), ctx, 0, &SPECIAL).unwrap();
        assert_eq!(ints(batch.ids()), [documents().concat()], "{ctx}");
        assert!(batch.attended().is_none());
    }
}

#[test]
fn one_document_in_one_row_stands_where_its_columns_are() {
    let batch = TokenBatch::packed(&[vec![2, 5, 6]], 8, 0, &SPECIAL).unwrap();
    assert!(batch.positions().is_none());
    assert_eq!(ints(batch.documents().unwrap()), [[0, 0, 0]]);
}

#[test]
fn documents_by_the_callers_numbers() {
    let rows = [vec![2, 5, 2, 7], vec![2, 8, 9, 0]];
    let mask = [vec![1, 1, 1, 1], vec![1, 1, 1, 0]];
    // Numbers need not count up, and another row may use them again.
    let numbers = [vec![9, 9, 4, 4], vec![4, 4, 4, -1]];
    let batch = TokenBatch::with_documents(&rows, Some(&mask), &numbers, &SPECIAL).unwrap();
    assert_eq!(ints(batch.documents().unwrap()), numbers);
    let (on, off) = (true, false);
    assert_eq!(bools(batch.attended().unwrap()), [[on; 4], [on, on, on, off]]);
    assert_eq!(bools(batch.counted()), [[off, on, off, on], [off, on, on, off]]);
    let positions = ints(batch.positions().unwrap());
    assert_eq!((&positions[0][..], &positions[1][..3]), (&[0, 1, 0, 1][..], &[0, 1, 2][..]));

    let unmasked = TokenBatch::with_documents(&rows, None, &numbers, &SPECIAL).unwrap();
    assert!(unmasked.attended().is_none());
    assert_eq!(bools(unmasked.counted())[1], [false, true, true, false]);
}

#[test]
fn positions_begin_behind_padding_in_front_of_a_document() {
    let (rows, mask) = ([vec![0, 2, 5, 0, 2]], [vec![0, 1, 1, 0, 1]]);
    let batch = TokenBatch::with_documents(&rows, Some(&mask), &[vec![0, 0, 0, 1, 1]], &SPECIAL).unwrap();
    let positions = ints(batch.positions().unwrap());
    assert_eq!([1, 2, 4].map(|column| positions[0][column]), [0, 1, 0]);
}

#[test]
fn across_documents_a_row_is_one_text() {
    let packed = || TokenBatch::packed(&documents(), 4, 0, &SPECIAL).unwrap();
    let (within, across) = (packed(), packed().across_documents().unwrap());
    assert!(across.documents().is_none() && across.positions().is_none());
    assert_eq!((ints(across.ids()), across.rows()), (ints(within.ids()), within.rows()));
    assert_eq!(bools(across.attended().unwrap()), bools(within.attended().unwrap()));
    assert_eq!(bools(across.counted()), bools(within.counted()));
}

/// One text is what begins at its first token, wherever the padding in front of it ends.
#[test]
fn across_documents_padding_on_the_left_still_changes_no_position() {
    let (rows, mask) = ([vec![0, 2, 5, 2, 7]], [vec![0, 1, 1, 1, 1]]);
    let numbers = [vec![-1, 0, 0, 1, 1]];
    let within = TokenBatch::with_documents(&rows, Some(&mask), &numbers, &SPECIAL).unwrap();
    let across = within.across_documents().unwrap();
    let same = TokenBatch::with_mask(&rows, &mask, &SPECIAL).unwrap();
    assert_eq!(across.positions().map(ints), same.positions().map(ints));
}

#[test]
fn moving_to_a_device_keeps_documents() {
    let batch = TokenBatch::packed(&documents(), 4, 0, &SPECIAL).unwrap();
    let moved = batch.to_device(tch::Device::Cpu).unwrap();
    assert_eq!(ints(moved.documents().unwrap()), ints(batch.documents().unwrap()));
    assert_eq!(ints(moved.positions().unwrap()), ints(batch.positions().unwrap()));
}

#[test]
fn what_cannot_be_packed_is_refused() {
    let packed = |documents: &[Vec<i64>], ctx| TokenBatch::packed(documents, ctx, 0, &SPECIAL);
    refused(packed(&[], 4), &["at least one sequence"]);
    refused(packed(&[vec![]], 4), &["document 0", "no tokens"]);
    refused(packed(&[vec![2], vec![], vec![3]], 4), &["document 1", "no tokens"]);
    refused(packed(&documents(), 0), &["rows of 0 tokens"]);
    refused(packed(&[vec![2, 5], vec![2, -7]], 3), &["-7", "negative"]);
    refused(TokenBatch::packed(&documents(), 4, -1, &SPECIAL), &["-1", "negative"]);
}

#[test]
fn numbers_that_are_no_documents_are_refused() {
    let rows = [vec![2, 5, 6], vec![2, 7, 8]];
    let with = |numbers: &[Vec<i64>]| TokenBatch::with_documents(&rows, None, numbers, &SPECIAL);
    refused(with(&[]), &["document numbers for 0 rows", "2 sequences"]);
    refused(with(&[vec![0; 3]]), &["document numbers for 1 rows", "2 sequences"]);
    refused(with(&[vec![0; 3], vec![0; 2]]), &["sequence 1", "2 document numbers for 3 tokens"]);
    refused(with(&[vec![0; 4], vec![0; 3]]), &["sequence 0", "4 document numbers for 3 tokens"]);
    refused(with(&[vec![0; 3], vec![4, 7, 4]]), &["document 4 of sequence 1", "one piece"]);
    refused(
        TokenBatch::with_documents(&rows, Some(&[vec![1, 1, 1], vec![0; 3]]), &[vec![0; 3], vec![0; 3]], &[]),
        &["attention mask", "sequence 1"],
    );
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn packing_loses_and_reorders_no_token(
        documents in prop::collection::vec(prop::collection::vec(0i64..9, 1..7), 1..6),
        ctx in 1usize..12,
        pad in 0i64..9,
    ) {
        let batch = TokenBatch::packed(&documents, ctx, pad, &SPECIAL).unwrap();
        let total = documents.concat().len();
        let width = ctx.min(total);
        prop_assert_eq!((batch.batch(), batch.pos()), (total.div_ceil(width) as i64, width as i64));

        let numbered = documents.iter().zip(0i64..).flat_map(|(ids, n)| ids.iter().map(move |id| (*id, n)));
        let (ids, numbers) = (ints(batch.ids()).concat(), ints(batch.documents().unwrap()).concat());
        prop_assert!(numbered.eq(ids.iter().copied().zip(numbers.iter().copied()).take(total)));
        // Behind them is padding and nothing else.
        prop_assert!(ids[total..].iter().all(|id| *id == pad) && numbers[total..].iter().all(|n| *n == -1));
        let seen = batch.attended().map_or_else(|| vec![true; ids.len()], |seen| bools(seen).concat());
        prop_assert!(seen.iter().enumerate().all(|(i, seen)| *seen == (i < total)));
        let counted = bools(batch.counted()).concat();
        for (i, counted) in counted.into_iter().enumerate() {
            prop_assert_eq!(counted, i < total && !SPECIAL.contains(&ids[i]));
        }
    }

    #[test]
    fn positions_count_what_a_token_sees_before_it(
        documents in prop::collection::vec(prop::collection::vec(3i64..9, 1..7), 1..6),
        ctx in 1usize..12,
    ) {
        let batch = TokenBatch::packed(&documents, ctx, 0, &SPECIAL).unwrap();
        let numbers = ints(batch.documents().unwrap());
        let positions = batch.positions().map(ints);
        for (b, row) in numbers.iter().enumerate() {
            for (column, number) in row.iter().enumerate().filter(|(_, number)| **number >= 0) {
                let before = row[..column].iter().filter(|n| *n == number).count() as i64;
                prop_assert_eq!(positions.as_ref().map_or(column as i64, |p| p[b][column]), before);
            }
        }
    }
}
