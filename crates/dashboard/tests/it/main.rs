//! The analysis against dense computations and a reference, and what is drawn of it and of evaluations.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that fails may panic"
)]

mod analysis;
mod golden;
mod html;
mod invented;
mod schema;
mod suite;
mod table;

use dashboard::{Analysis, Prompt, SaeAt, analyze};
use hooks::TokenBatch;
use sae_core::Sae;
use testkit::{ToyModel, normal, uniform};

const D_MODEL: i64 = 8;

fn toy() -> ToyModel {
    ToyModel::new(3, D_MODEL as usize, 40, 11)
}

/// An SAE with some 1 in 6 latents active on a toy's activations.
fn sae(d_sae: i64, seed: u64) -> Sae {
    let (w_enc, b_enc) = (normal(&[D_MODEL, d_sae], seed), normal(&[d_sae], seed + 1));
    let (w_dec, b_dec) = (normal(&[d_sae, D_MODEL], seed + 2) * 0.02, normal(&[D_MODEL], seed + 3));
    Sae::jumprelu(w_enc, b_enc, w_dec, b_dec, uniform(&[d_sae], 2.0, 6.0, seed + 4)).unwrap()
}

/// An SAE that is never active.
fn silent(d_sae: i64) -> Sae {
    let zeros = |size: &[i64]| normal(size, 1) * 0.0;
    let threshold = uniform(&[d_sae], 1.0, 2.0, 3);
    Sae::jumprelu(
        normal(&[D_MODEL, d_sae], 2) * 1e-6,
        zeros(&[d_sae]),
        zeros(&[d_sae, D_MODEL]),
        normal(&[D_MODEL], 4),
        threshold,
    )
    .unwrap()
}

/// Sequences that begin with BOS (2), and pieces that name the ids.
fn batch(rows: &[Vec<i64>]) -> (TokenBatch, Vec<Prompt>) {
    let prompts = rows.iter().map(|row| {
        let piece = |&id: &i64| if id == 2 { "<bos>".to_owned() } else { format!(" t{id}") };
        let pieces: Vec<String> = row.iter().map(piece).collect();
        Prompt { text: pieces[1..].concat(), pieces }
    });
    (TokenBatch::padded(rows, 0, &[0, 1, 2]).unwrap(), prompts.collect())
}

fn at<'a>(id: &str, site: &str, sae: &'a Sae) -> SaeAt<'a> {
    SaeAt { id: id.to_owned(), site: site.parse().unwrap(), sae }
}

const ROWS: [&[i64]; 3] = [&[2, 5, 9, 33, 17, 5, 8], &[2, 30, 7], &[2, 12, 12, 13, 39]];

fn rows() -> Vec<Vec<i64>> {
    ROWS.iter().map(|row| row.to_vec()).collect()
}

/// Two SAEs on three prompts of different lengths.
fn example() -> Analysis {
    let (tokens, prompts) = batch(&rows());
    let (one, two) = (sae(64, 1), sae(300, 2));
    let saes = [at("one", "blocks.1.hook_resid_post", &one), at("two", "blocks.2.hook_mlp_out", &two)];
    analyze(&toy(), "toy", &tokens, &prompts, &saes, 4).unwrap()
}

/// The example with other pieces of text in the place of its tokens.
fn with_pieces(pieces: &[&str]) -> Analysis {
    let mut analysis = example();
    let mut pieces = pieces.iter();
    for prompt in &mut analysis.prompts {
        for token in prompt.tokens.iter_mut().skip(1) {
            if let Some(piece) = pieces.next() {
                *token = (*piece).to_owned();
            }
        }
        prompt.text = prompt.tokens[1..].concat();
    }
    assert_eq!(pieces.len(), 0, "the example has too few tokens");
    analysis
}
