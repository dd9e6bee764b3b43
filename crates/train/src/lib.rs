//! Training of sparse autoencoders.
mod adam;
mod error;
/// Warm-up and decay, as factors of a rate.
pub mod schedule;

pub use adam::{Adam, AdamOptions};
pub use error::{Result, TrainError};
