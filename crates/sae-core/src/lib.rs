//! Sparse autoencoders for inference: the mathematics, the files of Gemma Scope, and the splice into a model's run.
//!
//! [`SparseAutoencoder`] is what an architecture implements, [`SaeExt`] is what users call. An SAE never sees a model: the
//! two meet at a [`HookPoint`](hooks::HookPoint), through a [`Splice`].
//!
//! ```no_run
//! use sae_core::{OpenOptions, SaeId, SparseAutoencoder as _};
//! let id: SaeId = "gemma-scope-2b-pt-res/layer_20/width_16k/canonical".parse()?;
//! assert_eq!(id.hook_point().to_string(), "blocks.20.hook_resid_post");
//! assert_eq!(id.params_path(), "layer_20/width_16k/average_l0_71/params.npz");
//! let sae = sae_core::open(std::path::Path::new("params.npz"), &OpenOptions::default())?.sae;
//! let x = tch::Tensor::f_randn([4, sae.d_in()], (tch::Kind::Float, tch::Device::Cpu))?;
//! let features = sae.encode(&x)?; // [4, d_sae]
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Optimisers, datasets and losses live in other crates, and nothing here changes the gradient mode.

mod activation;
pub mod anatomy;
mod autoencoder;
mod bf16;
pub mod catalogue;
pub mod conformance;
mod error;
mod fold;
pub mod formats;
mod matrix;
mod normalize;
mod place;
mod release;
mod sae;
mod sparse;
mod splice;

pub use activation::Activation;
pub use autoencoder::{Sae, SaeParts};
pub use bf16::Bf16Sae;
pub use error::{Result, SaeError};
pub use formats::{About, Format, OpenOptions, Opened, open, save};
pub use matrix::Matrix;
pub use normalize::Normalize;
pub use place::Place;
pub use release::SaeId;
pub use sae::{FeatureHit, FeatureId, SaeExt, SparseAutoencoder, as_input, top_features};
pub use sparse::{LatentView, RowView, SparseFeatures, TopRows};
pub use splice::Splice;
