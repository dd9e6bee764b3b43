//! The objective against SAELens' gradients, and the laws of training.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that can't go on has failed"
)]

mod gradients;
mod trainer;
