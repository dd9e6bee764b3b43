use sae_core::SaeError;
use tch::TchError;
use tch_ext::TensorError;

/// What can go wrong in training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A configuration that can't be trained.
    #[error("{0}")]
    Config(String),
    /// A loss that is not finite any more.
    #[error("the loss became {loss} at step {step}: lower the learning rate")]
    Diverged {
        /// The step.
        step: usize,
        /// The loss.
        loss: f64,
    },
    /// An SAE's error.
    #[error(transparent)]
    Sae(#[from] SaeError),
    /// A tensor's error, or a file's.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// The result of this crate's functions.
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

impl From<TchError> for TrainError {
    fn from(error: TchError) -> Self {
        Self::Tensor(error.into())
    }
}
