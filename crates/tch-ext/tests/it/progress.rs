//! Loading tells how far it is, in bytes of the files, and gives each tensor in the dtype that was asked for.

use std::{
    collections::HashMap,
    fs,
    sync::{Arc, Mutex},
};

use tch::{Device, Kind, Tensor};
use tch_ext::{WeightSource, write_safetensors};

use crate::common::{assert_same, counting, noise};

const TENSORS: [(&str, Kind, [i64; 2]); 4] = [
    ("embed", Kind::BFloat16, [40, 6]),
    ("up", Kind::Float, [5, 7]),
    ("nothing", Kind::Float, [0, 7]),
    ("down", Kind::Half, [3, 11]),
];

/// Two shards, the first and last two of the tensors.
fn sharded() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tensors = TENSORS.map(|(name, kind, size)| (name, counting(&size, kind, -9)));
    let mut index = serde_json::Map::new();
    for (shard, tensors) in tensors.chunks(2).enumerate() {
        let file = format!("{shard}.safetensors");
        let path = folder.path().join(&file);
        write_safetensors(&path, tensors.iter().map(|(n, t)| (*n, t)), HashMap::new()).unwrap();
        index.extend(tensors.iter().map(|(name, _)| ((*name).to_owned(), file.clone().into())));
    }
    let index = serde_json::json!({ "weight_map": index });
    fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    folder
}

/// Bytes taken and bytes in all, call by call.
type Calls = Arc<Mutex<Vec<(u64, u64)>>>;

/// A source of the shards, and what it tells of its progress.
fn watched() -> (tempfile::TempDir, WeightSource, Calls) {
    let (folder, told) = (sharded(), Arc::<Mutex<Vec<_>>>::default());
    let notes = Arc::clone(&told);
    let source = WeightSource::open_folder(folder.path()).unwrap();
    let source = source.with_progress(move |taken, all| notes.lock().unwrap().push((taken, all)));
    (folder, source, told)
}

fn take(source: &mut WeightSource, name: &str) -> tch_ext::Result<Tensor> {
    let (_, _, [rows, columns]) = TENSORS.into_iter().find(|(n, ..)| *n == name).unwrap();
    source.take(name, &[("rows", rows), ("columns", columns)], Kind::Float, Device::Cpu)
}

#[test]
fn the_bytes_are_those_of_the_files_and_the_last_are_all() {
    let (_folder, mut source, told) = watched();
    // Two bytes an entry in bfloat16 and float16, whatever they become.
    let all = 40 * 6 * 2 + 5 * 7 * 4 + 3 * 11 * 2;
    assert_eq!(source.bytes(), all);
    for (name, ..) in TENSORS.iter().rev() {
        let _taken = take(&mut source, name).unwrap();
    }
    assert_eq!(source.bytes(), all);
    source.finish().unwrap();
    assert_eq!(*told.lock().unwrap(), [66, 66, 66 + 140, all].map(|taken| (taken, all)));
}

#[test]
fn a_tensor_that_was_refused_is_no_progress() {
    let (_folder, mut source, told) = watched();
    source.take("up", &[("rows", 7)], Kind::Float, Device::Cpu).unwrap_err();
    source.take("none", &[], Kind::Float, Device::Cpu).unwrap_err();
    assert!(told.lock().unwrap().is_empty());
}

#[test]
fn a_tensor_taken_twice_is_progress_once() {
    let (_folder, mut source, told) = watched();
    for name in ["up", "up", "embed", "nothing", "down", "embed"] {
        let _taken = take(&mut source, name).unwrap();
    }
    let all = source.bytes();
    let told = told.lock().unwrap();
    assert!(told.iter().all(|(taken, _)| *taken <= all), "{told:?}");
    assert_eq!(told.last(), Some(&(all, all)));
}

#[test]
fn a_conversion_rounds_as_libtorch_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    // Values that need more bits than bfloat16 and float16 have.
    let stored = noise(&[50, 70], 1);
    for from in [Kind::Float, Kind::BFloat16, Kind::Half] {
        let stored = stored.to_kind(from);
        write_safetensors(&path, [("w", &stored)], HashMap::new()).unwrap();
        for to in [Kind::Float, Kind::BFloat16, Kind::Half] {
            let mut source = WeightSource::open_folder(folder.path()).unwrap();
            let got = source.take("w", &[("rows", 50), ("columns", 70)], to, Device::Cpu).unwrap();
            assert_same(&format!("{from:?} to {to:?}"), &got, &stored.to_kind(to));
        }
    }
}

#[test]
fn what_was_taken_outlives_its_source_and_the_folder() {
    let (folder, mut source, _told) = watched();
    let taken = TENSORS.map(|(name, ..)| take(&mut source, name).unwrap());
    drop(source);
    drop(folder);
    for (got, (name, kind, size)) in taken.iter().zip(TENSORS) {
        assert_same(name, got, &counting(&size, kind, -9).to_kind(Kind::Float));
    }
}
