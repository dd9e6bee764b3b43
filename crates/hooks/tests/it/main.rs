//! The contract: names, order, refusals, edits, batches of tokens. On the toy model and on nothing at all.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a failed helper is a failed test"
)]

mod batches;
mod common;
mod edits;
mod gradients;
mod harvest;
mod names;
mod positions;
mod refusals;
mod runs;
mod table;
