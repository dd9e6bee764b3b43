//! A damaged file is refused with its name: no panic, no numbers that nobody wrote.

use std::collections::HashMap;

use proptest::prelude::*;
use tch::Kind;
use tch_ext::{SafetensorsFile, write_safetensors};

use crate::common::{cases, counting, forever, refused};

fn small_file() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.safetensors");
    let tensors = [
        ("w_enc", counting(&[2, 3], Kind::Float, -3)),
        ("b", counting(&[2], Kind::BFloat16, 0)),
        ("ids", counting(&[2], Kind::Int64, 0)),
    ];
    let text = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    write_safetensors(&path, tensors.iter().map(|(n, t)| (*n, t)), text).unwrap();
    std::fs::read(path).unwrap()
}

/// A file of this header and this many bytes of data.
fn with_header(header: &str, data: usize) -> &'static [u8] {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0);
    forever(file)
}

/// Opens and reads all there is, and tells the first error.
fn read_all(bytes: &'static [u8]) -> Result<(), tch_ext::TensorError> {
    let mut file = SafetensorsFile::from_bytes("small.safetensors", bytes)?;
    file.names().iter().try_for_each(|name| file.read(name).map(drop))
}

#[test]
fn truncation_at_every_length_is_refused() {
    let whole = forever(small_file());
    read_all(whole).unwrap();
    for length in 0..whole.len() {
        refused(read_all(&whole[..length]), &["small.safetensors"]);
    }
}

#[test]
fn bytes_too_many_are_refused() {
    let mut file = small_file();
    file.push(0);
    refused(read_all(forever(file)), &["small.safetensors", "padded"]);
}

#[test]
fn a_truncated_file_on_disk_is_named_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("half.safetensors");
    let whole = small_file();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    refused(SafetensorsFile::open(&path), &["half.safetensors", "truncated"]);
}

#[test]
fn a_header_that_claims_to_be_huge_is_refused() {
    let mut file = small_file();
    let length = file.len() as u64;
    for claim in [length, length - 7, 100_000_001, 1 << 40, u64::MAX - 7, u64::MAX] {
        file[..8].copy_from_slice(&claim.to_le_bytes());
        refused(read_all(forever(file.clone())), &["small.safetensors", &claim.to_string()]);
    }
    // A header of a gigabyte that is really there is beyond the format's own limit; here it is only claimed.
    refused(read_all(&[0; 8]), &["small.safetensors"]);
    refused(
        read_all(b"PK\x03\x04 this is a zip file, not a safetensors one"),
        &["small.safetensors", "not a safetensors"],
    );
}

#[test]
fn tensors_that_do_not_tile_the_data_are_refused() {
    let a = |offsets: &str| format!(r#""a":{{"dtype":"F32","shape":[2],"data_offsets":{offsets}}}"#);
    let b = |offsets: &str| format!(r#""b":{{"dtype":"F32","shape":[1],"data_offsets":{offsets}}}"#);
    let file = |a_at: &str, b_at: &str, data| with_header(&format!("{{{},{}}}", a(a_at), b(b_at)), data);
    read_all(file("[0,8]", "[8,12]", 12)).unwrap();
    for (what, bytes) in [
        ("overlap", file("[0,8]", "[4,8]", 8)),
        ("the same bytes twice", file("[0,8]", "[0,4]", 8)),
        ("a gap", file("[0,8]", "[12,16]", 16)),
        ("does not begin at 0", file("[4,12]", "[12,16]", 16)),
        ("runs backwards", file("[8,0]", "[8,12]", 12)),
        ("beyond the end", file("[0,8]", "[8,12]", 8)),
        ("bytes left over", file("[0,8]", "[8,12]", 16)),
        ("shape and bytes differ", file("[0,8]", "[8,16]", 16)),
        ("wraps around", file("[0,8]", "[8,18446744073709551615]", 12)),
        ("negative", file("[-8,0]", "[0,4]", 4)),
    ] {
        println!("{what}: {}", refused(read_all(bytes), &["small.safetensors"]));
    }
}

#[test]
fn a_shape_that_overflows_is_refused() {
    for shape in [
        "[4611686018427387904,4]",
        "[18446744073709551615]",
        "[9223372036854775808,2]",
        // No elements, but a size that no index of libtorch holds.
        "[0,9223372036854775808]",
        "[9223372036854775808,0]",
        "[0,4294967296,4294967296,4294967296]",
        "[-1]",
        "[1.5]",
    ] {
        let header = format!(r#"{{"vast":{{"dtype":"F32","shape":{shape},"data_offsets":[0,0]}}}}"#);
        refused(read_all(with_header(&header, 0)), &["small.safetensors"]);
    }
}

#[test]
fn a_name_that_stands_twice_is_refused() {
    let entry =
        |shape: &str, at: &str| format!(r#""w":{{"dtype":"F32","shape":{shape},"data_offsets":{at}}}"#);
    for (first, second) in [
        (entry("[1]", "[0,4]"), entry("[1]", "[0,4]")),
        // Whichever of them a reader keeps, the file looks sound to it.
        (entry("[0]", "[0,0]"), entry("[1]", "[0,4]")),
        (entry("[1]", "[0,4]"), entry("[1]", "[4,8]")),
    ] {
        for data in [4, 8] {
            refused(read_all(with_header(&format!("{{{first},{second}}}"), data)), &["small.safetensors"]);
        }
    }
    let text = r#"{"__metadata__":{"a":"b"},"__metadata__":{"a":"c"}}"#;
    refused(read_all(with_header(text, 0)), &["small.safetensors"]);
}

#[test]
fn a_name_that_would_break_the_line_is_refused() {
    for name in ["a\\nb", "\\u0000", "\\u001b[31m"] {
        let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
        refused(read_all(with_header(&header, 4)), &["small.safetensors", "is no name"]);
    }
    let header = r#"{"w":{"dtype":"F\n32","shape":[1],"data_offsets":[0,4]}}"#;
    refused(read_all(with_header(header, 4)), &["small.safetensors"]);
}

#[test]
fn headers_that_are_no_headers_are_refused() {
    for header in [
        "",
        "[]",
        "null",
        "{",
        "{}garbage",
        r#"{"w":1}"#,
        r#"{"w":{"dtype":"F32","shape":[1]}}"#,
        r#"{"w":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}"#,
        r#"{"w":{"dtype":"F32","shape":1,"data_offsets":[0,4]}}"#,
        r#"{"__metadata__":{"format":1}}"#,
        "\u{1}\u{2}",
    ] {
        refused(read_all(with_header(header, 4)), &["small.safetensors"]);
    }
    // Nested too deep for a parser that recurses.
    refused(read_all(with_header(&"[".repeat(100_000), 0)), &["small.safetensors"]);
    // No tensors at all is a sound file.
    read_all(with_header("{}", 0)).unwrap();
}

#[test]
fn a_dtype_that_libtorch_lacks_is_named() {
    let header = r#"{"w8":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}"#;
    let mut file = SafetensorsFile::from_bytes("eight.safetensors", with_header(header, 4)).unwrap();
    refused(file.info("w8"), &["eight.safetensors", "w8", "F8_E4M3"]);
    refused(file.read("w8"), &["eight.safetensors", "w8", "F8_E4M3"]);
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn changed_bytes_never_panic(changes in prop::collection::vec((0usize..400, any::<u8>()), 1..4)) {
        let mut file = small_file_once().to_vec();
        let length = file.len();
        for (at, byte) in changes {
            file[at % length] = byte;
        }
        if let Err(error) = read_all(forever(file)) {
            refused(Err::<(), _>(error), &["small.safetensors"]);
        }
    }

    #[test]
    fn any_bytes_at_all_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        refused(read_all(forever(bytes)), &["small.safetensors"]);
    }

    #[test]
    fn any_numbers_in_a_header_never_panic(
        shape in prop::collection::vec(prop_oneof![0u64..4, any::<u64>()], 0..4),
        start in prop_oneof![0u64..4, any::<u64>()],
        end in prop_oneof![0u64..64, any::<u64>()],
        data in 0usize..64,
    ) {
        let header = format!(r#"{{"w":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{end}]}}}}"#);
        if let Err(error) = read_all(with_header(&header, data)) {
            refused(Err::<(), _>(error), &["small.safetensors"]);
        }
    }
}

fn small_file_once() -> &'static [u8] {
    static FILE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    FILE.get_or_init(small_file)
}
