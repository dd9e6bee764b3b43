//! One file from the hub into the cache: ask what it is, resume, compare, give it its name.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    path::Path,
    thread,
};

use sha2::{Digest, Sha256};
use ureq::http::{HeaderMap, StatusCode, header};

use crate::{
    HubError, Progress, RepoId,
    cache::{RepoCache, is_commit},
    wire::{Subject, Wire, X_LINKED_ETAG, X_LINKED_SIZE, X_REPO_COMMIT},
};

const BUFFER: usize = 256 << 10;

/// A connection that breaks after more than this was worth making, and does not count as a failed attempt.
const WORTHWHILE: u64 = 4 << 20;

/// What is needed to fetch a file.
pub(crate) struct Download<'a> {
    pub(crate) wire: &'a Wire,
    pub(crate) cache: &'a RepoCache,
    pub(crate) progress: &'a dyn Fn(Progress<'_>),
    pub(crate) repo: &'a RepoId,
    pub(crate) file: &'a str,
}

/// What the hub says of a file before it sends it.
#[derive(Debug, PartialEq)]
struct Remote {
    commit: String,
    /// The name of the blob: the git hash, or for files of LFS the SHA-256.
    etag: String,
    size: Option<u64>,
    /// The etag again where it is a SHA-256 of the bytes.
    sha256: Option<String>,
}

/// Why the bytes stopped.
enum Stop {
    /// The rest may come with another connection.
    Broken(String),
    /// What has come cannot be the file.
    Damaged(String),
    Final(HubError),
}

impl Download<'_> {
    /// Fetches the file as it is at a branch, tag or commit, and returns the commit.
    ///
    /// Nothing is sent for if a blob with the same hash is there, from another commit perhaps.
    pub(crate) fn fetch(&self, at: &str) -> Result<String, HubError> {
        let subject = Subject { repo: self.repo, at, file: Some(self.file) };
        let url = self.wire.file_url(subject);
        let remote = self
            .wire
            .head(&url)
            .and_then(|headers| Remote::read(&headers, at).map_err(|reason| self.wire.nonsense(reason)))
            .map_err(|fault| self.wire.explain(fault, subject))?;
        self.cache.locked(&remote.etag, || {
            // Someone else had the lock before, perhaps for the same file.
            if self.cache.has(&remote.commit, self.file) {
                return Ok(());
            }
            let blob = self.cache.blob(&remote.etag);
            let is_whole = || {
                let found = blob.metadata().ok().filter(|found| found.is_file());
                found.is_some_and(|found| remote.size.is_none_or(|size| size == found.len()))
            };
            let mut fresh = false;
            if !is_whole() {
                let incomplete = self.cache.incomplete(&remote.etag);
                self.complete(subject, &url, &remote, &incomplete)?;
                match fs::rename(&incomplete, &blob) {
                    Ok(()) => fresh = true,
                    // On some network disks everybody gets the lock, and another process was faster. Until then both
                    // wrote the same bytes to the same places.
                    Err(_) if is_whole() => {}
                    Err(error) => return Err(HubError::cache(&blob, "written", error)),
                }
            }
            self.cache.link(&remote.commit, self.file, &remote.etag, fresh)
        })?;
        Ok(remote.commit)
    }

    /// Brings the incomplete file to its full length, in as many connections as it takes.
    fn complete(
        &self,
        subject: Subject<'_>,
        url: &str,
        remote: &Remote,
        path: &Path,
    ) -> Result<(), HubError> {
        let mut pauses = self.wire.pauses.iter();
        let mut damaged_before = false;
        loop {
            let before = path.metadata().map_or(0, |found| found.len());
            let stop = match self.receive(subject, url, remote, path) {
                Ok(()) => return Ok(()),
                Err(stop) => stop,
            };
            let done = path.metadata().map_or(0, |found| found.len());
            match stop {
                Stop::Final(error) => return Err(error),
                Stop::Broken(reason) => {
                    if done >= before + WORTHWHILE {
                        pauses = self.wire.pauses.iter();
                    }
                    let Some(pause) = pauses.next() else {
                        let (repo, file) = (self.repo.clone(), self.file.to_owned());
                        return Err(HubError::Interrupted { repo, file, done, total: remote.size, reason });
                    };
                    thread::sleep(*pause);
                }
                Stop::Damaged(reason) => {
                    fs::remove_file(path).map_err(|error| HubError::cache(path, "deleted", error))?;
                    // The fault may lie in what an earlier run left behind, so it gets one fresh start.
                    if before == 0 || damaged_before {
                        let (repo, file) = (self.repo.clone(), self.file.to_owned());
                        return Err(HubError::Damaged { repo, file, reason });
                    }
                    damaged_before = true;
                }
            }
        }
    }

    /// One connection: what is missing from the incomplete file, and the comparison at the end.
    fn receive(&self, subject: Subject<'_>, url: &str, remote: &Remote, path: &Path) -> Result<(), Stop> {
        let unwritten = |error| Stop::Final(HubError::cache(path, "written", error));
        let mut file = open(path).map_err(unwritten)?;
        let mut hash = remote.sha256.as_ref().map(|_| Sha256::new());
        let mut done = take_up(&mut file, hash.as_mut()).map_err(unwritten)?;
        let mut total = remote.size;
        if total != Some(done) {
            let response =
                self.wire.get(url, done).map_err(|fault| Stop::Final(self.wire.explain(fault, subject)))?;
            match response.status() {
                StatusCode::PARTIAL_CONTENT if done > 0 => {
                    let range = content_range(response.headers());
                    if range.is_none_or(|(start, _)| start != done) {
                        return Err(Stop::Damaged("a range that was not asked for".to_owned()));
                    }
                    total = total.or(range.and_then(|(_, total)| total));
                }
                StatusCode::RANGE_NOT_SATISFIABLE => {
                    return Err(Stop::Damaged(format!("the server has nothing after byte {done}")));
                }
                // A server that does not know ranges sends the file from its start.
                _ => {
                    if done > 0 {
                        restart(&mut file).map_err(unwritten)?;
                        hash = hash.map(|_| Sha256::new());
                        done = 0;
                    }
                    total = total.or_else(|| number(response.headers(), header::CONTENT_LENGTH.as_str()));
                }
            }
            let mut body = response.into_body().into_reader();
            let mut buffer = vec![0; BUFFER];
            self.report(done, total);
            loop {
                let length = match body.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => length,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(Stop::Broken(error.to_string())),
                };
                file.write_all(&buffer[..length]).map_err(unwritten)?;
                if let Some(hash) = &mut hash {
                    hash.update(&buffer[..length]);
                }
                done += length as u64;
                if let Some(total) = total.filter(|total| done > *total) {
                    return Err(Stop::Damaged(format!("more than the announced {total} bytes")));
                }
                self.report(done, total);
            }
        }
        if total.is_some_and(|total| done < total) {
            return Err(Stop::Broken("the server closed the connection".to_owned()));
        }
        if let (Some(hash), Some(announced)) = (hash, &remote.sha256) {
            let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            if found != *announced {
                return Err(Stop::Damaged(format!("SHA-256 {found} in place of {announced}")));
            }
        }
        if file.metadata().map_err(unwritten)?.len() != done {
            return Err(Stop::Damaged("another program wrote to the same file".to_owned()));
        }
        // Before the name says that it is whole, so that it is so after a power cut too.
        file.sync_all().map_err(unwritten)
    }

    fn report(&self, done: u64, total: Option<u64>) {
        (self.progress)(Progress { repo: self.repo, file: self.file, done, total });
    }
}

impl Remote {
    /// `at` is the revision that was asked for: a commit must come back as itself.
    fn read(headers: &HeaderMap, at: &str) -> Result<Self, String> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let commit = text(X_REPO_COMMIT).unwrap_or_default().trim();
        if !is_commit(commit) {
            return Err(format!("the header {X_REPO_COMMIT} holds {commit:?}, which is no commit"));
        }
        if is_commit(at) && commit != at {
            return Err(format!("asked for commit {at} it sent {commit}"));
        }
        let linked = text(X_LINKED_ETAG).map(strip_etag);
        let etag = linked.or_else(|| text(header::ETAG.as_str()).map(strip_etag)).unwrap_or_default();
        // It becomes the name of a file.
        if etag.is_empty()
            || etag.len() > 128
            || !etag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        {
            return Err(format!("the ETag {etag:?} is no hash"));
        }
        let sha256 = linked
            .filter(|etag| etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit()))
            .map(str::to_ascii_lowercase);
        // Some servers answer HEAD with a length of 0 whatever the file has: then the download itself says.
        let length = || number(headers, header::CONTENT_LENGTH.as_str()).filter(|length| *length > 0);
        let size = number(headers, X_LINKED_SIZE).or_else(length);
        Ok(Self { commit: commit.to_owned(), etag: etag.to_owned(), size, sha256 })
    }
}

/// `"hash"`, `W/"hash"` or `hash`.
fn strip_etag(etag: &str) -> &str {
    let etag = etag.trim();
    etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"')
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// The start and the length of the whole from `bytes START-END/TOTAL`, where the total may be `*`.
fn content_range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.trim().strip_prefix("bytes ")?;
    let (range, total) = range.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// Goes to the end of what is there, through the hash if there is one.
fn take_up(file: &mut File, hash: Option<&mut Sha256>) -> io::Result<u64> {
    if let Some(hash) = hash {
        io::copy(&mut BufReader::with_capacity(BUFFER, &mut *file), hash)?;
    }
    file.seek(SeekFrom::End(0))
}

fn restart(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_small_file_is_named_by_its_git_hash() {
        let remote = Remote::read(
            &headers(&[(X_REPO_COMMIT, COMMIT), ("etag", "W/\"abc123\""), ("content-length", "7")]),
            "main",
        );
        let expected =
            Remote { commit: COMMIT.to_owned(), etag: "abc123".to_owned(), size: Some(7), sha256: None };
        assert_eq!(remote, Ok(expected));
    }

    #[test]
    fn a_large_file_is_named_by_its_sha256() {
        let sha256 = "ab".repeat(32);
        let remote = Remote::read(
            &headers(&[
                (X_REPO_COMMIT, COMMIT),
                (X_LINKED_ETAG, &format!("\"{sha256}\"")),
                (X_LINKED_SIZE, "9"),
                ("etag", "\"other\""),
                ("content-length", "1"),
            ]),
            COMMIT,
        )
        .unwrap();
        assert_eq!((remote.etag, remote.size, remote.sha256), (sha256.clone(), Some(9), Some(sha256)));
    }

    #[test]
    fn headers_that_would_leave_the_folder_are_refused() {
        for (commit, etag) in
            [("..", "abc"), ("", "abc"), (COMMIT, "../x"), (COMMIT, ""), (COMMIT, "a/b"), (COMMIT, "..")]
        {
            assert!(
                Remote::read(&headers(&[(X_REPO_COMMIT, commit), ("etag", etag)]), "main").is_err(),
                "{commit} {etag}"
            );
        }
    }

    #[test]
    fn ranges() {
        for (text, expected) in [
            ("bytes 5-9/10", Some((5, Some(10)))),
            ("bytes 5-9/*", Some((5, None))),
            ("bytes */10", None),
            ("5-9/10", None),
        ] {
            assert_eq!(content_range(&headers(&[("content-range", text)])), expected, "{text}");
        }
    }
}
