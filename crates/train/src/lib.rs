//! Training of sparse autoencoders, as Gemma Scope trained its own.
//!
//! [`JumpReluTrainer`] takes rows of activations and makes an SAE of them:
//!
//! ```no_run
//! use tch::{Device, Kind, Tensor};
//! use train::{JumpReluConfig, JumpReluTrainer};
//! let scale = 12.5; // √(mean ‖x‖²) of the activations
//! let mut trainer = JumpReluTrainer::new(JumpReluConfig::gemma_scope(256, 2048, 20_000, 1e-3), 1)?;
//! for _ in 0..20_000 {
//!     let x = Tensor::f_randn([4096, 256], (Kind::Float, Device::Cpu))?; // activations, divided by the scale
//!     let stats = trainer.step(&x)?;
//!     println!("L0 {:.1}", stats.l0);
//! }
//! let sae = trainer.to_sae(scale)?; // reads activations as they come
//! # Ok::<(), train::TrainError>(())
//! ```
//!
//! Metrics live in `eval`; nothing here defines one a second time.

mod adam;
/// How an SAE is trained.
pub mod config;
mod error;
mod jumprelu;
pub mod objective;
mod params;
/// Warm-up and decay, as factors of a rate.
pub mod schedule;
mod trainer;

pub use adam::{Adam, AdamOptions};
pub use error::{Result, TrainError};
pub use jumprelu::{Gradients, Parameters, gradients};
pub use params::Params;
pub use trainer::{JumpReluConfig, JumpReluTrainer, StepStats};
