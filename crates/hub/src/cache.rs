//! The cache on disk, in the layout that Python's `huggingface_hub` documents and shares:
//!
//! ```text
//! CACHE/models--org--name/refs/main               the commit that the branch had
//!                         blobs/ETAG              the bytes (ETAG.incomplete while they arrive)
//!                         snapshots/COMMIT/PATH   a link to the blob
//!                         .no_exist/COMMIT/PATH   an empty file: this commit is known to lack PATH
//! CACHE/.locks/models--org--name/ETAG.lock        held while the blob is written
//! ```
//!
//! Names come from hf-hub; what it does with them is not used here. Its `CacheRepo::get` does not find a file by its
//! commit, `create_ref` truncates a ref that others may be reading, its links fail over a broken link, and it locks
//! `blobs/ETAG.lock` and resumes `blobs/ETAG.part`, which Python does not look at.

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{HubError, RepoId};

/// The part of the cache that belongs to one repository.
#[derive(Debug)]
pub(crate) struct RepoCache {
    repo: RepoId,
    /// `CACHE/models--org--name`
    root: PathBuf,
    /// `CACHE/.locks/models--org--name`
    locks: PathBuf,
    layout: hf_hub::CacheRepo,
}

impl RepoCache {
    pub(crate) fn new(cache_dir: &Path, repo: &RepoId) -> Self {
        let names = repo.at(repo.revision());
        Self {
            repo: repo.clone(),
            root: cache_dir.join(names.folder_name()),
            locks: cache_dir.join(".locks").join(names.folder_name()),
            layout: hf_hub::Cache::new(cache_dir.to_owned()).repo(names),
        }
    }

    /// The commit that the revision had when it was last fetched, or the revision itself where it is a commit.
    pub(crate) fn commit(&self) -> Option<String> {
        let revision = self.repo.revision();
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.ref_path()).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    /// Remembers the commit of the revision. Whole or not at all, since other processes may be reading.
    pub(crate) fn set_commit(&self, commit: &str) -> Result<(), HubError> {
        if self.commit().as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.ref_path();
        create_parent(&path)?;
        let beside = beside(&path);
        fs::write(&beside, commit)
            .and_then(|()| fs::rename(&beside, &path))
            .map_err(|error| HubError::cache(path, "written", error))
    }

    /// The folder of one commit.
    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.layout.pointer_path(commit)
    }

    /// Whether the cache holds this file of this commit.
    pub(crate) fn has(&self, commit: &str, file: &str) -> bool {
        self.snapshot(commit).join(file).is_file()
    }

    /// Whether the hub once said that this commit has no such file.
    pub(crate) fn is_absent(&self, commit: &str, file: &str) -> bool {
        self.absent_path(commit, file).is_file()
    }

    /// Remembers that this commit has no such file.
    pub(crate) fn set_absent(&self, commit: &str, file: &str) -> Result<(), HubError> {
        let path = self.absent_path(commit, file);
        create_parent(&path)?;
        File::create(&path).map(drop).map_err(|error| HubError::cache(path, "written", error))
    }

    /// Where the bytes of a file lie.
    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.layout.blob_path(etag)
    }

    /// Where they lie until all have arrived.
    pub(crate) fn incomplete(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    /// Does `work` while no other thread or process that asks for the same lock does; Python's library asks for it too.
    pub(crate) fn locked<T>(
        &self,
        etag: &str,
        work: impl FnOnce() -> Result<T, HubError>,
    ) -> Result<T, HubError> {
        let path = self.locks.join(format!("{etag}.lock"));
        create_parent(&path)?;
        create_parent(&self.blob(etag))?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(|error| HubError::cache(&path, "created", error))?;
        let mut lock = fd_lock::RwLock::new(file);
        let _held = loop {
            match lock.write() {
                Ok(held) => break Some(held),
                // A disk without locks: two downloads of the same file at once cost time, and no harm.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => break None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(HubError::cache(path, "locked", error)),
            }
        };
        work()
    }

    /// Gives a blob its name in the snapshot of a commit.
    ///
    /// `fresh` says that nothing else can name the blob yet: where links are not possible (some Windows set-ups,
    /// some network disks) such a blob is moved instead, and any other is copied.
    pub(crate) fn link(&self, commit: &str, file: &str, etag: &str, fresh: bool) -> Result<(), HubError> {
        let pointer = self.snapshot(commit).join(file);
        create_parent(&pointer)?;
        // A link whose blob is gone would be in the way.
        if pointer.symlink_metadata().is_ok() {
            fs::remove_file(&pointer).map_err(|error| HubError::cache(&pointer, "replaced", error))?;
        }
        let up = "../".repeat(file.split('/').count() + 1);
        if symlink(Path::new(&format!("{up}blobs/{etag}")), &pointer).is_ok() {
            return Ok(());
        }
        let blob = self.blob(etag);
        let beside = beside(&pointer);
        let made = if fresh {
            fs::rename(&blob, &pointer)
        } else {
            fs::copy(&blob, &beside).and_then(|_| fs::rename(&beside, &pointer))
        };
        made.map_err(|error| HubError::cache(pointer, "written", error))
    }

    fn ref_path(&self) -> PathBuf {
        self.root.join("refs").join(self.repo.revision())
    }

    fn absent_path(&self, commit: &str, file: &str) -> PathBuf {
        self.root.join(".no_exist").join(commit).join(file)
    }
}

/// A full commit: what needs no ref, and what may name a folder.
pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn create_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|error| HubError::cache(parent, "created", error))
}

/// A name in the same folder that no other thread or process uses.
fn beside(path: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{}.tmp", process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn cache(revision: &str) -> (tempfile::TempDir, RepoCache) {
        let dir = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(dir.path(), &RepoId::new("org/name", revision).unwrap());
        (dir, cache)
    }

    #[test]
    fn names_are_those_of_huggingface_hub() {
        let (dir, cache) = cache("refs/pr/3");
        cache.set_commit(COMMIT).unwrap();
        cache.set_absent(COMMIT, "a/b.json").unwrap();
        cache.locked("etag", || fs::write(cache.blob("etag"), "x").map_err(|_| unreachable!())).unwrap();
        cache.link(COMMIT, "a/c.json", "etag", true).unwrap();
        let root = dir.path().join("models--org--name");
        assert_eq!(fs::read_to_string(root.join("refs/refs/pr/3")).unwrap(), COMMIT);
        assert!(root.join(".no_exist").join(COMMIT).join("a/b.json").is_file());
        assert_eq!(fs::read_to_string(root.join("snapshots").join(COMMIT).join("a/c.json")).unwrap(), "x");
        assert!(dir.path().join(".locks/models--org--name/etag.lock").is_file());
        assert!(cache.has(COMMIT, "a/c.json") && cache.is_absent(COMMIT, "a/b.json"));
    }

    #[test]
    fn a_commit_is_its_own_ref_and_a_damaged_ref_is_none() {
        assert_eq!(cache(COMMIT).1.commit().as_deref(), Some(COMMIT));
        let (_dir, cache) = cache("main");
        assert_eq!(cache.commit(), None);
        create_parent(&cache.ref_path()).unwrap();
        for damaged in ["", "../../elsewhere", &COMMIT[1..]] {
            fs::write(cache.ref_path(), damaged).unwrap();
            assert_eq!(cache.commit(), None, "{damaged:?}");
        }
        fs::write(cache.ref_path(), format!("{COMMIT}\n")).unwrap();
        assert_eq!(cache.commit().as_deref(), Some(COMMIT));
    }

    #[test]
    fn a_link_replaces_a_broken_one() {
        let (_dir, cache) = cache("main");
        create_parent(&cache.blob("new")).unwrap();
        fs::write(cache.blob("new"), "new").unwrap();
        cache.link(COMMIT, "f", "gone", false).unwrap();
        assert!(!cache.has(COMMIT, "f"));
        cache.link(COMMIT, "f", "new", false).unwrap();
        assert_eq!(fs::read_to_string(cache.snapshot(COMMIT).join("f")).unwrap(), "new");
    }
}
