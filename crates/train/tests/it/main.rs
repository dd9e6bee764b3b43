//! The objectives against SAELens' steps and formulas in float64, and the laws of training.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that can't go on has failed"
)]

mod formulas;
mod formulas_reference;
mod golden;
mod objectives;
mod objectives_common;
mod objectives_straight_through;
mod planted;
mod sparse;
mod trainer;
