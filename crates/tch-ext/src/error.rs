use std::{io, path::Path};

use tch::TchError;

/// What can go wrong with a tensor or with a file of tensors. Every message names the file or the tensor at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// The file can't be opened, read or written.
    #[error("{file}: {source}")]
    Io {
        /// The path.
        file: String,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what its name promises: truncated, damaged, or of another format.
    #[error("{file}: {problem}")]
    Format {
        /// The path, with the member's name where there is one.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A tensor that must be there is not.
    #[error("{file}: tensor `{name}` is missing")]
    Missing {
        /// The path.
        file: String,
        /// The tensor's name.
        name: String,
    },
    /// Tensors that nothing asked for.
    #[error("{file}: unexpected tensor{} {}", if names.len() == 1 { "" } else { "s" }, list(names))]
    Unexpected {
        /// The path.
        file: String,
        /// The tensors' names.
        names: Vec<String>,
    },
    /// A tensor of the wrong shape.
    #[error("`{what}` must have shape {expected}, but has {got:?}")]
    Shape {
        /// The tensor, with its file where there is one.
        what: String,
        /// Axis names and sizes.
        expected: String,
        /// The sizes found.
        got: Vec<i64>,
    },
    /// A tensor of the wrong dtype.
    #[error("`{what}` must be {expected}, but is {got}")]
    Dtype {
        /// The tensor, with its file where there is one.
        what: String,
        /// The dtypes that would do.
        expected: String,
        /// The dtype found.
        got: String,
    },
    /// Rows or columns that a tensor does not have.
    #[error("`{what}` has {size} {axis}: {start} to {end} are not among them")]
    Range {
        /// The tensor, with its file where there is one.
        what: String,
        /// Of what.
        axis: &'static str,
        /// The first that was asked for.
        start: i64,
        /// The one behind the last.
        end: i64,
        /// How many there are.
        size: i64,
    },
    /// A tensor that holds NaN or infinity.
    #[error("`{what}` holds {count} NaN or infinite value{}", if *count == 1 { "" } else { "s" })]
    NotFinite {
        /// The tensor, with its file where there is one.
        what: String,
        /// How many entries.
        count: i64,
    },
    /// A name of a dtype or device that is none.
    #[error("{0}")]
    Name(String),
    /// A device that can't be used.
    #[error("{device} is not available: {problem}")]
    Device {
        /// The device.
        device: String,
        /// What stands in the way.
        problem: String,
    },
    /// There is no memory for a tensor.
    #[error("{what}: out of memory, {bytes} bytes could not be had")]
    Memory {
        /// The tensor, with its file where there is one.
        what: String,
        /// How many bytes were asked for.
        bytes: u64,
    },
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(String),
}

/// The result of this crate's functions.
pub type Result<T, E = TensorError> = std::result::Result<T, E>;

impl TensorError {
    /// The error for an operation of the system on `path`.
    pub fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { file: path.display().to_string(), source }
    }

    /// Says of an error that libtorch had no memory for whose sake that was; others pass through.
    #[must_use]
    pub fn for_tensor(self, what: &str) -> Self {
        match self {
            Self::Memory { bytes, .. } => Self::Memory { what: what.to_owned(), bytes },
            other => other,
        }
    }

    pub(crate) fn format(file: impl Into<String>, problem: impl Into<String>) -> Self {
        // A damaged file's own words may hold line breaks and worse.
        let one_line = |text: String| text.replace(char::is_control, "\u{FFFD}");
        Self::Format { file: one_line(file.into()), problem: one_line(problem.into()) }
    }
}

impl From<TchError> for TensorError {
    /// Keeps the first line: what follows it is a C++ backtrace that helps no user.
    fn from(error: TchError) -> Self {
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default();
        // What libtorch's allocator on the CPU says.
        if let Some((_, rest)) = line.split_once("you tried to allocate ") {
            let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
            if let Ok(bytes) = digits.parse() {
                return Self::Memory { what: "libtorch".to_owned(), bytes };
            }
        }
        Self::Torch(line.trim_start_matches("Internal torch error: ").trim_end_matches('.').to_owned())
    }
}

fn list(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let mut text = names.iter().take(SHOWN).map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text += &format!(" and {} more", names.len() - SHOWN);
    }
    text
}
