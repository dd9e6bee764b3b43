//! Finds a file of a repository on the Hugging Face hub or in its cache.
//!
//! ```no_run
//! # fn main() -> Result<(), hub::HubError> {
//! let hub = hub::Hub::from_env()?;
//! let sae = hub.file("google/gemma-scope-2b-pt-res", "layer_20/width_16k/average_l0_71/params.npz")?;
//! let model = hub.model_files("google/gemma-2-2b")?; // a folder with config.json, the shards, the tokenizer
//! # Ok(())
//! # }
//! ```
//!
//! Three rules hold everywhere:
//!
//! * **A file in the cache is used as it is, without a request.** The cache is the one of Python's
//!   `huggingface_hub` (`models--org--name/{blobs,refs,snapshots}`), so each finds what the other fetched.
//!   A branch stays at the commit it had when it was first fetched, until a file is asked for that this
//!   commit lacks; a folder never mixes two commits.
//! * **A half file never gets a final name.** A download goes to `blobs/HASH.incomplete`, is resumed from there,
//!   and is renamed once its length (and, for files of git LFS, its SHA-256) is what the hub announced.
//! * **The token goes to the hub and to nobody else,** not to the store that the hub redirects a download to.
//!
//! Only [`Hub::from_env`] reads the environment. Nothing here prints: [`Hub::with_progress`] takes a callback.

mod cache;
mod download;
mod error;
mod hub;
mod model;
mod nearest;
mod options;
mod repo_id;
mod wire;

pub use error::HubError;
pub use hub::{Hub, Progress};
pub use options::HubOptions;
pub use repo_id::RepoId;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
