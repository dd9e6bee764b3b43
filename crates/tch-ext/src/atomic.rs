use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::Path,
};

use crate::{Result, TensorError};

/// Opens a file to read here and there: a pipe would wait for a writer, and a device has no end.
pub(crate) fn open_ordinary(path: &Path) -> Result<File> {
    let metadata = fs::metadata(path).map_err(|e| TensorError::io(path, e))?;
    if metadata.is_dir() || metadata.is_file() {
        return File::open(path).map_err(|e| TensorError::io(path, e));
    }
    Err(TensorError::format(path.display().to_string(), "is no ordinary file"))
}

/// Writes a file beside its final name and renames it, so that nobody ever sees half of it. Missing parent folders are made.
///
/// # Errors
/// What the system says of `path`, or what `write` returns; the temporary file is removed.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut BufWriter<&File>) -> Result<()>) -> Result<()> {
    let io = |source| TensorError::io(path, source);
    // A rename would put a file in the place of a link, a device or a pipe: the link is followed, the others are refused.
    let target = match fs::canonicalize(path) {
        Ok(target) if target.is_file() => target,
        Ok(target) if target.is_dir() => {
            return Err(TensorError::format(path.display().to_string(), "is a folder"));
        }
        Ok(_) => {
            return Err(TensorError::format(path.display().to_string(), "is no ordinary file: not replaced"));
        }
        Err(_) if fs::symlink_metadata(path).is_ok() => {
            return Err(TensorError::format(
                path.display().to_string(),
                "is a link to nothing: not replaced",
            ));
        }
        Err(_) => path.to_owned(),
    };
    let path = target.as_path();
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(folder).map_err(io)?;
    let file = tempfile::Builder::new().prefix(".partial-").tempfile_in(folder).map_err(io)?;
    let mut writer = BufWriter::new(file.as_file());
    write(&mut writer)?;
    writer.flush().map_err(io)?;
    drop(writer);
    set_usual_mode(file.as_file()).map_err(io)?;
    file.persist(path).map_err(|e| io(e.error))?;
    Ok(())
}

/// A temporary file is readable by its owner alone; what we leave behind is an ordinary file.
#[cfg(unix)]
fn set_usual_mode(file: &File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn set_usual_mode(_file: &File) -> std::io::Result<()> {
    Ok(())
}
