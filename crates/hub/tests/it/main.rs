//! The hub against a stand-in on 127.0.0.1.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy.toml allows them in tests, but not in what tests call"
)]

mod access;
mod cache;
mod faults;
mod model;
mod server;
