//! Metrics against what PyTorch and Transformers compute, against the naive way to compute them, and the laws they keep.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a failed helper is a failed test"
)]

mod batches;
mod common;
mod counting;
mod exact;
mod golden;
mod loss;
mod naive;
mod padding;
mod prefix;
mod reconstruction;
mod reconstruction_laws;
mod refused;
mod report;
mod sparsity;
mod suite;
mod transcoders;
mod trivial;
mod weights;
