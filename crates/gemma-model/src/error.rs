use hooks::HookError;
use tch::TchError;
use tch_ext::TensorError;

/// What can go wrong with a model's files, its configuration, its tokenizer or its input.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A configuration that is not Gemma 2's, or that this crate does not implement.
    #[error("{file}: {problem}")]
    Config {
        /// The path.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A tokenizer file that can't be used.
    #[error("{file}: {problem}")]
    Tokenizer {
        /// The path.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A text that can't be tokenized, or ids that can't be decoded.
    #[error("{0}")]
    Text(String),
    /// Blocks that the model does not have.
    #[error("blocks {start}..{end} are out of range: the model has {n_layers}")]
    Blocks {
        /// The first block.
        start: usize,
        /// The first block after them.
        end: usize,
        /// How many there are.
        n_layers: usize,
    },
    /// A part of the vocabulary that the model does not have.
    #[error("tokens {start}..{end} are out of range: the vocabulary has {d_vocab}")]
    Vocabulary {
        /// The first token.
        start: usize,
        /// The first token after them.
        end: usize,
        /// How many there are.
        d_vocab: usize,
    },
    /// A cache of keys and values that does not fit.
    #[error("the cache {0}")]
    Cache(String),
    /// A way of generating that is none.
    #[error("{0}")]
    Generate(String),
    /// A hook's error, or one of a batch of tokens.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// A tensor's error, or a weight file's.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// The result of this crate's functions.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

/// A file's own words may hold line breaks and worse; a message is one line.
pub(crate) fn one_line(text: &str) -> String {
    text.replace(char::is_control, "\u{FFFD}")
}

impl From<TchError> for ModelError {
    fn from(error: TchError) -> Self {
        Self::Tensor(error.into())
    }
}

impl From<ModelError> for HookError {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Hook(error) => error,
            ModelError::Tensor(error) => Self::Tensor(error),
            other => Self::Model(Box::new(other)),
        }
    }
}
