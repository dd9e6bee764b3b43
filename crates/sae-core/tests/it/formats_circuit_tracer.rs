//! Sets of transcoders against what circuit-tracer computes.

use std::{fs, path::Path};

use hooks::{HookPoint, LayerIdx};
use sae_core::{Format, OpenOptions, SparseAutoencoder as _, open};
use tch::Tensor;
use tempfile::TempDir;

use crate::formats_common::{
    assert_computes, assert_strict, case, copy, edit_tensors, expected, opened, refused,
};

const SETS: [&str; 4] = [
    "circuit-tracer-relu",
    "circuit-tracer-jumprelu",
    "circuit-tracer-jumprelu-skip",
    "circuit-tracer-relu-skip",
];

#[test]
fn computes_what_circuit_tracer_does() {
    for set in SETS {
        for layer in 0..2 {
            let path = format!("{set}/layer_{layer}.safetensors");
            let expected = expected(&format!("{set}/expected_layer_{layer}.safetensors"), "feature_acts");
            let in_file = OpenOptions { hold_up_to: 0, ..OpenOptions::default() };
            assert_computes(&path, Box::new(open(&case(&path), &in_file).unwrap().sae), &expected);
            let it = opened(&path);
            assert_eq!(it.about.format, Format::CircuitTracer);
            assert!(it.sae.is_transcoder());
            assert_eq!(it.sae.w_skip().is_some(), set.contains("skip"), "{set}");
            assert_computes(&path, Box::new(it.sae), &expected);
        }
    }
}

#[test]
fn the_config_names_model_and_hooks() {
    let about = opened("circuit-tracer-relu/layer_1.safetensors").about;
    assert_eq!(about.model.as_deref(), Some("google/gemma-2-2b"));
    assert_eq!(about.hook.as_deref(), Some("blocks.1.mlp.hook_in"));
    assert_eq!(about.hook_out.as_deref(), Some("blocks.1.hook_mlp_out"));
    assert_eq!((about.site, about.site_out), (None, Some(HookPoint::MlpOut(LayerIdx(1)))));
    assert_eq!(about.metadata["scan"], "gemma-2-2b");
    // Without a config there are the weights alone.
    let copy = copy(SETS[0]);
    fs::remove_file(copy.path().join("config.yaml")).unwrap();
    let it = open(&copy.path().join("layer_1.safetensors"), &OpenOptions::default()).unwrap();
    assert_eq!((it.about.hook, it.about.site_out), (None, None));
}

#[test]
fn hooks_that_mean_the_same_in_our_model_are_sites() {
    for (hook, site) in [
        ("ln2.hook_normalized", Some(HookPoint::Ln2Normalized(LayerIdx(1)))),
        ("hook_resid_mid", Some(HookPoint::ResidMid(LayerIdx(1)))),
        ("hook_mlp_out", Some(HookPoint::MlpOut(LayerIdx(1)))),
        ("hook_mlp_in", None),
        ("nothing at all", None),
    ] {
        let copy = with_config(&format!("model_kind: transcoder_set\nfeature_input_hook: {hook}\n"));
        let about = open(&copy.path().join("layer_1.safetensors"), &OpenOptions::default()).unwrap().about;
        assert_eq!((about.hook, about.site), (Some(format!("blocks.1.{hook}")), site));
    }
}

#[test]
fn a_set_is_opened_layer_by_layer() {
    let text =
        refused(&case(SETS[0]), &["circuit-tracer-relu", "layer_0.safetensors", "layer_1.safetensors"]);
    assert!(text.contains("2 transcoders"), "{text}");
    let copy = copy(SETS[0]);
    fs::remove_file(copy.path().join("layer_0.safetensors")).unwrap();
    let it = open(copy.path(), &OpenOptions::default()).unwrap();
    assert_eq!(it.about.hook_out.as_deref(), Some("blocks.1.hook_mlp_out"));
    fs::remove_file(copy.path().join("layer_1.safetensors")).unwrap();
    refused(copy.path(), &["layer_{i}.safetensors"]);
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    refused(&case("circuit-tracer-clt"), &["config.yaml", "model_kind", "cross_layer_transcoder"]);
    refused(&case("circuit-tracer-topk"), &["config.yaml", "activation", "topk"]);
    for (config, at_fault) in [
        ("model_kind: lorsa\n", "lorsa"),
        ("model_name: gemma\n", "model_kind"),
        ("model_kind: transcoder_set\nfrobnicate: 3\n", "frobnicate"),
        ("model_kind: transcoder_set\nactivation: jump_relu\n", "activation"),
        ("model_kind: transcoder_set\nmodel_kind: transcoder_set\n", "stands twice"),
        ("model_kind: transcoder_set\nmodel_name: 3\n", "model_name"),
        ("model_kind: &a transcoder_set\nscan: *a\n", "mapping"),
        ("model_kind: {a: b}\n", "mapping"),
        ("model_kind: !!python/object:os.system x\n", "mapping"),
        ("- model_kind\n", "mapping"),
        ("model_kind: \"transcoder_set\n", "YAML"),
        ("model_kind: transcoder_set\n--- \nmodel_kind: transcoder_set\n", "document"),
        ("", "mapping"),
        ("[[[[[[[[", "mapping"),
    ] {
        let copy = with_config(config);
        let text = refused(&copy.path().join("layer_1.safetensors"), &["config.yaml"]);
        assert!(text.contains(at_fault), "{config:?}: {text}");
    }
    let copy = with_config("");
    fs::write(copy.path().join("config.yaml"), b"model_kind: \xff\n").unwrap();
    refused(&copy.path().join("layer_1.safetensors"), &["config.yaml", "UTF-8"]);
}

#[test]
fn values_may_be_quoted_and_lists() {
    let copy = with_config(
        "# a set\nmodel_kind: 'transcoder_set'\nmodel_name: \"3\"\nscan: null\ntranscoders:\n  - a/b\n  - hf://c\nrevision: ~\n",
    );
    let about = open(&copy.path().join("layer_1.safetensors"), &OpenOptions::default()).unwrap().about;
    assert_eq!(about.model.as_deref(), Some("3"));
    assert_eq!(about.metadata["transcoders"], serde_json::json!(["a/b", "hf://c"]));
}

#[test]
fn tensors_are_taken_strictly() {
    // With a threshold and a skip, of which a file may have either: without them it is another transcoder.
    let file = "layer_1.safetensors";
    for name in ["activation_function.threshold", "W_skip"] {
        let copy = copy(SETS[2]);
        edit_tensors(&copy.path().join(file), |t| drop(t.remove(name)));
        assert!(open(&copy.path().join(file), &OpenOptions::default()).is_ok());
    }
    assert_strict(|| copy(SETS[0]), file, file);
    for name in ["log_thresholds", "W_dec_0"] {
        let copy = copy(SETS[0]);
        edit_tensors(&copy.path().join(file), |t| drop(t.insert(name.to_owned(), Tensor::from(0.5f32))));
        refused(&copy.path().join(file), &[file, name]);
    }
    let copy = copy(SETS[1]);
    edit_tensors(&copy.path().join(file), |t| {
        let threshold = &t["activation_function.threshold"] - 2.0;
        t.insert("activation_function.threshold".to_owned(), threshold);
    });
    refused(&copy.path().join(file), &[file, "activation_function.threshold", "negative"]);
}

fn with_config(text: &str) -> TempDir {
    let copy = copy(SETS[0]);
    let config: &Path = &copy.path().join("config.yaml");
    fs::write(config, text).unwrap();
    copy
}
