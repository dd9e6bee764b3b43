//! Sparse features in a file: they come back, and what is not theirs is refused.

use std::{collections::HashMap, path::PathBuf};

use proptest::prelude::*;
use sae_core::SparseFeatures;
use tch::{Kind, Tensor};
use tch_ext::{SafetensorsFile, write_safetensors};
use testkit::{assert_same, normal};

use crate::{
    common::{cases, refused},
    sparse_views::{dense, same_features, tensor},
};

fn path(name: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    (folder, path)
}

fn text(d_sae: &str) -> HashMap<String, String> {
    HashMap::from([("d_sae".to_owned(), d_sae.to_owned())])
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn what_is_saved_comes_back(rows in dense()) {
        let (_folder, path) = path("f.safetensors");
        let features = SparseFeatures::from_dense(&tensor(&rows)).unwrap();
        features.save(&path, HashMap::new()).unwrap();
        same_features(&SparseFeatures::load(&path).unwrap(), &features);
    }
}

#[test]
fn as_the_tensors_and_text_that_are_documented() {
    let (_folder, path) = path("f.safetensors");
    let features = SparseFeatures::from_dense(&normal(&[3, 4], 1).relu()).unwrap();
    features.save(&path, HashMap::from([("sae".to_owned(), "tiny".to_owned())])).unwrap();
    let mut file = SafetensorsFile::open(&path).unwrap();
    assert_eq!(file.names(), ["indptr", "indices", "values"]);
    assert_same("indptr", &file.read("indptr").unwrap(), features.indptr());
    assert_same("indices", &file.read("indices").unwrap(), features.indices());
    assert_same("values", &file.read("values").unwrap(), features.values());
    let text = file.text().unwrap();
    assert_eq!((text["d_sae"].as_str(), text["sae"].as_str()), ("4", "tiny"));
    refused(features.save(&path, text.clone()), &["d_sae"]);
}

#[test]
fn features_with_gradients_and_views_are_saved() {
    let (_folder, path) = path("f.safetensors");
    let leaf = normal(&[6, 4], 1).relu().set_requires_grad(true);
    let some = SparseFeatures::from_dense(&leaf).unwrap().rows(2..5).unwrap();
    some.save(&path, HashMap::new()).unwrap();
    let want = SparseFeatures::from_dense(&leaf.detach().narrow(0, 2, 3)).unwrap();
    same_features(&SparseFeatures::load(&path).unwrap(), &want);
}

#[test]
fn what_could_not_be_read_back_is_not_written() {
    let (_folder, path) = path("f.safetensors");
    for value in [f64::NAN, f64::INFINITY] {
        let features = SparseFeatures::from_dense(&(normal(&[2, 3], 1) * value)).unwrap();
        refused(features.save(&path, HashMap::new()), &["values", "NaN or infinite"]);
    }
    let double = SparseFeatures::from_dense(&normal(&[2, 3], 1).to_kind(Kind::Double)).unwrap();
    refused(double.save(&path, HashMap::new()), &["values", "F32"]);
    assert!(!path.exists());
}

fn all<'t>(p: &'t Tensor, i: &'t Tensor, v: &'t Tensor) -> [(&'static str, &'t Tensor); 3] {
    [("indptr", p), ("indices", i), ("values", v)]
}

/// A sound file with one part changed.
#[test]
fn files_that_break_an_invariant() {
    let (_folder, path) = path("f.safetensors");
    let name = path.display().to_string();
    let of = |t: &[i64]| Tensor::from_slice(t);
    let (p, i, v) = (of(&[0, 2, 3]), of(&[1, 3, 0]), Tensor::from_slice(&[1f32, 2.0, 3.0]));
    let check = |tensors: &[(&str, &Tensor)], text: HashMap<String, String>, at_fault: &[&str]| {
        write_safetensors(&path, tensors.iter().copied(), text).unwrap();
        if at_fault.is_empty() {
            SparseFeatures::load(&path).unwrap();
        } else {
            refused(SparseFeatures::load(&path), &[at_fault, &[&name]].concat());
        }
    };
    check(&all(&p, &i, &v), text("4"), &[]);
    check(&all(&p, &i, &v), text("9223372036854775807"), &[]);
    check(&all(&p, &i, &v), HashMap::new(), &["no `d_sae`"]);
    for width in ["", "x", "+4", "04", " 4", "4.0", "9223372036854775808"] {
        check(&all(&p, &i, &v), text(width), &["`d_sae`", "no number"]);
    }
    check(&all(&p, &i, &v), text("-4"), &["d_sae", "negative"]);
    check(&all(&p, &i, &v), text("3"), &["less than d_sae"]);
    check(&all(&p, &of(&[3, 1, 0]), &v), text("4"), &["ascend"]);
    check(&all(&of(&[0, 2, 2]), &i, &v), text("4"), &["indptr", "number of entries"]);
    check(&all(&of(&[0, i64::MAX, 3]), &i, &v), text("4"), &["indptr", "rise"]);
    check(&all(&of(&[]), &i, &v), text("4"), &["indptr"]);
    check(&all(&p.unsqueeze(0), &i, &v), text("4"), &["indptr", "one axis"]);
    check(&all(&p, &of(&[1, 3]), &v), text("4"), &["equally long"]);
    check(&all(&p.to_kind(Kind::Int), &i, &v), text("4"), &["indptr", "I64", "I32"]);
    check(&all(&p, &i, &v.to_kind(Kind::Half)), text("4"), &["values", "F32", "F16"]);
    check(&all(&p, &i, &Tensor::from_slice(&[1f32, 0.0, 3.0])), text("4"), &["zero"]);
    check(&all(&p, &i, &Tensor::from_slice(&[1f32, f32::NAN, 3.0])), text("4"), &["values", "1 NaN"]);
    check(&[("indptr", &p), ("indices", &i)], text("4"), &["`values` is missing"]);
    let more = [("indptr", &p), ("indices", &i), ("values", &v), ("recon", &v)];
    check(&more, text("4"), &["unexpected tensor", "recon"]);
}

#[test]
fn files_cut_short_anywhere() {
    let (_folder, path) = path("f.safetensors");
    SparseFeatures::from_dense(&normal(&[2, 3], 1)).unwrap().save(&path, HashMap::new()).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        refused(SparseFeatures::load(&path), &["f.safetensors"]);
    }
}

/// Headers that claim what no machine has are refused for what they are, before anything is allocated.
#[test]
fn headers_that_lie() {
    let (_folder, path) = path("f.safetensors");
    let claims = |values: &str, end: u64| {
        let header = format!(
            r#"{{"__metadata__":{{"d_sae":"4"}},"indptr":{{"dtype":"I64","shape":[1],"data_offsets":[0,8]}},"indices":{{"dtype":"I64","shape":[0],"data_offsets":[8,8]}},"values":{{"dtype":"F32","shape":{values},"data_offsets":[8,{end}]}}}}"#
        );
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 8]].concat()
    };
    std::fs::write(&path, claims("[0]", 8)).unwrap();
    assert_eq!(SparseFeatures::load(&path).unwrap().n_rows(), 0);
    let wrong =
        [("[1152921504606846976]", 8), ("[1152921504606846976]", 4_611_686_018_427_387_912), ("[4]", 24)];
    for (values, end) in wrong {
        std::fs::write(&path, claims(values, end)).unwrap();
        refused(SparseFeatures::load(&path), &["f.safetensors"]);
    }
    // No elements, but sizes.
    std::fs::write(&path, claims("[0,4611686018427387904]", 8)).unwrap();
    refused(SparseFeatures::load(&path), &["f.safetensors", "one axis"]);
}
