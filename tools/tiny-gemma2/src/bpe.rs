//! The tokenizer: a BPE in Gemma's form (spaces as `▁`, byte fallback, no other pre-tokenizer than a split before each word).

use std::{collections::HashSet, path::Path};

use anyhow::{Result, anyhow};
use serde_json::{Value, json};
use tokenizers::{
    AddedToken, TokenizerBuilder,
    models::bpe::{BPE, BpeTrainer},
    normalizers::{NormalizerWrapper, Replace},
    pre_tokenizers::{
        PreTokenizerWrapper,
        split::{Split, SplitPattern},
    },
};
use tokenizers::{DecoderWrapper, PostProcessorWrapper, tokenizer::SplitDelimiterBehavior};

use crate::corpus;

/// Ids 0 to 3, as in Gemma.
const SPECIAL: [&str; 4] = ["<pad>", "<eos>", "<bos>", "<unk>"];

/// Trains on `corpus/train.jsonl` and writes `tokenizer.json`.
pub(crate) fn train(run: &Path, vocab: usize) -> Result<()> {
    let documents = corpus::read(run, "train")?;
    let bytes: Vec<String> = (0..=255u8).map(|b| format!("<0x{b:02X}>")).collect();
    let reserved: Vec<AddedToken> =
        SPECIAL.iter().map(|s| (*s).to_owned()).chain(bytes).map(|s| AddedToken::from(s, true)).collect();
    let split = |pattern: &str| {
        Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false)
            .map_err(|e| anyhow!("{e}"))
    };
    // Words with the space before them, digits one by one, runs of punctuation, newlines apart.
    let words = split(r"▁?[A-Za-z]+(?:'[a-z]+)?|[0-9]|\n+|▁+|[^▁A-Za-z0-9\n]+")?;
    let mut tokenizer = TokenizerBuilder::<
        BPE,
        NormalizerWrapper,
        PreTokenizerWrapper,
        PostProcessorWrapper,
        DecoderWrapper,
    >::new()
    .with_model(BPE::default())
    .with_normalizer(Some(Replace::new(" ", "▁").map_err(|e| anyhow!("{e}"))?.into()))
    .with_pre_tokenizer(Some(words.into()))
    .build()
    .map_err(|e| anyhow!("{e}"))?;
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab)
        .min_frequency(2)
        .special_tokens(reserved)
        .initial_alphabet(HashSet::from(['▁', '\n']))
        .show_progress(false)
        .build();
    tokenizer
        .train(&mut trainer, documents.iter().map(|d| d.text.as_str()))
        .map_err(|e| anyhow!("training the tokenizer: {e}"))?;
    let text = tokenizer.to_string(false).map_err(|e| anyhow!("{e}"))?;
    let json = in_gemmas_form(&serde_json::from_str(&text)?)?;
    std::fs::write(run.join("tokenizer.json"), serde_json::to_string(&json)?)?;
    println!("tokenizer: {vocab} entries from {} documents", documents.len());
    Ok(())
}

/// The trained vocabulary and merges in a file like Gemma's: byte fallback, bytes no special tokens, and a decoder.
fn in_gemmas_form(trained: &Value) -> Result<Value> {
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, content)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let model = trained.get("model").ok_or_else(|| anyhow!("the trained tokenizer has no model"))?;
    let field = |key: &str| model.get(key).cloned().unwrap_or(Value::Null);
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added,
        "normalizer": trained.get("normalizer"),
        "pre_tokenizer": trained.get("pre_tokenizer"),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                     {"SpecialToken": {"id": "<bos>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}}
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}
        ]},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": field("vocab"), "merges": field("merges")
        }
    }))
}
