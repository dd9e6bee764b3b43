//! Training of sparse autoencoders.
mod adam;
mod error;
pub mod schedule;

pub use adam::{Adam, AdamOptions};
pub use error::{Result, TrainError};
