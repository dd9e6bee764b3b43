//! Suites: many SAEs judged on one text, however many fit into memory at a time, in an evaluation that can be killed and gone on
//! with, or divided among machines.
//!
//! [`Text`] is what they are judged on, [`Run`] judges, and a [`Part`] is what one run came to: the exact sums of its share of the
//! text. [`Part::merge`] joins the shares, and [`Part::reports`] are the same to the last digit however the work was divided.

mod entry;
mod fingerprint;
mod folder;
mod part;
mod run;
mod text;

use std::path::PathBuf;

use eval::EvalError;
use gemma_model::ModelError;
use hooks::{HookError, HookPoint};
use sae_core::SaeError;
use tch_ext::TensorError;

use crate::load::LoadError;

pub use entry::{Entry, SaeDtype};
pub use fingerprint::fingerprint;
pub use part::{Part, Setting, Shard};
pub use run::{Progress, Run};
pub use text::{Encoder, Text};

/// What can go wrong in a suite.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SuiteError {
    /// A text that is no share of a suite.
    #[error("`{0}` is no shard: expected i/n with 1 ≤ i ≤ n, such as 3/16")]
    Shard(String),
    /// An SAE that is named twice.
    #[error("`{0}` is asked for twice")]
    Twice(String),
    /// An SAE that is to be judged at another site than it says it reads.
    #[error("{id} reads `{told}`, and not `{asked}`: a hook point is given for SAEs that do not tell")]
    OtherSite {
        /// The SAE.
        id: String,
        /// The site that it reads.
        told: HookPoint,
        /// The site that was asked for.
        asked: HookPoint,
    },
    /// A transcoder whose output has no known place.
    #[error(
        "{0}: it is a transcoder, and neither its path nor its files tell which activation its output estimates"
    )]
    UnknownOutput(String),
    /// A folder of another evaluation.
    #[error("{}: belongs to an evaluation with another `{key}` ({there}, and not {here})", path.display())]
    Other {
        /// The file that says so.
        path: PathBuf,
        /// What differs.
        key: String,
        /// What it is there.
        there: String,
        /// What it is here.
        here: String,
    },
    /// Shares that are not all of one evaluation.
    #[error("the parts can't be merged: {0}")]
    Merge(String),
    /// A file that holds something else.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A name's error.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The evaluation's.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// The text's.
    #[error(transparent)]
    Corpus(#[from] corpus::CorpusError),
    /// A tokenizer's.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// An SAE's.
    #[error(transparent)]
    Sae(#[from] SaeError),
    /// A hook point's.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// libtorch's.
    #[error(transparent)]
    Tch(#[from] tch::TchError),
    /// A tensor's, or a file's.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// The result of this module's functions.
pub type Result<T, E = SuiteError> = std::result::Result<T, E>;
