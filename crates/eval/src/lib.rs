//! Metrics of sparse autoencoders, over any [`HookedModel`](hooks::HookedModel) and any
//! [`SparseAutoencoder`](sae_core::SparseAutoencoder).
//!
//! Every metric is a streaming sum in float64 that is divided once, at the end: splitting the data into other batches, or
//! reading them in another order, does not change it, and two halves can be merged. [`evaluate`] drives them all in one
//! pass; the accumulators serve alone as well.
//!
//! ```
//! use eval::Fvu;
//! use tch::{Device, Kind, Tensor};
//! let x = Tensor::f_randn([100, 8], (Kind::Float, Device::Cpu))?;
//! let mut fvu = Fvu::new(8);
//! fvu.add(&x, &x)?;
//! assert_eq!(fvu.value(), Some(0.0)); // a perfect reconstruction
//! # Ok::<(), eval::EvalError>(())
//! ```
//!
//! Nothing here loads a file, downloads or prints.

mod error;
mod evaluate;
mod fvu;
mod loss;
mod report;
mod sparsity;

pub use error::{EvalError, Result};
pub use evaluate::{EvalOptions, Evaluation, evaluate};
pub use fvu::Fvu;
pub use loss::{LossSum, kl_per_token, loss_per_token, scored};
pub use report::{METRICS, Metric, Report};
pub use sparsity::Sparsity;
