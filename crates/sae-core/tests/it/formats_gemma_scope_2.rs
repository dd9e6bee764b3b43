//! Gemma Scope 2: what SAELens computes with its folders (`fixtures/sae/formats`), what is written, and what is refused.

use std::{fs, path::Path};

use sae_core::{
    About, Activation, Format, Normalize, OpenOptions, Opened, Sae, SaeExt as _, SaeParts,
    SparseAutoencoder as _, formats::gemma_scope_2, open, save,
};
use serde_json::{Value, json};
use tch::{Kind, Tensor};
use tempfile::TempDir;
use testkit::{assert_close, assert_same, fixture, normal};

use crate::{
    common::{random_sae, refused},
    formats_saelens::{assert_golden, assert_round_trip, edit_tensors, opened, opens},
};

const CLOSE: f64 = 1e-5;
const SAE: &str = "sae/formats/gemma-scope-2-sae/resid_post/layer_5_width_16k_l0_small";
const ATTENTION: &str = "sae/formats/gemma-scope-2-attention/attn_out/layer_5_width_16k_l0_medium";
const TRANSCODER: &str = "sae/formats/gemma-scope-2-transcoder/transcoder/layer_5_width_16k_l0_big";
const AFFINE: &str = "sae/formats/gemma-scope-2-affine-transcoder/transcoder/layer_5_width_16k_l0_big_affine";
const BARE: &str = "sae/formats/gemma-scope-2-without-config/resid_post/layer_5_width_16k_l0_small";
const BARE_AFFINE: &str =
    "sae/formats/gemma-scope-2-affine-without-config/transcoder_all/layer_5_width_16k_l0_small_affine";
const ALL: [&str; 6] = [SAE, ATTENTION, TRANSCODER, AFFINE, BARE, BARE_AFFINE];

#[test]
fn every_kind_computes_what_saelens_does() {
    for folder in ALL {
        assert_golden(folder, opened(folder).sae);
        let lazy = OpenOptions { hold_up_to: 0, ..OpenOptions::default() };
        assert_golden(folder, open(&fixture(folder), &lazy).unwrap().sae);
        assert_golden(folder, opens(&fixture(folder).join("params.safetensors")).unwrap().sae);
    }
}

#[test]
fn what_is_written_is_what_was_read() {
    for folder in ALL {
        let mut opened = opened(folder);
        // A folder without a config tells no model, which a config must.
        opened.about.model.get_or_insert_with(|| "google/gemma-3-1b-pt".to_owned());
        let again = assert_round_trip(folder, &opened, Format::GemmaScope2);
        assert_golden(folder, again.sae);
        let (was, is) = (&opened.about, &again.about);
        assert_eq!(
            (&was.hook, &was.hook_out, was.site, was.site_out),
            (&is.hook, &is.hook_out, is.site, is.site_out)
        );
        assert_eq!((&was.model, was.metadata.get("l0")), (&is.model, is.metadata.get("l0")));
    }
}

#[test]
fn sites_are_those_of_the_config_or_the_folders_name() {
    let resid = "model.layers.5.output";
    for (folder, hook, site) in [
        (SAE, resid, "blocks.5.hook_resid_post"),
        (BARE, resid, "blocks.5.hook_resid_post"),
        (ATTENTION, "model.layers.5.self_attn.o_proj.input", "blocks.5.attn.hook_z"),
    ] {
        let Opened { sae, about } = opened(folder);
        assert_eq!((sae.architecture(), about.format), ("jumprelu", Format::GemmaScope2));
        assert_eq!((about.hook.as_deref(), about.hook_out), (Some(hook), None));
        assert_eq!(about.site.unwrap().to_string(), site);
        assert_eq!(about.site_out, about.site);
    }
    for (folder, architecture) in [
        (TRANSCODER, "jumprelu_transcoder"),
        (AFFINE, "jumprelu_skip_transcoder"),
        (BARE_AFFINE, "jumprelu_skip_transcoder"),
    ] {
        let Opened { sae, about } = opened(folder);
        assert_eq!(sae.architecture(), architecture);
        assert_eq!(about.hook.as_deref(), Some("model.layers.5.pre_feedforward_layernorm.output"));
        assert_eq!(about.hook_out.as_deref(), Some("model.layers.5.post_feedforward_layernorm.output"));
        // What goes into the MLP is with the norm's gain there: none of our sites.
        assert_eq!((about.site, about.site_out), (None, Some("blocks.5.hook_mlp_out".parse().unwrap())));
    }
    let about = opened(SAE).about;
    assert_eq!(about.model.as_deref(), Some("google/gemma-3-1b-pt"));
    assert_eq!((&about.metadata["l0"], &about.metadata["width"]), (&json!(20), &json!(32)));
}

#[test]
fn the_config_wins_over_the_folders_name() {
    let folder = copied(SAE, "gemma-scope-2-4b-it/transcoder_all/layer_9_width_16k_l0_small_affine");
    let Opened { sae, about } = opens(&folder.1).unwrap();
    assert_eq!(sae.architecture(), "jumprelu");
    assert_eq!(about.site.unwrap().to_string(), "blocks.5.hook_resid_post");
    assert_eq!(about.model.as_deref(), Some("google/gemma-3-1b-pt"));
}

#[test]
fn without_a_config_the_path_names_the_model() {
    for repository in ["gemma-scope-2-270m-it", "models--google--gemma-scope-2-270m-it"] {
        let folder = copied(BARE, &format!("{repository}/mlp_out_all/layer_11_width_16k_l0_small"));
        let about = opens(&folder.1).unwrap().about;
        assert_eq!(about.model.as_deref(), Some("google/gemma-3-270m-it"));
        assert_eq!(about.site.unwrap().to_string(), "blocks.11.hook_mlp_out");
    }
    // A name that says nothing leaves what the tensors say.
    for (source, architecture) in [(BARE, "jumprelu"), (BARE_AFFINE, "jumprelu_skip_transcoder")] {
        let folder = copied(source, "mine");
        let Opened { sae, about } = opens(&folder.1).unwrap();
        assert_eq!(
            (sae.architecture(), about.hook, about.site, about.model),
            (architecture, None, None, None)
        );
    }
    let folder = copied(BARE, "resid_post/layer_5_width_16k_l0_small_affine");
    refused(opens(&folder.1), &["params.safetensors", "affine_skip_connection", "folder's name"]);
    let folder = copied(BARE_AFFINE, "transcoder/layer_5_width_16k_l0_small");
    refused(opens(&folder.1), &["params.safetensors", "affine_skip_connection", "folder's name"]);
}

#[test]
fn what_several_layers_share_is_refused() {
    let clt = fixture("sae/formats/gemma-scope-2-clt/clt/layer_0_width_262k_l0_medium");
    refused(opens(&clt), &["params.safetensors", "cross-layer transcoder", "w_dec"]);
    let folder = copied(SAE, "here");
    edit_tensors(&folder.1.join("params.safetensors"), |tensors| {
        let w_enc = tensors.get_mut("w_enc").unwrap();
        *w_enc = w_enc.unsqueeze(0);
    });
    refused(opens(&folder.1), &["params.safetensors", "crosscoder", "w_enc"]);
}

#[test]
fn a_wrong_setting_is_named() {
    let cases: &[(&str, &str, Value, &[&str])] = &[
        (SAE, "architecture", json!("topk"), &["config.json", "architecture", "topk"]),
        (SAE, "architecture", Value::Null, &["config.json", "`architecture` is missing"]),
        (SAE, "type", json!("crosscoder"), &["config.json", "crosscoder"]),
        (SAE, "type", json!("clt"), &["config.json", "clt"]),
        (SAE, "type", json!("probe"), &["config.json", "`type`", "probe"]),
        (SAE, "type", json!(1), &["config.json", "`type`", "a text"]),
        (TRANSCODER, "type", json!("sae"), &["config.json", "`type` is `sae`", "hf_hook_point_out"]),
        (
            SAE,
            "affine_connection",
            json!(true),
            &["params.safetensors", "affine_skip_connection", "config.json"],
        ),
        (AFFINE, "affine_connection", json!(false), &["params.safetensors", "affine_skip_connection"]),
        (AFFINE, "affine_connection", json!("yes"), &["config.json", "affine_connection", "true or false"]),
        (SAE, "apply_b_dec_to_input", json!(true), &["config.json", "apply_b_dec_to_input", "unknown"]),
        (SAE, "hf_hook_point_in", json!(5), &["config.json", "hf_hook_point_in", "a text"]),
    ];
    for (source, key, value, at_fault) in cases {
        let folder = copied(source, "here");
        let path = folder.1.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        match value {
            Value::Null => drop(config.as_object_mut().unwrap().remove(*key)),
            value => config[*key] = value.clone(),
        }
        fs::write(path, config.to_string()).unwrap();
        refused(opens(&folder.1), at_fault);
    }
    for (text, at_fault) in
        [("", "not JSON"), ("[]", "object"), ("{\"type\": \"sae\", \"type\": \"clt\"}", "stands twice")]
    {
        let folder = copied(SAE, "here");
        fs::write(folder.1.join("config.json"), text).unwrap();
        refused(opens(&folder.1), &["config.json", at_fault]);
    }
}

#[test]
fn every_tensor_that_is_wrong_is_named() {
    const FILE: &str = "params.safetensors";
    let names = ["w_enc", "b_enc", "w_dec", "b_dec", "threshold", "affine_skip_connection"];
    for name in names {
        let damaged = |change: &dyn Fn(&Tensor) -> Tensor| {
            let folder = copied(AFFINE, "here");
            edit_tensors(&folder.1.join(FILE), |tensors| {
                let tensor = tensors.get_mut(name).unwrap();
                *tensor = change(tensor);
            });
            opens(&folder.1)
        };
        refused(damaged(&|t| t.narrow(0, 0, 3)), &[FILE, "must have shape"]);
        refused(damaged(&|t| t.to_kind(Kind::Int)), &[FILE, name, "I32"]);
        refused(damaged(&|t| t * f64::NAN), &[FILE, name, "NaN"]);
        let folder = copied(AFFINE, "here");
        edit_tensors(&folder.1.join(FILE), |tensors| drop(tensors.remove(name)));
        refused(opens(&folder.1), &[FILE, name]);
    }
    let folder = copied(AFFINE, "here");
    edit_tensors(&folder.1.join(FILE), |tensors| drop(tensors.insert("W_enc".to_owned(), normal(&[3], 1))));
    refused(opens(&folder.1), &[FILE, "W_enc", "unexpected"]);
    let empty = TempDir::new().unwrap();
    refused(gemma_scope_2::open(empty.path(), &OpenOptions::default()), &[FILE]);
}

#[test]
fn what_the_format_has_not_is_folded_or_refused() {
    let parts = || random_sae(4, 8, 4, 2).into_parts();
    let about = About { model: Some("google/gemma-3-1b-pt".to_owned()), ..About::new(Format::SaeLens) };
    let x = normal(&[6, 4], 9);
    let vector = |seed| normal(&[8], seed) * 0.3;
    for parts in [
        SaeParts { subtract_b_dec: true, ..parts() },
        SaeParts { activation: Activation::Relu, ..parts() },
        SaeParts { activation: Activation::Gated { r_mag: vector(4), b_mag: vector(5) }, ..parts() },
        SaeParts { w_skip: Some(normal(&[4, 4], 3)), subtract_b_dec: true, ..parts() },
    ] {
        let sae = Sae::new(parts).unwrap();
        let folder = TempDir::new().unwrap();
        save(&sae, &about, Format::GemmaScope2, folder.path()).unwrap();
        let again = opens(folder.path()).unwrap().sae;
        let of = sae.architecture();
        assert_close(of, &again.encode(&x).unwrap(), &sae.encode(&x).unwrap(), CLOSE);
        assert_close(of, &again.reconstruct(&x).unwrap(), &sae.reconstruct(&x).unwrap(), CLOSE);
    }
    for (parts, at_fault) in [
        (SaeParts { activation: Activation::TopK { k: 2 }, ..parts() }, "TopK"),
        (SaeParts { normalize: Normalize::ConstantNorm, ..parts() }, "constant_norm_rescale"),
    ] {
        let folder = TempDir::new().unwrap();
        refused(save(&Sae::new(parts).unwrap(), &about, Format::GemmaScope2, folder.path()), &[at_fault]);
    }
}

#[test]
fn an_sae_of_no_models_name_is_refused() {
    let folder = TempDir::new().unwrap();
    let about = About::new(Format::SaeLens);
    refused(save(&random_sae(4, 8, 4, 1), &about, Format::GemmaScope2, folder.path()), &["names the model"]);
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
}

#[test]
fn sites_are_written_by_hugging_faces_names() {
    for (site, hook) in [
        ("blocks.3.hook_resid_post", "model.layers.3.output"),
        ("blocks.3.attn.hook_z", "model.layers.3.self_attn.o_proj.input"),
        ("blocks.3.hook_mlp_out", "model.layers.3.post_feedforward_layernorm.output"),
        ("blocks.3.hook_resid_pre", "blocks.3.hook_resid_pre"),
    ] {
        let mut about = About::new(Format::SaeLens);
        about.model = Some("google/gemma-3-1b-pt".to_owned());
        about.hook = Some(site.to_owned());
        about.site = Some(site.parse().unwrap());
        about.site_out = about.site;
        let sae = random_sae(4, 8, 4, 1);
        let again = assert_round_trip(site, &Opened { sae, about }, Format::GemmaScope2);
        assert_eq!(
            (again.about.hook.as_deref(), again.about.site),
            (Some(hook), Some(site.parse().unwrap()))
        );
    }
}

#[test]
fn the_config_has_the_keys_of_the_released_ones() {
    let Opened { sae, about } = opened(AFFINE);
    let folder = TempDir::new().unwrap();
    save(&sae, &about, Format::GemmaScope2, folder.path()).unwrap();
    let text = fs::read_to_string(folder.path().join("config.json")).unwrap();
    let ours: Value = serde_json::from_str(&text).unwrap();
    let theirs = fs::read_to_string(fixture(AFFINE).join("config.json")).unwrap();
    assert_eq!(ours, serde_json::from_str::<Value>(&theirs).unwrap());
    let one_line = text.replace("\n  ", " ").replace("{ ", "{").replace("\n}\n", "}");
    assert_eq!(one_line, theirs);
    let again = opens(folder.path()).unwrap().sae;
    assert_same("skip", again.w_skip().unwrap(), sae.w_skip().unwrap());
}

/// A copy of a folder under another name.
fn copied(source: &str, name: &str) -> (TempDir, std::path::PathBuf) {
    let tmp = TempDir::new().unwrap();
    let folder = tmp.path().join(name);
    fs::create_dir_all(&folder).unwrap();
    copy(&fixture(source), &folder);
    (tmp, folder)
}

fn copy(from: &Path, to: &Path) {
    for (name, bytes) in crate::formats_saelens::bytes(from) {
        fs::write(to.join(name), bytes).unwrap();
    }
}
