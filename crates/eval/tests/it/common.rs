//! What several files of these tests use.

use std::fmt::Display;

use eval::{EvalError, EvalOptions, Report, evaluate};
use gemma_model::{Gemma2, LoadOptions};
use hooks::{HookPoint, HookedModel, ModelDims, Positions, TokenBatch};
use proptest::test_runner::{Config, RngAlgorithm, RngSeed};
use sae_core::{Sae, SparseAutoencoder};
use tch::{Device, Kind, Tensor};
use testkit::{fixture, normal, read_tokens, uniform};

/// The checkpoint that `fixtures/eval` was made with: the one whose widths fit its SAEs (48 and 4 · 16) and its ids (below 320).
pub(crate) const CHECKPOINT: &str = "gemma2/mini-2b";

/// Ids of the mini checkpoints that never count: PAD, EOS, BOS.
pub(crate) const SPECIAL: [i64; 3] = [0, 1, 2];

/// Losses, absolute: float32 logits of up to 30 give losses that differ by some 1e-6 with the order of summation.
pub(crate) const LOSS: f64 = 2e-5;
/// Everything else, relative.
pub(crate) const METRIC: f64 = 1e-5;
/// Sums in float64 of a few thousand terms, in another order.
pub(crate) const FLOAT64: f64 = 1e-9;

pub(crate) fn gemma() -> Gemma2 {
    Gemma2::load(&fixture(CHECKPOINT), &LoadOptions::default()).unwrap()
}

/// The 12 sequences of 20 tokens of `fixtures/eval`.
pub(crate) fn tokens() -> TokenBatch {
    read_tokens("eval/tokens.json")
}

pub(crate) fn batch(rows: &[Vec<i64>]) -> TokenBatch {
    TokenBatch::new(rows, &SPECIAL).unwrap()
}

/// Evaluates on some batches.
pub(crate) fn report(
    model: &dyn HookedModel,
    site: HookPoint,
    sae: &dyn SparseAutoencoder,
    batches: Vec<TokenBatch>,
    positions: Positions,
) -> Report {
    evaluate(model, site, sae, all(batches), &EvalOptions { positions }).unwrap()
}

pub(crate) fn all(batches: Vec<TokenBatch>) -> impl Iterator<Item = Result<TokenBatch, EvalError>> {
    batches.into_iter().map(Ok)
}

/// Numbers a token at a site, all heads together.
pub(crate) fn width(dims: &ModelDims, site: HookPoint) -> i64 {
    site.shape(dims, 1, 1).iter().product()
}

/// An SAE with random weights, on an activation of about unit scale.
pub(crate) fn random_sae(d_in: i64, d_sae: i64, d_out: i64, seed: u64) -> Sae {
    let w_enc = normal(&[d_in, d_sae], seed) / (d_in as f64).sqrt();
    let w_dec = normal(&[d_sae, d_out], seed + 1) / (d_sae as f64).sqrt();
    let (b_enc, b_dec) = (normal(&[d_sae], seed + 2) * 0.2, normal(&[d_out], seed + 3) * 0.2);
    Sae::jumprelu(w_enc, b_enc, w_dec, b_dec, uniform(&[d_sae], 0.2, 1.0, seed + 4)).unwrap()
}

pub(crate) fn zeros(size: &[i64]) -> Tensor {
    Tensor::zeros(size, (Kind::Float, Device::Cpu))
}

/// Asserts that two reports agree: losses absolutely, counts exactly, everything else relatively.
#[track_caller]
pub(crate) fn assert_reports_agree(what: &str, got: &Report, want: &Report) {
    assert_eq!((got.hook, got.tokens), (want.hook, want.tokens), "{what}");
    assert_eq!(got.frequency, want.frequency, "{what}: frequency");
    assert_eq!(got.metrics.keys().collect::<Vec<_>>(), want.metrics.keys().collect::<Vec<_>>(), "{what}");
    for (name, value) in &got.metrics {
        assert_metric(what, name, *value, want.metrics[name]);
    }
}

#[track_caller]
pub(crate) fn assert_metric(what: &str, name: &str, got: f64, want: f64) {
    let allowed = if is_loss(name) { LOSS } else { METRIC * want.abs() };
    assert!(
        (got - want).abs() <= allowed,
        "{what}: {name} is {got}, but should be {want} within {allowed:.1e}"
    );
}

fn is_loss(name: &str) -> bool {
    name.starts_with("ce_") || name == "delta_loss"
}

/// Asserts that something was refused in one sentence that names what is at fault, and returns the sentence.
#[track_caller]
pub(crate) fn refused<T>(result: Result<T, impl Display>, at_fault: &[&str]) -> String {
    let text = match result {
        Ok(_) => panic!("was taken, but should have been refused for {at_fault:?}"),
        Err(error) => error.to_string(),
    };
    assert!(!text.is_empty() && !text.contains('\n') && !text.ends_with('.'), "not one sentence: {text:?}");
    for part in at_fault {
        assert!(text.contains(part), "does not say `{part}`: {text}");
    }
    text
}

/// Cases from a fixed seed: a run that fails fails again.
pub(crate) fn cases(cases: u32) -> Config {
    Config {
        cases,
        failure_persistence: None,
        rng_algorithm: RngAlgorithm::ChaCha,
        rng_seed: RngSeed::Fixed(20),
        ..Config::default()
    }
}
