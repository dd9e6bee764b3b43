//! Sparse autoencoders for inference: the mathematics, the files of Gemma Scope, and the splice into a model's run.
//!
//! [`SparseAutoencoder`] is what an architecture implements, [`SaeExt`] is what users call. An SAE never sees a model: the
//! two meet at a [`HookPoint`](hooks::HookPoint), through a [`Splice`].
//!
//! ```no_run
//! use sae_core::{SaeId, SparseAutoencoder as _, load_gemma_scope};
//! let id: SaeId = "gemma-scope-2b-pt-res/layer_20/width_16k/canonical".parse()?;
//! assert_eq!(id.hook_point().to_string(), "blocks.20.hook_resid_post");
//! assert_eq!(id.params_path(), "layer_20/width_16k/average_l0_71/params.npz");
//! let sae = load_gemma_scope(std::path::Path::new("params.npz"), tch::Device::Cpu)?;
//! let x = tch::Tensor::f_randn([4, sae.d_in()], (tch::Kind::Float, tch::Device::Cpu))?;
//! let features = sae.encode(&x)?; // [4, d_sae]
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Optimisers, datasets and losses live in other crates, and nothing here changes the gradient mode.

pub mod conformance;
mod error;
mod gemma_scope;
mod jumprelu;
mod release;
mod sae;
mod sparse;
mod splice;

pub use error::{Result, SaeError};
pub use gemma_scope::{load_gemma_scope, read_gemma_scope, save_gemma_scope};
pub use jumprelu::JumpRelu;
pub use release::SaeId;
pub use sae::{FeatureHit, FeatureId, SaeExt, SparseAutoencoder, as_input, top_features};
pub use sparse::SparseFeatures;
pub use splice::Splice;
