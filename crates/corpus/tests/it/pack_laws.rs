//! No token is lost, none is there twice, and labels go with their tokens.

use corpus::{Document, Label, Packing, Rows};
use proptest::prelude::*;

use crate::common::{BOS, Bytes, EOS, bytes, cases, of, plain, spelled, stream};

const SUBSETS: [&str; 3] = ["a", "b", "c"];

/// Documents, some empty; a capital letter for each text of a subset, so that a token shows where it comes from.
fn documents() -> impl Strategy<Value = Vec<Document>> {
    let document = (0usize..4, 0usize..12).prop_map(|(subset, length)| match SUBSETS.get(subset) {
        Some(name) => of(name, &name.to_uppercase().repeat(length)),
        None => plain(&"-".repeat(length)),
    });
    prop::collection::vec(document, 0..12)
}

fn text(document: &Document) -> &str {
    match &document.content {
        corpus::Content::Text(text) => text,
        corpus::Content::Chat(_) => unreachable!("there are texts alone"),
    }
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn rows_without_their_bos_are_the_documents(documents in documents(), ctx in 2usize..20) {
        let mut rows = Rows::new(stream(&documents), Bytes, ctx, Packing::Packed).unwrap();
        let found: Vec<_> = rows.by_ref().map(Result::unwrap).collect();
        for (i, row) in found.iter().enumerate() {
            prop_assert_eq!((row.ids[0], row.labels[0]), (BOS, Label::Control));
            prop_assert_eq!(row.ids.len(), row.labels.len());
            prop_assert!(row.ids.len() == ctx || (i + 1 == found.len() && (2..ctx).contains(&row.ids.len())));
        }
        let body: Vec<i64> = found.iter().flat_map(|row| row.ids[1..].to_vec()).collect();
        let texts: Vec<_> = documents.iter().map(text).filter(|text| !text.is_empty()).collect();
        let expected: Vec<Vec<i64>> = texts.iter().map(|text| bytes(text)).collect();
        prop_assert_eq!(body, expected.join(&EOS));
        let summary = rows.summary();
        prop_assert_eq!(summary.documents + summary.skipped, documents.len() as u64);
        prop_assert_eq!(summary.sequences, found.len() as u64);
        prop_assert_eq!(summary.tokens, found.iter().map(|row| row.ids.len() as u64).sum::<u64>());
        prop_assert_eq!(summary.counted, texts.iter().map(|text| text.len() as u64).sum::<u64>());
    }

    #[test]
    fn pieces_without_their_bos_are_each_document(documents in documents(), ctx in 2usize..20) {
        let rows = Rows::new(stream(&documents), Bytes, ctx, Packing::Separate).unwrap();
        let mut found = rows.map(Result::unwrap);
        for text in documents.iter().map(text).filter(|text| !text.is_empty()) {
            for piece in bytes(text).chunks(ctx - 1) {
                prop_assert_eq!(found.next().unwrap().ids, [&[BOS], piece].concat());
            }
        }
        prop_assert!(found.next().is_none());
    }

    #[test]
    fn labels_go_with_their_tokens(documents in documents(), ctx in 2usize..20, packed: bool) {
        let packing = if packed { Packing::Packed } else { Packing::Separate };
        let mut rows = Rows::new(stream(&documents), Bytes, ctx, packing).unwrap();
        let found: Vec<_> = rows.by_ref().map(Result::unwrap).collect();
        let names = rows.groups().names();
        for (id, label) in found.iter().flat_map(|row| row.ids.iter().zip(&row.labels)) {
            match *id {
                BOS | EOS => prop_assert_eq!(*label, Label::Control),
                id => match label.group() {
                    Some(group) => prop_assert_eq!(spelled(&[id]), names[group as usize].to_uppercase()),
                    None => prop_assert_eq!((spelled(&[id]), *label), ("-".to_owned(), Label::Text)),
                },
            }
        }
    }
}
