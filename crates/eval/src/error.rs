use hooks::{HookError, HookPoint};
use sae_core::SaeError;
use tch::TchError;
use tch_ext::TensorError;

/// What can go wrong in an evaluation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvalError {
    /// An SAE that does not fit the site it is to be judged at.
    #[error("`{id}` reads {d_in} numbers a token, but `{site}` of this model has {width}")]
    Misfit {
        /// The SAE.
        id: String,
        /// The site.
        site: HookPoint,
        /// The SAE's width.
        d_in: i64,
        /// The site's.
        width: i64,
    },
    /// An SAE whose output does not fit the site at which it is to be put.
    #[error("`{id}` writes {d_out} numbers a token, but `{site}` of this model has {width}")]
    MisfitOut {
        /// The SAE.
        id: String,
        /// The site.
        site: HookPoint,
        /// The width of the output.
        d_out: i64,
        /// The site's.
        width: i64,
    },
    /// A transcoder where no other site was named for its output.
    #[error("a transcoder (d_in = {d_in}, d_out = {d_out}) can't replace the activation that it reads")]
    Transcoder {
        /// Width of its input.
        d_in: i64,
        /// Width of its output.
        d_out: i64,
    },
    /// An output put before what it was computed from.
    #[error("`{id}` reads `{site}`, but is to be put at `{site_out}`, which comes before it")]
    Backwards {
        /// The SAE.
        id: String,
        /// The site that it reads.
        site: HookPoint,
        /// The site of its output.
        site_out: HookPoint,
    },
    /// A site behind the blocks, or without a row of numbers for each position.
    #[error("no SAE can be spliced in at `{0}`: it lies behind the blocks, or has no row for each position")]
    Site(HookPoint),
    /// A site whose mean was not taken.
    #[error("the mean activation at `{0}` is not known: it must be taken before an evaluation there")]
    NoMean(HookPoint),
    /// Two SAEs of one name.
    #[error("`{0}` is there twice")]
    Twice(String),
    /// No SAE to judge.
    #[error("there is no SAE to evaluate")]
    NoSae,
    /// No loss to judge by.
    #[error("no position counts whose next counts as well: there is no loss to judge by")]
    Empty,
    /// Accumulators of different things.
    #[error("{0} can't be merged")]
    Merge(String),
    /// A number that is none.
    #[error("{0} is not finite, so no metric can be")]
    NotFinite(&'static str),
    /// What went wrong while one of several SAEs was judged.
    #[error("`{id}`: {source}")]
    Judging {
        /// The SAE.
        id: String,
        /// What went wrong.
        source: Box<Self>,
    },
    /// Labels that do not fit the tokens.
    #[error("{0}")]
    Subsets(String),
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
