//! Training of sparse autoencoders: every architecture by its paper's loss and recipe, many from one stream.
//!
//! A [`Trainer`] takes batches of activations, divided by their [scale](config::Scale), and makes an SAE of them:
//!
//! ```
//! use tch::{Device, Kind, Tensor};
//! use train::{Trainer, recipe};
//!
//! let table = r#"
//!     recipe = "gemma-scope"
//!     d_in = 16
//!     d_sae = 64
//!     objective.lambda = 1e-3
//! "#;
//! let steps = 20;
//! let mut trainer = Trainer::new(recipe::configure(table.parse()?)?, steps, 1, Device::Cpu)?;
//! let scale = 12.5; // √(E‖x‖²) of the activations
//! for _ in 0..steps {
//!     let x = Tensor::f_randn([256, 16], (Kind::Float, Device::Cpu))?.f_div_scalar(4.0)?; // activations over their scale
//!     let stats = trainer.step(&x, None)?;
//!     assert!(stats.fvu.is_finite() && stats.l0 <= 64.0);
//! }
//! let sae = trainer.to_sae(scale, scale)?; // reads activations as they come
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! * [`config`] is every constant by name, [`recipe`] what the papers used.
//! * [`objective`] is each loss as its paper writes it, for automatic differentiation: the reference.
//! * [`sparse`] is the step that is taken instead for JumpReLU and the TopK family: no dense features, no gradient as large as the
//!   weights.
//! * [`run`] trains many SAEs from one stream, with metrics, checkpoints, and a resume that is exact to the last bit.
//!
//! Metrics are those of `eval`; nothing here defines one a second time.

mod adam;
pub mod config;
mod error;
mod export;
mod init;
pub mod objective;
mod params;
pub mod recipe;
mod resample;
pub mod run;
/// Warm-up and decay, as factors of a rate.
pub mod schedule;
pub mod sparse;
mod trainer;
mod update;

pub use adam::{Adam, AdamOptions};
pub use error::{Result, TrainError};
pub use params::Params;
pub use trainer::{Counts, StepStats, Trainer};
