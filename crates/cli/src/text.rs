//! The texts that a command reads: `--text`, `--text-file`, `--tokens`.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use gemma_scope::{hooks::TokenBatch, load::LoadedModel};
use serde::Deserialize;

/// T: what is read.
#[derive(Debug, clap::Args)]
#[group(required = false, multiple = true)]
pub(crate) struct TextArgs {
    /// A text. Repeatable.
    #[arg(long, value_name = "TEXT")]
    pub(crate) text: Vec<String>,
    /// A file of texts: `.txt` with blank lines between documents, or `.jsonl` with a field `text`.
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
            let name = path.display();
            let content = fs::read_to_string(path).with_context(|| format!("--text-file {name}"))?;
            let found = match path.extension().and_then(|e| e.to_str()) {
                Some("txt") => documents(&content),
                Some("jsonl") => json_lines(&content).with_context(|| format!("--text-file {name}"))?,
                _ => bail!("--text-file {name}: expected a name that ends in .txt or .jsonl"),
            };
            ensure!(!found.is_empty(), "--text-file {name}: there is no text in it");
            texts.extend(found);
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

/// Documents with blank lines between them.
fn documents(content: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    for line in content.lines() {
        let blank = line.trim().is_empty();
        match all.last_mut() {
            Some(last) if blank && last.is_empty() => (),
            Some(last) if !blank => {
                if !last.is_empty() {
                    last.push('\n');
                }
                last.push_str(line);
            }
            _ => all.push(String::new()),
        }
    }
    all.retain(|text| !text.is_empty());
    all
}

/// The field `text` of every line.
fn json_lines(content: &str) -> Result<Vec<String>> {
    let lines = content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(i, line)| {
            let value: serde_json::Value =
                serde_json::from_str(line).with_context(|| format!("line {} is not JSON", i + 1))?;
            let text = value.get("text").and_then(|t| t.as_str());
            Ok(text.with_context(|| format!("line {} has no field `text`", i + 1))?.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_part_documents() {
        assert_eq!(documents("\n\none\ntwo\n\n \nthree\n"), ["one\ntwo", "three"]);
        assert!(documents(" \n\n").is_empty());
    }

    #[test]
    fn json_lines_name_the_line_at_fault() {
        assert_eq!(json_lines("{\"text\": \"a\", \"id\": 1}\n\n{\"text\": \"b\"}").unwrap(), ["a", "b"]);
        assert!(json_lines("{\"text\": \"a\"}\n{}").unwrap_err().to_string().contains("line 2"));
    }
}
