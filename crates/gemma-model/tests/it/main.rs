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
mod cached;
mod causality;
mod chat;
mod common;
mod config;
mod dtypes;
mod folders;
mod generate;
mod golden;
mod golden_modes;
mod interventions;
mod mlp;
mod norms;
mod packed;
mod real_tokenizer;
mod resume;
mod sampling;
mod sites;
mod softcaps;
mod spans;
mod streams;
mod tokenizer;
mod training;
mod windows;
