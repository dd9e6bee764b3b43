//! The documents that `corpus.py` wrote.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// One document: an address, a chapter, a book.
#[derive(Deserialize)]
pub(crate) struct Document {
    pub(crate) text: String,
}

/// The documents of `corpus/SPLIT.jsonl`, in their order.
pub(crate) fn read(run: &Path, split: &str) -> Result<Vec<Document>> {
    let path = run.join("corpus").join(format!("{split}.jsonl"));
    let text = fs::read_to_string(&path)
        .with_context(|| format!("{}: run tools/tiny-gemma2/corpus.py first", path.display()))?;
    text.lines().map(|line| serde_json::from_str(line).with_context(|| path.display().to_string())).collect()
}
