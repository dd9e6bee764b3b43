//! Damaged, lying and malicious archives: refused with the archive's name, and never other numbers than were written.

use std::{
    fs,
    io::{Cursor, Write as _},
    sync::OnceLock,
};

use proptest::prelude::*;
use tch::{Kind, Tensor};
use tch_ext::{NpzFile, TensorError};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use crate::{
    common::{assert_same, cases, counting, forever, refused},
    raw_zip::{Member, archive, crc32, dict, npy},
};

/// Two arrays, one stored and one deflated.
fn small_archive() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| {
        let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
        for (name, method, array) in [
            ("W_dec.npy", CompressionMethod::Stored, array(&[2, 3], 0)),
            ("W_enc.npy", CompressionMethod::Deflated, array(&[3, 2], 6)),
        ] {
            writer.start_file(name, SimpleFileOptions::default().compression_method(method)).unwrap();
            writer.write_all(&array).unwrap();
        }
        writer.finish().unwrap().into_inner()
    })
}

fn array(shape: &[i64; 2], first: i64) -> Vec<u8> {
    let data: Vec<u8> = (first..first + 6).flat_map(|n| (n as f32).to_le_bytes()).collect();
    npy(&dict("<f4", false, &format!("({}, {})", shape[0], shape[1])), &data)
}

fn wanted(name: &str) -> Tensor {
    match name {
        "W_dec" => counting(&[2, 3], Kind::Float, 0),
        _ => counting(&[3, 2], Kind::Float, 6),
    }
}

/// Opens and reads all there is, and tells the first error: in memory, and from a file, which go different ways.
fn read_all(bytes: &'static [u8]) -> Result<Vec<(String, Tensor)>, TensorError> {
    let from_memory = all_of(NpzFile::from_bytes("params.npz", bytes));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("params.npz");
    fs::write(&path, bytes).unwrap();
    let at_once = NpzFile::open(&path).and_then(|file| file.read_all());
    let from_file = all_of(NpzFile::open(&path));
    match (&from_file, from_memory) {
        (Ok(ones), Ok(others)) => {
            let at_once = at_once.unwrap();
            assert_eq!((ones.len(), others.len()), (at_once.len(), at_once.len()));
            for ((name, one), (_, other)) in ones.iter().zip(&others) {
                assert_same(name, one, other);
                assert_same(name, one, &at_once[name]);
            }
        }
        (Err(one), Err(other)) => {
            refused(Err::<(), _>(other), &["params.npz"]);
            refused(at_once, &["params.npz"]);
            assert!(!one.to_string().contains(char::is_control));
        }
        (one, other) => panic!("from a file {one:?}, but from memory {other:?}"),
    }
    // What is only looked at in part has no checksum: it may be wrong, and is an error or a tensor.
    if let Ok(mut file) = NpzFile::open(&path) {
        for name in file.names() {
            if let Ok(stored) = file.stored(&name) {
                let _parts = (stored.rows(0, 1), stored.columns(0, 1), stored.tensor());
            }
        }
    }
    from_file
}

fn all_of(file: Result<NpzFile, TensorError>) -> Result<Vec<(String, Tensor)>, TensorError> {
    let mut file = file?;
    file.names().into_iter().map(|name| Ok((name.clone(), file.read(&name)?))).collect()
}

#[test]
fn truncation_at_every_length_is_refused() {
    let whole = small_archive();
    assert_eq!(read_all(whole).unwrap().len(), 2);
    for length in 0..whole.len() {
        refused(read_all(&whole[..length]), &["params.npz"]);
    }
}

#[test]
fn every_changed_byte_is_refused_or_changes_no_number() {
    // A date or a version may change without harm; a number may not.
    for at in 0..small_archive().len() {
        for flip in [0x01, 0x80, 0xFF] {
            let mut bytes = small_archive().to_vec();
            bytes[at] ^= flip;
            match read_all(forever(bytes)) {
                Err(error) => drop(refused(Err::<(), _>(error), &["params.npz"])),
                Ok(arrays) => {
                    for (name, got) in
                        arrays.iter().filter(|(name, _)| ["W_dec", "W_enc"].contains(&name.as_str()))
                    {
                        assert_same(&format!("{name}, byte {at}"), got, &wanted(name));
                    }
                }
            }
        }
    }
}

#[test]
fn what_is_no_archive_is_refused() {
    for bytes in
        [b"".as_slice(), b"PK", b"PK\x05\x06", b"\x93NUMPY\x01\0not in an archive", &[0; 22], &[0xFF; 100]]
    {
        refused(read_all(forever(bytes.to_vec())), &["params.npz", "not a readable npz archive"]);
    }
    // An archive of nothing is sound, and has nothing.
    assert_eq!(
        NpzFile::from_bytes("params.npz", forever(archive(&[]))).unwrap().names(),
        Vec::<String>::new()
    );
}

#[test]
fn a_doubled_member_is_refused() {
    let member = |name: &str, first| Member::stored(name, array(&[2, 3], first));
    let sound = archive(&[member("W_enc.npy", 0), member("W_dec.npy", 6)]);
    assert_eq!(read_all(forever(sound)).unwrap().len(), 2);
    for members in [
        vec![member("W_enc.npy", 0), member("W_enc.npy", 0)],
        vec![member("W_enc.npy", 0), member("W_dec.npy", 0), member("W_enc.npy", 6)],
    ] {
        refused(read_all(forever(archive(&members))), &["params.npz", "doubled"]);
    }
}

#[test]
fn a_member_that_is_no_array_is_named() {
    for name in ["notes.txt", "W_enc", "W_enc.npy.bak", "folder/", "W_enc.NPY"] {
        let bytes = archive(&[Member::stored("b.npy", array(&[2, 3], 0)), Member::stored(name, vec![1])]);
        refused(read_all(forever(bytes)), &["params.npz", &format!("`{name}`"), "`.npy`"]);
    }
    for name in ["a\nb.npy", "\u{1b}[31m.npy", "a\nb.txt"] {
        refused(read_all(forever(archive(&[Member::stored(name, array(&[2, 3], 0))]))), &["params.npz"]);
    }
    // The name is right and the contents are not.
    let bytes = archive(&[Member::stored("W_enc.npy", b"import os".to_vec())]);
    refused(read_all(forever(bytes)), &["params.npz: W_enc", "not a NumPy array"]);
}

/// Zeros, deflated, as one valid array.
fn deflated_zeros(count: usize) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    writer.start_file("w.npy", options).unwrap();
    writer.write_all(&npy(&dict("|u1", false, &format!("({count},)")), &vec![0; count])).unwrap();
    writer.finish().unwrap().into_inner()
}

#[test]
fn a_zip_bomb_is_refused() {
    let bomb = deflated_zeros(65 << 20);
    assert!(bomb.len() < 100_000, "{} bytes on disk", bomb.len());
    refused(read_all(forever(bomb)), &["params.npz: w", "zip bomb"]);
}

#[test]
fn a_bias_of_zeros_is_no_zip_bomb() {
    // Expands a thousandfold, and is what a fresh SAE's bias looks like.
    let zeros = read_all(forever(deflated_zeros(1 << 20))).unwrap();
    assert_same("w", &zeros[0].1, &Tensor::zeros([1 << 20], (Kind::Uint8, tch::Device::Cpu)));
}

#[test]
fn sizes_that_lie_are_refused() {
    let data = array(&[2, 3], 0);
    let honest = Member::stored("w.npy", data.clone());
    let length = data.len() as u64;
    read_all(forever(archive(std::slice::from_ref(&honest)))).unwrap();
    // A size that were believed would be allocated: a terabyte, or more than an address holds.
    let lies = [0, 1, length - 1, length + 1, 4 << 30, 1 << 40, 1 << 60, u64::MAX - 1, u64::MAX];
    for size in lies {
        for packed in lies.into_iter().chain([length]) {
            let member = Member { size, packed, ..honest.clone() };
            refused(read_all(forever(archive(&[member]))), &["params.npz"]);
        }
    }
}

#[test]
fn a_deflated_member_that_expands_beyond_its_size_is_refused() {
    // One block of deflate, stored inside it (RFC 1951, 3.2.4): final, type 00, length, its complement, the bytes.
    let data = array(&[2, 3], 0);
    let length = data.len() as u16;
    let packed = [[1].as_slice(), &length.to_le_bytes(), &(!length).to_le_bytes(), &data].concat();
    let honest = Member {
        method: 8,
        crc: crc32(&data),
        packed: packed.len() as u64,
        size: data.len() as u64,
        ..Member::stored("w.npy", packed)
    };
    read_all(forever(archive(std::slice::from_ref(&honest)))).unwrap();
    for size in [0, 1, 64, data.len() as u64 - 1, data.len() as u64 + 1, 1 << 20] {
        let member = Member { size, ..honest.clone() };
        refused(read_all(forever(archive(&[member]))), &["params.npz: w", "promises"]);
    }
}

#[test]
fn a_wrong_checksum_is_refused() {
    let member = Member { crc: 1, ..Member::stored("w.npy", array(&[2, 3], 0)) };
    refused(read_all(forever(archive(&[member]))), &["params.npz: w", "hecksum"]);
}

#[test]
fn another_compression_is_refused() {
    // 12 is bzip2, 93 is Zstandard, 99 is encryption: NumPy writes none of them.
    for method in [1, 9, 12, 14, 93, 99] {
        let member = Member { method, ..Member::stored("w.npy", array(&[2, 3], 0)) };
        refused(read_all(forever(archive(&[member]))), &["params.npz"]);
    }
}

#[test]
fn one_damaged_array_does_not_spoil_the_others() {
    let bad = Member { crc: 1, ..Member::stored("bad.npy", array(&[2, 3], 0)) };
    let bytes = archive(&[bad, Member::stored("good.npy", array(&[2, 3], 0))]);
    let mut file = NpzFile::from_bytes("params.npz", forever(bytes)).unwrap();
    refused(file.read("bad"), &["params.npz: bad"]);
    assert_same("good", &file.read("good").unwrap(), &counting(&[2, 3], Kind::Float, 0));
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn changed_and_cut_bytes_are_refused_or_change_no_number(
        changes in prop::collection::vec((any::<usize>(), any::<u8>()), 0..3),
        cut in prop::option::of(any::<usize>()),
    ) {
        let mut bytes = small_archive().to_vec();
        let length = bytes.len();
        for (at, byte) in changes {
            bytes[at % length] = byte;
        }
        bytes.truncate(cut.map_or(length, |cut| cut % length));
        match read_all(forever(bytes)) {
            Err(error) => drop(refused(Err::<(), _>(error), &["params.npz"])),
            Ok(arrays) => {
                for (name, got) in arrays.iter().filter(|(name, _)| ["W_dec", "W_enc"].contains(&name.as_str())) {
                    assert_same(name, got, &wanted(name));
                }
            }
        }
    }

    #[test]
    fn changed_bytes_never_panic(changes in prop::collection::vec((any::<usize>(), any::<u8>()), 1..5)) {
        let mut bytes = small_archive().to_vec();
        let length = bytes.len();
        for (at, byte) in changes {
            bytes[at % length] = byte;
        }
        if let Err(error) = read_all(forever(bytes)) {
            refused(Err::<(), _>(error), &["params.npz"]);
        }
    }

    #[test]
    fn changed_header_text_never_panics(
        at in 0usize..56,
        cut in 0usize..3,
        put in "[{}()':,<>|fi48TrueFalse\\-_0-9 é]{0,3}",
        data in prop_oneof![Just(24usize), 0usize..48],
    ) {
        let mut header = dict("<f4", false, "(2, 3)");
        let end = header.len().min(at + cut);
        header.replace_range(at.min(end)..end, &put);
        let bytes = archive(&[Member::stored("w.npy", npy(&header, &vec![0; data]))]);
        if let Err(error) = read_all(forever(bytes)) {
            refused(Err::<(), _>(error), &["params.npz: w"]);
        }
    }
}
