#![doc = include_str!("../README.md")]

pub mod load;
pub mod suite;
pub mod tiny;
pub mod training;

pub use activations;
pub use corpus;
pub use dashboard;
pub use eval;
pub use gemma_model as model;
pub use hooks;
pub use hub;
pub use sae_core as sae;
pub use tch;
pub use tch_ext as tensors;
pub use train;
