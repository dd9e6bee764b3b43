use eval::EvalError;
use hooks::{HookError, HookPoint};
use sae_core::SaeError;
use tch::TchError;
use tch_ext::TensorError;

/// What can go wrong in an analysis or its page.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DashboardError {
    /// Nothing to look with.
    #[error("give at least one SAE to analyze with")]
    NoSae,
    /// Nothing to draw.
    #[error("give at least one report to draw")]
    NoReport,
    /// Texts that are not those of the batch.
    #[error("{prompts} prompts were given for a batch of {batch} sequences")]
    Prompts {
        /// How many texts.
        prompts: usize,
        /// How many sequences.
        batch: i64,
    },
    /// Pieces that are not those of the sequence.
    #[error("prompt {prompt} has {pieces} pieces, but its sequence has {tokens} tokens (padding left out)")]
    Pieces {
        /// Which, counted from 0.
        prompt: usize,
        /// How many pieces.
        pieces: usize,
        /// How many tokens.
        tokens: usize,
    },
    /// An SAE that does not fit its site.
    #[error("the SAE `{id}` reads {d_in} numbers a token, but `{site}` of this model has {width}")]
    Misfit {
        /// The SAE.
        id: String,
        /// The site.
        site: HookPoint,
        /// What the SAE reads.
        d_in: i64,
        /// What the site has.
        width: i64,
    },
    /// A site that no SAE can read.
    #[error("`{site}` has no position axis: the SAE `{id}` can't read it token by token")]
    Site {
        /// The SAE.
        id: String,
        /// The site.
        site: HookPoint,
    },
    /// An analysis that contradicts itself, as one read from an edited file may.
    #[error("the analysis can't be drawn: {0}")]
    Analysis(String),
    /// JSON that could not be written.
    #[error("the page's data can't be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// A metric's error.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// A model's or a hook's error.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// An SAE's error.
    #[error(transparent)]
    Sae(#[from] SaeError),
    /// A tensor's error.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// The result of this crate's functions.
pub type Result<T, E = DashboardError> = std::result::Result<T, E>;

impl From<TchError> for DashboardError {
    fn from(error: TchError) -> Self {
        Self::Tensor(error.into())
    }
}
