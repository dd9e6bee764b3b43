//! Some of a batch's sequences.

use hooks::TokenBatch;
use tch::Tensor;
use testkit::assert_same;

use crate::common::refused;

const SPECIAL: [i64; 3] = [0, 1, 2];

fn texts() -> Vec<Vec<i64>> {
    vec![vec![2, 5, 6, 7, 1], vec![2, 8], vec![2, 9, 10], vec![11, 12, 13, 14]]
}

fn assert_option(what: &str, got: Option<&Tensor>, want: Option<&Tensor>) {
    assert_eq!(got.is_some(), want.is_some(), "{what}");
    if let (Some(got), Some(want)) = (got, want) {
        assert_same(what, got, want);
    }
}

#[track_caller]
fn assert_batches_same(what: &str, got: &TokenBatch, want: &TokenBatch) {
    assert_eq!(got.rows(), want.rows(), "{what}");
    assert_eq!((got.batch(), got.pos()), (want.batch(), want.pos()), "{what}");
    assert_same(what, got.ids(), want.ids());
    assert_same(what, got.counted(), want.counted());
    assert_option(what, got.attended(), want.attended());
    assert_option(what, got.documents(), want.documents());
    assert_option(what, got.positions(), want.positions());
}

/// As if the batch had been made of these rows.
#[test]
fn as_made_of_these_rows() {
    let rows: Vec<Vec<i64>> = texts()
        .into_iter()
        .map(|mut row| {
            row.resize(5, 0);
            row
        })
        .collect();
    let mask = [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 1, 1]].map(Vec::from);
    let documents = [[0, 0, 1, 1, 1], [2, 2, -1, -1, -1], [3, 3, 3, -1, -1], [4, 5, 5, 5, 6]].map(Vec::from);
    for chosen in [vec![0], vec![3], vec![2, 0], vec![1, 1, 3], vec![3, 2, 1, 0, 1]] {
        let of = |all: &[Vec<i64>]| chosen.iter().map(|i| all[*i].clone()).collect::<Vec<_>>();
        let what = format!("{chosen:?}");
        let got = TokenBatch::new(&rows, &SPECIAL).unwrap().select(&chosen).unwrap();
        assert_batches_same(&what, &got, &TokenBatch::new(&of(&rows), &SPECIAL).unwrap());
        let got = TokenBatch::with_documents(&rows, Some(&mask), &documents, &SPECIAL).unwrap();
        let want =
            TokenBatch::with_documents(&of(&rows), Some(&of(&mask)), &of(&documents), &SPECIAL).unwrap();
        assert_batches_same(&what, &got.select(&chosen).unwrap(), &want);
    }
    // Positions that are the column in every row that is left are kept all the same, and say so.
    let left = TokenBatch::left_padded(&texts(), 0, &SPECIAL).unwrap();
    let got = left.select(&[0]).unwrap();
    let columns = Tensor::arange(5, (tch::Kind::Int64, tch::Device::Cpu)).unsqueeze(0);
    assert_same("positions", got.positions().unwrap(), &columns);
}

#[test]
fn all_of_them_is_the_same_batch() {
    for batch in [
        TokenBatch::padded(&texts(), 0, &SPECIAL).unwrap(),
        TokenBatch::left_padded(&texts(), 0, &SPECIAL).unwrap(),
        TokenBatch::packed(&texts(), 4, 0, &SPECIAL).unwrap(),
    ] {
        let every: Vec<usize> = (0..batch.rows().len()).collect();
        assert_batches_same("all", &batch.select(&every).unwrap(), &batch);
    }
}

#[test]
fn sequences_that_are_not_there() {
    let batch = TokenBatch::padded(&texts(), 0, &SPECIAL).unwrap();
    refused(batch.select(&[0, 4]), &["no sequence 4", "4"]);
    refused(batch.select(&[]), &["at least one sequence"]);
}
