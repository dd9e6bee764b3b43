use hooks::HookError;
use tch::TchError;
use tch_ext::TensorError;

/// What can go wrong with an SAE, its files or its input.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SaeError {
    /// An input that is not as wide as the SAE.
    #[error("{what} must have {expected} entries in its last axis, but has shape {got:?}")]
    Width {
        /// The tensor.
        what: &'static str,
        /// `d_in = 2304`, or the like.
        expected: String,
        /// The sizes found.
        got: Vec<i64>,
    },
    /// A latent that the SAE does not have.
    #[error("latent {feature} is out of range: the SAE has {d_sae}")]
    Feature {
        /// The latent.
        feature: usize,
        /// How many there are.
        d_sae: i64,
    },
    /// A range of rows, columns or latents that is not there.
    #[error("{start}..{end} is out of range: there are {size}")]
    Range {
        /// The first.
        start: i64,
        /// One past the last.
        end: i64,
        /// How many there are.
        size: i64,
    },
    /// Parts that make no SAE.
    #[error("{0}")]
    Parts(String),
    /// Sparse features that contradict themselves.
    #[error("sparse features: {0}")]
    Sparse(String),
    /// A text that names no released SAE.
    #[error("`{text}` is no Gemma Scope SAE: {problem}")]
    Id {
        /// The text.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// What was asked of the catalogue, and is not in it.
    #[error("{0}")]
    Catalogue(String),
    /// A file of parameters that is not the format it should be.
    #[error("{file}: {problem}")]
    File {
        /// The path.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A law of the conformance suite that an architecture breaks.
    #[error("conformance: {0}")]
    Law(String),
    /// A hook's error.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// A tensor's error, or a file's.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// The result of this crate's functions.
pub type Result<T, E = SaeError> = std::result::Result<T, E>;

impl From<TchError> for SaeError {
    fn from(error: TchError) -> Self {
        Self::Tensor(error.into())
    }
}
