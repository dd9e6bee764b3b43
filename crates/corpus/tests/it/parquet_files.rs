//! Parquet: each compression, nested columns, several row groups, nulls, lists of turns.

use std::path::PathBuf;

use corpus::{Field, ReadOptions, open};
use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use tempfile::TempDir;

use crate::{
    common::{
        chat, ends_with_error, file, model, read, refused, subsets, texts, user, with_chat, with_subset,
    },
    parquet_writer::{Leaf, write},
};

const TEXT: &str = "message schema { required binary text (UTF8); }";
const PILE: &str = "message schema {
    required binary id (UTF8);
    optional binary text (UTF8);
    optional group meta { optional binary pile_set_name (UTF8); required binary raw; }
}";
const CHAT: &str = "message schema {
    optional group messages (LIST) { repeated group list { optional group element {
        optional binary content (UTF8);
        optional binary role (UTF8);
    } } }
}";

fn parquet(schema: &str, compression: Compression, groups: &[Vec<Leaf>]) -> (TempDir, PathBuf) {
    let (folder, path) = file("a.parquet", "");
    write(&path, schema, compression, groups);
    (folder, path)
}

fn pile(texts: &[Option<&str>], names: &[Option<&str>]) -> Vec<Leaf> {
    let n = texts.len();
    let raw = Leaf { values: vec![vec![0xff, 0xfe]; n], definition: Some(vec![1; n]), repetition: None };
    vec![Leaf::all(&vec!["id"; n]), Leaf::some(texts, 0), Leaf::some(names, 1), raw]
}

#[test]
fn every_compression_and_several_row_groups() {
    let zstd = Compression::ZSTD(ZstdLevel::try_new(3).unwrap());
    let gzip = Compression::GZIP(GzipLevel::default());
    let groups = [
        vec![Leaf::all(&["a", "", "c\nd", "é", "e", "f", "g"])],
        vec![Leaf::all(&[])],
        vec![Leaf::all(&["h"])],
    ];
    for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY, zstd, gzip] {
        let (_folder, path) = parquet(TEXT, compression, &groups);
        let found = read(&path, &ReadOptions::default()).unwrap();
        assert_eq!(texts(&found), ["a", "", "c\nd", "é", "e", "f", "g", "h"], "{compression:?}");
    }
}

#[test]
fn a_table_without_rows_yields_nothing() {
    for groups in [vec![], vec![vec![Leaf::all(&[])]]] {
        let (_folder, path) = parquet(TEXT, Compression::SNAPPY, &groups);
        assert!(read(&path, &ReadOptions::default()).unwrap().is_empty());
    }
}

#[test]
fn a_subset_in_a_structure() {
    let group = pile(&[Some("a"), Some("b")], &[Some("Books3"), Some("ArXiv")]);
    let (_folder, path) = parquet(PILE, Compression::SNAPPY, &[group]);
    let found = read(&path, &with_subset("meta.pile_set_name")).unwrap();
    assert_eq!((texts(&found), subsets(&found)), (vec!["a", "b"], vec!["Books3", "ArXiv"]));
    let options = ReadOptions { content: Field::Text("id".to_owned()), subset: Some("text".to_owned()) };
    let found = read(&path, &options).unwrap();
    assert_eq!((texts(&found), subsets(&found)), (vec!["id", "id"], vec!["a", "b"]));
}

#[test]
fn a_text_that_does_not_say_that_it_is_one() {
    let schema = "message schema { required binary text; required binary set (ENUM); }";
    let (_folder, path) =
        parquet(schema, Compression::SNAPPY, &[vec![Leaf::all(&["é"]), Leaf::all(&["one"])]]);
    let found = read(&path, &with_subset("set")).unwrap();
    assert_eq!((texts(&found), subsets(&found)), (vec!["é"], vec!["one"]));
}

#[test]
fn a_null_is_refused_by_row() {
    // The first row group has two rows, so this is the fourth row of the file.
    let first = pile(&[Some("a"), Some("b")], &[Some("x"), Some("x")]);
    let second = pile(&[Some("c"), None, Some("e")], &[Some("x"), Some("x"), None]);
    let (_folder, path) = parquet(PILE, Compression::SNAPPY, &[first, second]);
    let mut stream = open(&path, &ReadOptions::default()).unwrap();
    let before: Vec<_> = stream.by_ref().take(3).map(Result::unwrap).collect();
    assert_eq!(texts(&before), ["a", "b", "c"]);
    refused(Err::<(), _>(ends_with_error(stream)), &["a.parquet, row 4", "`text`", "null"]);
    let options = ReadOptions { content: Field::Text("id".to_owned()), ..with_subset("meta.pile_set_name") };
    let error = ends_with_error(open(&path, &options).unwrap());
    refused(Err::<(), _>(error), &["a.parquet, row 5", "`meta.pile_set_name`", "null"]);
}

#[test]
fn a_structure_that_is_null_has_no_field() {
    let mut group = pile(&[Some("a")], &[None]);
    group[2].definition = Some(vec![0]);
    group[3] = Leaf { definition: Some(vec![0]), ..Leaf::default() };
    let (_folder, path) = parquet(PILE, Compression::SNAPPY, &[group]);
    let error = ends_with_error(open(&path, &with_subset("meta.pile_set_name")).unwrap());
    refused(Err::<(), _>(error), &["row 1", "`meta.pile_set_name`"]);
}

#[test]
fn columns_that_are_not_there_or_hold_no_text() {
    let group = pile(&[Some("a")], &[Some("x")]);
    let (_folder, path) = parquet(PILE, Compression::SNAPPY, &[group]);
    let content = |field: &str| ReadOptions { content: Field::Text(field.to_owned()), subset: None };
    refused(open(&path, &content("body")), &["a.parquet", "no column `body`", "id, text, meta"]);
    refused(open(&path, &with_subset("extra.set")), &["a.parquet", "no column `extra.set`"]);
    refused(read(&path, &with_subset("meta.set")), &["a.parquet, row 1", "no field `meta.set`"]);
    refused(read(&path, &content("meta")), &["row 1", "`meta`", "an object"]);
    refused(read(&path, &content("meta.raw")), &["row 1", "`meta.raw`", "not UTF-8"]);
}

#[test]
fn numbers_are_no_text() {
    let schema = "message schema { required binary text (DECIMAL(4, 2)); }";
    let (_folder, path) = parquet(schema, Compression::SNAPPY, &[vec![Leaf::all(&["a"])]]);
    refused(read(&path, &ReadOptions::default()), &["row 1", "`text`", "a number"]);
}

/// A turn's role and what it says.
type Said<'s> = (&'s str, Option<&'s str>);

/// Rows of turns; `None` for a row without a list.
fn messages(rows: &[Option<&[Said<'_>]>]) -> Vec<Leaf> {
    let leaf = |pick: fn(&Said<'_>) -> Option<String>| {
        let (mut values, mut definition, mut repetition) = (vec![], vec![], vec![]);
        for row in rows {
            let turns = row.unwrap_or(&[]);
            if turns.is_empty() {
                definition.push(i16::from(row.is_some()));
                repetition.push(0);
            }
            for (i, turn) in turns.iter().enumerate() {
                let value = pick(turn);
                definition.push(if value.is_some() { 4 } else { 3 });
                repetition.push(i16::from(i > 0));
                values.extend(value.map(String::into_bytes));
            }
        }
        Leaf { values, definition: Some(definition), repetition: Some(repetition) }
    };
    vec![leaf(|turn| turn.1.map(str::to_owned)), leaf(|turn| Some(turn.0.to_owned()))]
}

#[test]
fn conversations() {
    let group = messages(&[
        Some(&[("user", Some("Hi")), ("assistant", Some("Ho"))]),
        Some(&[]),
        Some(&[("user", Some("a")), ("model", Some("")), ("user", Some("c"))]),
    ]);
    let (_folder, path) = parquet(CHAT, Compression::SNAPPY, &[group]);
    let found = read(&path, &with_chat("messages")).unwrap();
    assert_eq!(
        found,
        [chat(&[user("Hi"), model("Ho")]), chat(&[]), chat(&[user("a"), model(""), user("c")])]
    );
}

#[test]
fn what_is_no_conversation_is_refused_by_row() {
    for (row, at_fault) in [
        (None, ["`messages`", "null"]),
        (Some(&[("user", None)][..]), ["`content`", "null"]),
        (Some(&[("system", Some("Be"))][..]), ["`system`", "template"]),
        (Some(&[("user", Some("a")), ("user", Some("b"))][..]), ["alternate", "turn 2"]),
    ] {
        let fine: &[_] = &[("user", Some("Hi"))];
        let (_folder, path) = parquet(CHAT, Compression::SNAPPY, &[messages(&[Some(fine), row])]);
        let text = refused(read(&path, &with_chat("messages")), &at_fault);
        assert!(text.contains("a.parquet, row 2"), "{text}");
    }
    let (_folder, path) = parquet(TEXT, Compression::SNAPPY, &[vec![Leaf::all(&["a"])]]);
    refused(read(&path, &with_chat("text")), &["row 1", "a list of turns", "a text"]);
}

/// What `tests/data/write.py` wrote with pyarrow: old and new pages, dictionaries, two row groups, columns of other types.
#[test]
fn files_of_pyarrow() {
    for name in ["pyarrow-1-snappy.parquet", "pyarrow-2-zstd.parquet"] {
        let path = [env!("CARGO_MANIFEST_DIR"), "tests", "data", name].iter().collect::<PathBuf>();
        let found = read(&path, &with_subset("meta.pile_set_name")).unwrap();
        let expected: Vec<String> = (0..6).map(|i| format!("Text {i}, wie schön.\n")).collect();
        assert_eq!(texts(&found), expected, "{name}");
        assert_eq!(subsets(&found), ["ArXiv", "Books3", "ArXiv", "Books3", "ArXiv", "Books3"], "{name}");
        let turn =
            |i: usize| if i.is_multiple_of(2) { user(&format!("{i}?")) } else { model(&format!("{i}?")) };
        let conversations = (0..6).map(|n| chat(&(0..n).map(turn).collect::<Vec<_>>())).collect::<Vec<_>>();
        assert_eq!(read(&path, &with_chat("messages")).unwrap(), conversations, "{name}");
        let id = ReadOptions { content: Field::Text("id".to_owned()), subset: None };
        refused(read(&path, &id), &[name, "row 1", "`id`", "a number"]);
    }
}
