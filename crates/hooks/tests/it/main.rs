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
mod left_padding;
mod names;
mod packing;
mod pieces;
mod position_sets;
mod positions;
mod refusals;
mod resume;
mod runs;
mod select;
mod table;
