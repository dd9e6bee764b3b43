use hooks::{HookError, HookPoint};
use sae_core::SaeError;
use tch::TchError;
use tch_ext::TensorError;

/// What can go wrong in an evaluation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// An SAE that does not fit the site it is to be judged at.
    #[error("the SAE reads {d_in} numbers a token, but `{site}` of this model has {width}")]
    Misfit {
        /// The site.
        site: HookPoint,
        /// The SAE's width.
        d_in: i64,
        /// The site's.
        width: i64,
    },
    /// A site behind the blocks, or without a row of numbers for each position.
    #[error("no SAE can be spliced in at `{0}`: it lies behind the blocks, or has no row for each position")]
    Site(HookPoint),
    /// An SAE whose output is no replacement for its input.
    #[error("a transcoder (d_in = {d_in}, d_out = {d_out}) can't replace the activation that it reads")]
    Transcoder {
        /// Width of its input.
        d_in: i64,
        /// Width of its output.
        d_out: i64,
    },
    /// No loss to judge by.
    #[error("no position counts whose next counts as well: there is no loss to judge by")]
    Empty,
    /// Accumulators of different things.
    #[error("{0} can't be merged")]
    Merge(String),
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
pub type Result<T, E = EvalError> = std::result::Result<T, E>;

impl From<TchError> for EvalError {
    fn from(error: TchError) -> Self {
        Self::Tensor(error.into())
    }
}
