//! A file is read as its documents are asked for, and no further.

use std::{
    fs,
    io::{BufWriter, Write as _},
    path::Path,
};

use corpus::{Batches, Documents, Packing, ReadOptions, Rows, open};
use parquet::basic::Compression;

use crate::{
    common::{Bytes, PAD, file},
    parquet_writer::{Leaf, write},
};

const DOCUMENTS: usize = 20_000;

fn text(i: usize) -> String {
    format!("{i:08} {}", "lorem ipsum ".repeat(20))
}

fn lines(path: &Path, line: impl Fn(usize) -> String) {
    let mut out = BufWriter::new(fs::File::create(path).unwrap());
    (0..DOCUMENTS).for_each(|i| out.write_all(line(i).as_bytes()).unwrap());
}

/// That the documents come before what is behind them has been looked at: the end of the file is no text at all.
#[test]
fn documents_come_before_the_file_s_end_is_read() {
    for name in ["a.txt", "a.jsonl"] {
        let (_folder, path) = file(name, "");
        lines(&path, |i| match name {
            "a.txt" => text(i) + "\n\n",
            _ => serde_json::json!({"text": text(i)}).to_string() + "\n",
        });
        let size = fs::metadata(&path).unwrap().len();
        assert!(size > 4_000_000, "{size} bytes");
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"\xff\xff\n").unwrap();
        let mut documents = open(&path, &ReadOptions::default()).unwrap();
        for i in 0..DOCUMENTS {
            assert_eq!(
                documents.next().unwrap().unwrap(),
                crate::common::plain(text(i).trim_end_matches('\n'))
            );
        }
        assert!(documents.next().unwrap().is_err());
        assert!(documents.next().is_none());
    }
}

#[test]
fn a_file_of_some_megabytes_goes_through() {
    let (_folder, path) = file("a.jsonl", "");
    lines(&path, |i| serde_json::json!({"text": text(i)}).to_string() + "\n");
    let documents = open(&path, &ReadOptions::default()).unwrap();
    let mut rows = Rows::new(documents, Bytes, 1024, Packing::Packed).unwrap();
    let batches = Batches::new(rows.by_ref(), 64, PAD).unwrap();
    let positions: i64 = batches.map(|batch| batch.unwrap().tokens.batch()).sum();
    let bytes: u64 = (0..DOCUMENTS).map(|i| text(i).len() as u64).sum();
    let body = bytes + DOCUMENTS as u64 - 1;
    let summary = rows.summary();
    assert_eq!((summary.documents, summary.counted), (DOCUMENTS as u64, bytes));
    assert_eq!((summary.sequences, positions as u64), (body.div_ceil(1023), body.div_ceil(1023)));
    assert_eq!(summary.tokens, body + summary.sequences);
}

#[test]
fn row_groups_of_parquet_are_opened_in_their_turn() {
    let (_folder, path) = file("a.parquet", "");
    let texts: Vec<String> = (0..2000).map(text).collect();
    let groups: Vec<_> = texts
        .chunks(100)
        .map(|part| vec![Leaf::all(&part.iter().map(String::as_str).collect::<Vec<_>>())])
        .collect();
    write(&path, "message schema { required binary text (UTF8); }", Compression::UNCOMPRESSED, &groups);
    // The last text in the file is spoilt: the ones before it come all the same.
    let mut content = fs::read(&path).unwrap();
    let last = content.windows(8).rposition(|window| window == b"00001999").unwrap();
    let spoilt = (0..=last).rev().filter(|at| content[*at..].starts_with(b"00001999")).collect::<Vec<_>>();
    spoilt.into_iter().for_each(|at| content[at] = 0xff);
    fs::write(&path, &content).unwrap();
    let mut documents = open(&path, &ReadOptions::default()).unwrap();
    let sound = documents.by_ref().take_while(Result::is_ok).count();
    assert!((1900..2000).contains(&sound), "{sound}");
}

#[test]
fn documents_can_be_read_in_another_thread() {
    fn sent<T: Send>() {}
    sent::<Documents>();
    sent::<Rows<Documents, Bytes>>();
}
