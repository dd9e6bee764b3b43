//! Files of `torch.save` give what PyTorch put into them: `tools/golden/torch_golden.py` wrote both.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use serde_json::Value;
use tch::{Kind, Tensor};
use tch_ext::{SafetensorsFile, TorchFile, TorchTensor, TorchValue};

use crate::{
    common::{assert_same, bytes, cases, counting, refused},
    torch_pickle::{members, pickle, saved, tensor, unzip},
};

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/torch")
}

fn open(case: &str) -> TorchFile {
    TorchFile::open(&fixtures().join(format!("{case}.pt"))).unwrap()
}

fn expected() -> (Value, SafetensorsFile) {
    let text = fs::read_to_string(fixtures().join("expected.json")).unwrap();
    let tensors = SafetensorsFile::open(&fixtures().join("expected.safetensors")).unwrap();
    (serde_json::from_str(&text).unwrap(), tensors)
}

/// Every value, every key in its order, every bit of every tensor.
#[track_caller]
fn assert_holds(file: &TorchFile, got: &TorchValue, want: &Value, tensors: &mut SafetensorsFile) {
    let what = format!("{}: {got:?}", file.name());
    let mut all = |got: &[TorchValue], want: &Value| {
        let want = want.as_array().unwrap();
        assert_eq!(got.len(), want.len(), "{what}");
        got.iter().zip(want).for_each(|(got, want)| assert_holds(file, got, want, tensors));
    };
    match (got, want) {
        (TorchValue::None, Value::Null) => {}
        (TorchValue::Bool(got), Value::Bool(want)) => assert_eq!(got, want, "{what}"),
        (TorchValue::Int(got), Value::Number(want)) => assert_eq!(Some(*got), want.as_i64(), "{what}"),
        (TorchValue::Str(got), Value::String(want)) => assert_eq!(got, want, "{what}"),
        (TorchValue::Float(got), Value::Object(want)) => {
            let want: f64 = want["float"].as_str().unwrap().parse().unwrap();
            assert_eq!(got.to_bits(), want.to_bits(), "{what}");
        }
        (TorchValue::List(got), Value::Object(want)) => all(got, &want["list"]),
        (TorchValue::Tuple(got), Value::Object(want)) => all(got, &want["tuple"]),
        (TorchValue::Dict(got), Value::Object(want)) => {
            for ((key, value), want) in got.iter().zip(want["dict"].as_array().unwrap()) {
                all(&[key.clone(), value.clone()], want);
            }
            assert_eq!(got.len(), want["dict"].as_array().unwrap().len(), "{what}");
        }
        (TorchValue::Tensor(got), Value::Object(want)) => {
            let name = want["tensor"].as_str().unwrap();
            let want = tensors.read(name).unwrap();
            assert_eq!((got.kind(), got.shape()), (want.kind(), want.size().as_slice()), "{name}");
            assert!(name.ends_with(got.name()), "{name}: {}", got.name());
            assert_same(name, &file.tensor(got).unwrap(), &want);
        }
        _ => panic!("{what}, but {want} was saved"),
    }
}

#[test]
fn every_value_that_was_saved() {
    let (expected, mut tensors) = expected();
    let cases = expected.as_object().unwrap();
    let files: BTreeSet<String> =
        fs::read_dir(fixtures()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    for (case, want) in cases {
        assert!(files.contains(&format!("{case}.pt")), "{case}");
        let file = open(case);
        assert_holds(&file, file.root(), want, &mut tensors);
    }
    assert!(cases.len() >= 12, "{}", cases.len());
}

/// As other tools write archives: what `torch.save` aligns stands at odd places, and can't be mapped.
#[test]
fn storages_at_any_offset() {
    let (expected, mut tensors) = expected();
    for case in ["dtypes_p2", "views", "shapes", "config"] {
        let members = unzip(&fixtures().join(format!("{case}.pt")));
        for shift in 0..8 {
            let mut members = members.clone();
            let folder = tempfile::tempdir().unwrap();
            // A longer name of the archive moves all that stands in it.
            let prefix = "a".repeat(shift + 1);
            for member in &mut members {
                member.name = member.name.replacen("archive", &prefix, 1).replacen(case, &prefix, 1);
            }
            let path = saved(&folder, &members);
            let file = TorchFile::open(&path).unwrap();
            assert_holds(&file, file.root(), &expected[case], &mut tensors);
        }
    }
}

#[test]
fn values_are_found_by_name() {
    let file = open("config");
    let trainer = file.root().get("trainer").unwrap();
    assert_eq!(trainer.get("dict_class").and_then(TorchValue::as_str), Some("AutoEncoderTopK"));
    assert_eq!(trainer.get("lr").and_then(TorchValue::as_float), Some(5e-5));
    assert_eq!(trainer.get("steps").and_then(TorchValue::as_int), Some(10_000));
    assert_eq!(trainer.get("steps").and_then(TorchValue::as_float), Some(10_000.0));
    assert_eq!(trainer.get("lr").and_then(TorchValue::as_int), None);
    assert_eq!(trainer.get("warm").and_then(TorchValue::as_bool), Some(true));
    assert_eq!(trainer.get("betas").and_then(TorchValue::as_items).map(<[_]>::len), Some(2));
    assert_eq!(trainer.get("dtype").and_then(TorchValue::as_str), Some("torch.bfloat16"));
    assert!(trainer.get("first").and_then(|f| f.get("notes")).is_some_and(TorchValue::is_none));
    assert!(trainer.get("none such").is_none() && trainer.get("lr").unwrap().get("lr").is_none());
    let state = file.root().get("state").and_then(TorchValue::as_dict).unwrap();
    let w = state[0].1.as_tensor().unwrap();
    assert_eq!((w.name(), w.kind(), w.shape()), ("state.w", Kind::Float, [2, 3].as_slice()));
    assert!(file.root().as_tensor().is_none() && format!("{file:?}").contains("config.pt"));
}

#[test]
fn a_transposed_tensor_keeps_its_strides() {
    let file = open("module");
    let decoder =
        file.tensor(file.root().get("decoder.weight").and_then(TorchValue::as_tensor).unwrap()).unwrap();
    assert_eq!((decoder.size(), decoder.stride()), (vec![6, 10], vec![1, 6]));
}

#[cfg(target_os = "linux")]
fn lines_of_maps(name: &str) -> usize {
    fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|line| line.contains(name)).count()
}

#[cfg(target_os = "linux")]
#[test]
fn what_torch_saved_is_read_and_outlives_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mapped here and nowhere else.pt");
    fs::copy(fixtures().join("one_tensor.pt"), &path).unwrap();
    let file = TorchFile::open(&path).unwrap();
    let one = file.root().as_tensor().unwrap();
    assert_eq!((one.name(), lines_of_maps("nowhere else.pt")), ("", 0));
    let before = bytes(&file.tensor(one).unwrap());
    let mut tensor = file.tensor(one).unwrap();
    // Its checksum is verified, so it is no view of the file.
    assert_eq!(lines_of_maps("nowhere else.pt"), 0);
    drop(file);
    fs::remove_file(&path).unwrap();
    assert_eq!(bytes(&tensor), before);
    // Writing to it is no error, and reaches no file.
    let _ = tensor.fill_(5.0);
    assert_eq!(bytes(&tensor), bytes(&(tensor.zeros_like() + 5.0)));
}

/// A tensor that another file described is held against this one.
#[test]
fn a_tensor_of_another_file() {
    let (views, one) = (open("views"), open("one_tensor"));
    let stray: Vec<TorchTensor> =
        views.root().as_dict().unwrap().iter().filter_map(|(_, v)| v.as_tensor().cloned()).collect();
    for tensor in &stray {
        refused(one.tensor(tensor), &["one_tensor.pt", tensor.name()]);
    }
}

proptest! {
    #![proptest_config(cases(128))]

    /// Any view that stays within its storage is what libtorch makes of the same numbers.
    #[test]
    fn views_are_as_libtorch_sees_them(
        axes in prop::collection::vec((0i64..5, 0i64..9), 0..5),
        offset in 0i64..40,
        len in 0i64..200,
    ) {
        let (shape, stride): (Vec<i64>, Vec<i64>) = axes.into_iter().unzip();
        let count: i64 = shape.iter().product();
        let last = offset + shape.iter().zip(&stride).map(|(n, s)| (n - 1) * s).sum::<i64>();
        let numbers = counting(&[len], Kind::Int64, 0);
        let folder = tempfile::tempdir().unwrap();
        let pickle = pickle(&tensor("LongStorage", "0", len, offset, &shape, &stride));
        let path = saved(&folder, &members(&pickle, &[("0", bytes(&numbers))]));
        match TorchFile::open(&path) {
            Ok(file) => {
                prop_assert!(count == 0 || (last < len && count <= len));
                let got = file.tensor(file.root().as_tensor().unwrap()).unwrap();
                let want = if count == 0 {
                    Tensor::empty(&shape, (Kind::Int64, tch::Device::Cpu))
                } else {
                    numbers.as_strided(&shape, &stride, offset)
                };
                assert_same("view", &got, &want);
            }
            Err(error) => {
                refused(Err::<(), _>(error), &["ae.pt", "its tensor"]);
                prop_assert!(count > 0 && (last >= len || count > len));
            }
        }
    }
}
