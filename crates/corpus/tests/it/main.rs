//! From files to batches: what is read, what is refused, and that no token is lost on the way.
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
mod chat;
mod common;
mod control;
mod damaged;
mod jsonl;
mod pack;
mod pack_laws;
mod parquet_files;
mod parquet_writer;
mod streaming;
mod summary;
mod token_files;
mod txt;
