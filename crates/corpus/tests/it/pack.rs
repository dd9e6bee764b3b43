//! Rows by hand.

use corpus::{CorpusError, Document, Encode, Label, Packing, Row, Rows};

use crate::common::{BOS, Bytes, EOS, bytes, ends_with_error, ids, of, plain, refused, stream};

fn rows(documents: &[Document], ctx: usize, packing: Packing) -> Vec<Row> {
    Rows::new(stream(documents), Bytes, ctx, packing).unwrap().collect::<Result<_, _>>().unwrap()
}

fn row(parts: &[&[i64]]) -> Vec<i64> {
    parts.concat()
}

#[test]
fn documents_follow_one_another_with_eos_between() {
    let found = rows(&[plain("abc"), plain("defgh"), plain("i")], 5, Packing::Packed);
    assert_eq!(
        ids(&found),
        [
            row(&[&[BOS], &bytes("abc"), &[EOS]]),
            row(&[&[BOS], &bytes("defg")]),
            row(&[&[BOS], &bytes("h"), &[EOS], &bytes("i")]),
        ]
    );
    use Label::{Control as C, Text as T};
    assert_eq!(found[0].labels, [C, T, T, T, C]);
    assert_eq!(found[2].labels, [C, T, C, T]);
}

#[test]
fn an_eos_may_begin_a_row_and_never_ends_the_corpus() {
    assert_eq!(
        ids(&rows(&[plain("ab"), plain("c")], 3, Packing::Packed)),
        [row(&[&[BOS], &bytes("ab")]), row(&[&[BOS, EOS], &bytes("c")])]
    );
    assert_eq!(ids(&rows(&[plain("ab")], 3, Packing::Packed)), [row(&[&[BOS], &bytes("ab")])]);
}

#[test]
fn rows_of_two() {
    let found = rows(&[plain("ab"), plain("c")], 2, Packing::Packed);
    let expected = [bytes("a"), bytes("b"), vec![EOS], bytes("c")].map(|token| [vec![BOS], token].concat());
    assert_eq!(ids(&found), expected);
    let found = rows(&[plain("ab"), plain("c")], 2, Packing::Separate);
    assert_eq!(ids(&found), ["a", "b", "c"].map(|text| [vec![BOS], bytes(text)].concat()));
}

#[test]
fn documents_by_themselves() {
    let found = rows(&[plain("abc"), plain("d"), plain("efghi")], 4, Packing::Separate);
    assert_eq!(ids(&found), ["abc", "d", "efg", "hi"].map(|text| [vec![BOS], bytes(text)].concat()));
    assert_eq!(found[3].labels, [Label::Control, Label::Text, Label::Text]);
}

#[test]
fn text_is_in_the_group_of_its_subset() {
    let documents = [of("x", "ab"), of("y", "c"), plain("d"), of("x", "e")];
    let mut packed = Rows::new(stream(&documents), Bytes, 100, Packing::Packed).unwrap();
    let found = packed.next().unwrap().unwrap();
    use Label::{Control as C, Group as G, Text as T};
    assert_eq!(found.labels, [C, G(0), G(0), C, G(1), C, T, C, G(0)]);
    assert_eq!(packed.groups().names(), ["x", "y"]);
    assert!(packed.next().is_none());
}

#[test]
fn no_documents_are_no_rows() {
    for packing in [Packing::Packed, Packing::Separate] {
        assert!(rows(&[], 4, packing).is_empty());
        assert!(rows(&[plain(""), plain("")], 4, packing).is_empty());
    }
}

#[test]
fn an_empty_document_leaves_no_trace_but_a_count() {
    for packing in [Packing::Packed, Packing::Separate] {
        let with = [plain(""), plain("ab"), of("x", ""), plain("c"), plain("")];
        let without = [plain("ab"), plain("c")];
        assert_eq!(rows(&with, 9, packing), rows(&without, 9, packing));
        let mut stream = Rows::new(stream(&with), Bytes, 9, packing).unwrap();
        stream.by_ref().for_each(|row| drop(row.unwrap()));
        assert_eq!((stream.summary().documents, stream.summary().skipped), (2, 3));
        assert!(stream.groups().names().is_empty());
    }
}

#[test]
fn a_row_without_room_is_refused() {
    for ctx in [0, 1] {
        refused(
            Rows::new(stream(&[]), Bytes, ctx, Packing::Packed),
            &["at least 2 tokens", &ctx.to_string()],
        );
    }
}

/// Refuses what has an x.
struct NoX;

impl Encode for NoX {
    fn encode(&self, text: &str) -> Result<Vec<i64>, corpus::BoxError> {
        if text.contains('x') { Err("no x, please".into()) } else { Bytes.encode(text) }
    }
    fn bos(&self) -> i64 {
        BOS
    }
    fn eos(&self) -> i64 {
        EOS
    }
    fn pad(&self) -> i64 {
        0
    }
    fn token(&self, _: &str) -> Option<i64> {
        None
    }
}

#[test]
fn an_error_names_the_document_and_ends_the_rows() {
    let documents = [plain("a"), plain(""), plain("bx"), plain("c")];
    let rows = Rows::new(stream(&documents), NoX, 2, Packing::Packed).unwrap();
    let error = ends_with_error(rows);
    assert!(matches!(error, CorpusError::Encode { number: 3, .. }), "{error:?}");
    refused(Err::<(), _>(error), &["document 3", "no x, please"]);
    // The reader's own error passes through.
    let broken = vec![Ok(plain("a")), Err(CorpusError::Request("it broke".to_owned())), Ok(plain("b"))];
    let error = ends_with_error(Rows::new(broken.into_iter(), Bytes, 4, Packing::Packed).unwrap());
    assert_eq!(error.to_string(), "it broke");
}
