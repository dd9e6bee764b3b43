//! Models and SAEs of a few thousand weights, drawn at random and written as the released ones are.

use std::{fs, path::Path};

use gemma_scope::{
    hooks::ModelDims,
    model::{Gemma2, Gemma2Config},
    sae::{About, Format, Sae, save},
    tch::{Kind, Tensor},
};
use serde_json::{Value, json};
use testkit::normal;

const D_MODEL: usize = 16;
const D_SAE: i64 = 24;

/// The marks of turns come last.
const D_VOCAB: usize = 512;
pub(crate) const TURNS: [&str; 2] = ["<start_of_turn>", "<end_of_turn>"];

/// Writes a model in the Hugging Face layout, with a tokenizer.
pub(crate) fn write_model(folder: &Path, n_layers: usize, n_ctx: usize) {
    let dims = ModelDims {
        n_layers,
        d_model: D_MODEL,
        n_heads: 2,
        n_kv_heads: 1,
        d_head: 8,
        d_mlp: 32,
        d_vocab: D_VOCAB,
        n_ctx,
    };
    let config = Gemma2Config {
        dims,
        layer_kinds: Gemma2Config::alternating(n_layers),
        sliding_window: 8,
        query_pre_attn_scalar: 8.0,
        ..Gemma2Config::gemma_2_2b()
    };
    fs::create_dir_all(folder).unwrap();
    Gemma2::init(config, 5).unwrap().save(folder, Kind::Float).unwrap();
    write_tokenizer(folder, &TURNS);
}

/// Writes the tokenizer of the fixtures, cut down to its first tokens, with more control tokens behind them.
pub(crate) fn write_tokenizer(folder: &Path, controls: &[&str]) {
    let path = crate::command::fixture("tokenizer/tokenizer.json");
    let mut file: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let first = (D_VOCAB - TURNS.len()) as u64;
    let vocab = file["model"]["vocab"].as_object_mut().unwrap();
    vocab.retain(|_, id| id.as_u64().unwrap() < first);
    let vocab = vocab.clone();
    let merges = file["model"]["merges"].as_array_mut().unwrap();
    let text = |token: &Value| token.as_str().unwrap().to_owned();
    merges.retain(|pair| vocab.contains_key(&(text(&pair[0]) + &text(&pair[1]))));
    for (id, content) in (first..).zip(controls) {
        file["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        }));
    }
    fs::write(folder.join("tokenizer.json"), file.to_string()).unwrap();
}

/// Writes a JumpReLU SAE as `params.npz`.
pub(crate) fn write_sae(folder: &Path, seed: u64) {
    let d_model = D_MODEL as i64;
    let w_enc = normal(&[d_model, D_SAE], seed) / 4.0;
    let w_dec = w_enc.tr() + normal(&[D_SAE, d_model], seed + 1) / 8.0;
    let b_enc = normal(&[D_SAE], seed + 2) / 8.0;
    let b_dec = normal(&[d_model], seed + 3) / 8.0;
    let threshold = Tensor::full([D_SAE], 0.6, (Kind::Float, b_dec.device()));
    let sae = Sae::jumprelu(w_enc.contiguous(), b_enc, w_dec.contiguous(), b_dec, threshold).unwrap();
    fs::create_dir_all(folder).unwrap();
    save(&sae, &About::new(Format::GemmaScope), Format::GemmaScope, folder).unwrap();
}
