//! The texts that a command reads: `--text`, `--text-file`, `--tokens`.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use gemma_scope::{
    corpus::{self, Content, ReadOptions},
    hooks::TokenBatch,
    load::LoadedModel,
};
use serde::Deserialize;

/// T: what is read.
#[derive(Debug, clap::Args)]
#[group(required = false, multiple = true)]
pub(crate) struct TextArgs {
    /// A text. Repeatable.
    #[arg(long, value_name = "TEXT")]
    pub(crate) text: Vec<String>,
    /// A file of texts: `.txt` with blank lines between documents, `.jsonl` with a field `text`, or `.parquet` with such a
    /// column.
    #[arg(long, value_name = "F", conflicts_with = "tokens")]
    pub(crate) text_file: Option<PathBuf>,
    /// Token ids: `{"input_ids": [[…]], "attention_mask": [[…]]}`, the mask optional.
    #[arg(long, value_name = "F", conflicts_with = "text")]
    pub(crate) tokens: Option<PathBuf>,
}

/// The file of `--tokens`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenFile {
    input_ids: Vec<Vec<i64>>,
    attention_mask: Option<Vec<Vec<i64>>>,
}

/// What was read: rows of ids, with masks where a file gave them.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) ids: Vec<Vec<i64>>,
    pub(crate) masks: Option<Vec<Vec<i64>>>,
    /// The texts, where the ids came from texts.
    pub(crate) texts: Option<Vec<String>>,
}

impl TextArgs {
    /// The texts of `--text` and `--text-file`.
    pub(crate) fn texts(&self) -> Result<Vec<String>> {
        let mut texts = self.text.clone();
        if let Some(path) = &self.text_file {
            let found = corpus::open(path, &ReadOptions::default())?;
            let before = texts.len();
            for document in found {
                match document?.content {
                    Content::Text(text) if text.is_empty() => (),
                    Content::Text(text) => texts.push(text),
                    Content::Chat(_) => bail!("--text-file {}: holds conversations", path.display()),
                }
            }
            ensure!(texts.len() > before, "--text-file {}: there is no text in it", path.display());
        }
        ensure!(!texts.is_empty(), "give a text with --text, --text-file or --tokens");
        Ok(texts)
    }

    /// One row of ids a text, BOS first; or the rows of `--tokens` as they are.
    pub(crate) fn rows(&self, model: &LoadedModel) -> Result<Rows> {
        if let Some(path) = &self.tokens {
            let name = || format!("--tokens {}", path.display());
            let file: TokenFile =
                serde_json::from_str(&fs::read_to_string(path).with_context(name)?).with_context(name)?;
            return Ok(Rows { ids: file.input_ids, masks: file.attention_mask, texts: None });
        }
        let texts = self.texts()?;
        let tokenizer = model.tokenizer()?;
        let ids = texts.iter().map(|text| Ok(tokenizer.encode(text)?)).collect::<Result<_>>()?;
        Ok(Rows { ids, masks: None, texts: Some(texts) })
    }
}

impl Rows {
    /// All rows as one batch, padded on the right.
    pub(crate) fn batch(&self, model: &LoadedModel) -> Result<TokenBatch> {
        let config = model.model.config();
        let special = config.special();
        Ok(match &self.masks {
            Some(masks) => TokenBatch::with_mask(&self.ids, masks, &special)?,
            None => TokenBatch::padded(&self.ids, config.pad, &special)?,
        })
    }
}
