//! A checkpoint is what the model expects, or an error that names the tensor.

use std::{collections::HashMap, fs, path::Path};

use tch::{Device, Kind, Tensor};
use tch_ext::{WeightSource, write_safetensors};

use crate::common::{assert_same, counting, forever, refused};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const AXES: [(&str, i64); 2] = [("d_mlp", 2), ("d_model", 3)];

fn write(folder: &Path, file: &str, tensors: &[(&str, &Tensor)]) {
    write_safetensors(&folder.join(file), tensors.iter().copied(), HashMap::new()).unwrap();
}

fn w(first: i64) -> Tensor {
    counting(&[2, 3], Kind::Float, first)
}

/// Two shards, `up` in the first and `down` in the second, under an index of the caller's.
fn sharded(index: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "1.safetensors", &[("up", &w(0))]);
    write(folder.path(), "2.safetensors", &[("down", &w(6))]);
    fs::write(folder.path().join(INDEX), index).unwrap();
    folder
}

fn take(source: &mut WeightSource, name: &str) -> tch_ext::Result<Tensor> {
    source.take(name, &AXES, Kind::Float, Device::Cpu)
}

/// What taking the only tensor of a file, `w`, gives.
fn take_of(tensor: &Tensor) -> tch_ext::Result<Tensor> {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), SINGLE, &[("w", tensor)]);
    take(&mut WeightSource::open_folder(folder.path())?, "w")
}

#[test]
fn a_single_file() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), SINGLE, &[("up", &w(0)), ("down", &w(6))]);
    let mut source = WeightSource::open_folder(folder.path()).unwrap();
    assert!(source.name().ends_with(SINGLE));
    assert!(source.contains("up") && !source.contains("gate"));
    assert_same("up", &take(&mut source, "up").unwrap(), &w(0));
    assert_same("down", &take(&mut source, "down").unwrap(), &w(6));
    source.finish().unwrap();
}

#[test]
fn shards_by_their_index() {
    let folder = sharded(
        r#"{"metadata":{"total_size":48},"weight_map":{"up":"1.safetensors","down":"2.safetensors"}}"#,
    );
    let mut source = WeightSource::open_folder(folder.path()).unwrap();
    assert_same("down", &take(&mut source, "down").unwrap(), &w(6));
    assert_same("up", &take(&mut source, "up").unwrap(), &w(0));
    source.finish().unwrap();
}

#[test]
fn a_single_file_goes_before_an_index() {
    let folder = sharded("this is not even read");
    write(folder.path(), SINGLE, &[("gate", &w(1))]);
    assert!(WeightSource::open_folder(folder.path()).unwrap().contains("gate"));
}

#[test]
fn from_memory() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), SINGLE, &[("up", &w(0))]);
    let bytes = forever(fs::read(folder.path().join(SINGLE)).unwrap());
    let mut source = WeightSource::from_bytes("embedded weights", bytes).unwrap();
    assert_same("up", &take(&mut source, "up").unwrap(), &w(0));
    source.finish().unwrap();
    refused(WeightSource::from_bytes("embedded weights", &bytes[..20]), &["embedded weights"]);
}

#[test]
fn a_folder_without_weights_is_named() {
    let folder = tempfile::tempdir().unwrap();
    refused(WeightSource::open_folder(folder.path()), &[SINGLE]);
    refused(WeightSource::open_folder(&folder.path().join("none")), &["none"]);
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    let map = |entries: &str| format!(r#"{{"weight_map":{{{entries}}}}}"#);
    for (index, at_fault) in [
        (map(r#""up":"1.safetensors","down":"3.safetensors""#), ["3.safetensors", ""]),
        (map(r#""up":"1.safetensors","down":"1.safetensors""#), ["`down`", "`1.safetensors`"]),
        (map(r#""up":"2.safetensors","down":"1.safetensors""#), [INDEX, "does not hold it"]),
        (map(r#""up":"1.safetensors","gate":"2.safetensors""#), ["`gate`", "`2.safetensors`"]),
        (map(r#""up":"../1.safetensors""#), ["`up`", "../1.safetensors"]),
        (map(r#""up":"..""#), ["..", ""]),
        (map(r#""up":"""#), ["", ""]),
        (map(r#""up":7"#), ["`up`", "7"]),
        ("{}".to_owned(), [INDEX, "weight_map"]),
        (r#"{"weight_map":[]}"#.to_owned(), [INDEX, "weight_map"]),
        ("{".to_owned(), [INDEX, "not JSON"]),
        (String::new(), [INDEX, "not JSON"]),
    ] {
        let folder = sharded(&index);
        let name = folder.path().display().to_string();
        refused(WeightSource::open_folder(folder.path()), &[&name, at_fault[0], at_fault[1]]);
    }
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let folder = sharded(r#"{"weight_map":{"up":"1.safetensors","down":"2.safetensors"}}"#);
    write(folder.path(), "2.safetensors", &[("down", &w(6)), ("up", &w(0))]);
    refused(WeightSource::open_folder(folder.path()), &["2.safetensors", "`up`", "another shard"]);
}

#[test]
fn a_damaged_shard_is_named() {
    let folder = sharded(r#"{"weight_map":{"up":"1.safetensors","down":"2.safetensors"}}"#);
    let path = folder.path().join("2.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    refused(WeightSource::open_folder(folder.path()), &["2.safetensors", "truncated"]);
}

#[test]
fn a_tensor_of_another_shape_is_refused_with_its_axes() {
    for shape in [&[3, 2][..], &[6], &[2, 3, 1], &[1, 2, 3], &[], &[2, 4]] {
        let text =
            refused(take_of(&counting(shape, Kind::Float, 0)), &[SINGLE, ": w`", "[d_mlp=2, d_model=3]"]);
        assert!(text.contains(&format!("{shape:?}")), "{text}");
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), SINGLE, &[("up", &w(0))]);
    let mut source = WeightSource::open_folder(folder.path()).unwrap();
    refused(take(&mut source, "gate"), &[SINGLE, "`gate`", "missing"]);
}

#[test]
fn tensors_that_nothing_took_are_named() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), SINGLE, &[("up", &w(0)), ("lm_head.weight", &w(0))]);
    let mut source = WeightSource::open_folder(folder.path()).unwrap();
    let _up = take(&mut source, "up").unwrap();
    let text = refused(source.finish(), &[SINGLE, "unexpected tensor `lm_head.weight`"]);
    assert!(!text.contains("`up`"));

    let names: Vec<String> = (0..9).map(|i| format!("extra.{i}")).collect();
    let tensor = w(0);
    write(folder.path(), SINGLE, &names.iter().map(|n| (n.as_str(), &tensor)).collect::<Vec<_>>());
    let source = WeightSource::open_folder(folder.path()).unwrap();
    refused(source.finish(), &[SINGLE, "unexpected tensors", "`extra.0`", "`extra.4`", "and 4 more"]);
}

#[test]
fn a_refused_tensor_still_counts_as_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), SINGLE, &[("up", &counting(&[6], Kind::Float, 0))]);
    let mut source = WeightSource::open_folder(folder.path()).unwrap();
    refused(take(&mut source, "up"), &["up"]);
    refused(source.finish(), &["`up`"]);
}

#[test]
fn what_is_not_finite_is_counted() {
    let with = |values: &[f32]| {
        let rest = vec![0.5; 6 - values.len()];
        Tensor::from_slice(&[values, &rest].concat()).reshape([2, 3])
    };
    refused(take_of(&with(&[f32::NAN])), &[SINGLE, ": w`", "1 NaN or infinite value"]);
    refused(
        take_of(&with(&[f32::INFINITY, f32::NEG_INFINITY])),
        &[SINGLE, ": w`", "2 NaN or infinite values"],
    );
    for kind in [Kind::BFloat16, Kind::Half] {
        refused(take_of(&with(&[f32::NAN; 3]).to_kind(kind)), &[SINGLE, ": w`", "3 NaN"]);
    }
}

#[test]
fn only_floats_are_weights() {
    for (kind, name) in [
        (Kind::Int64, "I64"),
        (Kind::Double, "F64"),
        (Kind::Bool, "BOOL"),
        (Kind::Int8, "I8"),
        (Kind::Uint8, "U8"),
    ] {
        refused(take_of(&counting(&[2, 3], kind, 0)), &[SINGLE, ": w`", "F32 or BF16 or F16", name]);
    }
}

#[test]
fn stored_and_wanted_dtype_may_differ() {
    // Small whole numbers are the same in all three.
    let stored = [Kind::Float, Kind::BFloat16, Kind::Half];
    for from in stored {
        for to in stored {
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), SINGLE, &[("w", &w(-3).to_kind(from))]);
            let got =
                WeightSource::open_folder(folder.path()).unwrap().take("w", &AXES, to, Device::Cpu).unwrap();
            assert_same(&format!("{from:?} to {to:?}"), &got, &w(-3).to_kind(to));
        }
    }
}

#[test]
fn a_cast_that_overflows_is_refused() {
    // 1e5 is beyond float16, whose largest is 65504: what was finite in the file would enter the model as infinity.
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), SINGLE, &[("w", &(w(0) + 1e5))]);
    let taken = WeightSource::open_folder(folder.path()).unwrap().take("w", &AXES, Kind::Half, Device::Cpu);
    refused(taken, &[SINGLE, ": w`", "6 NaN or infinite values"]);
}
