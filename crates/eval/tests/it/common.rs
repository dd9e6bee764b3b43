//! What several files of these tests use.

use std::{collections::BTreeMap, fmt::Display};

use eval::{EvalError, EvalOptions, Judged, Means, Quality, Report, Suite, evaluate};
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

/// Losses and divergences, absolute: float32 logits of up to 30 give losses that differ by some 1e-6 with the order of summation.
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

/// Rows in batches of some size.
pub(crate) fn cut(rows: &[Vec<i64>], size: usize) -> Vec<TokenBatch> {
    rows.chunks(size).map(batch).collect()
}

/// Evaluates on some batches.
pub(crate) fn report(
    model: &dyn HookedModel,
    site: HookPoint,
    sae: &dyn SparseAutoencoder,
    batches: Vec<TokenBatch>,
    positions: Positions,
) -> Report {
    evaluate(model, site, sae, all(batches), &at(positions)).unwrap()
}

pub(crate) fn at(positions: Positions) -> EvalOptions {
    EvalOptions { positions, ..EvalOptions::default() }
}

pub(crate) fn all(batches: Vec<TokenBatch>) -> impl Iterator<Item = Result<TokenBatch, EvalError>> {
    batches.into_iter().map(Ok)
}

/// The means at all sites where something is put.
pub(crate) fn means(
    model: &dyn HookedModel,
    judged: &[Judged<'_>],
    batches: &[TokenBatch],
    positions: Positions,
) -> Means {
    let mut means = Means::new(model, judged.iter().map(|judged| judged.site_out)).unwrap();
    for tokens in batches {
        means.add(model, tokens, positions).unwrap();
    }
    means
}

/// A suite that has seen nothing yet, with the means of some batches.
pub(crate) fn suite<'a>(
    model: &'a dyn HookedModel,
    judged: &[Judged<'a>],
    batches: &[TokenBatch],
    options: EvalOptions,
) -> Suite<'a> {
    let means = means(model, judged, batches, options.positions);
    Suite::new(model, judged.to_vec(), &means, options).unwrap()
}

/// Judges in one suite.
pub(crate) fn judge(
    model: &dyn HookedModel,
    judged: &[Judged<'_>],
    batches: &[TokenBatch],
    options: EvalOptions,
) -> Vec<Report> {
    let mut suite = suite(model, judged, batches, options);
    for tokens in batches {
        suite.add(tokens, None).unwrap();
    }
    suite.reports().unwrap()
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

/// Asserts that two reports of one SAE agree: losses absolutely, counts exactly, everything else relatively.
#[track_caller]
pub(crate) fn assert_reports_agree(what: &str, got: &Report, want: &Report) {
    assert_agree(what, got, want, METRIC);
}

/// As [`assert_reports_agree`], with another tolerance for what is no loss.
#[track_caller]
pub(crate) fn assert_agree(what: &str, got: &Report, want: &Report, tolerance: f64) {
    assert_eq!((got.tokens, got.scored), (want.tokens, want.scored), "{what}");
    assert_eq!(got.provenance, want.provenance, "{what}");
    assert_eq!(got.metrics.frequency, want.metrics.frequency, "{what}: frequency");
    assert_eq!(got.l0_histogram, want.l0_histogram, "{what}");
    assert_eq!(got.density_histogram, want.density_histogram, "{what}");
    assert_eq!(got.latents, want.latents, "{what}");
    assert_metrics(what, &got.metrics.values, &want.metrics.values, tolerance);
    // Longer rows have more positions; in those that only one of the two has nothing counts.
    let nothing = Quality::default();
    for p in 0..got.by_position.len().max(want.by_position.len()) {
        let [got, want] = [got, want].map(|report| report.by_position.get(p).unwrap_or(&nothing));
        assert_quality(&format!("{what}, position {p}"), got, want, tolerance);
    }
    assert_eq!(got.by_subset.keys().collect::<Vec<_>>(), want.by_subset.keys().collect::<Vec<_>>(), "{what}");
    for (name, want) in &want.by_subset {
        assert_quality(&format!("{what}, {name}"), &got.by_subset[name], want, tolerance);
    }
}

/// All metrics of one that the other has, and no others.
#[track_caller]
pub(crate) fn assert_metrics(
    what: &str,
    got: &BTreeMap<String, f64>,
    want: &BTreeMap<String, f64>,
    tolerance: f64,
) {
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>(), "{what}");
    for (name, value) in want {
        assert_within(what, name, got[name], *value, allowed(name, want, tolerance));
    }
}

#[track_caller]
pub(crate) fn assert_within(what: &str, name: &str, got: f64, want: f64, allowed: f64) {
    assert!(
        (got - want).abs() <= allowed,
        "{what}: {name} is {got}, but should be {want} within {allowed:.1e}"
    );
}

#[track_caller]
pub(crate) fn assert_quality(what: &str, got: &Quality, want: &Quality, tolerance: f64) {
    assert_eq!((got.tokens, got.scored), (want.tokens, want.scored), "{what}");
    for (name, got, want, allowed) in [
        ("ce_clean", got.ce_clean, want.ce_clean, LOSS),
        ("ce_spliced", got.ce_spliced, want.ce_spliced, LOSS),
        ("delta_loss", got.delta_loss, want.delta_loss, LOSS),
        ("kl", got.kl, want.kl, LOSS),
        ("mse", got.mse, want.mse, tolerance * want.mse.unwrap_or(0.0)),
        ("fvu", got.fvu, want.fvu, tolerance * want.fvu.unwrap_or(0.0)),
        ("l0", got.l0, want.l0, FLOAT64),
    ] {
        assert_eq!(got.is_some(), want.is_some(), "{what}: {name}");
        assert_within(what, name, got.unwrap_or(0.0), want.unwrap_or(0.0), allowed);
    }
}

/// How far a metric may be from what it should be. What is a quotient of losses inherits their tolerance, which shows where the
/// denominator is small.
fn allowed(name: &str, want: &BTreeMap<String, f64>, tolerance: f64) -> f64 {
    let (value, relative) = (want[name].abs(), tolerance * want[name].abs());
    let baseline = |kind: &str| name.strip_prefix(kind).filter(|b| ["zero", "mean"].contains(b));
    if let Some(baseline) = baseline("loss_recovered_") {
        let gap = (want[&format!("ce_{baseline}")] - want["ce_clean"]).abs();
        return (LOSS * 2.0 * (1.0 + value) / gap).max(relative);
    }
    if let Some(baseline) = baseline("kl_score_") {
        return (LOSS * (1.0 + (1.0 - want[name]).abs()) / want[&format!("kl_{baseline}")]).max(relative);
    }
    let loss = name.starts_with("ce_") || name == "delta_loss" || name == "kl" || name.starts_with("kl_");
    if loss { LOSS } else { relative.max(FLOAT64) }
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
