//! Rows as a model takes them.

use corpus::{Batch, Batches, CorpusError, Label, Packing, Row, Rows};
use hooks::TokenBatch;

use crate::common::{BOS, Bytes, EOS, PAD, chat, ends_with_error, of, plain, refused, stream, user};

fn bools(tensor: &tch::Tensor) -> Vec<Vec<bool>> {
    Vec::<Vec<i64>>::try_from(&tensor.to_kind(tch::Kind::Int64))
        .unwrap()
        .into_iter()
        .map(|row| row.into_iter().map(|entry| entry == 1).collect())
        .collect()
}

fn batches(rows: Vec<Row>, batch: usize) -> Vec<Batch> {
    Batches::new(rows.into_iter().map(Ok), batch, PAD).unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn some_rows_at_a_time_and_the_rest() {
    let rows = Rows::new(stream(&[plain("abcdefgh")]), Bytes, 3, Packing::Packed).unwrap();
    let rows: Vec<Row> = rows.collect::<Result<_, _>>().unwrap();
    let found = batches(rows.clone(), 3);
    assert_eq!(
        found.iter().map(|batch| (batch.tokens.batch(), batch.tokens.pos())).collect::<Vec<_>>(),
        [(3, 3), (1, 3)]
    );
    let ids: Vec<_> = found.iter().flat_map(|batch| batch.tokens.rows().to_vec()).collect();
    assert_eq!(ids, rows.into_iter().map(|row| row.ids).collect::<Vec<_>>());
    assert!(
        found.iter().all(|batch| batch.tokens.attended().is_none() && batch.tokens.documents().is_none())
    );
}

#[test]
fn padding_stands_on_the_right() {
    let rows = Rows::new(stream(&[of("x", "a"), of("y", "bcd")]), Bytes, 9, Packing::Separate).unwrap();
    let [batch] = &batches(rows.collect::<Result<_, _>>().unwrap(), 8)[..] else { panic!("one batch") };
    assert_eq!(batch.tokens.rows()[0][2..], [PAD, PAD]);
    let (on, off) = (true, false);
    assert_eq!(bools(batch.tokens.attended().unwrap()), [[on, on, off, off], [on; 4]]);
    assert_eq!(bools(batch.tokens.counted()), [[off, on, off, off], [off, on, on, on]]);
    assert_eq!(batch.labels[0][2..], [Label::Padding; 2]);
    assert_eq!(batch.groups(), [-1, 0, -1, -1, -1, 1, 1, 1]);
}

#[test]
fn plain_text_counts_as_any_batch_does() {
    // The same as a batch that is told what ids are special.
    let documents = [plain("abc"), plain("de"), plain("fghijk")];
    let rows: Vec<Row> =
        Rows::new(stream(&documents), Bytes, 5, Packing::Packed).unwrap().collect::<Result<_, _>>().unwrap();
    let ids: Vec<_> = rows.iter().map(|row| row.ids.clone()).collect();
    let by_ids = TokenBatch::padded(&ids, PAD, &[BOS, EOS, PAD]).unwrap();
    let [batch] = &batches(rows, 8)[..] else { panic!("one batch") };
    assert_eq!(bools(batch.tokens.counted()), bools(by_ids.counted()));
    assert_eq!(batch.tokens.rows(), by_ids.rows());
    assert_eq!(batch.tokens.attended().map(bools), by_ids.attended().map(bools));
}

#[test]
fn marks_of_turns_are_seen_and_do_not_count() {
    let mut rows = Rows::new(stream(&[chat(&[user("ab")])]), Bytes, 99, Packing::Packed).unwrap();
    let row = rows.next().unwrap().unwrap();
    let [batch] = &batches(vec![row.clone()], 1)[..] else { panic!("one batch") };
    let counted: Vec<bool> = row.labels.iter().map(|label| label.counted()).collect();
    assert_eq!(counted.iter().filter(|counted| **counted).count(), 2);
    assert_eq!(bools(batch.tokens.counted()), [counted]);
    assert!(batch.tokens.attended().is_none());
}

#[test]
fn the_rows_can_be_asked_meanwhile_and_afterwards() {
    let mut rows = Rows::new(stream(&[of("x", "abcd")]), Bytes, 3, Packing::Packed).unwrap();
    let mut batches = Batches::new(rows.by_ref(), 1, PAD).unwrap();
    batches.next().unwrap().unwrap();
    assert_eq!(
        (batches.rows().groups().names(), batches.rows().summary().sequences),
        (&["x".to_owned()][..], 1)
    );
    assert_eq!(batches.count(), 1);
    assert_eq!((rows.summary().sequences, rows.summary().tokens), (2, 6));
}

#[test]
fn no_rows_are_no_batches_and_no_rows_at_a_time_none_at_all() {
    assert!(batches(vec![], 4).is_empty());
    refused(Batches::new(std::iter::empty(), 0, PAD), &["at least one row"]);
}

#[test]
fn an_error_ends_the_batches() {
    let row = Row { ids: vec![BOS, 7], labels: vec![Label::Control, Label::Text] };
    let error = || Err(CorpusError::Request("it broke".to_owned()));
    let rows = vec![Ok(row.clone()), Ok(row.clone()), Ok(row.clone()), error(), Ok(row)];
    let found = ends_with_error(Batches::new(rows.into_iter(), 2, PAD).unwrap());
    assert_eq!(found.to_string(), "it broke");
}
