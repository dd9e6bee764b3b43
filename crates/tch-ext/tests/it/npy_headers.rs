//! One array's header: what NumPy may write is read, everything else is refused with the archive's and the array's name.

use std::fmt::Debug;

use tch::{Kind, Tensor};
use tch_ext::{NpzFile, TensorError};

use crate::{
    common::{assert_same, counting, forever, refused},
    raw_zip::{Member, archive, dict, npy},
};

/// Reads an archive whose only member is this `.npy` file: in memory, and from a file, which go different ways.
fn read(npy: Vec<u8>) -> Result<Tensor, TensorError> {
    let bytes = forever(archive(&[Member::stored("w.npy", npy)]));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("params.npz");
    std::fs::write(&path, bytes).unwrap();
    let from_file = NpzFile::open(&path)?.read("w");
    let from_memory = NpzFile::from_bytes("params.npz", bytes)?.read("w");
    match (&from_file, from_memory) {
        (Ok(one), Ok(other)) => assert_same("in memory", &other, one),
        (Err(one), Err(other)) => {
            let folder = format!("{}{}", folder.path().display(), std::path::MAIN_SEPARATOR);
            assert_eq!(one.to_string().replace(&folder, ""), other.to_string());
        }
        (one, other) => panic!("from a file {one:?}, but from memory {other:?}"),
    }
    from_file
}

#[track_caller]
fn refused_for(npy: Vec<u8>, problem: impl AsRef<str> + Debug) {
    refused(read(npy), &["params.npz: w", problem.as_ref()]);
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

const SIX: [f32; 6] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0];

#[test]
fn every_dtype_that_is_read() {
    for (descr, kind, data) in [
        ("<f4", Kind::Float, [1.0f32, -2.0].map(f32::to_le_bytes).concat()),
        // 1 and −2 in float16.
        ("<f2", Kind::Half, vec![0x00, 0x3C, 0x00, 0xC0]),
        ("<f8", Kind::Double, [1.0f64, -2.0].map(f64::to_le_bytes).concat()),
        ("<i8", Kind::Int64, [1i64, -2].map(i64::to_le_bytes).concat()),
        ("<i4", Kind::Int, [1i32, -2].map(i32::to_le_bytes).concat()),
    ] {
        let got = read(npy(&dict(descr, false, "(2,)"), &data)).unwrap();
        assert_same(descr, &got, &Tensor::from_slice(&[1i64, -2]).to_kind(kind));
    }
    let got = read(npy(&dict("|u1", false, "(2,)"), &[1, 254])).unwrap();
    assert_same("|u1", &got, &Tensor::from_slice(&[1i64, 254]).to_kind(Kind::Uint8));
    let got = read(npy(&dict("|b1", false, "(2,)"), &[1, 0])).unwrap();
    assert_same("|b1", &got, &Tensor::from_slice(&[true, false]));
}

#[test]
fn every_shape() {
    let data = floats(&SIX);
    for (text, shape, used) in [
        ("()", &[][..], 1),
        ("(6,)", &[6], 6),
        ("(2, 3)", &[2, 3], 6),
        ("(1, 2, 1, 3)", &[1, 2, 1, 3], 6),
        ("(0,)", &[0], 0),
        ("(0, 3)", &[0, 3], 0),
    ] {
        for fortran in [false, true] {
            let got = read(npy(&dict("<f4", fortran, text), &data[..4 * used])).unwrap();
            assert_eq!((got.size().as_slice(), got.kind()), (shape, Kind::Float), "{text}");
        }
    }
}

#[test]
fn fortran_order_lays_the_first_axis_side_by_side() {
    // In Fortran order the six numbers fill a [2, 3] array column by column.
    let want = Tensor::from_slice(&[0.0f32, 2.0, 4.0, 1.0, 3.0, 5.0]).reshape([2, 3]);
    let got = read(npy(&dict("<f4", true, "(2, 3)"), &floats(&SIX))).unwrap();
    assert!(got.is_contiguous());
    assert_same("fortran", &got, &want);
    let got = read(npy(&dict("<f4", false, "(2, 3)"), &floats(&SIX))).unwrap();
    assert_same("c", &got, &counting(&[2, 3], Kind::Float, 0));
    // And a [2, 3, 4] array the same way: entry (i, j, k) lies at i + 2 j + 6 k.
    let data: Vec<f32> = (0..24).map(|n| n as f32).collect();
    let got = read(npy(&dict("<f4", true, "(2, 3, 4)"), &floats(&data))).unwrap();
    for (i, j, k) in (0..24).map(|n| (n % 2, n / 2 % 3, n / 6)) {
        assert_eq!(got.double_value(&[i, j, k]), (i + 2 * j + 6 * k) as f64);
    }
}

#[test]
fn other_spellings_of_the_same_header() {
    for header in [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}",
        "{'shape': (2,3), 'fortran_order': False, 'descr': '<f4'}",
        r#"{"descr": "<f4", "fortran_order": False, "shape": (2, 3), }"#,
        "{'descr':'<f4','fortran_order':False,'shape':(2,3,)}",
    ] {
        assert_same(header, &read(npy(header, &floats(&SIX))).unwrap(), &counting(&[2, 3], Kind::Float, 0));
    }
}

#[test]
fn versions_2_and_3_have_a_longer_length() {
    let text = dict("<f4", false, "(2, 3)");
    for version in [2, 3] {
        let start = [b"\x93NUMPY".as_slice(), &[version, 0], &(text.len() as u32).to_le_bytes()].concat();
        let file = [start, text.clone().into_bytes(), floats(&SIX)].concat();
        assert_same("version", &read(file).unwrap(), &counting(&[2, 3], Kind::Float, 0));
    }
    let mut file = npy(&text, &floats(&SIX));
    file[6] = 4;
    refused_for(file, "version 4");
}

#[test]
fn dtypes_that_are_not_read_are_named() {
    for (descr, problem) in [
        (">f4", "`>f4` is big-endian"),
        (">i8", "`>i8` is big-endian"),
        ("|O", "`|O`"),
        ("<U4", "`<U4`"),
        ("|S4", "`|S4`"),
        ("<c8", "`<c8`"),
        ("<f16", "`<f16`"),
        ("<u4", "`<u4`"),
        ("|V2", "`|V2`"),
        ("", "``"),
    ] {
        // Pickled objects are data that Python would run: here they are only bytes of an unknown dtype.
        refused_for(npy(&dict(descr, false, "(6,)"), &floats(&SIX)), problem);
    }
    let record = "{'descr': [('a', '<f4'), ('b', '<f4')], 'fortran_order': False, 'shape': (3,), }";
    refused_for(npy(record, &floats(&SIX)), "structured");
}

#[test]
fn a_shape_that_does_not_fit_the_bytes_is_refused() {
    for shape in ["(5,)", "(7,)", "(2, 2)", "(3, 3)", "()", "(0,)", "(6, 0)", "(600000000,)"] {
        for fortran in [false, true] {
            refused_for(npy(&dict("<f4", fortran, shape), &floats(&SIX)), "needs");
        }
    }
    refused_for(npy(&dict("<f8", false, "(6,)"), &floats(&SIX)), "needs 48 bytes, but 24 are there");
    refused_for(npy(&dict("<f2", false, "(6,)"), &floats(&SIX)), "needs 12 bytes, but 24 are there");
}

#[test]
fn a_shape_that_overflows_is_refused() {
    for shape in [
        "(4611686018427387904, 4)",
        "(4611686018427387904, 4, 0)",
        "(9223372036854775807,)",
        "(4294967296, 4294967296)",
        "(9223372036854775808,)",
        "(99999999999999999999999,)",
    ] {
        refused_for(npy(&dict("<f4", false, shape), &floats(&SIX)), "");
    }
    // No elements, and sizes whose product wraps to nothing.
    for shape in ["(0, 9223372036854775807, 9223372036854775807)", "(0, 4294967296, 4294967296)"] {
        for fortran in [false, true] {
            refused_for(npy(&dict("<f4", fortran, shape), &[]), "overflow");
        }
    }
}

#[test]
fn a_header_that_is_none_is_refused() {
    let sound = dict("<f4", false, "(6,)");
    for header in [
        "",
        "{}",
        "{",
        "[]",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': '<f4', 'shape': (6,)}",
        "{'fortran_order': False, 'shape': (6,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (6,), 'more': 1}",
        "{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (6,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (6,), 'shape': (6,)}",
        "{'descr': '<f4', 'fortran_order': Maybe, 'shape': (6,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 6}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-6,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (6.0,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (6L,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (6,}",
        "{'descr': '<f4 'fortran_order': False, 'shape': (6,)}",
        "{'descr' '<f4', 'fortran_order': False, 'shape': (6,)}",
        "{'descr': '<f4' 'fortran_order': False, 'shape': (6,)}",
        "{'descr': '<f4',, 'fortran_order': False, 'shape': (6,)}",
        "{descr: '<f4', 'fortran_order': False, 'shape': (6,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (6,)} import os",
        "{\u{e9}: '<f4'}",
        "{'é",
    ] {
        refused_for(npy(header, &floats(&SIX)), "header");
    }
    let mut not_text = npy(&sound, &floats(&SIX));
    not_text[12] = 0xFF;
    refused_for(not_text, "not text");
    let mut no_magic = npy(&sound, &floats(&SIX));
    no_magic[0] = 0x92;
    refused_for(no_magic, "not a NumPy array");
}

#[test]
fn truncation_of_the_array_at_every_length_is_refused() {
    // The archive is sound and its checksum right: only the array is short.
    let whole = npy(&dict("<f4", false, "(6,)"), &floats(&SIX));
    let _sound = read(whole.clone()).unwrap();
    for length in 0..whole.len() {
        refused_for(whole[..length].to_vec(), "");
    }
    refused_for([whole, vec![0]].concat(), "needs 24 bytes, but 25 are there");
}

#[test]
fn what_is_not_finite_is_counted() {
    let of = |values: &[f32]| npy(&dict("<f4", false, &format!("({},)", values.len())), &floats(values));
    refused_for(of(&[1.0, f32::NAN]), "1 NaN or infinite value");
    refused_for(of(&[f32::INFINITY, f32::NEG_INFINITY, 0.0]), "2 NaN or infinite values");
    let _sound = read(of(&[f32::MAX, f32::MAX])).unwrap();
}
