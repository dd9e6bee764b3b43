//! SAELens' folders of before version 6: the keys and defaults of `handle_pre_6_0_config`.

use sae_core::{Format, OpenOptions, SparseAutoencoder as _, open};
use serde_json::{Value, json};
use testkit::fixture;

use crate::{
    common::refused,
    formats_saelens::{assert_golden, assert_round_trip, copied, opened, opens, with_cfg, with_tensors},
};

/// Folders of `fixtures/sae/formats`.
const CASES: [&str; 7] = [
    "saelens-pre6-gated",
    "saelens-pre6-hook-z",
    "saelens-pre6-jumprelu",
    "saelens-pre6-layer-norm",
    "saelens-pre6-standard",
    "saelens-pre6-topk",
    "saelens-v6-without-version",
];

#[test]
fn old_folders_compute_what_saelens_does() {
    for case in CASES {
        let folder = format!("sae/formats/{case}");
        assert_golden(&folder, opened(&folder).sae);
    }
}

#[test]
fn what_is_written_is_of_version_6() {
    for case in CASES {
        let folder = format!("sae/formats/{case}");
        let opened = opened(&folder);
        let again = assert_round_trip(&folder, &opened, Format::SaeLens);
        assert_golden(&folder, again.sae);
        assert_eq!((again.about.site, again.about.model), (opened.about.site, opened.about.model));
        assert_eq!(again.about.metadata["sae_lens_version"], "6.54.12");
    }
}

#[test]
fn the_old_names_of_keys_are_known() {
    let about = opened("sae/formats/saelens-pre6-hook-z").about;
    assert_eq!(about.model.as_deref(), Some("gemma-2-2b"));
    assert_eq!(about.site.unwrap().to_string(), "blocks.5.attn.hook_z");
    assert_eq!(about.metadata["reshape_activations"], "hook_z");
    assert_eq!(about.metadata["prepend_bos"], true);
    assert_eq!(about.metadata["context_size"], 128);
    assert_eq!(about.metadata.get("lr"), None);
    let about = opened("sae/formats/saelens-pre6-layer-norm").about;
    assert_eq!(about.metadata["prepend_bos"], false);
    assert_eq!(about.metadata["sae_lens_training_version"], "5.3.0");
}

#[test]
fn the_version_decides_by_which_rules_a_folder_is_read() {
    let reads_as_old = |top: Value, nested: Value| {
        let folder = copied("sae/formats/saelens-pre6-standard");
        with_cfg(folder.path(), |cfg| {
            cfg["sae_lens_version"] = top;
            cfg["metadata"] = json!({ "sae_lens_version": nested });
        });
        // Its flat keys are unknown to version 6, which wants an architecture.
        match open(folder.path(), &OpenOptions::default()) {
            Ok(_) => true,
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("`architecture` is missing"), "{text}");
                false
            }
        }
    };
    for old in ["5.11.0", "5.0.0rc1", "6.0.0a1", "6.0.0-alpha.2", "6.0.0b3", "6.0.0.dev1", "0.1", "v5.2", "3"]
    {
        assert!(reads_as_old(json!(old), Value::Null), "{old}");
        assert!(reads_as_old(Value::Null, json!(old)), "{old}");
        // The one outside is asked first, unless it says nothing.
        assert!(reads_as_old(json!(old), json!("6.1.0")), "{old}");
        assert!(reads_as_old(json!(""), json!(old)), "{old}");
    }
    for new in [
        "6.0.0-rc.0",
        "6.0.0rc1",
        "6.0.0",
        "6",
        "6.0",
        "6.0.0.post1",
        "6.0.0+cu12",
        "6.0.1a1",
        "6.54.12",
        "10.0",
    ] {
        assert!(!reads_as_old(json!(new), Value::Null), "{new}");
        assert!(!reads_as_old(Value::Null, json!(new)), "{new}");
        assert!(!reads_as_old(json!(""), json!(new)), "{new}");
    }
    assert!(reads_as_old(Value::Null, Value::Null));
    for none in [json!("new"), json!(6), json!("6.x"), json!([])] {
        let folder = copied("sae/formats/saelens-pre6-standard");
        with_cfg(folder.path(), |cfg| cfg["sae_lens_version"] = none);
        refused(opens(folder.path()), &["cfg.json", "sae_lens_version"]);
    }
}

#[test]
fn what_saelens_would_misread_is_refused() {
    // SAELens takes each of the first for ReLU, and does not normalise.
    let at = |case: &str| fixture(&format!("sae/formats/saelens-pre6-{case}"));
    refused(opens(&at("topk-without-k")), &["cfg.json", "activation_fn", "topk", "`activation_fn_kwargs.k`"]);
    refused(opens(&at("bool-norm")), &["cfg.json", "expected_average_only_in"]);
    refused(opens(&at("scaling-factor")), &["sae_weights.safetensors", "scaling_factor"]);
}

#[test]
fn a_wrong_setting_is_named() {
    let cases: &[(&str, &str, Value, &[&str])] = &[
        ("standard", "activation_fn", json!("tanh-relu"), &["activation_fn", "tanh-relu"]),
        ("standard", "activation_fn_str", json!("tanh-relu"), &["activation_fn", "tanh-relu"]),
        ("standard", "activation_fn", json!(1), &["activation_fn"]),
        ("standard", "activation_fn_kwargs", json!({ "k": 4 }), &["activation_fn_kwargs.k"]),
        ("topk", "activation_fn_kwargs", json!({ "k": -4 }), &["`activation_fn_kwargs.k`", "at least 1"]),
        ("topk", "activation_fn_kwargs", json!({ "k": 4, "signed": true }), &["activation_fn_kwargs.signed"]),
        ("topk", "activation_fn_kwargs", json!({ "k": 4, "beta": 2 }), &["activation_fn_kwargs.beta"]),
        ("topk", "activation_fn_kwargs", json!([4]), &["activation_fn_kwargs", "an object"]),
        ("topk", "activation_fn_kwargs", json!({ "k": 400 }), &["`k` is 400", "32"]),
        ("topk", "activation_fn", json!("relu"), &["`activation_fn`", "`activation_fn_str`"]),
        ("standard", "hook_name", json!("blocks.6.hook_resid_post"), &["`hook_name`", "`hook_point`"]),
        ("standard", "normalize_activations", json!("rms"), &["normalize_activations", "rms"]),
        ("standard", "reshape_activations", json!("hook_q"), &["reshape_activations", "hook_q"]),
        ("standard", "d_in", Value::Null, &["`d_in` is missing"]),
        ("standard", "dtype", Value::Null, &["`dtype` is missing"]),
        ("standard", "architecture", json!("vanilla"), &["architecture", "vanilla"]),
        ("standard", "architecture", json!("topk"), &["`k` is 100"]),
        ("standard", "architecture", json!("jumprelu"), &["sae_weights.safetensors", "threshold", "missing"]),
        ("standard", "architecture", json!("transcoder"), &["apply_b_dec_to_input"]),
        ("standard", "input_norm", json!(true), &["`input_norm`", "unknown"]),
        ("standard", "finetuning_scaling_factor", json!(true), &["scaling_factor"]),
        ("hook-z", "hook_point", json!("blocks.5.attn.hook_z.scaled"), &["hook_z", "scaled"]),
    ];
    for (case, key, value, at_fault) in cases {
        let folder = copied(&format!("sae/formats/saelens-pre6-{case}"));
        with_cfg(folder.path(), |cfg| match value {
            Value::Null => drop(cfg.as_object_mut().unwrap().remove(*key)),
            value => cfg[*key] = value.clone(),
        });
        let text = refused(opens(folder.path()), at_fault);
        assert!(text.contains(&folder.path().display().to_string()), "names no file: {text}");
    }
}

#[test]
fn what_is_ignored_by_saelens_and_harmless_is_ignored() {
    let plain = opened("sae/formats/saelens-pre6-standard").sae;
    for (key, value) in [
        ("noise_scale", json!(0.1)),
        ("use_ghost_grads", json!(true)),
        ("hook_layer", json!(5)),
        ("normalize_sae_decoder", json!(true)),
        ("scale_sparsity_penalty_by_decoder_norm", json!(true)),
        ("activation_fn_kwargs", json!({})),
        ("activation_fn_kwargs", Value::Null),
        ("normalize_activations", Value::Null),
        ("normalize_activations", json!(false)),
        ("whatever", Value::Null),
    ] {
        let folder = copied("sae/formats/saelens-pre6-standard");
        with_cfg(folder.path(), |cfg| cfg[key] = value);
        let sae = opens(folder.path()).unwrap().sae;
        crate::formats_saelens::assert_same_sae(key, &sae, &plain);
    }
}

#[test]
fn a_scaling_factor_of_ones_is_none() {
    let folder = copied("sae/formats/saelens-pre6-jumprelu");
    with_tensors(folder.path(), |tensors| {
        let factor = tensors.get_mut("scaling_factor").unwrap();
        *factor = factor.shallow_clone() + 1e-6;
    });
    assert_eq!(opens(folder.path()).unwrap().sae.architecture(), "jumprelu");
    with_tensors(folder.path(), |tensors| {
        let factor = tensors.get_mut("scaling_factor").unwrap();
        *factor = factor.shallow_clone() + 1e-3;
    });
    refused(opens(folder.path()), &["sae_weights.safetensors", "scaling_factor"]);
}
