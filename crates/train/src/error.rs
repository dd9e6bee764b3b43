use std::path::PathBuf;

use activations::ActivationError;
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
    /// Activations that are not finite.
    #[error("the activations of step {step} are not finite, or too large to be squared")]
    Activations {
        /// The step, counted from 1.
        step: u64,
    },
    /// A loss that is not finite any more, or far worse than it began.
    #[error("training diverged at step {step}: {cause}; a lower learning rate may help")]
    Diverged {
        /// The step, counted from 1.
        step: u64,
        /// What was seen.
        cause: String,
    },
    /// What went wrong with one SAE of a run.
    #[error("{sae}: {source}")]
    In {
        /// Its name.
        sae: String,
        /// What went wrong.
        source: Box<Self>,
    },
    /// What went wrong where a run called its user.
    #[error(transparent)]
    Watch(Box<dyn std::error::Error + Send + Sync>),
    /// The stream's.
    #[error(transparent)]
    Stream(#[from] ActivationError),
    /// A checkpoint that can't be taken up.
    #[error("{}: {problem}", path.display())]
    Checkpoint {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
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
