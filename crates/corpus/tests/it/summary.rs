//! What was read, as a checksum and counts.

use corpus::{Document, Packing, ReadOptions, Rows, Summary, open};
use sha2::{Digest as _, Sha256};

use crate::common::{Bytes, chat, file, model, of, plain, stream, user, with_subset};

fn summary(documents: &[Document], ctx: usize, packing: Packing) -> Summary {
    let mut rows = Rows::new(stream(documents), Bytes, ctx, packing).unwrap();
    rows.by_ref().for_each(|row| drop(row.unwrap()));
    rows.summary()
}

fn sha256(documents: &[Document]) -> String {
    summary(documents, 8, Packing::Packed).sha256
}

#[test]
fn the_checksum_by_hand() {
    let documents = [of("pile", "héy"), chat(&[user("a"), model("b")])];
    let mut bytes = Vec::new();
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    bytes.extend([vec![1], text("pile"), vec![0], text("héy")].concat());
    bytes.extend([vec![0, 1], 2u64.to_le_bytes().to_vec()].concat());
    bytes.extend([text("user"), text("a"), text("model"), text("b")].concat());
    assert_eq!(sha256(&documents), format!("{:x}", Sha256::digest(bytes)));
    // Of nothing: `sha256sum < /dev/null`.
    assert_eq!(sha256(&[]), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
}

#[test]
fn it_is_the_text_s_and_not_the_rows_or_the_file_s() {
    let documents = [of("x", "abc"), of("y", "de")];
    let sha256 = sha256(&documents);
    assert_eq!(summary(&documents, 3, Packing::Separate).sha256, sha256);
    let (_folder, path) =
        file("a.jsonl", "{\"text\":\"abc\",\"s\":\"x\"}\r\n\n{\"s\": \"y\", \"text\": \"de\", \"id\": 1}");
    let mut rows = Rows::new(open(&path, &with_subset("s")).unwrap(), Bytes, 4, Packing::Packed).unwrap();
    rows.by_ref().for_each(|row| drop(row.unwrap()));
    assert_eq!(rows.summary().sha256, sha256);
}

#[test]
fn it_tells_apart_what_is_not_the_same() {
    let all = [
        vec![],
        vec![plain("")],
        vec![plain("ab")],
        vec![plain("a"), plain("b")],
        vec![plain("b"), plain("a")],
        vec![of("a", "b")],
        vec![of("ab", "")],
        vec![chat(&[user("ab")])],
        vec![chat(&[user("a"), model("b")])],
        vec![chat(&[user("a")]), chat(&[user("b")])],
    ];
    let sums: std::collections::HashSet<_> = all.iter().map(|documents| sha256(documents)).collect();
    assert_eq!(sums.len(), all.len());
}

#[test]
fn counts_and_their_names() {
    let summary = summary(&[plain("abc"), plain(""), plain("de")], 4, Packing::Packed);
    // BOS a b c | BOS EOS d e
    let expected = Summary {
        sha256: summary.sha256.clone(),
        documents: 2,
        skipped: 1,
        sequences: 2,
        tokens: 8,
        counted: 5,
    };
    assert_eq!(summary, expected);
    let json = serde_json::to_value(&summary).unwrap();
    let names: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(names, ["counted", "documents", "sequences", "sha256", "skipped", "tokens"]);
}

#[test]
fn what_was_not_read_is_not_in_it() {
    let (_folder, path) = file("a.txt", "ab\n\ncd\n\nef");
    let mut rows =
        Rows::new(open(&path, &ReadOptions::default()).unwrap(), Bytes, 3, Packing::Separate).unwrap();
    rows.next().unwrap().unwrap();
    assert_eq!(rows.summary(), summary(&[plain("ab")], 3, Packing::Separate));
}
