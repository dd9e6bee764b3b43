//! Metrics of sparse autoencoders, over any [`HookedModel`](hooks::HookedModel) and any
//! [`SparseAutoencoder`](sae_core::SparseAutoencoder).
//!
//! Every metric is an exact sum in float64 that is divided once, at the end: reading batches in another order, or on several
//! machines whose sums are merged, does not change its last digit. [`evaluate`] judges one SAE; a [`Suite`] judges many in one
//! pass that runs what they share once; the accumulators ([`Reconstruction`], [`Sparsity`]) serve alone as well.
//!
//! ```
//! use eval::Reconstruction;
//! use tch::{Device, Kind, Tensor};
//! let x = Tensor::f_randn([100, 8], (Kind::Float, Device::Cpu))?;
//! let mut quality = Reconstruction::new(8);
//! quality.add(&x, &x)?;
//! assert_eq!(quality.fvu(), Some(0.0)); // a perfect reconstruction
//! # Ok::<(), eval::EvalError>(())
//! ```
//!
//! Nothing here loads a file, downloads or prints.

mod batch;
mod error;
mod evaluate;
mod exact;
mod head;
mod log_sum_exp;
mod loss;
mod means;
mod metric;
mod pass;
mod reconstruction;
mod report;
mod sparsity;
mod subsets;
mod suite;
mod sums;
mod trunk;
mod uniformity;
mod weights;

pub use error::{EvalError, Result};
pub use evaluate::evaluate;
pub use exact::Exact;
pub use loss::{kl_per_token, loss_per_token, scored};
pub use means::Means;
pub use metric::{METRICS, Metric};
pub use reconstruction::Reconstruction;
pub use report::{DensityHistogram, L0Histogram, Latents, Metrics, Provenance, Quality, Report};
pub use sparsity::Sparsity;
pub use subsets::Subsets;
pub use suite::{EvalOptions, Judged, Suite, Timings};
pub use sums::Sums;
pub use weights::weight_metrics;
