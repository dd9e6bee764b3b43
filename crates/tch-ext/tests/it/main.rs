//! Files of tensors: what is written comes back, and what is damaged is refused in one sentence.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a failed helper is a failed test"
)]

mod atomic;
mod checks;
mod common;
mod devices;
mod finite;
mod linear;
mod linear_large;
mod linear_views;
mod mapped;
mod memory;
mod npy_headers;
mod npz;
mod npz_damage;
mod progress;
mod raw_zip;
mod safetensors;
mod safetensors_damage;
mod stored;
mod torch_file;
mod torch_file_damage;
mod torch_pickle;
mod unsigned;
mod weights;
mod zip_records;
