//! What several files of these tests use.

use std::fmt::Display;

use proptest::test_runner::{Config, RngAlgorithm, RngSeed};
use sae_core::Sae;
use tch::{Kind, Tensor};
use testkit::{normal, uniform};

/// Two orders of summation in float32 over a few dozen terms differ by less than this share of the largest value.
pub(crate) const ROUNDING: f64 = 1e-5;

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

/// An SAE with random weights and thresholds, of which some latents are on and most are off.
pub(crate) fn random_sae(d_in: i64, d_sae: i64, d_out: i64, seed: u64) -> Sae {
    with_threshold(d_in, d_sae, d_out, seed, uniform(&[d_sae], 0.2, 1.0, seed + 5))
}

/// The same, with these thresholds.
pub(crate) fn with_threshold(d_in: i64, d_sae: i64, d_out: i64, seed: u64, threshold: Tensor) -> Sae {
    let w_enc = normal(&[d_in, d_sae], seed) / (d_in as f64).sqrt();
    let w_dec = normal(&[d_sae, d_out], seed + 1) / (d_sae as f64).sqrt();
    let (b_enc, b_dec) = (normal(&[d_sae], seed + 2) * 0.2, normal(&[d_out], seed + 3) * 0.2);
    Sae::jumprelu(w_enc, b_enc, w_dec, b_dec, threshold).unwrap()
}

/// A parameter by the name that it has in Gemma Scope's files.
pub(crate) fn parameter(sae: &Sae, name: &str) -> Tensor {
    let found = sae.parameters().unwrap().into_iter().find(|(n, _)| *n == name);
    found.unwrap_or_else(|| panic!("no {name}")).1.shallow_clone()
}

/// float32 values, `[rows, columns]`.
pub(crate) fn matrix(values: &[f32], columns: i64) -> Tensor {
    Tensor::from_slice(values).reshape([-1, columns])
}

pub(crate) fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).unwrap()
}
