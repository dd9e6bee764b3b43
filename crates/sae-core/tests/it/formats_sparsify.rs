//! Folders of sparsify against what sparsify computes, and what is written for it.

use std::fs;

use hooks::{HookPoint, LayerIdx};
use sae_core::{
    About, Activation, Format, OpenOptions, Sae, SaeExt as _, SaeParts, SparseAutoencoder as _, open, save,
};
use serde_json::json;
use tempfile::TempDir;
use testkit::assert_same;

use crate::{
    common::{random_sae, refused as bad},
    formats_common::{assert_computes, assert_strict, copy, edit_json, expected, golden, opened, refused},
};

const CASES: [&str; 7] = [
    "sparsify-topk/layers.5",
    "sparsify-expansion/layers.5",
    "sparsify-multi-topk/layers.5",
    "sparsify-transcoder/layers.5.mlp",
    "sparsify-skip-transcoder/layers.5.mlp",
    "sparsify-skip/layers.5",
    "sparsify-groupmax/layers.5",
];

#[test]
fn computes_what_sparsify_does() {
    for path in CASES {
        let it = golden(path);
        assert_eq!(it.about.format, Format::Sparsify);
        assert_eq!(it.sae.is_transcoder(), path.contains("transcoder"), "{path}");
        assert_eq!(it.sae.w_skip().is_some(), path.contains("skip"), "{path}");
    }
}

#[test]
fn the_folder_names_the_module() {
    let about = opened(CASES[0]).about;
    assert_eq!(about.hook.as_deref(), Some("layers.5"));
    assert_eq!((about.site, about.site_out), (Some(HookPoint::ResidPost(LayerIdx(5))), None));
    let about = opened(CASES[3]).about;
    assert_eq!(
        (about.hook.as_deref(), about.hook_out.as_deref()),
        (Some("layers.5.mlp"), Some("layers.5.mlp"))
    );
    assert_eq!((about.site, about.site_out), (None, None));
    // A name that says nothing, and a seed's folder.
    let folder = TempDir::new().unwrap();
    let copied = copy(CASES[0]);
    for (name, hook) in [("mine", None), ("layers.7/seed1", Some("layers.7"))] {
        let to = folder.path().join(name);
        fs::create_dir_all(&to).unwrap();
        for file in ["cfg.json", "sae.safetensors"] {
            fs::copy(copied.path().join(file), to.join(file)).unwrap();
        }
        assert_eq!(open(&to, &OpenOptions::default()).unwrap().about.hook.as_deref(), hook);
    }
}

#[test]
fn what_is_written_is_read_as_it_was_and_written_again_to_the_byte() {
    for path in CASES {
        let expected = expected(&format!("{path}/expected.safetensors"), "feature_acts");
        let folders = [TempDir::new().unwrap(), TempDir::new().unwrap()];
        let mut it = opened(path);
        for folder in &folders {
            save(&it.sae, &it.about, Format::Sparsify, folder.path()).unwrap();
            it = open(folder.path(), &OpenOptions::default()).unwrap();
        }
        let first = opened(path).sae.parameters().unwrap();
        for ((name, want), (_, got)) in first.iter().zip(it.sae.parameters().unwrap()) {
            assert_same(name, &got, want);
        }
        assert_computes(path, Box::new(it.sae), &expected);
        for file in ["cfg.json", "sae.safetensors"] {
            let [a, b] = [0, 1].map(|i| fs::read(folders[i].path().join(file)).unwrap());
            assert!(a == b, "{path}: {file}");
        }
        // Sparsify's own bytes.
        let theirs = fs::read_to_string(crate::formats_common::case(path).join("cfg.json")).unwrap();
        assert_eq!(fs::read_to_string(folders[1].path().join("cfg.json")).unwrap(), theirs, "{path}");
    }
}

#[test]
fn an_sae_of_another_format_is_written_with_its_own_sizes() {
    let parts = random_sae(6, 20, 6, 3).into_parts();
    let parts = SaeParts { activation: Activation::TopK { k: 4 }, subtract_b_dec: true, ..parts };
    let folder = TempDir::new().unwrap();
    save(&Sae::new(parts).unwrap(), &About::new(Format::SaeLens), Format::Sparsify, folder.path()).unwrap();
    let it = open(folder.path(), &OpenOptions::default()).unwrap();
    assert_eq!((it.sae.d_in(), it.sae.d_sae()), (6, 20));
}

#[test]
fn whether_b_dec_is_subtracted_is_folded_as_the_format_has_it() {
    let folder = TempDir::new().unwrap();
    let x = testkit::normal(&[7, 6], 8);
    for (subtract_b_dec, transcoder) in [(false, false), (true, true)] {
        let parts = SaeParts {
            activation: Activation::TopK { k: 4 },
            subtract_b_dec,
            transcoder,
            ..random_sae(6, 20, 6, 3).into_parts()
        };
        let sae = Sae::new(parts).unwrap();
        save(&sae, &About::new(Format::SaeLens), Format::Sparsify, folder.path()).unwrap();
        let back = open(folder.path(), &OpenOptions::default()).unwrap().sae;
        assert_eq!(back.subtracts_b_dec(), !subtract_b_dec);
        testkit::assert_close("folded", &back.reconstruct(&x).unwrap(), &sae.reconstruct(&x).unwrap(), 1e-5);
    }
}

#[test]
fn what_the_format_can_not_say_is_refused_by_name() {
    let folder = TempDir::new().unwrap();
    let write = |parts: SaeParts, at_fault: &[&str]| {
        let sae = Sae::new(parts).unwrap();
        bad(save(&sae, &About::new(Format::Sparsify), Format::Sparsify, folder.path()), at_fault);
    };
    let parts = |d_out| random_sae(6, 20, d_out, 3).into_parts();
    let top = |d_out| SaeParts { activation: Activation::TopK { k: 4 }, ..parts(d_out) };
    write(parts(6), &["jumprelu", "TopK"]);
    write(top(5), &["widths"]);
    let normalize = sae_core::Normalize::LayerNorm;
    write(SaeParts { normalize, subtract_b_dec: true, ..top(6) }, &["layer_norm"]);
    assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
}

#[test]
fn settings_that_are_not_read_are_refused_by_name() {
    for (key, value) in [
        ("signed", json!(true)),
        ("frobnicate", json!(1)),
        ("k", json!(0)),
        ("k", json!(33)),
        ("k", json!("6")),
        ("transcode", json!("no")),
        ("num_latents", json!(31)),
        ("num_latents", json!(-1)),
        ("d_in", json!(null)),
        ("d_in", json!(13)),
        ("skip_connection", json!(true)),
    ] {
        let copy = copy(CASES[0]);
        edit_json(&copy.path().join("cfg.json"), |cfg| cfg[key] = value.clone());
        let named = match key {
            "skip_connection" => "W_skip",
            _ => key,
        };
        refused(copy.path(), &[named]);
    }
    let copy = copy(CASES[0]);
    edit_json(&copy.path().join("cfg.json"), |cfg| {
        cfg["num_latents"] = json!(0);
        cfg["expansion_factor"] = json!(i64::MAX);
    });
    refused(copy.path(), &["cfg.json", "expansion_factor"]);
}

#[test]
fn tensors_are_taken_strictly() {
    assert_strict(|| copy(CASES[5]), "sae.safetensors", "");
}
