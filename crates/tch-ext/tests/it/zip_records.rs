//! Archives that say one thing of a member before it and another at their end, or let members share bytes: readers would
//! see different arrays, so none is read.

use tch::Kind;
use tch_ext::{NpzFile, TensorError};

use crate::{
    common::{assert_same, counting, forever, refused},
    raw_zip::{Member, archive, crc32, dict, npy},
};

fn array(first: i64) -> Vec<u8> {
    let data: Vec<u8> = (first..first + 6).flat_map(|n| (n as f32).to_le_bytes()).collect();
    npy(&dict("<f4", false, "(2, 3)"), &data)
}

fn one() -> Vec<u8> {
    archive(&[Member::stored("w.npy", array(0))])
}

/// Opens in memory and from a file, and reads; the first error of either.
fn read(bytes: Vec<u8>) -> Result<(), TensorError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("params.npz");
    std::fs::write(&path, &bytes).unwrap();
    let read = |file: Result<NpzFile, TensorError>| {
        let mut file = file?;
        for name in file.names() {
            assert_same(&name, &file.read(&name)?, &counting(&[2, 3], Kind::Float, 0));
            assert_same(&name, &file.stored(&name)?.tensor()?, &counting(&[2, 3], Kind::Float, 0));
        }
        Ok(())
    };
    let (one, other) = (read(NpzFile::open(&path)), read(NpzFile::from_bytes("params.npz", forever(bytes))));
    assert_eq!(one.is_ok(), other.is_ok());
    one
}

/// With some bytes of the file replaced.
fn patched(mut bytes: Vec<u8>, at: usize, with: &[u8]) -> Vec<u8> {
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

/// Where the directory begins, as the record at the end says, if it has no comment.
fn directory(bytes: &[u8]) -> usize {
    let at = bytes.len() - 6;
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

#[test]
fn a_local_header_that_says_other_things_is_refused() {
    read(one()).unwrap();
    let size = (array(0).len() as u32).to_le_bytes();
    let name = [b"v.npy", b"W.npy", b"w\0npy"];
    for (at, lies) in [
        // Where the fields of a local header stand (4.3.7).
        (6, vec![vec![1, 0]]),
        (8, vec![vec![8, 0], vec![12, 0]]),
        (14, vec![vec![0; 4], vec![1; 4]]),
        (18, vec![vec![0; 4], vec![1; 4], vec![0xFF; 4], vec![size[0] + 1, 0, 0, 0]]),
        (22, vec![vec![0; 4], vec![1; 4], vec![0xFF; 4], vec![size[0] - 1, 0, 0, 0]]),
        (26, vec![vec![0, 0], vec![4, 0], vec![6, 0], vec![0xFF; 2]]),
        (28, vec![vec![1, 0], vec![0xFF; 2]]),
        (30, name.iter().map(|n| n.to_vec()).collect()),
        (0, vec![b"PK\x01\x02".to_vec()]),
    ] {
        for lie in lies {
            let text = refused(read(patched(one(), at, &lie)), &["params.npz"]);
            assert!(text.contains("params.npz: w") || text.contains("`w.npy`"), "{at}, {lie:?}: {text}");
        }
    }
    // The same in the directory (4.3.12), where the fields stand two bytes further, and the name at 46.
    let start = directory(&one());
    for (at, lie) in
        [(16, [1; 4]), (20, [1; 4]), (24, [1; 4]), (24, [0xFF; 4]), (42, [1, 0, 0, 0]), (46, *b"v.np")]
    {
        refused(read(patched(one(), start + at, &lie)), &["params.npz"]);
    }
}

#[test]
fn sizes_behind_the_data_are_taken_from_the_directory() {
    // Bit 3: a writer that could not seek back left checksum and sizes empty.
    let streamed = patched(patched(one(), 6, &[8, 0]), 14, &[0; 12]);
    read(streamed.clone()).unwrap();
    refused(read(patched(streamed, 18, &[1, 0, 0, 0])), &["params.npz: w", "directory says"]);
}

/// The sizes stand in a zip64 field before the member, as `numpy.savez` always writes them.
fn zip64_local(size: u64, packed: u64, field: usize) -> Vec<u8> {
    let bytes = one();
    let extra = [[1, 0, 16, 0].as_slice(), &size.to_le_bytes(), &packed.to_le_bytes()].concat();
    let at = 30 + "w.npy".len();
    let mut bytes = [&bytes[..at], &extra[..field], &bytes[at..]].concat();
    bytes[18..26].copy_from_slice(&[0xFF; 8]);
    bytes[28..30].copy_from_slice(&(field as u16).to_le_bytes());
    let (moved, end) = (directory(&bytes) + field, bytes.len());
    patched(bytes, end - 6, &(moved as u32).to_le_bytes())
}

#[test]
fn zip64_sizes_that_lie_are_refused() {
    let size = array(0).len() as u64;
    read(zip64_local(size, size, 20)).unwrap();
    for lie in [0, 1, size - 1, size + 1, 1 << 32, 1 << 60, u64::MAX] {
        for (one, other) in [(lie, size), (size, lie), (lie, lie)] {
            refused(read(zip64_local(one, other, 20)), &["params.npz: w", "directory says"]);
        }
    }
    // The field is cut short, or not there.
    for field in [0, 3, 4, 12, 19] {
        refused(read(zip64_local(size, size, field)), &["params.npz: w"]);
    }
}

#[test]
fn members_that_overlap_are_refused() {
    // Inside of `a` lies a whole record of `b`, which the directory points to.
    let inner = archive(&[Member::stored("b.npy", array(0))]);
    let inner = &inner[..directory(&inner)];
    let outer = archive(&[Member::stored("a.npy", inner.to_vec()), Member::stored("b.npy", array(0))]);
    let second = directory(&outer) + 46 + "a.npy".len();
    assert_eq!(&outer[second..second + 4], b"PK\x01\x02");
    let inside = (30 + "a.npy".len() as u32).to_le_bytes();
    refused(read(patched(outer, second + 42, &inside)), &["params.npz", "`a.npy`", "behind it"]);
    // A member reaches into the next one; both records say so.
    let [a, b] = ["a.npy", "b.npy"].map(|name| Member::stored(name, array(0)));
    read(archive(&[a.clone(), b.clone()])).unwrap();
    let long = Member { size: a.size + 40, packed: a.packed + 40, ..a };
    refused(read(archive(&[long, b.clone()])), &["params.npz", "`a.npy`", "behind it"]);
    let long = Member { size: b.size + 10, packed: b.packed + 10, ..b };
    refused(read(archive(&[long])), &["params.npz", "`b.npy`", "behind it"]);
}

/// One block of deflate, stored inside it (RFC 1951, 3.2.4): final, type 00, length, its complement, the bytes.
fn deflated(data: &[u8], behind: &[u8]) -> Member {
    let length = data.len() as u16;
    let packed = [[1].as_slice(), &length.to_le_bytes(), &(!length).to_le_bytes(), data, behind].concat();
    let (crc, size) = (crc32(data), data.len() as u64);
    Member { method: 8, crc, packed: packed.len() as u64, size, ..Member::stored("w.npy", packed) }
}

#[test]
fn garbage_behind_the_data_is_refused() {
    read(archive(&[deflated(&array(0), &[])])).unwrap();
    for behind in [&[0][..], &[0; 100], b"PK\x03\x04"] {
        refused(read(archive(&[deflated(&array(0), behind)])), &["params.npz: w", "behind the end"]);
        let stored = Member::stored("w.npy", [array(0), behind.to_vec()].concat());
        refused(read(archive(&[stored])), &["params.npz: w", "needs 24 bytes"]);
    }
}

#[test]
fn what_is_no_deflate_is_refused() {
    for packed in [&b""[..], &[7], &[0xFF; 40], b"import os"] {
        let member =
            Member { packed: packed.len() as u64, data: packed.to_vec(), ..deflated(&array(0), &[]) };
        refused(read(archive(&[member])), &["params.npz: w"]);
    }
}

#[test]
fn an_encrypted_member_is_refused() {
    let bytes = one();
    let start = directory(&bytes);
    refused(read(patched(patched(bytes, 6, &[1, 0]), start + 8, &[1, 0])), &["params.npz: w", "encrypted"]);
}
