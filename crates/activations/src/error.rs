use hooks::{BoxError, HookError, HookPoint};
use tch::TchError;
use tch_ext::TensorError;

use crate::Cursor;

/// What can go wrong between a text and a batch of activations.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActivationError {
    /// A site without a row of numbers for each position.
    #[error("`{0}` has no row of numbers for each position, so no stream can be made of it")]
    Site(HookPoint),
    /// A site asked for twice.
    #[error("`{0}` is asked for twice")]
    Twice(HookPoint),
    /// Nothing asked for.
    #[error("there is no site to stream")]
    NoSites,
    /// A site that a harvest does not hold.
    #[error("{place}: `{site}` was not harvested, only {}", list(stored))]
    NotStored {
        /// The folder.
        place: String,
        /// The site asked for.
        site: HookPoint,
        /// The sites that are there.
        stored: Vec<HookPoint>,
    },
    /// Rows that do not belong together.
    #[error("{0}")]
    Rows(String),
    /// Whatever gives the tokens failed.
    #[error("the text failed: {0}")]
    Text(BoxError),
    /// A text in which nothing counts.
    #[error("no position of the text counts, so there is nothing to stream")]
    Empty,
    /// A text that is not the same in every epoch.
    #[error("the text has {now} token batches in epoch {epoch}, but had {before}: it must not change")]
    Changed {
        /// Counted from 0.
        epoch: u64,
        /// Token batches of that epoch.
        now: u64,
        /// Of the epochs before.
        before: u64,
    },
    /// A place that a source does not have.
    #[error("{what} can't be taken up at row {} of chunk {}: {problem}", at.row, at.chunk)]
    Seek {
        /// The source.
        what: String,
        /// The place asked for.
        at: Cursor,
        /// What is wrong with it.
        problem: String,
    },
    /// An option out of its range.
    #[error("{0}")]
    Options(String),
    /// What was begun with other settings.
    #[error("{what} was begun with another `{setting}`: {found} there, {asked} here")]
    Settings {
        /// The folder, or the mixer's state.
        what: String,
        /// The setting that differs.
        setting: &'static str,
        /// Its value there.
        found: String,
        /// The value asked for.
        asked: String,
    },
    /// A manifest that is none, or that contradicts itself.
    #[error("{file}: {problem}")]
    Manifest {
        /// The manifest.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A shard that is not what its manifest says. None of its rows is given out.
    #[error("{file}: {problem}")]
    Shard {
        /// The shard.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file that is not there.
    #[error("{file} is not there")]
    Missing {
        /// The file.
        file: String,
    },
    /// The storage refused: a full disk, no permission, no connection.
    #[error("{file}: {problem}")]
    Storage {
        /// The file, or the storage itself.
        file: String,
        /// What it said.
        problem: String,
    },
    /// A thread of ours that ended without a word.
    #[error("the thread that {0} ended unexpectedly")]
    Thread(&'static str),
    /// A model's or a hook's error.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// A tensor's error.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// The result of this crate's functions.
pub type Result<T, E = ActivationError> = std::result::Result<T, E>;

impl From<TchError> for ActivationError {
    fn from(error: TchError) -> Self {
        Self::Tensor(error.into())
    }
}

/// Another's words in one line, without the full stop.
pub(crate) fn one_line(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.replace(char::is_control, "\u{FFFD}").trim_end_matches('.').to_owned()
}

fn list(sites: &[HookPoint]) -> String {
    sites.iter().map(|site| format!("`{site}`")).collect::<Vec<_>>().join(", ")
}
