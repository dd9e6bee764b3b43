//! Training runs as a configuration file describes them: text through a model, or harvested shards, into any number of SAEs at once.
//!
//! [`File`] is the configuration, [`Training`] what carries it out in a folder, and can go on from there after a stop or a kill.

mod evaluate;
mod export;
mod file;
mod run;
mod settings;
mod source;

use std::path::PathBuf;

use activations::ActivationError;
use eval::EvalError;
use gemma_model::ModelError;
use hooks::HookError;
use sae_core::SaeError;
use tch_ext::TensorError;
use train::TrainError;

use crate::{load::LoadError, suite::SuiteError};

pub use export::Exported;
pub use file::{Data, EvalTable, File, RunTable};
pub use run::{Outcome, Training, model_fingerprint};
pub use source::TextSource;

/// What can go wrong in a training run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainingError {
    /// A configuration, or another file of a run, that can't be.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A key that can't be set so.
    #[error("{key}: {what}")]
    Set {
        /// The key.
        key: String,
        /// What is wrong with its value.
        what: String,
    },
    /// A folder that holds another run, or already holds one.
    #[error("{}: {problem}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What is in the way.
        problem: String,
    },
    /// A configuration that needs a model, where none was given.
    #[error("a model is needed: its text gives the activations")]
    NoModel,
    /// The training's.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The stream's.
    #[error(transparent)]
    Activations(#[from] ActivationError),
    /// A text's.
    #[error(transparent)]
    Corpus(#[from] corpus::CorpusError),
    /// An evaluation's.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// The evaluation's text.
    #[error(transparent)]
    Suite(#[from] SuiteError),
    /// A name's error.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A model's.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A hook point's.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// An SAE's.
    #[error(transparent)]
    Sae(#[from] SaeError),
    /// libtorch's.
    #[error(transparent)]
    Tch(#[from] tch::TchError),
    /// A tensor's, or a file's.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// The result of this module's functions.
pub type Result<T, E = TrainingError> = std::result::Result<T, E>;
