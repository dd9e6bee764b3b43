//! Archives of arrays: through our own writer, through `ndarray-npy`'s, and by hand.

use std::io::{Cursor, Write as _};

use ndarray::{Array, ArrayD, IxDyn, ShapeBuilder as _};
use ndarray_npy::{NpzReader, NpzWriter, WritableElement};
use proptest::prelude::*;
use tch::{Kind, Tensor};
use tch_ext::{NpzFile, write_npz};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use crate::{
    common::{assert_same, cases, counting, forever, kept_out, listing, refused},
    raw_zip::{dict, npy},
};

const SHAPES: [&[i64]; 5] = [&[], &[3], &[2, 3], &[2, 0, 3], &[2, 3, 4]];

#[test]
fn what_is_written_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("params.npz");
    let arrays: Vec<(String, Tensor)> = [Kind::Float, Kind::Half, Kind::Double, Kind::Int64]
        .into_iter()
        .flat_map(|kind| SHAPES.map(|shape| (format!("{kind:?} {shape:?}"), counting(shape, kind, -1))))
        .collect();
    write_npz(&path, arrays.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
    let mut file = NpzFile::open(&path).unwrap();
    assert_eq!(file.name(), path.display().to_string());
    let mut names: Vec<_> = arrays.iter().map(|(n, _)| n.clone()).collect();
    names.sort();
    assert_eq!(file.names(), names);
    for (name, want) in &arrays {
        assert_same(name, &file.read(name).unwrap(), want);
        // An array may be read twice.
        assert_same(name, &file.read(name).unwrap(), want);
    }
}

#[test]
fn the_same_arrays_give_the_same_bytes_and_lie_aligned() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (folder.path().join("one.npz"), folder.path().join("other.npz"));
    let arrays: Vec<(String, Tensor)> =
        (0..70).map(|n| ("w".repeat(1 + n), counting(&[2, 3], Kind::Float, 1000 * n as i64))).collect();
    for path in [&one, &other] {
        write_npz(path, arrays.iter().map(|(n, t)| (n.as_str(), t))).unwrap();
    }
    let bytes = std::fs::read(&one).unwrap();
    assert_eq!(bytes, std::fs::read(other).unwrap());
    for (name, want) in &arrays {
        let data = crate::common::bytes(want);
        let at = bytes.windows(data.len()).position(|w| w == data).unwrap();
        assert_eq!(at % 64, 0, "{name}");
        assert_same(name, &NpzFile::open(&one).unwrap().stored(name).unwrap().tensor().unwrap(), want);
    }
}

/// Beyond the pieces in which contiguous and other tensors are written.
#[test]
fn large_arrays_are_written_piece_by_piece() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.npz");
    let large = counting(&[3000, 6001], Kind::Float, 0);
    let turned = large.transpose(0, 1);
    let middle = large.narrow(1, 1000, 3000);
    let tall = large.narrow(0, 0, 4).transpose(0, 1).unsqueeze(0);
    let all = [("large", &large), ("turned", &turned), ("middle", &middle), ("tall", &tall)];
    write_npz(&path, all).unwrap();
    let read = NpzFile::open(&path).unwrap().read_all().unwrap();
    for (name, want) in all {
        assert_same(name, &read[name], want);
    }
}

#[test]
fn strides_and_gradients_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("params.npz");
    let base = counting(&[4, 6], Kind::Float, 0);
    let views = [base.transpose(0, 1), base.narrow(1, 2, 3), base.copy().set_requires_grad(true)];
    let names = ["transposed", "narrowed", "trained"];
    write_npz(&path, names.into_iter().zip(&views)).unwrap();
    let mut file = NpzFile::open(&path).unwrap();
    for (name, want) in names.into_iter().zip(&views) {
        assert_same(name, &file.read(name).unwrap(), &want.detach());
    }
}

#[test]
fn another_reader_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("params.npz");
    let (w, ids, x) = (
        counting(&[2, 3], Kind::Float, -3),
        counting(&[4], Kind::Int64, 7),
        counting(&[2, 1, 2], Kind::Double, 0),
    );
    write_npz(&path, [("W_enc", &w), ("ids", &ids), ("x", &x)]).unwrap();
    let mut reader = NpzReader::new(std::fs::File::open(&path).unwrap()).unwrap();
    assert_eq!(reader.names().unwrap(), ["W_enc", "ids", "x"]);
    let w: ArrayD<f32> = reader.by_name("W_enc").unwrap();
    assert_eq!(w, Array::from_shape_fn(IxDyn(&[2, 3]), |i| (3 * i[0] + i[1]) as f32 - 3.0));
    let ids: ArrayD<i64> = reader.by_name("ids").unwrap();
    assert_eq!(ids, Array::from_shape_fn(IxDyn(&[4]), |i| 7 + i[0] as i64));
    let x: ArrayD<f64> = reader.by_name("x").unwrap();
    assert_eq!(x, Array::from_shape_fn(IxDyn(&[2, 1, 2]), |i| (2 * i[0] + i[2]) as f64));
}

/// An archive of one array, as `ndarray-npy` writes it.
fn foreign<T: WritableElement>(array: &ArrayD<T>, compressed: bool) -> &'static [u8] {
    let sink = Cursor::new(Vec::new());
    let mut writer = if compressed { NpzWriter::new_compressed(sink) } else { NpzWriter::new(sink) };
    writer.add_array("w", array).unwrap();
    forever(writer.finish().unwrap().into_inner())
}

/// Reads arrays of another writer, stored and deflated, in C and in Fortran order.
fn reads<T: WritableElement + Copy>(kind: Kind, value: impl Fn(i64) -> T) {
    for shape in SHAPES {
        let sizes: Vec<usize> = shape.iter().map(|&n| n as usize).collect();
        // The number that `counting` has at an index: its place in C order.
        let place = |index: IxDyn| (0..sizes.len()).fold(0, |n, axis| n * sizes[axis] + index[axis]) as i64;
        let c = Array::from_shape_fn(IxDyn(&sizes), |i| value(place(i)));
        let fortran = Array::from_shape_fn(IxDyn(&sizes).f(), |i| value(place(i)));
        for (what, array) in [("C", &c), ("Fortran", &fortran)] {
            for compressed in [false, true] {
                let mut file = NpzFile::from_bytes("foreign.npz", foreign(array, compressed)).unwrap();
                let what = format!("{kind:?} {shape:?} {what} compressed={compressed}");
                assert_same(&what, &file.read("w").unwrap(), &counting(shape, kind, 0));
            }
        }
    }
}

#[test]
fn reads_what_another_writer_wrote() {
    reads(Kind::Float, |n| n as f32);
    reads(Kind::Double, |n| n as f64);
    reads(Kind::Int64, |n| n);
    reads(Kind::Int, |n| n as i32);
    reads(Kind::Uint8, |n| n as u8);
    reads(Kind::Bool, |n| n != 0);
}

#[test]
fn big_endian_arrays_of_another_writer_are_refused() {
    // ndarray-npy writes the machine's order; a file of the other order is patched from it.
    let mut bytes = foreign(&Array::from_elem(IxDyn(&[2]), 1.0f64), false).to_vec();
    let at = bytes.windows(4).position(|w| w == b"'<f8").unwrap();
    bytes[at + 1] = b'>';
    refused(NpzFile::from_bytes("big.npz", forever(bytes)).unwrap().read("w"), &["big.npz: w"]);
}

/// An archive of one `[2, 3]` array with these options of zip.
fn zipped(options: SimpleFileOptions) -> &'static [u8] {
    let data: Vec<u8> = (0..6).flat_map(|n| (n as f32).to_le_bytes()).collect();
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    writer.start_file("w.npy", options).unwrap();
    writer.write_all(&npy(&dict("<f4", false, "(2, 3)"), &data)).unwrap();
    forever(writer.finish().unwrap().into_inner())
}

#[test]
fn zip64_members_are_read() {
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let bytes = zipped(SimpleFileOptions::default().compression_method(method).large_file(true));
        let got = NpzFile::from_bytes("zip64.npz", bytes).unwrap().read("w").unwrap();
        assert_same("zip64", &got, &counting(&[2, 3], Kind::Float, 0));
    }
}

#[test]
fn a_comment_on_the_archive_does_no_harm() {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    writer.set_comment("weights of yesterday");
    writer.start_file("w.npy", SimpleFileOptions::default()).unwrap();
    writer.write_all(&npy(&dict("|u1", false, "(1,)"), &[9])).unwrap();
    let bytes = forever(writer.finish().unwrap().into_inner());
    let got = NpzFile::from_bytes("comment.npz", bytes).unwrap().read("w").unwrap();
    assert_same("w", &got, &counting(&[1], Kind::Uint8, 9));
}

#[test]
fn an_array_that_is_not_there_is_named() {
    let mut file = NpzFile::from_bytes("params.npz", zipped(SimpleFileOptions::default())).unwrap();
    for name in ["W_enc", "w.npy", "W", ""] {
        refused(file.read(name), &["params.npz", &format!("`{name}`"), "missing"]);
    }
}

#[test]
fn what_numpy_has_no_name_for_is_refused_before_the_old_file_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("params.npz");
    std::fs::write(&path, b"old").unwrap();
    let w = counting(&[2], Kind::Float, 0);
    refused(write_npz(&path, [("w", &w), ("b", &w.to_kind(Kind::BFloat16))]), &["`b`", "BF16"]);
    refused(write_npz(&path, [("w", &w), ("w", &w)]), &["params.npz", "uplicate"]);
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(listing(folder.path()), ["params.npz"]);
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let folder = tempfile::tempdir().unwrap();
    refused(NpzFile::open(&folder.path().join("none.npz")), &["none.npz"]);
    let is_folder = folder.path().join("folder.npz");
    std::fs::create_dir(&is_folder).unwrap();
    refused(NpzFile::open(&is_folder), &["folder.npz"]);
}

#[cfg(unix)]
#[test]
fn a_file_without_rights_is_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("locked.npz");
    std::fs::write(&path, b"").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    if kept_out(&path) {
        refused(NpzFile::open(&path), &["locked.npz", "ermission"]);
    }
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn any_shape_comes_back_from_either_writer(
        shape in prop::collection::vec(0usize..5, 0..5),
        scale in -1e30f32..1e30,
        fortran in any::<bool>(),
        compressed in any::<bool>(),
    ) {
        let shape_builder = IxDyn(&shape).set_f(fortran);
        let mut n = 0;
        let array = Array::from_shape_fn(shape_builder, |_| {
            n += 1;
            scale / n as f32
        });
        let sizes: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let values: Vec<f32> = array.iter().copied().collect();
        let want = Tensor::from_slice(&values).reshape(&sizes);
        let mut theirs = NpzFile::from_bytes("theirs.npz", foreign(&array, compressed)).unwrap();
        assert_same("theirs", &theirs.read("w").unwrap(), &want);

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ours.npz");
        write_npz(&path, [("w", &want)]).unwrap();
        assert_same("ours", &NpzFile::open(&path).unwrap().read("w").unwrap(), &want);
        let read: ArrayD<f32> = NpzReader::new(std::fs::File::open(&path).unwrap()).unwrap().by_name("w").unwrap();
        prop_assert_eq!(read, array);
    }
}
