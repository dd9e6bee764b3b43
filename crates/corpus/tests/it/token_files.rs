//! Files of token ids.

use corpus::{Batches, Label, open_tokens};

use crate::common::{BOS, EOS, PAD, file, ids, refused};

const SPECIAL: [i64; 3] = [PAD, EOS, BOS];

fn rows(content: &str) -> corpus::Result<Vec<corpus::Row>> {
    let (_folder, path) = file("ids.json", content);
    open_tokens(&path, &SPECIAL)?.collect()
}

#[test]
fn rows_as_they_are() {
    let found = rows("\u{feff}{\"input_ids\": [[2, 7, 8, 1], [9], [7, 2]]}").unwrap();
    assert_eq!(ids(&found), [vec![2, 7, 8, 1], vec![9], vec![7, 2]]);
    use Label::{Control as C, Text as T};
    assert_eq!(
        found.iter().map(|row| row.labels.clone()).collect::<Vec<_>>(),
        [vec![C, T, T, C], vec![T], vec![T, C]]
    );
    assert_eq!(rows("{\"input_ids\": [[5]], \"attention_mask\": null}").unwrap().len(), 1);
    assert!(rows("{\"input_ids\": []}").unwrap().is_empty());
}

#[test]
fn a_mask_says_what_is_there() {
    let content = "{\"input_ids\": [[0, 2, 7], [2, 7, 0]], \"attention_mask\": [[0, 1, 1], [1, 1, 0]]}";
    let found = rows(content).unwrap();
    use Label::{Control as C, Padding as P, Text as T};
    assert_eq!(found.iter().map(|row| row.labels.clone()).collect::<Vec<_>>(), [[P, C, T], [C, T, P]]);
}

#[test]
fn ragged_rows_are_padded_and_counted() {
    let (_folder, path) =
        file("ids.json", "{\"input_ids\": [[2, 7, 8], [2, 9]], \"attention_mask\": [[1, 1, 0], [1, 1]]}");
    let mut rows = open_tokens(&path, &SPECIAL).unwrap();
    let mut batches = Batches::new(rows.by_ref(), 4, PAD).unwrap();
    let batch = batches.next().unwrap().unwrap();
    assert_eq!(batch.tokens.rows(), [[2, 7, 8], [2, 9, PAD]]);
    let ints = |tensor: &tch::Tensor| Vec::<Vec<i64>>::try_from(&tensor.to_kind(tch::Kind::Int64)).unwrap();
    assert_eq!(ints(batch.tokens.attended().unwrap()), [[1, 1, 0], [1, 1, 0]]);
    assert_eq!(ints(batch.tokens.counted()), [[0, 1, 0], [0, 1, 0]]);
    assert!(batches.next().is_none());
    let summary = rows.summary();
    assert_eq!((summary.documents, summary.sequences, summary.tokens, summary.counted), (2, 2, 4, 2));
}

#[test]
fn the_checksum_tells_ids_and_masks_apart() {
    let sum = |content: &str| {
        let (_folder, path) = file("ids.json", content);
        let mut rows = open_tokens(&path, &SPECIAL).unwrap();
        rows.by_ref().for_each(|row| drop(row.unwrap()));
        rows.summary().sha256
    };
    let all = [
        "{\"input_ids\": [[2, 7]]}",
        "{\"input_ids\": [[2], [7]]}",
        "{\"input_ids\": [[7, 2]]}",
        "{\"input_ids\": [[2, 7]], \"attention_mask\": [[0, 1]]}",
    ];
    let sums: std::collections::HashSet<_> = all.iter().map(|content| sum(content)).collect();
    assert_eq!(sums.len(), all.len());
    // A mask that hides nothing is none.
    assert_eq!(sum(all[0]), sum("{\"attention_mask\": [[1, 1]], \"input_ids\": [[2, 7]]}"));
}

#[test]
fn what_is_no_such_file_is_refused() {
    for (content, at_fault) in [
        ("", &["no file of token ids"][..]),
        ("[[1]]", &["no file of token ids"]),
        ("{}", &["input_ids"]),
        ("{\"input_ids\": [[1]], \"labels\": []}", &["labels"]),
        ("{\"input_ids\": [[1.5]]}", &["1.5"]),
        ("{\"input_ids\": [[1], []]}", &["row 2", "no token ids"]),
        ("{\"input_ids\": [[1], [3, -4]]}", &["row 2", "-4", "negative"]),
        ("{\"input_ids\": [[1]], \"attention_mask\": []}", &["1 rows", "0"]),
        (
            "{\"input_ids\": [[1], [1, 2]], \"attention_mask\": [[1], [1]]}",
            &["row 2", "1 entries", "2 token ids"],
        ),
        ("{\"input_ids\": [[1]], \"attention_mask\": [[2]]}", &["row 1", "0 and 1", "2"]),
        ("{\"input_ids\": [[1]], \"attention_mask\": [[0]]}", &["row 1", "hides all"]),
    ] {
        let text = refused(rows(content), at_fault);
        assert!(text.contains("ids.json"), "{text}");
    }
    refused(open_tokens("/nowhere/ids.json", &SPECIAL), &["/nowhere/ids.json"]);
}
