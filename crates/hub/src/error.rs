use std::{convert::Infallible, fmt, io, path::PathBuf};

use crate::RepoId;

/// Why a file could not be had.
///
/// Each message is one sentence that names the repository and the file, and says what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A name that cannot be that of a repository; no request was made.
    #[error("{name:?} is not a repository of the hub: {reason} (expected org/name or org/name@revision)")]
    InvalidRepo {
        /// The name as it was given.
        name: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// A path that cannot be that of a file inside a repository; no request was made.
    #[error("{file:?} is not a file of a repository: {reason}")]
    InvalidFile {
        /// The path as it was given, or as an index of shards names it.
        file: String,
        /// The rule that it breaks.
        reason: &'static str,
    },
    /// An option or environment variable with a value that cannot be used.
    #[error("{option} cannot be used: {reason}")]
    InvalidOption {
        /// The name of the option, or of the environment variable.
        option: &'static str,
        /// What is wrong with its value; never the value of a token.
        reason: String,
    },
    /// The repository is gated and there is no token.
    #[error("{repo} is gated: accept its licence on the hub and set HF_TOKEN")]
    Gated {
        /// The repository.
        repo: RepoId,
    },
    /// The hub does not know the token.
    #[error(
        "the hub rejected the token when asked for {repo}: set HF_TOKEN to a valid token, or remove it for a public repository"
    )]
    TokenRejected {
        /// The repository that was asked for.
        repo: RepoId,
    },
    /// The hub knows the token, and its account may not read the repository.
    #[error(
        "the token has no access to {repo}{}: accept its licence on the hub with the account of this token, or set HF_TOKEN to a token that may read it",
        Said(message)
    )]
    NoAccess {
        /// The repository.
        repo: RepoId,
        /// What the hub said to it; may be empty.
        message: String,
    },
    /// There is no such repository, or it is private and the hub does not say so.
    #[error(
        "{repo} is not on the hub: check its name and, if it is private, set HF_TOKEN to a token that may read it"
    )]
    RepoNotFound {
        /// The repository.
        repo: RepoId,
    },
    /// The repository has no such branch, tag or commit.
    #[error("{repo} has no revision {revision:?}: check the name of the branch, tag or commit after the @")]
    RevisionNotFound {
        /// The repository.
        repo: RepoId,
        /// The branch, tag or commit.
        revision: String,
    },
    /// The repository has no such file.
    #[error("{repo} has no file {file:?}: {}", Near(near))]
    FileNotFound {
        /// The repository.
        repo: RepoId,
        /// The file.
        file: String,
        /// Files of the repository with a similar name, the nearest first; may be empty.
        near: Vec<String>,
    },
    /// The repository has no weights in safetensors, whole or sharded.
    #[error(
        "{repo} has neither model.safetensors nor model.safetensors.index.json: only models with weights in safetensors can be used"
    )]
    NoWeights {
        /// The repository.
        repo: RepoId,
    },
    /// The index of shards is not what its name promises.
    #[error("{} is not an index of shards ({reason}): delete it to fetch it again", path.display())]
    BadIndex {
        /// Where the index lies in the cache.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The hub is offline and the cache lacks what was asked for.
    #[error(
        "{what} of {repo} is not in the cache at {} and the hub is offline: fetch it once with HF_HUB_OFFLINE unset",
        cache_dir.display()
    )]
    Offline {
        /// The repository.
        repo: RepoId,
        /// The file, or "the list of files".
        what: String,
        /// The cache folder.
        cache_dir: PathBuf,
    },
    /// No answer: connection refused, no such host, a timeout, a failed handshake.
    #[error(
        "no answer from {host} when asked for {repo} ({reason}): check the connection, the proxy and HF_ENDPOINT"
    )]
    Network {
        /// The repository that was asked for.
        repo: RepoId,
        /// The host, with its port.
        host: String,
        /// What the connection said.
        reason: String,
    },
    /// The download broke off, also after retries; what arrived is kept and the next call goes on from there.
    #[error("the download of {file} from {repo} stopped at byte {done} of {} ({reason}): run it again to go on from there", Total(*total))]
    Interrupted {
        /// The repository.
        repo: RepoId,
        /// The file.
        file: String,
        /// How many bytes lie in the cache.
        done: u64,
        /// How many bytes the file has, where the hub says so.
        total: Option<u64>,
        /// What the connection said.
        reason: String,
    },
    /// What arrived is not what the hub announced; it was deleted.
    #[error(
        "{file} of {repo} arrived damaged ({reason}) and was deleted: run it again, and check HF_ENDPOINT and the proxy if it stays so"
    )]
    Damaged {
        /// The repository.
        repo: RepoId,
        /// The file.
        file: String,
        /// Length or hash: announced and received.
        reason: String,
    },
    /// No space left (or no quota) for the cache.
    #[error("no space is left to write {}: free some, or set HF_HUB_CACHE to a folder on another disk", path.display())]
    DiskFull {
        /// The file that could not be written.
        path: PathBuf,
    },
    /// The cache folder cannot be read or written.
    #[error("{} cannot be {action} ({error}): check its permissions, or set HF_HUB_CACHE to another folder", path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// What was tried: "created", "written", "locked" …
        action: &'static str,
        /// What the operating system said. Part of the message, so no `source`.
        error: io::Error,
    },
    /// An answer that cannot be understood, such as the page of a captive portal or a broken mirror.
    #[error(
        "the answer of {host} about {repo} makes no sense ({reason}): check HF_ENDPOINT and the proxy, or try again later"
    )]
    BadAnswer {
        /// The repository that was asked for.
        repo: RepoId,
        /// The host, with its port.
        host: String,
        /// What is wrong with the answer.
        reason: String,
    },
    /// The hub fails with a status 5xx, also after retries.
    #[error("{host} failed with status {status} when asked for {repo}, also after retries: try again later")]
    Server {
        /// The repository that was asked for.
        repo: RepoId,
        /// The host, with its port.
        host: String,
        /// The HTTP status.
        status: u16,
    },
    /// Too many requests (429), also after retries.
    #[error(
        "{host} refused the request for {repo} as one too many: wait some minutes, or set HF_TOKEN for a higher limit"
    )]
    RateLimited {
        /// The repository that was asked for.
        repo: RepoId,
        /// The host, with its port.
        host: String,
    },
    /// Any other status that is no success.
    #[error("{host} refused the request for {repo} with status {status}{}", Said(message))]
    Refused {
        /// The repository that was asked for.
        repo: RepoId,
        /// The host, with its port.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What the hub said to it; may be empty.
        message: String,
    },
}

impl HubError {
    /// Turns a failure of the file system into the error for a full disk or for an unusable cache.
    pub(crate) fn cache(path: impl Into<PathBuf>, action: &'static str, error: io::Error) -> Self {
        let path = path.into();
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path },
            _ => Self::Cache { path, action, error },
        }
    }

    /// Whether the hub could not be asked, as opposed to having said no.
    pub(crate) fn is_outage(&self) -> bool {
        matches!(self, Self::Network { .. } | Self::Server { .. } | Self::RateLimited { .. })
    }
}

/// So that functions can take anything that turns into a [`RepoId`], a `RepoId` itself included.
impl From<Infallible> for HubError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

struct Near<'a>(&'a [String]);

impl fmt::Display for Near<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("check the path on the page of the repository"),
            names => write!(f, "the nearest names are {}", names.join(", ")),
        }
    }
}

struct Total(Option<u64>);

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(total) => total.fmt(f),
            None => f.write_str("an unknown number"),
        }
    }
}

struct Said<'a>(&'a str);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.0.trim_end_matches('.')) }
    }
}
