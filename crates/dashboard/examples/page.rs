//! Writes the page of a toy model and two random SAEs: `cargo run --release -p dashboard --example page -- page.html`.

use std::io::Write as _;

use anyhow::{Context as _, Result};
use dashboard::{Prompt, SaeAt, TableOptions, analyze, page, table};
use hooks::TokenBatch;
use sae_core::Sae;
use testkit::{ToyModel, normal, uniform};

const SENTENCES: [&str; 3] = [
    "The lighthouse keeper counted the ships, and then he counted the stars.",
    "Nobody had told the ships that the lighthouse was gone.",
    "Stars do not count ships.",
];

fn main() -> Result<()> {
    let path = std::env::args().nth(1).context("say where to write the page: page.html, for example")?;
    let model = ToyModel::new(3, 16, 64, 7);
    let (rows, prompts) = tokenize();
    let tokens = TokenBatch::padded(&rows, 0, &[0, 1, 2])?;

    let saes = [random_sae(16, 128, 1)?, random_sae(16, 512, 2)?];
    let sites = ["blocks.1.hook_resid_post", "blocks.2.hook_mlp_out"];
    let saes = saes.iter().zip(sites).map(|(sae, site)| {
        let id = format!("random/{}", site.replace("hook_", ""));
        Ok(SaeAt { id, site: site.parse()?, sae })
    });
    let analysis = analyze(&model, "toy model", &tokens, &prompts, &saes.collect::<Result<Vec<_>>>()?, 5)?;

    std::fs::write(&path, page(&analysis)?).with_context(|| format!("can't write {path}"))?;
    let text = table(&analysis, &TableOptions::default());
    std::io::stdout().write_all(text.as_bytes())?;
    Ok(())
}

/// Words as tokens: 0, 1 and 2 are PAD, EOS and BOS, each new word gets the next id.
fn tokenize() -> (Vec<Vec<i64>>, Vec<Prompt>) {
    let mut words: Vec<String> = Vec::new();
    let mut id = |piece: &String| {
        let word = piece.trim_start().to_lowercase();
        let known = words.iter().position(|w| *w == word);
        let index = known.unwrap_or(words.len());
        if known.is_none() {
            words.push(word);
        }
        3 + index as i64
    };
    let of = |text: &str| {
        let mut pieces = vec![String::new()];
        for c in text.chars() {
            match pieces.last_mut() {
                Some(last) if !matches!(c, ' ' | ',' | '.') => last.push(c),
                _ => pieces.push(c.to_string()),
            }
        }
        let ids = std::iter::once(2).chain(pieces.iter().map(&mut id)).collect();
        pieces.insert(0, "<bos>".to_owned());
        (ids, Prompt { text: text.to_owned(), pieces })
    };
    SENTENCES.into_iter().map(of).unzip()
}

fn random_sae(d_model: i64, d_sae: i64, seed: u64) -> Result<Sae> {
    let directions = normal(&[d_model, d_sae], seed);
    // Encoder and decoder look the same way, so that the reconstruction is at least akin to its input.
    let w_dec = directions.f_transpose(0, 1)?.f_mul_scalar(4.0 / d_sae as f64)?.f_contiguous()?;
    let (b_enc, b_dec) = (normal(&[d_sae], seed + 1), normal(&[d_model], seed + 2).f_mul_scalar(0.1)?);
    Ok(Sae::jumprelu(directions, b_enc, w_dec, b_dec, uniform(&[d_sae], 4.0, 9.0, seed + 3))?)
}
