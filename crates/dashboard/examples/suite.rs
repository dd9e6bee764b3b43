//! Writes the page of a suite that is made up: `cargo run --release -p dashboard --example suite -- page.html`.
#![allow(clippy::unwrap_used, reason = "what is made up is shared with the tests")]

#[path = "../tests/it/invented.rs"]
#[allow(missing_docs, reason = "what is made up is shared with the tests")]
mod invented;

use anyhow::{Context as _, Result};
use dashboard::suite_page;

fn main() -> Result<()> {
    let path = std::env::args().nth(1).context("say where to write the page: page.html, for example")?;
    let page = suite_page(&invented::suite(), "Made up: Gemma Scope 2B, five layers")?;
    std::fs::write(&path, page).with_context(|| format!("can't write {path}"))
}
