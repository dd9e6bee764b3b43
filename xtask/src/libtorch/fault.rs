//! What a failed operation on a file means to the user, and what to do about it.

use std::io::{Error, ErrorKind};
use std::path::Path;

/// The error of an operation that writes to `path`.
pub(crate) fn writing(path: &Path, error: Error) -> anyhow::Error {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => disk_full(path),
        _ => anyhow::anyhow!(
            "cannot write to {} ({error}): make it writable, or set GEMMA_SCOPE_CACHE to a folder that is",
            path.display()
        ),
    }
}

/// The error of a disk with no room for what goes into `path`.
pub(crate) fn disk_full(path: &Path) -> anyhow::Error {
    anyhow::anyhow!(
        "the disk is full at {}: free 1.2 GB there, half of it only for the download, or set \
         GEMMA_SCOPE_CACHE to a folder on another disk",
        path.display()
    )
}
