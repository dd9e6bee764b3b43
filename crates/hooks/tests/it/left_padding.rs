//! Padding on the left: all sequences end in one column, and each token keeps its place in its own text.

use hooks::TokenBatch;
use proptest::prelude::*;

use crate::common::{bools, cases, ints, refused};

const SPECIAL: [i64; 3] = [0, 1, 2];

#[test]
fn padding_stands_on_the_left_and_is_not_seen() {
    let batch = TokenBatch::left_padded(&[vec![2, 5], vec![2, 7, 8, 9], vec![2]], 0, &SPECIAL).unwrap();
    let rows = [vec![0, 0, 2, 5], vec![2, 7, 8, 9], vec![0, 0, 0, 2]];
    assert_eq!((batch.batch(), batch.pos(), batch.rows()), (3, 4, &rows[..]));
    assert_eq!(ints(batch.ids()), rows);
    let seen = [[false, false, true, true], [true; 4], [false, false, false, true]];
    assert_eq!(bools(batch.attended().unwrap()), seen);
    let counted = [[false, false, false, true], [false, true, true, true], [false; 4]];
    assert_eq!(bools(batch.counted()), counted);
    assert!(batch.documents().is_none());
}

#[test]
fn positions_count_from_the_first_token_of_each_text() {
    let batch = TokenBatch::left_padded(&[vec![2, 5], vec![2, 7, 8, 9], vec![2]], 0, &SPECIAL).unwrap();
    assert_eq!(ints(batch.positions().unwrap()), [[0, 0, 0, 1], [0, 1, 2, 3], [0, 0, 0, 0]]);
    // A mask of the caller's says the same.
    let mask = [vec![0, 1, 1], vec![1, 1, 1]];
    let batch = TokenBatch::with_mask(&[vec![0, 2, 5], vec![2, 6, 7]], &mask, &SPECIAL).unwrap();
    assert_eq!(ints(batch.positions().unwrap()), [[0, 0, 1], [0, 1, 2]]);
}

#[test]
fn where_nothing_stands_on_the_left_positions_are_columns() {
    let batch = TokenBatch::left_padded(&[vec![2, 5], vec![2, 7]], 0, &SPECIAL).unwrap();
    assert!(batch.attended().is_none() && batch.positions().is_none());
    assert!(TokenBatch::new(&[vec![0, 2, 5]], &SPECIAL).unwrap().positions().is_none());
    // A hole in the text is no beginning.
    let hole = TokenBatch::with_mask(&[vec![2, 5, 6]], &[vec![1, 0, 1]], &SPECIAL).unwrap();
    assert!(hole.positions().is_none());
}

#[test]
fn what_is_no_batch_is_refused() {
    let new = |rows: &[Vec<i64>]| TokenBatch::left_padded(rows, 0, &SPECIAL);
    refused(new(&[]), &["at least one sequence"]);
    refused(new(&[vec![]]), &["sequence 0", "no tokens"]);
    refused(new(&[vec![2, 3], vec![]]), &["sequence 1", "no tokens"]);
    refused(new(&[vec![2, 3], vec![-7]]), &["sequence 1", "-7", "negative"]);
    refused(TokenBatch::left_padded(&[vec![2, 3], vec![2]], -1, &SPECIAL), &["-1", "negative"]);
}

#[test]
fn moving_to_a_device_keeps_positions() {
    let batch = TokenBatch::left_padded(&[vec![2, 5], vec![2]], 0, &SPECIAL).unwrap();
    let moved = batch.to_device(tch::Device::Cpu).unwrap();
    assert_eq!(ints(moved.positions().unwrap()), ints(batch.positions().unwrap()));
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn a_token_keeps_its_place_whatever_its_neighbours(
        rows in prop::collection::vec(prop::collection::vec(0i64..9, 1..7), 1..5),
        pad in 0i64..9,
    ) {
        let batch = TokenBatch::left_padded(&rows, pad, &SPECIAL).unwrap();
        let longest = rows.iter().map(Vec::len).max().unwrap();
        prop_assert_eq!((batch.batch(), batch.pos()), (rows.len() as i64, longest as i64));
        let columns: Vec<Vec<i64>> = vec![(0..longest as i64).collect(); rows.len()];
        let positions = batch.positions().map_or(columns, ints);
        let seen = batch.attended().map_or_else(|| vec![vec![true; longest]; rows.len()], bools);
        let (ids, counted) = (ints(batch.ids()), bools(batch.counted()));
        for (b, row) in rows.iter().enumerate() {
            for column in 0..longest {
                let own = column.checked_sub(longest - row.len());
                prop_assert_eq!(ids[b][column], own.map_or(pad, |p| row[p]));
                prop_assert_eq!(seen[b][column], own.is_some());
                prop_assert_eq!(counted[b][column], own.is_some_and(|p| !SPECIAL.contains(&row[p])));
                prop_assert!(own.is_none_or(|p| positions[b][column] == p as i64));
            }
        }
    }

    #[test]
    fn padding_on_the_right_leaves_positions_columns(
        rows in prop::collection::vec(prop::collection::vec(0i64..9, 1..7), 1..5),
    ) {
        prop_assert!(TokenBatch::padded(&rows, 0, &SPECIAL).unwrap().positions().is_none());
    }
}
