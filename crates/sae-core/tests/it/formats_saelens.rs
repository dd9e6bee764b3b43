//! SAELens' folders of version 6: what SAELens computes with them (`fixtures/sae/saelens`, of `sae_golden.py`, and
//! `fixtures/sae/formats`), what is written, and what is refused.

use std::{collections::HashMap, fs, path::Path};

use sae_core::{
    About, Format, Normalize, OpenOptions, Opened, Result, Sae, SaeExt as _, SaeParts, SparseAutoencoder,
    SparseFeatures, conformance, formats::saelens, open, save,
};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};
use tch_ext::{SafetensorsFile, write_safetensors};
use tempfile::TempDir;
use testkit::{Golden, assert_close, assert_same, fixture, normal};

use crate::common::{parameter, random_sae, refused};

/// Of the largest magnitude: sums of up to some hundred products in float32, in another order, differ by some 1e-7, a wrong
/// bias or factor by 1e-2.
const CLOSE: f64 = 1e-5;

const CASES: [&str; 13] = [
    "gated",
    "jumprelu",
    "jumprelu-no-input-bias",
    "jumprelu-skip-transcoder",
    "jumprelu-transcoder",
    "skip-transcoder",
    "standard",
    "standard-constant-norm",
    "standard-layer-norm",
    "standard-no-input-bias",
    "topk",
    "topk-rescaled",
    "transcoder",
];

/// Folders of `fixtures/sae/formats`.
const MORE: [&str; 14] = [
    "saelens-batchtopk-inference",
    "saelens-batchtopk-plain-inference",
    "saelens-batchtopk-plain-training",
    "saelens-batchtopk-training",
    "saelens-bfloat16",
    "saelens-constant-norm-jumprelu",
    "saelens-layer-norm-gated",
    "saelens-layer-norm-skip-transcoder",
    "saelens-layer-norm-topk",
    "saelens-layer-norm-transcoder",
    "saelens-log-threshold-training",
    "saelens-matryoshka-inference",
    "saelens-matryoshka-training",
    "saelens-topk-many",
];

fn folders() -> Vec<String> {
    let more = MORE.iter().map(|case| format!("sae/formats/{case}"));
    CASES.iter().map(|case| format!("sae/saelens/{case}")).chain(more).collect()
}

pub(crate) fn opened(folder: &str) -> Opened {
    let opened = open(&fixture(folder), &OpenOptions::default());
    opened.unwrap_or_else(|e| panic!("{folder}: {e}"))
}

/// Holds an SAE to the `expected.safetensors` of a folder, in every way in which it can be used.
#[track_caller]
pub(crate) fn assert_golden(folder: &str, sae: Sae) {
    let mut golden = Golden::open(&format!("{folder}/expected.safetensors"));
    let [x, features, recon] = ["x", "feature_acts", "recon"].map(|name| golden.get(name));
    assert!(features.gt(0.0).any().int64_value(&[]) != 0, "{folder}: nothing is active");
    let sae: Box<dyn SparseAutoencoder> = Box::new(sae);
    assert_eq!((sae.d_in(), sae.d_sae(), sae.d_out()), (x.size()[1], features.size()[1], recon.size()[1]));
    let dense = sae.encode(&x).unwrap();
    let sparse = sae.encode_sparse(&x).unwrap();
    for got in [&dense, &sparse.to_dense().unwrap()] {
        assert_close(folder, got, &features, CLOSE);
        assert_same(&format!("{folder}: which are active"), &got.gt(0.0), &features.gt(0.0));
    }
    let of = |decoded: &Tensor| sae.finish(decoded, &x).unwrap();
    let theirs = SparseFeatures::from_dense(&features).unwrap();
    for got in [
        of(&sae.decode(&features).unwrap()),
        of(&sae.decode(&dense).unwrap()),
        of(&sae.decode_sparse(&theirs).unwrap()),
        sae.reconstruct(&x).unwrap(),
        sae.reconstruct_from(&sparse, &x).unwrap(),
    ] {
        assert_close(folder, &got, &recon, CLOSE);
    }
    let even = x.size()[0] / 2 * 2;
    conformance::check(sae.as_ref(), &x.narrow(0, 0, even)).unwrap_or_else(|e| panic!("{folder}: {e}"));
}

#[track_caller]
pub(crate) fn assert_same_sae(what: &str, got: &Sae, want: &Sae) {
    assert_eq!(got.architecture(), want.architecture(), "{what}");
    assert_eq!(
        (got.normalize(), got.subtracts_b_dec()),
        (want.normalize(), want.subtracts_b_dec()),
        "{what}"
    );
    let (got, want) = (got.parameters().unwrap(), want.parameters().unwrap());
    assert_eq!(got.len(), want.len(), "{what}");
    for ((name, got), (of, want)) in got.iter().zip(&want) {
        assert_eq!(name, of, "{what}");
        assert_same(&format!("{what}: {name}"), got, want);
    }
}

/// Every file of a folder.
pub(crate) fn bytes(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

/// Writes, reads and writes: the parameters are the same bits, and the files the same bytes.
#[track_caller]
pub(crate) fn assert_round_trip(what: &str, opened: &Opened, format: Format) -> Opened {
    let (first, second) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    save(&opened.sae, &opened.about, format, first.path()).unwrap();
    let again = open(first.path(), &OpenOptions::default()).unwrap();
    assert_same_sae(what, &again.sae, &opened.sae);
    save(&again.sae, &again.about, format, second.path()).unwrap();
    assert!(bytes(first.path()) == bytes(second.path()), "{what}: other bytes the second time");
    again
}

#[test]
fn every_architecture_computes_what_saelens_does() {
    for folder in folders() {
        assert_golden(&folder, opened(&folder).sae);
    }
}

#[test]
fn weights_may_stay_in_the_file() {
    let options = OpenOptions { hold_up_to: 0, ..OpenOptions::default() };
    for folder in folders() {
        let sae = open(&fixture(&folder), &options).unwrap().sae;
        assert_golden(&folder, sae);
    }
}

#[test]
fn what_is_written_is_what_was_read() {
    for folder in folders() {
        let opened = opened(&folder);
        let again = assert_round_trip(&folder, &opened, Format::SaeLens);
        assert_golden(&folder, again.sae);
        // `training_architecture` and the like come along.
        assert_eq!(again.about, opened.about, "{folder}");
    }
}

#[test]
fn the_sites_are_those_of_the_metadata() {
    let of = |case: &str| opened(&format!("sae/formats/{case}")).about;
    let about = of("saelens-layer-norm-transcoder");
    assert_eq!(about.model.as_deref(), Some("google/gemma-2-2b"));
    assert_eq!(about.hook.as_deref(), Some("blocks.5.hook_resid_post"));
    assert_eq!(about.hook_out.as_deref(), Some("blocks.5.hook_mlp_out"));
    assert_eq!(about.site.unwrap().to_string(), "blocks.5.hook_resid_post");
    assert_eq!(about.site_out.unwrap().to_string(), "blocks.5.hook_mlp_out");
    assert_eq!(about.metadata["context_size"], 128);
    let about = of("saelens-bfloat16");
    assert_eq!((about.format, about.hook_out, about.site_out), (Format::SaeLens, None, about.site));
    let one_head = edited("standard", |cfg| {
        cfg["metadata"]["hook_name"] = json!("blocks.5.attn.hook_z");
        cfg["metadata"]["hook_head_index"] = json!(3);
    });
    let about = open(one_head.path(), &OpenOptions::default()).unwrap().about;
    assert_eq!((about.hook.as_deref(), about.site), (Some("blocks.5.attn.hook_z"), None));
}

#[test]
fn heads_that_saelens_flattens_are_flattened_again_in_what_is_written() {
    let folder = edited("standard", |cfg| {
        cfg["reshape_activations"] = json!("hook_z");
        cfg["metadata"]["hook_name"] = json!("blocks.5.attn.hook_z");
    });
    let opened = open(folder.path(), &OpenOptions::default()).unwrap();
    assert_round_trip("hook_z", &opened, Format::SaeLens);
    let written = TempDir::new().unwrap();
    save(&opened.sae, &opened.about, Format::SaeLens, written.path()).unwrap();
    let cfg = cfg_of(written.path());
    assert_eq!(cfg["reshape_activations"], "hook_z");
    assert_eq!(cfg["metadata"].get("reshape_activations"), None);
}

#[test]
fn the_settings_stand_in_saelens_order() {
    let Opened { sae, about } = opened("sae/saelens/topk");
    let folder = TempDir::new().unwrap();
    save(&sae, &about, Format::SaeLens, folder.path()).unwrap();
    let text = fs::read_to_string(folder.path().join("cfg.json")).unwrap();
    let theirs = fs::read_to_string(fixture("sae/saelens/topk/cfg.json")).unwrap();
    // Of the metadata, the keys are sorted.
    let theirs = theirs.replace(
        r#""sae_lens_version": "6.54.12", "sae_lens_training_version": "6.54.12""#,
        r#""sae_lens_training_version": "6.54.12", "sae_lens_version": "6.54.12""#,
    );
    assert_eq!(text, theirs);
}

#[test]
fn what_other_formats_say_is_written_by_saelens_names() {
    let sae = random_sae(4, 8, 4, 1);
    let mut about = About::new(Format::GemmaScope2);
    about.model = Some("google/gemma-3-1b-pt".to_owned());
    about.hook = Some("model.layers.3.output".to_owned());
    about.site = Some("blocks.3.hook_resid_post".parse().unwrap());
    about.site_out = about.site;
    about.metadata.insert("l0".to_owned(), json!(20));
    let again = assert_round_trip("another format's", &Opened { sae, about }, Format::SaeLens);
    assert_eq!(again.about.hook.as_deref(), Some("blocks.3.hook_resid_post"));
    assert_eq!(again.about.metadata["hf_hook_name"], "model.layers.3.output");
    assert_eq!(again.about.metadata["sae_lens_version"], "6.54.12");
    assert_eq!(again.about.metadata["l0"], 20);
    assert_eq!(again.about.site.unwrap().to_string(), "blocks.3.hook_resid_post");
}

#[test]
fn what_saelens_has_not_is_folded_or_refused() {
    let parts = || random_sae(4, 8, 4, 2).into_parts();
    let folder = TempDir::new().unwrap();
    let about = About::new(Format::SaeLens);
    let subtracting = Sae::new(SaeParts { subtract_b_dec: true, transcoder: true, ..parts() }).unwrap();
    saelens::save(&subtracting, &about, folder.path()).unwrap();
    let again = open(folder.path(), &OpenOptions::default()).unwrap().sae;
    assert_eq!((again.architecture(), again.subtracts_b_dec()), ("jumprelu_transcoder", false));
    let x = normal(&[6, 4], 9);
    assert_close("folded", &again.encode(&x).unwrap(), &subtracting.encode(&x).unwrap(), CLOSE);
    assert_close("folded", &again.reconstruct(&x).unwrap(), &subtracting.reconstruct(&x).unwrap(), CLOSE);

    let w_skip = || Some(normal(&[4, 4], 10));
    let skip = Sae::new(SaeParts { w_skip: w_skip(), ..parts() }).unwrap();
    saelens::save(&skip, &about, folder.path()).unwrap();
    let again = open(folder.path(), &OpenOptions::default()).unwrap().sae;
    assert_same("skip", &again.reconstruct(&x).unwrap(), &skip.reconstruct(&x).unwrap());

    let topk = || sae_core::Activation::TopK { k: 3 };
    for (sae, names) in [
        (SaeParts { activation: topk(), transcoder: true, ..parts() }, ["topk_transcoder", "SAELens"]),
        (SaeParts { activation: topk(), w_skip: w_skip(), ..parts() }, ["topk_skip_transcoder", "SAELens"]),
        (
            SaeParts { w_skip: w_skip(), normalize: Normalize::LayerNorm, ..parts() },
            ["jumprelu_skip_transcoder", "layer_norm"],
        ),
    ] {
        refused(saelens::save(&Sae::new(sae).unwrap(), &about, folder.path()), &names);
    }
}

#[test]
fn weights_are_rounded_to_the_dtype_of_the_settings() {
    for (dtype, kind) in [("bfloat16", Kind::BFloat16), ("torch.float16", Kind::Half)] {
        let folder = edited("standard", |cfg| cfg["dtype"] = json!(dtype));
        let sae = open(folder.path(), &OpenOptions::default()).unwrap().sae;
        for name in ["W_enc", "b_enc", "W_dec", "b_dec"] {
            let stored = parameter(&opened("sae/saelens/standard").sae, name);
            assert_same(name, &parameter(&sae, name), &stored.to_kind(kind).to_kind(Kind::Float));
        }
    }
    let folder = edited("standard", |cfg| cfg["dtype"] = json!("float16"));
    with_tensors(folder.path(), |tensors| {
        let b_dec = tensors.get_mut("b_dec").unwrap();
        *b_dec = b_dec.shallow_clone() * 1e9;
    });
    refused(opens(folder.path()), &["sae_weights.safetensors: b_dec", "infinite"]);
}

#[test]
fn a_checkpoints_factor_is_folded() {
    let set = |cfg: &mut Value| cfg["normalize_activations"] = json!("expected_average_only_in");
    let folder = edited("standard", set);
    refused(opens(folder.path()), &["cfg.json", "expected_average_only_in", "not in the folder"]);
    let scaler = folder.path().join("activation_scaler.json");
    fs::write(&scaler, r#"{"scaling_factor": 0.25, "has_whitening": false}"#).unwrap();
    let sae = open(folder.path(), &OpenOptions::default()).unwrap().sae;
    // SAELens trains on `x * scaling_factor`, and divides what comes out.
    let plain = opened("sae/saelens/standard").sae;
    let x = normal(&[6, 24], 3);
    let scaled = &x * 0.25;
    assert_close("features", &sae.encode(&x).unwrap(), &plain.encode(&scaled).unwrap(), CLOSE);
    let out = plain.reconstruct(&scaled).unwrap() / 0.25;
    assert_close("output", &sae.reconstruct(&x).unwrap(), &out, CLOSE);
    for (text, at_fault) in [
        (r#"{"scaling_factor": null, "has_whitening": false}"#, "not in the folder"),
        (r#"{"scaling_factor": -1.0}"#, "positive"),
        (r#"{"scaling_factor": "1"}"#, "a number"),
        (r#"{"scaling_factor": 0.5, "has_whitening": true}"#, "has_whitening"),
        ("{", "not JSON"),
    ] {
        fs::write(&scaler, text).unwrap();
        refused(opens(folder.path()), &[at_fault]);
    }
    let folder = edited("transcoder", set);
    refused(opens(folder.path()), &["cfg.json", "expected_average_only_in"]);
}

#[test]
fn a_factor_moves_the_threshold_of_batches_as_saelens_does() {
    // `BatchTopKTrainingSAE.fold_activation_norm_scaling_factor`: the threshold is of latents times their decoder norms.
    let (tmp, factor) = (copied("sae/formats/saelens-batchtopk-training"), 0.5);
    with_cfg(tmp.path(), |cfg| cfg["normalize_activations"] = json!("expected_average_only_in"));
    fs::write(tmp.path().join("activation_scaler.json"), r#"{"scaling_factor": 0.5}"#).unwrap();
    let scaled = open(tmp.path(), &OpenOptions::default()).unwrap().sae;
    let plain = opened("sae/formats/saelens-batchtopk-training").sae;
    let x = normal(&[6, 12], 3);
    let features = plain.encode(&(&x * factor)).unwrap() / factor;
    assert_close("features", &scaled.encode(&x).unwrap(), &features, CLOSE);
}

#[test]
fn architectures_that_are_not_read_are_named() {
    for (case, name) in
        [("abstopk", "abstopk"), ("matching-pursuit", "matching_pursuit"), ("temporal", "temporal")]
    {
        let folder = fixture(&format!("sae/formats/saelens-{case}"));
        refused(opens(&folder), &["cfg.json", "architecture", name]);
    }
    for name in ["topk_transcoder", "crosscoder", ""] {
        let folder = edited("standard", |cfg| cfg["architecture"] = json!(name));
        refused(opens(folder.path()), &["cfg.json", "architecture", name]);
    }
    let folder = fixture("sae/formats/saelens-whitening-unfolded");
    refused(opens(&folder), &["cfg.json", "covariance_whitening"]);
    refused(opens(&fixture("sae/formats/saelens-expected-average")), &["expected_average_only_in"]);
}

#[test]
fn a_wrong_setting_is_named() {
    let cases: &[(&str, &str, Value, &[&str])] = &[
        ("standard", "d_in", Value::Null, &["`d_in` is missing"]),
        ("standard", "d_sae", Value::Null, &["`d_sae` is missing"]),
        ("standard", "dtype", Value::Null, &["`dtype` is missing"]),
        ("standard", "architecture", Value::Null, &["`architecture` is missing"]),
        ("standard", "d_in", json!("24"), &["`d_in`", "integer"]),
        ("standard", "d_in", json!(24.5), &["`d_in`", "integer"]),
        ("standard", "d_sae", json!(-96), &["`d_sae`", "integer of at least 1"]),
        ("standard", "d_sae", json!(1e300), &["`d_sae`", "integer"]),
        ("standard", "dtype", json!("int8"), &["`dtype`", "int8"]),
        ("standard", "dtype", json!(32), &["`dtype`", "a text"]),
        ("standard", "apply_b_dec_to_input", json!("yes"), &["apply_b_dec_to_input", "true or false"]),
        ("standard", "normalize_activations", json!(true), &["normalize_activations", "a text"]),
        ("standard", "normalize_activations", json!("constant_scalar_rescale"), &["constant_scalar_rescale"]),
        ("standard", "reshape_activations", json!("hook_q"), &["reshape_activations", "hook_q"]),
        ("standard", "metadata", json!([]), &["`metadata`", "an object"]),
        ("standard", "centre_input", json!(true), &["`centre_input`", "unknown"]),
        ("standard", "k", json!(5), &["`k`", "unknown"]),
        ("standard", "d_out", json!(20), &["`d_out`", "20"]),
        ("standard", "rescale_acts_by_decoder_norm", json!(true), &["rescale_acts_by_decoder_norm"]),
        ("standard", "finetuning_scaling_factor", json!(true), &["scaling_factor"]),
        ("topk", "k", json!(-3), &["`k`", "at least 1"]),
        ("topk", "k", json!(0), &["`k`", "at least 1"]),
        ("topk", "k", json!(97), &["`k` is 97", "96"]),
        ("transcoder", "apply_b_dec_to_input", json!(true), &["apply_b_dec_to_input"]),
        ("transcoder", "apply_b_dec_to_input", Value::Null, &["apply_b_dec_to_input"]),
        // The default is 768, as in SAELens: it is the tensors that say what is wrong.
        ("transcoder", "d_out", Value::Null, &["W_dec", "d_out=768", "[96, 20]"]),
        ("standard", "d_sae", json!(97), &["W_enc", "[d_in=24, d_sae=97]", "[24, 96]"]),
        ("standard", "d_in", json!(23), &["W_enc", "[d_in=23, d_sae=96]"]),
        ("topk", "k", Value::Null, &["`k` is 100", "96"]),
    ];
    for (case, key, value, at_fault) in cases {
        let folder = edited(case, |cfg| match value {
            Value::Null => drop(cfg.as_object_mut().unwrap().remove(*key)),
            value => cfg[*key] = value.clone(),
        });
        let text = refused(opens(folder.path()), at_fault);
        assert!(text.contains(&folder.path().display().to_string()), "names no file: {text}");
    }
    let folder = edited("standard", |cfg| {
        cfg["reshape_activations"] = json!("hook_z");
        cfg["metadata"]["hook_name"] = json!("blocks.5.hook_resid_post");
    });
    refused(opens(folder.path()), &["cfg.json", "hook_z", "blocks.5.hook_resid_post"]);
}

#[test]
fn settings_that_are_no_settings_are_refused() {
    let text = fs::read_to_string(fixture("sae/saelens/standard/cfg.json")).unwrap();
    let twice = text.replacen("{\"d_in\": 24", "{\"d_in\": 24, \"d_in\": 12", 1);
    let twice_within = text.replacen("\"metadata\": {", "\"metadata\": {\"a\": 1, \"a\": 1, ", 1);
    let no_version = text.replace("\"6.54.12\"", "\"six\"");
    for (bad, at_fault) in [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[1]", "must be a JSON object"),
        ("null", "must be a JSON object"),
        ("{} {}", "not JSON"),
        ("\u{FEFF}{}", "not JSON"),
        ("{\"d_in\": NaN}", "not JSON"),
        ("{\"a\\nb\": 1, \"a\\nb\": 2}", "stands twice"),
        (twice.as_str(), "`d_in` stands twice"),
        (twice_within.as_str(), "`a` stands twice"),
        (no_version.as_str(), "sae_lens_version"),
    ] {
        let folder = copied("sae/saelens/standard");
        fs::write(folder.path().join("cfg.json"), bad).unwrap();
        refused(opens(folder.path()), &["cfg.json", at_fault]);
    }
    let folder = copied("sae/saelens/standard");
    fs::write(folder.path().join("cfg.json"), [b'"', 0xFF, b'"']).unwrap();
    refused(opens(folder.path()), &["cfg.json", "not JSON"]);
}

#[test]
fn a_missing_file_is_named() {
    for missing in ["cfg.json", "sae_weights.safetensors"] {
        let folder = copied("sae/saelens/standard");
        fs::remove_file(folder.path().join(missing)).unwrap();
        refused(saelens::open(folder.path(), &OpenOptions::default()), &[missing]);
    }
    let empty = TempDir::new().unwrap();
    refused(saelens::open(empty.path(), &OpenOptions::default()), &["cfg.json"]);
    refused(opens(empty.path()), &[&empty.path().display().to_string()]);
}

#[test]
fn every_tensor_that_is_wrong_is_named() {
    const FILE: &str = "sae_weights.safetensors";
    for case in ["gated", "jumprelu-skip-transcoder", "topk-rescaled"] {
        let source = format!("sae/saelens/{case}");
        let names = SafetensorsFile::open(&fixture(&source).join(FILE)).unwrap().names();
        for name in &names {
            let damaged = |change: &dyn Fn(&Tensor) -> Tensor| {
                let folder = copied(&source);
                with_tensors(folder.path(), |tensors| {
                    let tensor = tensors.get_mut(name).unwrap();
                    *tensor = change(tensor);
                });
                opens(folder.path())
            };
            refused(damaged(&|t| t.unsqueeze(0)), &[FILE, name, "must have shape"]);
            refused(damaged(&|t| t.narrow(0, 0, 3)), &[FILE, name, "must have shape"]);
            refused(damaged(&|t| t.to_kind(Kind::Int64)), &[FILE, name, "I64"]);
            let nan = |t: &Tensor| {
                let mut t = t.copy();
                let _ = t.view(-1).get(1).fill_(f64::NAN);
                t = t.contiguous();
                t
            };
            refused(damaged(&nan), &[FILE, name, "1 NaN"]);
            let folder = copied(&source);
            with_tensors(folder.path(), |tensors| drop(tensors.remove(name)));
            refused(opens(folder.path()), &[FILE, name, "missing"]);
        }
        let folder = copied(&source);
        with_tensors(folder.path(), |tensors| drop(tensors.insert("b_pre".to_owned(), normal(&[3], 1))));
        refused(opens(folder.path()), &[FILE, "b_pre", "unexpected"]);
    }
    let folder = copied("sae/saelens/jumprelu");
    with_tensors(folder.path(), |tensors| drop(tensors.insert("log_threshold".to_owned(), normal(&[96], 1))));
    refused(opens(folder.path()), &[FILE, "log_threshold", "unexpected"]);
}

#[test]
fn a_folder_is_written_over_and_into_nothing_new() {
    let Opened { sae, about } = opened("sae/saelens/gated");
    let tmp = TempDir::new().unwrap();
    let folder = tmp.path().join("new/er");
    save(&sae, &about, Format::SaeLens, &folder).unwrap();
    // Of an SAE whose weights are still in the file that is replaced.
    let lazy = OpenOptions { hold_up_to: 0, device: Device::Cpu };
    let again = open(&folder, &lazy).unwrap();
    save(&again.sae, &again.about, Format::SaeLens, &folder).unwrap();
    assert_golden("sae/saelens/gated", open(&folder, &lazy).unwrap().sae);
    assert_eq!(bytes(&folder).len(), 2);
}

pub(crate) fn opens(folder: &Path) -> Result<Opened> {
    open(folder, &OpenOptions::default())
}

/// A copy of a folder of fixtures.
pub(crate) fn copied(folder: &str) -> TempDir {
    let copy = TempDir::new().unwrap();
    for (name, bytes) in bytes(&fixture(folder)) {
        fs::write(copy.path().join(name), bytes).unwrap();
    }
    copy
}

/// A copy of one of [`CASES`] with other settings.
fn edited(case: &str, edit: impl FnOnce(&mut Value)) -> TempDir {
    let folder = copied(&format!("sae/saelens/{case}"));
    with_cfg(folder.path(), edit);
    folder
}

pub(crate) fn cfg_of(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("cfg.json")).unwrap()).unwrap()
}

pub(crate) fn with_cfg(folder: &Path, edit: impl FnOnce(&mut Value)) {
    let mut cfg = cfg_of(folder);
    edit(&mut cfg);
    fs::write(folder.join("cfg.json"), cfg.to_string()).unwrap();
}

/// Writes the weights of a folder anew.
pub(crate) fn with_tensors(folder: &Path, edit: impl FnOnce(&mut HashMap<String, Tensor>)) {
    edit_tensors(&folder.join("sae_weights.safetensors"), edit);
}

pub(crate) fn edit_tensors(path: &Path, edit: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let mut file = SafetensorsFile::open(path).unwrap();
    let names = file.names();
    let mut tensors = names.iter().map(|name| (name.clone(), file.read(name).unwrap())).collect();
    edit(&mut tensors);
    write_safetensors(path, tensors.iter().map(|(name, t)| (name.clone(), t)), HashMap::new()).unwrap();
}

#[test]
fn metadata_is_free() {
    let free: Map<String, Value> = serde_json::from_str(
        r#"{"sae_lens_version": "6.1.0", "nested": {"d_in": [1, null, "ü"]}, "k": 1.5}"#,
    )
    .unwrap();
    let folder = edited("standard", |cfg| cfg["metadata"] = free.clone().into());
    let opened = open(folder.path(), &OpenOptions::default()).unwrap();
    assert_eq!(opened.about.metadata, free);
    let again = assert_round_trip("free", &opened, Format::SaeLens);
    assert_eq!(again.about.metadata, free);
}
