//! OpenMOSS' SAEs of both ages against what their code, its formulas and SAELens compute.

use std::fs;

use hooks::{HookPoint, LayerIdx};
use sae_core::{Format, OpenOptions, SparseAutoencoder as _, open};
use serde_json::{Value, json};
use tch::{Kind, Tensor};
use tch_ext::SafetensorsFile;
use tempfile::TempDir;

use crate::formats_common::{
    Expected, assert_computes, assert_strict, case, copy, edit_json, edit_tensors, expected, golden, opened,
    refused,
};

const LLAMA_SCOPE: [&str; 6] = [
    "llama-scope",
    "llama-scope-decoder-norm",
    "llama-scope-without-decoder-norm",
    "llama-scope-transcoder",
    "llama-scope-input-bias",
    "llama-scope-topk-converted",
];

const NEWER: [&str; 6] = [
    "llama-scope-r1",
    "openmoss-jumprelu",
    "openmoss-jumprelu-transcoder",
    "openmoss-jumprelu-plain",
    "openmoss-relu-inference",
    "openmoss-relu-token-wise",
];

const RESID: Option<HookPoint> = Some(HookPoint::ResidPost(LayerIdx(5)));

#[test]
fn llama_scope_is_in_the_units_of_its_own_loader() {
    for name in LLAMA_SCOPE {
        let expected = expected(&format!("{name}/expected.safetensors"), "feature_acts_openmoss");
        let it = opened(name);
        assert_eq!((it.about.format, it.about.site), (Format::OpenMoss, RESID));
        assert_eq!(it.sae.architecture().contains("transcoder"), name.contains("transcoder"));
        assert_computes(name, Box::new(it.sae), &expected);
    }
}

#[test]
fn the_newer_compute_what_llamascopium_does() {
    for name in NEWER {
        let it = golden(name);
        assert!(it.about.site.is_some(), "{name}");
        let out = it.about.site_out;
        assert_eq!(out, name.contains("transcoder").then_some(HookPoint::MlpOut(LayerIdx(5))), "{name}");
    }
}

#[test]
fn topk_latents_are_scaled_by_their_decoder_norms() {
    let name = "openmoss-topk";
    let Expected { x, features, recon } = expected(&format!("{name}/expected.safetensors"), "feature_acts");
    let w_d =
        SafetensorsFile::open(&case(name).join("sae_weights.safetensors")).unwrap().read("W_D").unwrap();
    let norms = w_d.square().sum_dim_intlist(1, false, Kind::Float).sqrt();
    assert_computes(name, Box::new(opened(name).sae), &Expected { x, features: features * norms, recon });
}

#[test]
fn the_names_of_the_second_generation_are_read() {
    let name = "llama-scope-r1";
    let copy = copy(name);
    edit_tensors(&copy.path().join("sae_weights.safetensors"), |t| {
        let threshold = t.remove("log_jumprelu_threshold").unwrap();
        t.insert("activation_function.log_jumprelu_threshold".to_owned(), threshold);
    });
    fs::write(copy.path().join("lm_config.json"), r#"{"model_name": "meta-llama/Llama-3.1-8B"}"#).unwrap();
    let it = open(copy.path(), &OpenOptions::default()).unwrap();
    assert_eq!(it.about.model.as_deref(), Some("meta-llama/Llama-3.1-8B"));
    assert_computes(
        name,
        Box::new(it.sae),
        &expected(&format!("{name}/expected.safetensors"), "feature_acts"),
    );
}

#[test]
fn a_norm_that_is_not_used_may_be_anything() {
    let copy = copy("openmoss-relu-inference");
    edit_tensors(&copy.path().join("sae_weights.safetensors"), |t| {
        let norm = "dataset_average_activation_norm.blocks.5.hook_resid_post";
        assert!(t.insert(norm.to_owned(), Tensor::from(f32::NAN)).is_some());
    });
    assert!(open(copy.path(), &OpenOptions::default()).is_ok());
}

#[test]
fn pruned_weights_go_first() {
    let copy = copy("llama-scope");
    let at = |name: &str| copy.path().join("checkpoints").join(name);
    fs::copy(at("final.safetensors"), at("pruned.safetensors")).unwrap();
    fs::write(at("final.safetensors"), "nothing").unwrap();
    assert!(open(copy.path(), &OpenOptions::default()).is_ok());
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    for (name, at_fault) in [
        ("openmoss-batchtopk", ["act_fn", "batchtopk"]),
        ("openmoss-batch-wise", ["norm_activation", "batch-wise"]),
        ("openmoss-glu", ["config.json", "use_glu_encoder"]),
        ("openmoss-crosscoder", ["sae_type", "crosscoder"]),
        ("openmoss-lorsa", ["sae_type", "lorsa"]),
        ("llama-scope-glu", ["hyperparams.json", "use_glu_encoder"]),
    ] {
        refused(&case(name), &at_fault);
    }
    type Edit = fn(&mut Value);
    let newer: [(Edit, &str); 9] = [
        (|c| c["sae_type"] = json!("molt"), "molt"),
        (|c| c["act_fn"] = json!("layertopk"), "layertopk"),
        (|c| c["frobnicate"] = json!(1), "frobnicate"),
        (|c| c["jump_relu_threshold"] = json!(0.5), "jump_relu_threshold"),
        (|c| c["hook_point_in"] = json!(null), "hook_point_in"),
        (|c| c["d_model"] = json!(null), "d_model"),
        (|c| c["expansion_factor"] = json!(3), "W_E"),
        (|c| c["use_decoder_bias"] = json!(false), "b_D"),
        (|c| c["hook_point_out"] = json!("blocks.6.hook_mlp_out"), "blocks.6.hook_mlp_out"),
    ];
    for (edit, at_fault) in newer {
        refused(with_config("openmoss-jumprelu", "config.json", edit).path(), &[at_fault]);
    }
    let token = with_config("openmoss-jumprelu-transcoder", "config.json", |c| {
        c["norm_activation"] = json!("token-wise");
    });
    refused(token.path(), &["config.json", "norm_activation", "token-wise", "transcoder"]);
    let older: [(Edit, &str); 8] = [
        (|c| c["act_fn"] = json!("gelu"), "gelu"),
        (|c| c["jump_relu_threshold"] = json!(-0.5), "jump_relu_threshold"),
        (|c| c["norm_activation"] = json!("batch-wise"), "batch-wise"),
        (
            |c| c["dataset_average_activation_norm"]["out"] = json!(null),
            "dataset_average_activation_norm.out",
        ),
        (|c| c["dataset_average_activation_norm"]["in"] = json!(0), "dataset_average_activation_norm.in"),
        (|c| c["dataset_average_activation_norm"] = json!(null), "dataset_average_activation_norm"),
        (|c| c["d_sae"] = json!(64), "d_sae"),
        (|c| c["frobnicate"] = json!(1), "frobnicate"),
    ];
    for (edit, at_fault) in older {
        refused(with_config("llama-scope", "hyperparams.json", edit).path(), &["hyperparams.json", at_fault]);
    }
}

#[test]
fn tensors_are_taken_strictly() {
    assert_strict(|| copy("openmoss-jumprelu"), "sae_weights.safetensors", "");
    assert_strict(|| copy("llama-scope-r1"), "sae_weights.safetensors", "");
    assert_strict(|| copy("llama-scope"), "checkpoints/final.safetensors", "");
    let norm = "dataset_average_activation_norm.blocks.5.hook_resid_post";
    for value in [0.0f32, -1.0, f32::INFINITY] {
        let copy = copy("openmoss-jumprelu");
        let file = copy.path().join("sae_weights.safetensors");
        edit_tensors(&file, |t| drop(t.insert(norm.to_owned(), Tensor::from(value))));
        refused(copy.path(), &["sae_weights.safetensors", norm]);
    }
    let copy = copy("openmoss-jumprelu");
    fs::remove_file(copy.path().join("sae_weights.safetensors")).unwrap();
    let error = sae_core::formats::openmoss::open(copy.path(), &OpenOptions::default());
    crate::common::refused(error, &["sae_weights.safetensors"]);
}

#[test]
fn the_newer_are_also_read_without_normalisation() {
    // TopK's gate and its latents then come from x itself.
    let copy = with_config("openmoss-topk", "config.json", |c| {
        c["norm_activation"] = json!("inference");
        c["sparsity_include_decoder_norm"] = json!(false);
    });
    let sae = open(copy.path(), &OpenOptions::default()).unwrap().sae;
    let mut file = SafetensorsFile::open(&copy.path().join("sae_weights.safetensors")).unwrap();
    assert_eq!(sae.encoder().whole().unwrap(), file.read("W_E").unwrap());
    assert_eq!(sae.decoder().whole().unwrap(), file.read("W_D").unwrap());
    assert_eq!(sae.architecture(), "topk");
}

fn with_config(case: &str, file: &str, edit: impl FnOnce(&mut Value)) -> TempDir {
    let copy = copy(case);
    edit_json(&copy.path().join(file), edit);
    copy
}
