use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    HubError, HubOptions, RepoId,
    cache::{RepoCache, is_commit},
    download::Download,
    nearest::nearest,
    repo_id::check_file,
    wire::{Subject, Wire},
};

/// How far the download of a file has come; see [`Hub::with_progress`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Progress<'a> {
    /// The repository.
    pub repo: &'a RepoId,
    /// The file.
    pub file: &'a str,
    /// The bytes that lie in the cache, those of earlier calls included. Goes back to 0 if the server cannot resume.
    pub done: u64,
    /// The bytes that the file has, where the hub says so.
    pub total: Option<u64>,
}

type OnProgress = Arc<dyn Fn(Progress<'_>) + Send + Sync>;

/// The hub and its cache. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Hub {
    cache_dir: PathBuf,
    offline: bool,
    pub(crate) wire: Wire,
    progress: Option<OnProgress>,
}

/// A repository at one commit, as the hub describes it.
pub(crate) struct Description {
    pub(crate) commit: String,
    /// Sorted.
    pub(crate) files: Vec<String>,
}

impl Hub {
    /// The hub as the environment describes it, by the rules of Python's `huggingface_hub`.
    ///
    /// | variable | meaning | unless set |
    /// |---|---|---|
    /// | `HF_HUB_CACHE` | the cache folder | `HF_HOME/hub` |
    /// | `HF_HOME` | the folder of cache and token | `XDG_CACHE_HOME/huggingface`, `~/.cache/huggingface` |
    /// | `HF_TOKEN` | the token | the file `HF_TOKEN_PATH`, else `HF_HOME/token` |
    /// | `HF_ENDPOINT` | the hub or a mirror | the public hub |
    /// | `HF_HUB_OFFLINE` | `1`, `on`, `yes` or `true`: never touch the network | online |
    ///
    /// `HTTPS_PROXY`, `ALL_PROXY`, `HTTP_PROXY` and `NO_PROXY` mean what they mean elsewhere.
    /// No other function of this crate reads the environment.
    ///
    /// # Errors
    /// [`HubError::InvalidOption`] where a variable cannot be used, or there is no home folder and no `HF_HOME`.
    pub fn from_env() -> Result<Self, HubError> {
        Self::build(&HubOptions::from_env()?, ureq::Proxy::try_from_env())
    }

    /// The hub with explicit options, without a proxy, and without a look at the environment.
    ///
    /// # Errors
    /// [`HubError::InvalidOption`] where the endpoint or the token cannot be used.
    pub fn new(options: HubOptions) -> Result<Self, HubError> {
        Self::build(&options, None)
    }

    fn build(options: &HubOptions, proxy: Option<ureq::Proxy>) -> Result<Self, HubError> {
        Ok(Self {
            cache_dir: options.cache_dir.clone(),
            offline: options.offline,
            wire: Wire::new(options, proxy)?,
            progress: None,
        })
    }

    /// The same hub, offline or not: offline, what the cache lacks is [`HubError::Offline`].
    #[must_use]
    pub fn with_offline(mut self, offline: bool) -> Self {
        self.offline = offline;
        self
    }

    /// The same hub, calling `progress` in the course of every download: when it starts and after each piece.
    #[must_use]
    pub fn with_progress(mut self, progress: impl Fn(Progress<'_>) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(progress));
        self
    }

    /// The folder of the cache.
    #[must_use]
    pub fn cache_dir(&self) -> &Path {
        &self.cache_dir
    }

    /// Whether the network is never touched.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.offline
    }

    /// The path of one file, `layer_20/width_16k/average_l0_71/params.npz` for example, fetched unless the cache has it.
    ///
    /// # Errors
    /// Every [`HubError`] but [`HubError::NoWeights`] and [`HubError::BadIndex`].
    pub fn file(
        &self,
        repo: impl TryInto<RepoId, Error: Into<HubError>>,
        file: &str,
    ) -> Result<PathBuf, HubError> {
        let repo = repo.try_into().map_err(Into::into)?;
        Ok(self.snapshot(&repo, &[file])?.join(file))
    }

    /// The folder that holds the named files, all of the same commit; those that the cache lacks are fetched.
    ///
    /// The folder may hold other files of the commit, from earlier calls.
    ///
    /// # Errors
    /// As [`file`](Self::file); one file that is missing is enough.
    pub fn repo(
        &self,
        repo: impl TryInto<RepoId, Error: Into<HubError>>,
        files: &[&str],
    ) -> Result<PathBuf, HubError> {
        self.snapshot(&repo.try_into().map_err(Into::into)?, files)
    }

    /// The paths of all files that the repository has on the hub today, sorted.
    ///
    /// # Errors
    /// Always [`HubError::Offline`] when offline, since the cache need not hold all files.
    pub fn list(&self, repo: impl TryInto<RepoId, Error: Into<HubError>>) -> Result<Vec<String>, HubError> {
        let repo = repo.try_into().map_err(Into::into)?;
        if self.offline {
            return Err(self.offline_error(&repo, "the list of files"));
        }
        Ok(self.describe(&repo)?.files)
    }

    /// See [`repo`](Self::repo).
    pub(crate) fn snapshot(&self, repo: &RepoId, files: &[&str]) -> Result<PathBuf, HubError> {
        files.iter().try_for_each(|file| check_file(file))?;
        let cache = self.cache(repo);
        let known = cache.commit();
        if let Some(commit) = &known
            && !files.is_empty()
            && files.iter().all(|file| cache.has(commit, file))
        {
            return Ok(cache.snapshot(commit));
        }
        if self.offline {
            let lacks = |file: &&&str| known.as_ref().is_none_or(|commit| !cache.has(commit, file));
            return match (files.iter().find(lacks), known.as_ref()) {
                (None, Some(commit)) => Ok(cache.snapshot(commit)),
                (file, _) => Err(self.offline_error(repo, file.unwrap_or(&"the commit"))),
            };
        }
        let error = match self.fetch(repo, &cache, known.as_deref(), files) {
            Ok(folder) => return Ok(folder),
            Err(error @ (HubError::FileNotFound { .. } | HubError::RevisionNotFound { .. })) => error,
            Err(error) => return Err(error),
        };
        // The branch may have moved since its commit was cached; otherwise the names help to find the mistake.
        match self.describe(repo) {
            Err(described @ HubError::RevisionNotFound { .. }) => Err(described),
            Err(_) => Err(error),
            Ok(now) if known.as_ref().is_some_and(|known| *known != now.commit) => self
                .fetch(repo, &cache, Some(&now.commit), files)
                .map_err(|error| with_near_names(error, &now.files)),
            Ok(now) => Err(with_near_names(error, &now.files)),
        }
    }

    /// Fetches what the cache lacks of the commit, or where none is given of the commit that the revision has now.
    pub(crate) fn fetch(
        &self,
        repo: &RepoId,
        cache: &RepoCache,
        commit: Option<&str>,
        files: &[&str],
    ) -> Result<PathBuf, HubError> {
        let mut commit = match (commit, files) {
            (Some(commit), _) => Some(commit.to_owned()),
            (None, []) => Some(self.describe(repo)?.commit),
            (None, _) => None,
        };
        for file in files {
            let at = commit.as_deref().unwrap_or(repo.revision());
            if !is_commit(at) || !cache.has(at, file) {
                commit = Some(self.download(repo, cache, file, at)?);
            }
        }
        // Last, so that a branch never stands at a commit whose files could not be had.
        let commit = commit.unwrap_or_default();
        cache.set_commit(&commit)?;
        Ok(cache.snapshot(&commit))
    }

    /// Fetches one file at a branch, tag or commit, and returns the commit.
    pub(crate) fn download(
        &self,
        repo: &RepoId,
        cache: &RepoCache,
        file: &str,
        at: &str,
    ) -> Result<String, HubError> {
        let progress = |progress: Progress<'_>| {
            if let Some(callback) = &self.progress {
                callback(progress);
            }
        };
        Download { wire: &self.wire, cache, progress: &progress, repo, file }.fetch(at)
    }

    /// Asks the hub what the repository holds at its revision today.
    pub(crate) fn describe(&self, repo: &RepoId) -> Result<Description, HubError> {
        let subject = Subject { repo, at: repo.revision(), file: None };
        let answer = self.wire.document(&self.wire.info_url(subject)).and_then(|bytes| {
            let info: hf_hub::api::RepoInfo = serde_json::from_slice(&bytes)
                .map_err(|error| self.wire.nonsense(format!("the list of files: {error}")))?;
            if is_commit(&info.sha) {
                Ok(info)
            } else {
                Err(self.wire.nonsense(format!("the commit {:?}", info.sha)))
            }
        });
        let info = answer.map_err(|fault| self.wire.explain(fault, subject))?;
        let mut files: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
        files.sort();
        Ok(Description { commit: info.sha, files })
    }

    pub(crate) fn cache(&self, repo: &RepoId) -> RepoCache {
        RepoCache::new(&self.cache_dir, repo)
    }

    pub(crate) fn offline_error(&self, repo: &RepoId, what: &str) -> HubError {
        HubError::Offline { repo: repo.clone(), what: what.to_owned(), cache_dir: self.cache_dir.clone() }
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("host", &self.wire.host())
            .field("cache_dir", &self.cache_dir)
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

pub(crate) fn with_near_names(error: HubError, files: &[String]) -> HubError {
    match error {
        HubError::FileNotFound { repo, file, .. } => {
            let near = nearest(&file, files);
            HubError::FileNotFound { repo, file, near }
        }
        other => other,
    }
}
