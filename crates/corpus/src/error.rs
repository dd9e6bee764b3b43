use std::{fmt, io, path::Path};

pub use hooks::BoxError;
use hooks::HookError;

/// What can go wrong between a file of texts and a batch of tokens.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CorpusError {
    /// The system's error about a file.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// What the system says.
        source: io::Error,
    },
    /// A file that can't be read as what its name says.
    #[error("{file}: {problem}")]
    File {
        /// The file.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A record that holds no document.
    #[error("{file}, {unit} {number}: {problem}")]
    Record {
        /// The file.
        file: String,
        /// What its records are called.
        unit: Unit,
        /// Which record, from 1.
        number: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// A document that the tokenizer can't encode.
    #[error("document {number}: {source}")]
    Encode {
        /// Which document of the stream, from 1.
        number: u64,
        /// What the tokenizer says.
        source: BoxError,
    },
    /// A request for rows or batches that can't be.
    #[error("{0}")]
    Request(String),
    /// A batch's own error.
    #[error(transparent)]
    Hook(#[from] HookError),
}

/// What a file's records are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unit {
    /// Of a file of text, from 1.
    Line,
    /// Of a table, or of a file of token ids, from 1.
    Row,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Line => "line",
            Self::Row => "row",
        })
    }
}

/// The result of this crate's functions.
pub type Result<T, E = CorpusError> = std::result::Result<T, E>;

/// How a file is called in messages.
pub(crate) fn file_name(path: &Path) -> String {
    one_line(&path.display().to_string())
}

/// A text of somebody else's, which may hold line breaks and worse, for a message of one line.
pub(crate) fn one_line(text: &str) -> String {
    text.replace(char::is_control, "\u{FFFD}")
}

/// The beginning of a text of the file's, for a message.
pub(crate) fn shown(text: &str) -> String {
    const SHOWN: usize = 40;
    let mut start: String = text.chars().take(SHOWN).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    one_line(&start)
}
