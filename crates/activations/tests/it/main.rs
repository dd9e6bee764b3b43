//! What holds of streams of activations.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a failed helper is a failed test"
)]

mod common;
mod damage;
mod full;
mod harvests;
mod kill;
mod live;
mod mixer;
#[cfg(feature = "aws")]
mod s3;
#[cfg(feature = "aws")]
mod s3_server;
mod scales;
mod shards;
