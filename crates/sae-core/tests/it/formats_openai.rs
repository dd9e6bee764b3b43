//! OpenAI's `.pt` files against what their code computes.

use sae_core::{Format, Normalize, OpenOptions, open};

use crate::formats_common::{
    assert_computes, case, copy, edit_torch, expected, opened, refused, rename, with_nan, write_code,
};

#[test]
fn computes_what_openai_does() {
    for (name, normalize) in [("openai-relu", Normalize::None), ("openai-topk", Normalize::LayerNorm)] {
        let it = opened(&format!("{name}/5.pt"));
        assert_eq!((it.about.format, it.sae.normalize()), (Format::OpenAi, normalize));
        let expected = expected(&format!("{name}/expected.safetensors"), "feature_acts");
        assert_computes(name, Box::new(it.sae), &expected);
    }
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    refused(&case("openai-topk-identity/5.pt"), &["5.pt", "postact_fn", "Identity"]);
    refused(&case("openai-tied/5.pt"), &["5.pt", "decoder.linear.weight", "tied"]);
    let copied = copy("openai-topk");
    let file = copied.path().join("5.pt");
    rename(&file, "TopK", "PotK");
    refused(&file, &["5.pt", "PotK"]);
}

#[test]
fn names_are_taken_strictly() {
    for name in
        ["encoder.weight", "latent_bias", "pre_bias", "decoder.weight", "latents_mean_square", "activation"]
    {
        let copied = copy("openai-topk");
        let file = copied.path().join("5.pt");
        let other = format!("{}_", &name[..name.len() - 1]);
        rename(&file, name, &other);
        refused(&file, &["5.pt"]);
    }
    let copied = copy("openai-topk");
    let file = copied.path().join("5.pt");
    rename(&file, "postact_fn", "postact_fm");
    refused(&file, &["5.pt", "postact_fm"]);
}

#[test]
fn values_that_are_not_finite_are_refused() {
    // Some of the seven storages hold statistics, which nobody reads.
    let named: Vec<String> = (0..7)
        .filter_map(|storage| {
            let copied = copy("openai-relu");
            let file = copied.path().join("5.pt");
            with_nan(&file, storage);
            open(&file, &OpenOptions::default()).err().map(|e| e.to_string())
        })
        .collect();
    assert_eq!(named.len(), 4);
    for name in ["encoder.weight", "latent_bias", "pre_bias", "decoder.weight"] {
        assert!(named.iter().any(|text| text.contains(name)), "{name}: {named:?}");
    }
}

#[test]
fn damaged_files_and_code_are_refused() {
    let copied = copy("openai-relu");
    let file = copied.path().join("5.pt");
    write_code(&file);
    refused(&file, &["5.pt", "os.system"]);
    let whole = std::fs::read(case("openai-relu/5.pt")).unwrap();
    for length in [0, 1, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&file, &whole[..length]).unwrap();
        refused(&file, &["5.pt"]);
    }
    std::fs::write(&file, &whole).unwrap();
    edit_torch(&file, |name, bytes| if name.ends_with("/data/0") { bytes[4..].to_vec() } else { bytes });
    refused(&file, &["5.pt"]);
}
