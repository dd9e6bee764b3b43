//! `.libtorch` in the project: a link into the cache folder, or something of the user's.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::store;

/// What stands at `.libtorch`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Absent,
    /// A link we made, and where it leads.
    Ours(PathBuf),
    /// A folder, or a link to somewhere else: to be used, never to be changed.
    Theirs,
}

/// Looks at `path` without following it.
pub(crate) fn look(path: &Path) -> Result<Link> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Link::Absent),
        Err(error) => Err(error).with_context(|| format!("cannot look at {}", path.display())),
        Ok(found) if found.is_symlink() => {
            let target =
                fs::read_link(path).with_context(|| format!("cannot read the link {}", path.display()))?;
            Ok(if store::is_ours(&target) { Link::Ours(target) } else { Link::Theirs })
        }
        Ok(_) => Ok(Link::Theirs),
    }
}

/// Makes `path` a link to `target`, in one step for whoever looks at it meanwhile.
pub(crate) fn make(path: &Path, target: &Path) -> Result<()> {
    let fresh = path.with_extension(format!("new-{}", std::process::id()));
    let made = symlink(target, &fresh).and_then(|()| fs::rename(&fresh, path));
    made.with_context(|| {
        format!("cannot make the link {}: is the project's folder writable?", path.display())
    })
}

#[cfg(unix)]
fn symlink(target: &Path, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(not(unix))]
fn symlink(_: &Path, _: &Path) -> io::Result<()> {
    Err(ErrorKind::Unsupported.into())
}
