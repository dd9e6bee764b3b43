//! Plain text: blank lines between documents.

use corpus::{ReadOptions, open, open_all};

use crate::common::{ends_with_error, file, read, refused, texts, with_chat, with_subset};

fn documents(content: impl AsRef<[u8]>) -> Vec<String> {
    let (_folder, path) = file("a.txt", content);
    let documents = read(&path, &ReadOptions::default()).unwrap();
    texts(&documents).into_iter().map(str::to_owned).collect()
}

#[test]
fn blank_lines_part_documents() {
    assert_eq!(documents("\n\none\ntwo\n\n \nthree\n"), ["one\ntwo", "three"]);
    assert_eq!(documents("no line break at the end"), ["no line break at the end"]);
    assert_eq!(documents("a\n\n\n\n\nb\n\n\n"), ["a", "b"]);
}

#[test]
fn space_within_a_document_stays() {
    assert_eq!(documents("  indented\n\tmore \n\nb"), ["  indented\n\tmore ", "b"]);
}

#[test]
fn a_file_without_text_yields_nothing() {
    for empty in ["", "\n", " \n\t\n\n", "\u{feff}", "\u{feff}\r\n"] {
        assert!(documents(empty).is_empty(), "{empty:?}");
    }
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_leave_no_trace() {
    assert_eq!(documents("\u{feff}one\r\ntwo\r\n\r\nthree\r\n"), ["one\ntwo", "three"]);
    // Anywhere else it is a character of the text.
    assert_eq!(documents("a\n\n\u{feff}b"), ["a", "\u{feff}b"]);
    assert_eq!(documents("a\rb\n"), ["a\rb"]);
}

#[test]
fn what_is_not_utf8_is_refused_by_line() {
    let (_folder, path) = file("a.txt", b"fine\n\nfine too\n\xff\xfe\nafter");
    let mut stream = open(&path, &ReadOptions::default()).unwrap();
    assert_eq!(texts(&[stream.next().unwrap().unwrap()]), ["fine"]);
    refused(Err::<(), _>(ends_with_error(stream)), &["a.txt, line 4", "not UTF-8"]);
}

#[test]
fn a_text_has_no_fields() {
    let (_folder, path) = file("a.txt", "text");
    refused(open(&path, &with_subset("meta.set")), &["a.txt", "no fields", "`meta.set`"]);
    refused(open(&path, &with_chat("messages")), &["a.txt", "no fields", "`messages`"]);
    refused(open_all(vec![path], &with_subset("meta.set")).map(|_| ()), &["a.txt", "no fields"]);
}

#[test]
fn what_is_no_file_of_documents_is_refused() {
    let (folder, path) = file("a.csv", "text");
    let default = ReadOptions::default();
    refused(open(&path, &default), &["a.csv", ".txt, .jsonl or .parquet"]);
    refused(open(folder.path(), &default), &["folder"]);
    refused(open(folder.path().join("none.txt"), &default), &["none.txt"]);
    let folder_with_a_name = folder.path().join("data.jsonl");
    std::fs::create_dir(&folder_with_a_name).unwrap();
    refused(open(&folder_with_a_name, &default), &["data.jsonl", "folder"]);
}

#[test]
fn several_files_follow_one_another() {
    let (folder, one) = file("1.txt", "a\n\nb");
    let two = folder.path().join("2.JSONL");
    std::fs::write(&two, "{\"text\": \"c\"}\n").unwrap();
    let all = open_all(vec![one.clone(), two.clone()], &ReadOptions::default()).unwrap();
    let all = all.collect::<corpus::Result<Vec<_>>>().unwrap();
    assert_eq!(texts(&all), ["a", "b", "c"]);
    // A name that is none is found before anything is read.
    let none = folder.path().join("3.txt");
    refused(open_all(vec![one, two, none], &ReadOptions::default()).map(|_| ()), &["3.txt"]);
}
