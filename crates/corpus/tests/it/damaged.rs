//! Files that are damaged: an error, or what can still be read, and never a panic.

use std::sync::LazyLock;

use corpus::ReadOptions;
use parquet::basic::Compression;
use proptest::prelude::*;

use crate::{
    common::{cases, file, read, refused, with_chat, with_subset},
    parquet_writer::{Leaf, write},
};

static SOUND: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let (_folder, path) = file("a.parquet", "");
    let schema =
        "message schema { required binary text (UTF8); required group meta { optional binary set (UTF8); } }";
    let leaves = || {
        vec![
            Leaf::all(&["abc", "de", "f", "g", "abc"]),
            Leaf::some(&[Some("x"), None, Some("x"), Some("y"), None], 0),
        ]
    };
    write(&path, schema, Compression::SNAPPY, &[leaves(), leaves()]);
    std::fs::read(&path).unwrap()
});

#[test]
fn what_is_no_parquet_file_is_refused() {
    let sound = &*SOUND;
    for content in [&b""[..], b"text", &sound[..sound.len() - 1], &sound[sound.len() / 2..]] {
        let (_folder, path) = file("a.parquet", content);
        refused(read(&path, &ReadOptions::default()), &["a.parquet", "no sound parquet file"]);
    }
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn a_damaged_parquet_file_is_an_error_or_is_read(at in 0usize..4000, to: u8) {
        let mut content = SOUND.clone();
        let at = at % content.len();
        content[at] = to;
        let (_folder, path) = file("a.parquet", content);
        for options in [ReadOptions::default(), with_subset("meta.set")] {
            if let Err(error) = read(&path, &options) {
                prop_assert!(error.to_string().contains("a.parquet"), "{}", error);
            }
        }
    }

    #[test]
    fn any_line_of_json_is_an_error_or_is_read(content in r#"[\[\]{}:," a-c0\\u\n]{0,40}"#) {
        let (_folder, path) = file("a.jsonl", content);
        for options in [ReadOptions::default(), with_subset("a.b"), with_chat("a")] {
            if let Err(error) = read(&path, &options) {
                prop_assert!(error.to_string().contains("a.jsonl, line "), "{}", error);
            }
        }
    }
}
