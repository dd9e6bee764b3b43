//! Journeys end to end through the facade, the examples, and the house's own order.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that can't go on has failed"
)]

mod examples;
mod journeys;
mod real_weights;
mod tidy;
mod tiny;
