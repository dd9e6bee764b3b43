//! A mapped tensor is what reading gives, and stays so whatever becomes of the file's name.

use std::{collections::HashMap, fs, path::Path};

use proptest::prelude::*;
use tch::{Kind, Tensor};
use tch_ext::{SafetensorsFile, write_safetensors};

use crate::common::{assert_same, bytes, cases, counting, forever, refused};

const KINDS: [Kind; 10] = [
    Kind::Float,
    Kind::BFloat16,
    Kind::Half,
    Kind::Double,
    Kind::Int64,
    Kind::Int,
    Kind::Int16,
    Kind::Int8,
    Kind::Uint8,
    Kind::Bool,
];

fn write(path: &Path, tensors: &[(&str, &Tensor)]) {
    write_safetensors(path, tensors.iter().copied(), HashMap::new()).unwrap();
}

fn w(first: i64) -> Tensor {
    counting(&[30, 50], Kind::Float, first)
}

/// A file of one tensor, `w`.
fn one() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    write(&path, &[("w", &w(0))]);
    (folder, path)
}

#[test]
fn every_dtype_and_rank() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.safetensors");
    let shapes: [&[i64]; 6] = [&[], &[3], &[2, 3], &[0], &[2, 0, 3], &[1, 2, 1, 2]];
    let named = |kind, shape| (format!("{kind:?} {shape:?}"), counting(shape, kind, -1));
    let tensors: Vec<(String, Tensor)> =
        KINDS.iter().flat_map(|&kind| shapes.map(|shape| named(kind, shape))).collect();
    write_safetensors(&path, tensors.iter().map(|(n, t)| (n.clone(), t)), HashMap::new()).unwrap();
    let mut file = SafetensorsFile::open(&path).unwrap();
    for (name, want) in &tensors {
        let got = file.map(name).unwrap();
        assert!(got.is_contiguous() && !got.requires_grad(), "{name}");
        assert_same(name, &got, want);
        assert_same(name, &got, &file.read(name).unwrap());
    }
    refused(file.map("none"), &["all.safetensors", "`none`", "missing"]);
}

/// Headers of eight lengths put the data at every offset there is.
#[test]
fn a_tensor_at_any_offset() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.safetensors");
    let floats = Tensor::from_slice(&[1.5f32, -2.0]);
    let whole = Tensor::from_slice(&[i64::MIN, 7]);
    let half = Tensor::from_slice(&[0.5f32, -1.0, 3.0]).to_kind(Kind::BFloat16);
    let header = concat!(
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"#,
        r#""floats":{"dtype":"F32","shape":[2],"data_offsets":[1,9]},"#,
        r#""half":{"dtype":"BF16","shape":[3,1],"data_offsets":[9,15]},"#,
        r#""whole":{"dtype":"I64","shape":[2],"data_offsets":[15,31]}}"#
    );
    for spaces in 0..8 {
        let header = format!("{header}{}", " ".repeat(spaces));
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.as_bytes());
        file.push(9);
        for tensor in [&floats, &half, &whole] {
            file.extend(bytes(tensor));
        }
        fs::write(&path, file).unwrap();
        let mut file = SafetensorsFile::open(&path).unwrap();
        assert_same("a", &file.map("a").unwrap(), &Tensor::from_slice(&[9u8]));
        assert_same("floats", &file.map("floats").unwrap(), &floats);
        assert_same("half", &file.map("half").unwrap(), &half.reshape([3, 1]));
        assert_same("whole", &file.map("whole").unwrap(), &whole);
    }
}

#[test]
fn a_file_in_memory_is_read() {
    let (_folder, path) = one();
    let mut file = SafetensorsFile::from_bytes("in memory", forever(fs::read(path).unwrap())).unwrap();
    assert_same("w", &file.map("w").unwrap(), &w(0));
}

#[cfg(target_os = "linux")]
#[test]
fn a_path_that_is_no_text_is_read() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};
    let (folder, path) = one();
    let odd = folder.path().join(OsStr::from_bytes(b"\xFF.safetensors"));
    fs::rename(path, &odd).unwrap();
    assert_same("w", &SafetensorsFile::open(&odd).unwrap().map("w").unwrap(), &w(0));
}

#[test]
fn a_tensor_outlives_the_file_and_its_name() {
    let (folder, path) = one();
    let map = || SafetensorsFile::open(&path).unwrap().map("w").unwrap();
    let kept = map();
    assert_same("after the reader", &kept, &w(0));

    // All careful writers rename a new file over the old one.
    write(&path, &[("w", &w(7))]);
    assert_same("after a new file", &kept, &w(0));
    let newer = map();
    assert_same("the new file", &newer, &w(7));

    fs::remove_file(&path).unwrap();
    drop(folder);
    assert_same("after deletion", &kept, &w(0));
    assert_same("after deletion", &newer, &w(7));
}

/// The header was read from the old file: what lies there in the new one is another thing.
#[test]
fn a_file_replaced_before_its_tensor_is_mapped() {
    let (_folder, path) = one();
    let mut file = SafetensorsFile::open(&path).unwrap();
    write(&path, &[("a longer name and other numbers", &w(7)), ("w", &w(3))]);
    assert_same("read", &file.read("w").unwrap(), &w(0));
    match file.map("w") {
        Ok(mapped) => assert!(bytes(&mapped) == bytes(&w(0)), "other numbers than those that were there"),
        Err(error) => drop(refused(Err::<(), _>(error), &["w.safetensors"])),
    }
}

#[test]
fn a_file_cut_short_before_its_tensor_is_mapped_is_named() {
    let (_folder, path) = one();
    let mut file = SafetensorsFile::open(&path).unwrap();
    let length = fs::metadata(&path).unwrap().len();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 1).unwrap();
    refused(file.map("w"), &["w.safetensors"]);
}

/// A checkpoint may be larger than the memory: the system is not asked to hold what lies before the tensor.
#[cfg(target_os = "linux")]
#[test]
fn a_tensor_far_behind_the_beginning() {
    use std::io::{Seek as _, SeekFrom, Write as _};
    const FAR: u64 = 1 << 42;
    let header = serde_json::json!({
        "far": { "dtype": "U8", "shape": [FAR], "data_offsets": [0, FAR] },
        "w": { "dtype": "F32", "shape": [1], "data_offsets": [FAR, FAR + 4] },
    });
    let header = format!("{:<200}", header.to_string());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sparse.safetensors");
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    // Not every file system takes a file of four terabytes, though all of it is a hole.
    let seek = file.seek(SeekFrom::Current(FAR as i64));
    let written = seek.and_then(|_| file.write_all(&1.5f32.to_le_bytes()));
    if written.is_err() {
        return;
    }
    let mut file = SafetensorsFile::open(&path).unwrap();
    assert_same("read", &file.read("w").unwrap(), &Tensor::from_slice(&[1.5f32]));
    assert_same("mapped", &file.map("w").unwrap(), &Tensor::from_slice(&[1.5f32]));
}

#[test]
fn writing_to_a_mapped_tensor_leaves_the_file_alone() {
    let (_folder, path) = one();
    let before = fs::read(&path).unwrap();
    let mut mapped = SafetensorsFile::open(&path).unwrap().map("w").unwrap();
    let _ = mapped.fill_(5.0);
    assert_same("written", &mapped, &(w(0) * 0.0 + 5.0));
    drop(mapped);
    assert_eq!(fs::read(&path).unwrap(), before);
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn mapping_gives_the_bits_that_reading_gives(
        shapes in prop::collection::vec(prop::collection::vec(0i64..5, 0..4), 1..4),
        kinds in prop::collection::vec(prop::sample::select(&KINDS[..]), 4),
        seed in any::<u64>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let any_bits = |shape: &[i64], kind: Kind| {
            let count = shape.iter().product::<i64>() as usize * kind.elt_size_in_bytes();
            // NaN with a payload among them; but a bool is 0 or 1.
            let most = if kind == Kind::Bool { 1 } else { u8::MAX };
            let mixed = (0..count as u64).map(|i| (seed ^ i).wrapping_mul(0x9E37_79B9_7F4A_7C15));
            let bits: Vec<u8> = mixed.map(|m| m.to_le_bytes()[5] & most).collect();
            Tensor::from_data_size(&bits, shape, kind)
        };
        let tensors = shapes.iter().zip(&kinds).map(|(shape, &kind)| any_bits(shape, kind));
        let tensors: Vec<_> = tensors.enumerate().map(|(i, t)| (format!("t{i}"), t)).collect();
        write_safetensors(&path, tensors.iter().map(|(n, t)| (n.clone(), t)), HashMap::new()).unwrap();
        let mut file = SafetensorsFile::open(&path).unwrap();
        for (name, want) in &tensors {
            assert_same(name, &file.map(name).unwrap(), want);
        }
    }
}
