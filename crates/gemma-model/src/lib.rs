//! Gemma 2 (arXiv 2408.00118) on libtorch, with every activation named, readable and editable.
//!
//! [`Gemma2`] is a [`HookedModel`](hooks::HookedModel): the block reads in the order of the mathematics, and each site is
//! one line. It knows nothing of autoencoders, metrics or downloads.
//!
//! ```no_run
//! use gemma_model::{Gemma2, LoadOptions, Tokenizer};
//! use hooks::{HookPoint, HookedModelExt as _, LayerIdx};
//!
//! let folder = std::path::Path::new("gemma-2-2b");
//! let model = Gemma2::load(folder, &LoadOptions::default())?;
//! let tokens = Tokenizer::load(folder)?.batch(&["The capital of France is"])?;
//! let site = HookPoint::ResidPost(LayerIdx(12));
//! let acts = model.harvest(&tokens, &[site])?;
//! println!("{:?}", acts.get(site)?.size()); // [1, 6, 2304]
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attention;
mod block;
mod config;
mod error;
mod generate;
mod hf_config;
mod init;
mod kv_cache;
mod mask;
mod mlp;
mod model;
mod norm;
mod rope;
mod sampling;
mod save;
mod tokenizer;

pub use config::{Gemma2Config, LayerKind};
pub use error::{ModelError, Result};
pub use generate::{GenerateOptions, Generation, generate};
pub use kv_cache::KvCache;
pub use model::{Gemma2, LoadOptions};
pub use sampling::Sampling;
pub use tokenizer::{Role, TokenStream, Tokenizer, Turn};
