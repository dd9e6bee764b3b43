//! Tensors that stay in their file: every part of them is that part of the whole.

use std::{collections::HashMap, fs, path::Path};

use proptest::prelude::*;
use tch::{Kind, Tensor};
use tch_ext::{NpzFile, SafetensorsFile, Stored, TensorError, write_npz, write_safetensors};

use crate::{
    common::{assert_same, cases, counting, forever, refused},
    raw_zip::{Member, archive, dict, npy},
};

/// A matrix in a `params.npz` whose data begin at every offset there is: the member's name moves them.
fn at_offset(folder: &Path, offset: usize, rows: i64, cols: i64) -> Stored {
    let data: Vec<u8> = (0..rows * cols).flat_map(|n| (n as f32).to_le_bytes()).collect();
    let name = "w".repeat(1 + offset);
    let array = npy(&dict("<f4", false, &format!("({rows}, {cols})")), &data);
    let path = folder.join(format!("{offset}.npz"));
    fs::write(&path, archive(&[Member::stored(&format!("{name}.npy"), array)])).unwrap();
    NpzFile::open(&path).unwrap().stored(&name).unwrap()
}

/// Each part that there is, and each that there is not.
fn check(what: &str, stored: &Stored, whole: &Tensor) {
    let (rows, cols) = whole.size2().unwrap();
    assert_eq!((stored.shape(), stored.kind()), ([rows, cols].as_slice(), whole.kind()), "{what}");
    assert_eq!(stored.bytes(), (whole.numel() * whole.kind().elt_size_in_bytes()) as u64, "{what}");
    assert_same(what, &stored.tensor().unwrap(), whole);
    assert_same(what, &stored.shallow_clone().tensor().unwrap(), whole);
    for (start, len) in [(0, rows), (0, 0), (rows, 0), (rows / 2, rows - rows / 2), (rows - 1, 1)] {
        assert_same(what, &stored.rows(start, len).unwrap(), &whole.narrow(0, start, len));
    }
    for (start, len) in [(0, cols), (0, 0), (cols, 0), (cols / 2, cols - cols / 2), (cols - 1, 1)] {
        assert_same(what, &stored.columns(start, len).unwrap(), &whole.narrow(1, start, len));
    }
    for indices in [vec![], vec![0], vec![rows - 1, 0, rows - 1]] {
        let indices = Tensor::from_slice(&indices);
        assert_same(what, &stored.select_rows(&indices).unwrap(), &whole.index_select(0, &indices));
    }
    for (start, len) in
        [(-1, 1), (0, -1), (0, rows.max(cols) + 1), (i64::MAX, 1), (1, i64::MAX), (i64::MIN, -1)]
    {
        refused(stored.rows(start, len), &[stored.what(), "rows"]);
        refused(stored.columns(start, len), &[stored.what(), "columns"]);
    }
    for index in [-1, rows, i64::MAX, i64::MIN] {
        refused(stored.select_rows(&Tensor::from_slice(&[0, index])), &[stored.what(), &index.to_string()]);
    }
    refused(stored.select_rows(&Tensor::from_slice(&[0i32])), &["indices", "I64"]);
    refused(stored.select_rows(&Tensor::from_slice(&[[0i64]].concat()).reshape([1, 1])), &["indices", "[n]"]);
}

#[test]
fn every_part_wherever_it_lies() {
    let folder = tempfile::tempdir().unwrap();
    for offset in 0..8 {
        let stored = at_offset(folder.path(), offset, 7, 5);
        assert_eq!(stored.is_held(), cfg!(not(any(unix, windows))));
        check(&format!("offset {offset}"), &stored, &counting(&[7, 5], Kind::Float, 0));
    }
    let whole = counting(&[7, 5], Kind::Float, 0);
    let held = Stored::held("here: w", whole.shallow_clone());
    assert!(held.is_held());
    check("held", &held, &whole);
}

/// More than one thread's share, so that several fill a tensor.
#[test]
fn parts_larger_than_a_piece() {
    let folder = tempfile::tempdir().unwrap();
    let whole = counting(&[700, 1300], Kind::Float, 0);
    for offset in 0..4 {
        check(&format!("offset {offset}"), &at_offset(folder.path(), offset, 700, 1300), &whole);
    }
}

#[test]
fn what_either_writer_wrote() {
    let folder = tempfile::tempdir().unwrap();
    let (npz, safetensors) = (folder.path().join("w.npz"), folder.path().join("w.safetensors"));
    let whole = counting(&[6, 9], Kind::Half, -3);
    write_npz(&npz, [("b", &whole.narrow(0, 0, 1)), ("w", &whole)]).unwrap();
    write_safetensors(&safetensors, [("w", &whole)], HashMap::new()).unwrap();
    check("npz", &NpzFile::open(&npz).unwrap().stored("w").unwrap(), &whole);
    check("safetensors", &SafetensorsFile::open(&safetensors).unwrap().stored("w").unwrap(), &whole);
    let in_memory = forever(fs::read(&npz).unwrap());
    check("npz in memory", &NpzFile::from_bytes("w.npz", in_memory).unwrap().stored("w").unwrap(), &whole);
    let in_memory = forever(fs::read(&safetensors).unwrap());
    let mut file = SafetensorsFile::from_bytes("w.safetensors", in_memory).unwrap();
    check("safetensors in memory", &file.stored("w").unwrap(), &whole);
    refused(file.stored("none"), &["w.safetensors", "`none`", "missing"]);
    refused(NpzFile::open(&npz).unwrap().stored("none"), &["w.npz", "`none`", "missing"]);
}

#[test]
fn no_matrix_has_no_rows() {
    for shape in [&[][..], &[4], &[2, 2, 2]] {
        let stored = Stored::held("here: w", counting(shape, Kind::Float, 0));
        refused(stored.rows(0, 1), &["here: w", "[rows, cols]"]);
        refused(stored.columns(0, 1), &["here: w", "[rows, cols]"]);
        refused(stored.select_rows(&Tensor::from_slice(&[0i64])), &["here: w", "[rows, cols]"]);
    }
}

#[test]
fn a_checksum_is_looked_at_when_all_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.npz");
    let data: Vec<u8> = (0..6).flat_map(|n| (n as f32).to_le_bytes()).collect();
    let mut bytes = archive(&[Member::stored("w.npy", npy(&dict("<f4", false, "(2, 3)"), &data))]);
    let at = bytes.windows(data.len()).position(|w| w == data).unwrap();
    // An odd offset, as NumPy leaves it: no view is possible.
    assert!(at % 4 != 0);
    bytes[at + data.len() - 1] ^= 1;
    fs::write(&path, bytes).unwrap();
    let stored = NpzFile::open(&path).unwrap().stored("w").unwrap();
    assert_same("a sound part", &stored.rows(0, 1).unwrap(), &counting(&[1, 3], Kind::Float, 0));
    refused(stored.tensor(), &["w.npz: w", "checksum"]);
    refused(NpzFile::open(&path).unwrap().read("w"), &["w.npz: w", "checksum"]);
}

#[test]
fn a_file_cut_short_meanwhile_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let stored = at_offset(folder.path(), 0, 7, 5);
    let path = folder.path().join("0.npz");
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(100).unwrap();
    for result in [stored.tensor(), stored.rows(3, 2), stored.columns(0, 2)] {
        assert!(matches!(result, Err(TensorError::Io { .. })));
        refused(result, &["0.npz: w"]);
    }
}

#[cfg(unix)]
#[test]
fn what_lies_aligned_is_a_view() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let whole = counting(&[6, 9], Kind::Float, 0);
    write_safetensors(&path, [("w", &whole)], HashMap::new()).unwrap();
    let stored = SafetensorsFile::open(&path).unwrap().stored("w").unwrap();
    // A view of some columns has the strides of the whole: nothing was copied.
    assert_eq!(stored.columns(2, 3).unwrap().stride(), [9, 1]);
    let kept = stored.rows(2, 3).unwrap();
    drop(stored);
    fs::remove_file(&path).unwrap();
    assert_same("outlives its file", &kept, &whole.narrow(0, 2, 3));
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn any_part_is_that_part_of_the_whole(
        offset in 0usize..4,
        (rows, cols) in (1i64..40, 1i64..40),
        (start, len) in (0i64..40, 0i64..40),
        picked in prop::collection::vec(any::<u32>(), 0..9),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let whole = counting(&[rows, cols], Kind::Float, 0);
        let stored = at_offset(folder.path(), offset, rows, cols);
        let (start, len) = (start % (rows + 1), len % (rows + 1));
        match stored.rows(start, len) {
            Ok(part) => assert_same("rows", &part, &whole.narrow(0, start, len)),
            Err(error) => {
                prop_assert!(start + len > rows);
                refused(Err::<(), _>(error), &["rows"]);
            }
        }
        let (start, len) = (start % cols, (len % (cols + 1)).min(cols - start % cols));
        assert_same("columns", &stored.columns(start, len).unwrap(), &whole.narrow(1, start, len));
        let picked: Vec<i64> = picked.into_iter().map(|n| i64::from(n) % rows).collect();
        let picked = Tensor::from_slice(&picked);
        assert_same("picked", &stored.select_rows(&picked).unwrap(), &whole.index_select(0, &picked));
    }
}
