//! The command as a user meets it: what it writes equals the references, and what it refuses it names in one sentence.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that can't go on has failed"
)]

mod command;
mod eval_chat;
mod eval_cluster;
mod eval_progress;
mod faithful;
mod formats;
mod generate;
mod hub;
mod list;
mod refuses;
mod small;
mod suite;
mod train;
