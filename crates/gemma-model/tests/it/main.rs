//! The model against Hugging Face's, and the laws it keeps.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a failed helper is a failed test"
)]

mod attention;
mod batching;
mod blocks;
mod causality;
mod common;
mod config;
mod dtypes;
mod folders;
mod golden;
mod interventions;
mod mlp;
mod norms;
mod sites;
mod softcaps;
mod tokenizer;
mod training;
mod windows;
