//! Folders of dictionary_learning against what its `load_dictionary` makes of them.

use std::fs;

use hooks::{HookPoint, LayerIdx};
use sae_core::{OpenOptions, SparseAutoencoder as _, open};
use serde_json::{Value, json};

use crate::formats_common::{
    assert_computes, case, copy, edit_json, edit_torch, expected, golden, opened, refused, rename, with_nan,
    write_code,
};

const CASES: [(&str, &str); 10] = [
    ("autoencoder", "standard"),
    ("autoencoder-unnormalised", "standard"),
    ("autoencoder-new", "standard"),
    ("gated", "gated"),
    ("jumprelu", "jumprelu"),
    ("topk", "topk"),
    ("topk-without-threshold", "topk"),
    ("batchtopk", "jumprelu"),
    ("batchtopk-no-threshold", "standard"),
    ("matryoshka", "jumprelu"),
];

fn path(case: &str) -> String {
    format!("dictionary-learning-{case}")
}

#[test]
fn computes_what_dictionary_learning_does() {
    for (case, architecture) in CASES {
        let it = golden(&path(case));
        assert_eq!(it.sae.architecture(), architecture, "{case}");
        assert_eq!(it.about.model.as_deref(), Some("google/gemma-2-2b"));
        assert_eq!(it.about.hook.as_deref(), Some("resid_post_layer_5"));
        assert_eq!(it.about.site, Some(HookPoint::ResidPost(LayerIdx(5))));
        assert!(it.about.metadata.contains_key("trainer_class") && it.about.metadata.contains_key("buffer"));
    }
}

#[test]
fn latents_are_scaled_only_where_a_decoder_row_is_no_unit() {
    for (case, as_stored) in
        [("autoencoder", "feature_acts"), ("autoencoder-unnormalised", "feature_acts_as_stored")]
    {
        let file = format!("{}/expected.safetensors", path(case));
        let (want, stored) = (expected(&file, "feature_acts").features, expected(&file, as_stored).features);
        assert_eq!(want.allclose(&stored, 1e-3, 0.0, false), case == "autoencoder");
    }
}

#[test]
fn without_a_config_the_names_decide_where_they_can() {
    for (case, _) in CASES {
        let copy = copy(&path(case));
        fs::remove_file(copy.path().join("config.json")).unwrap();
        if case.contains("topk") {
            refused(copy.path(), &["ae.pt", "config.json"]);
            continue;
        }
        let it = open(copy.path(), &OpenOptions::default()).unwrap();
        assert_eq!((it.about.model, it.about.hook), (None, None));
        let expected = expected(&format!("{}/expected.safetensors", path(case)), "feature_acts");
        assert_computes(case, Box::new(it.sae), &expected);
    }
}

#[test]
fn a_module_is_a_site_where_its_name_leaves_no_doubt() {
    let l = LayerIdx(5);
    let (pre, post) = (Some(HookPoint::ResidPre(l)), Some(HookPoint::ResidPost(l)));
    for (module, io, layer, sites) in [
        ("model.layers.5", "out", 5, (post, None)),
        ("model.layers.5", "in", 5, (pre, None)),
        ("model.layers.5", "in_and_out", 5, (pre, post)),
        ("gpt_neox.layers.5", "out", 5, (post, None)),
        ("model.layers.5.mlp", "out", 5, (None, None)),
        ("model.layers.5", "out", 6, (None, None)),
        ("resid_post_layer_5", "in", 5, (None, None)),
        ("attention_out_layer_5", "out", 5, (None, None)),
    ] {
        let it = with_config("jumprelu", |c| {
            c["trainer"]["submodule_name"] = json!(module);
            c["trainer"]["layer"] = json!(layer);
            c["buffer"]["io"] = json!(io);
        });
        let it = open(it.path(), &OpenOptions::default()).unwrap();
        assert_eq!((it.about.site, it.about.site_out), sites, "{module} {io}");
        assert_eq!(it.sae.is_transcoder(), io == "in_and_out");
    }
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    refused(&case("dictionary-learning-identity"), &["config.json", "IdentityDict"]);
    refused(&case("dictionary-learning-crosscoder"), &["config.json", "CrossCoder"]);
    type Edit = fn(&mut Value);
    let edits: [(&str, Edit, &[&str]); 9] = [
        ("topk", |c| c["trainer"]["dict_class"] = json!("Perceptron"), &["config.json", "Perceptron"]),
        ("topk", |c| c["trainer"]["dict_class"] = json!(null), &["config.json", "trainer.dict_class"]),
        ("topk", |c| c["trainer"] = json!([]), &["config.json", "trainer"]),
        ("topk", |c| c["frobnicate"] = json!(1), &["config.json", "frobnicate"]),
        ("topk", |c| c["trainer"]["k"] = json!(7), &["config.json", "trainer.k", "7", "6"]),
        ("batchtopk", |c| c["trainer"]["k"] = json!(7), &["config.json", "trainer.k", "7", "6"]),
        ("matryoshka", |c| c["trainer"]["k"] = json!(7), &["config.json", "trainer.k", "7", "6"]),
        ("topk", |c| c["trainer"]["dict_size"] = json!(31), &["ae.pt", "encoder.weight", "dict_size=31"]),
        ("jumprelu", |c| c["trainer"]["apply_b_dec_to_input"] = json!(true), &["apply_b_dec_to_input"]),
    ];
    for (case, edit, at_fault) in edits {
        refused(with_config(case, edit).path(), at_fault);
    }
    let copy = copy(&path("topk"));
    fs::write(copy.path().join("config.json"), "{").unwrap();
    refused(copy.path(), &["config.json", "JSON"]);
}

#[test]
fn the_class_and_the_tensors_must_fit() {
    let classes = [
        "AutoEncoder",
        "AutoEncoderNew",
        "GatedAutoEncoder",
        "JumpReluAutoEncoder",
        "AutoEncoderTopK",
        "MatryoshkaBatchTopKSAE",
    ];
    for (case, _) in CASES.iter().filter(|(case, _)| !case.starts_with("batchtopk")) {
        let own = opened(&path(case)).about.metadata["dict_class"].clone();
        for class in classes.into_iter().filter(|class| own != *class) {
            refused(with_config(case, |c| c["trainer"]["dict_class"] = json!(class)).path(), &["ae.pt"]);
        }
    }
    // One missing, under another name.
    for (case, name) in [
        ("autoencoder", "encoder.bias"),
        ("autoencoder-new", "decoder.bias"),
        ("gated", "mag_bias"),
        ("jumprelu", "threshold"),
        ("batchtopk", "threshold"),
        ("matryoshka", "group_sizes"),
    ] {
        let copy = copy(&path(case));
        rename(&copy.path().join("ae.pt"), name, &format!("{}_", &name[..name.len() - 1]));
        refused(copy.path(), &["ae.pt", name]);
    }
}

#[test]
fn values_that_are_not_finite_are_refused() {
    for (case, names) in [
        ("autoencoder", &["bias", "encoder.weight", "encoder.bias", "decoder.weight"][..]),
        ("jumprelu", &["W_enc", "b_enc", "W_dec", "b_dec", "threshold"]),
        ("gated", &["decoder_bias", "encoder.weight", "r_mag", "gate_bias", "mag_bias", "decoder.weight"]),
    ] {
        let texts: Vec<String> = (0..names.len())
            .map(|storage| {
                let copy = copy(&path(case));
                with_nan(&copy.path().join("ae.pt"), storage);
                refused(copy.path(), &["ae.pt"])
            })
            .collect();
        for name in names {
            let found = texts.iter().any(|t| t.contains(&format!("ae.pt: {name}")) && t.contains("NaN"));
            assert!(found, "{case}: {name}: {texts:?}");
        }
    }
}

#[test]
fn damaged_files_and_code_are_refused() {
    let copy = copy(&path("topk"));
    let file = copy.path().join("ae.pt");
    let whole = fs::read(&file).unwrap();
    write_code(&file);
    refused(copy.path(), &["ae.pt", "os.system"]);
    for length in [0, 50, whole.len() / 2, whole.len() - 1] {
        fs::write(&file, &whole[..length]).unwrap();
        refused(copy.path(), &["ae.pt"]);
    }
    fs::write(&file, &whole).unwrap();
    edit_torch(&file, |name, bytes| if name.ends_with("/data/0") { Vec::new() } else { bytes });
    refused(copy.path(), &["ae.pt"]);
}

fn with_config(case: &str, edit: impl FnOnce(&mut Value)) -> tempfile::TempDir {
    let copy = copy(&path(case));
    edit_json(&copy.path().join("config.json"), edit);
    copy
}
