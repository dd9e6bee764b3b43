//! For tests alone: golden files, closeness, seeded tensors, and a toy model whose values can be worked out by hand.
//!
//! Helpers here panic, as assertions do.
#![allow(
    clippy::panic,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a failed helper is a failed test"
)]

mod golden;
mod random;
mod toy;

pub use golden::{Golden, fixture, read_tokens};
pub use random::{normal, uniform};
pub use toy::ToyModel;

use tch::{Kind, Tensor};

/// The largest absolute difference, divided by the largest magnitude of `want`; infinite where shapes differ or NaN shows.
pub fn relative_error(got: &Tensor, want: &Tensor) -> f64 {
    if got.size() != want.size() {
        return f64::INFINITY;
    }
    if want.numel() == 0 {
        return 0.0;
    }
    let (got, want) = (got.to_kind(Kind::Double), want.to_kind(Kind::Double));
    // Equal entries (infinities among them) differ by nothing.
    let difference = (&got - &want).abs().masked_fill(&got.eq_tensor(&want), 0.0);
    let largest = want.abs().masked_fill(&want.isinf(), 0.0).max().double_value(&[]).max(f64::MIN_POSITIVE);
    let worst = difference.max().double_value(&[]) / largest;
    if worst.is_nan() { f64::INFINITY } else { worst }
}

/// Asserts that `got` is within `tolerance` of `want`, relative to `want`'s largest magnitude.
#[track_caller]
pub fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    let error = relative_error(got, want);
    assert!(
        error <= tolerance,
        "{what}: off by {error:.2e} of the largest magnitude, allowed is {tolerance:.1e} (shapes {:?} and {:?})",
        got.size(),
        want.size()
    );
}

/// Asserts that two tensors are the same to the last bit.
#[track_caller]
pub fn assert_same(what: &str, got: &Tensor, want: &Tensor) {
    assert_eq!(got.size(), want.size(), "{what}: shapes differ");
    assert_eq!(got.kind(), want.kind(), "{what}: dtypes differ");
    assert!(got.equal(want), "{what}: values differ by {:.2e} of the largest", relative_error(got, want));
}
