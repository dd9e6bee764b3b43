//! A libtorch that the user brings along: checked, and otherwise left alone.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::wheels::VERSION;
use super::{Libtorch, version};

/// The one that `LIBTORCH` names.
pub(crate) fn folder(path: &Path) -> Result<Libtorch> {
    if !path.is_absolute() {
        bail!("LIBTORCH is {}, but it must be an absolute path: set it to one, or unset it", path.display());
    }
    if let Some(fault) = fault(path) {
        bail!("LIBTORCH is {}, but {fault}: set it to a libtorch {VERSION}, or unset it", path.display());
    }
    Ok(Libtorch::User { lib: path.join("lib"), variable: "LIBTORCH" })
}

/// The one in the package torch of this `python`.
pub(crate) fn pytorch(python: &Path) -> Result<Libtorch> {
    const WHERE: &str =
        "import importlib.util; print(importlib.util.find_spec('torch').submodule_search_locations[0])";
    let output = Command::new(python).args(["-c", WHERE]).output().with_context(|| {
        format!(
            "LIBTORCH_USE_PYTORCH is set, but {} cannot be started: install Python, or unset it",
            python.display()
        )
    })?;
    if !output.status.success() {
        bail!(
            "LIBTORCH_USE_PYTORCH is set, but {} has no package torch: install torch=={VERSION}, or unset it",
            python.display()
        );
    }
    let torch = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if let Some(fault) = fault(&torch) {
        bail!("LIBTORCH_USE_PYTORCH is set, but {fault}: install torch=={VERSION}, or unset it");
    }
    Ok(Libtorch::User { lib: torch.join("lib"), variable: "LIBTORCH_USE_PYTORCH" })
}

/// Fails unless `.libtorch`, which the user put there, holds a `torch` of the right version.
pub(crate) fn project_folder(path: &Path) -> Result<()> {
    let torch = path.join("torch");
    let silent = || version::of(&torch).is_none().then(|| format!("{} tells no version", torch.display()));
    match fault(&torch).or_else(silent) {
        Some(fault) => bail!(
            "{} is not ours to replace, but {fault}: remove it, and `cargo xtask libtorch` puts a good one there",
            path.display()
        ),
        None => Ok(()),
    }
}

/// Why the folder `torch` cannot be built with, if something speaks against it.
fn fault(torch: &Path) -> Option<String> {
    for needed in ["include", "lib"] {
        if !torch.join(needed).is_dir() {
            return Some(format!("there is no folder {}", torch.join(needed).display()));
        }
    }
    // torch-sys has this switch to let another version pass.
    if std::env::var_os("LIBTORCH_BYPASS_VERSION_CHECK").is_some() {
        return None;
    }
    let version = version::of(torch).filter(|version| !version::is_right(version))?;
    Some(format!("{} is version {version} where {VERSION} is needed", torch.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A folder `torch` with headers, libraries and no version.
    fn torch() -> (tempfile::TempDir, PathBuf) {
        let above = tempfile::tempdir().unwrap();
        let torch = above.path().join("torch");
        fs::create_dir_all(torch.join("lib")).unwrap();
        fs::create_dir_all(torch.join("include")).unwrap();
        (above, torch)
    }

    #[test]
    fn a_users_folder_must_hold_headers_and_libraries() {
        let (_above, torch) = torch();
        assert_eq!(folder(&torch).unwrap().lib(), torch.join("lib"));
        fs::remove_dir(torch.join("include")).unwrap();
        let error = folder(&torch).unwrap_err().to_string();
        assert!(error.starts_with("LIBTORCH is ") && error.contains("no folder"), "{error}");
        let error = folder(Path::new("torch")).unwrap_err().to_string();
        assert!(error.contains("absolute path"), "{error}");
    }

    #[test]
    fn another_version_is_named() {
        let (_above, torch) = torch();
        fs::write(torch.join("build-version"), "2.10.0+cpu").unwrap();
        let error = folder(&torch).unwrap_err().to_string();
        assert!(error.contains("is version 2.10.0+cpu where 2.11.0 is needed"), "{error}");
    }

    #[test]
    fn a_projects_folder_must_tell_its_version() {
        let (above, torch) = torch();
        let error = project_folder(above.path()).unwrap_err().to_string();
        assert!(error.contains("tells no version: remove it"), "{error}");
        fs::write(torch.join("version.py"), "__version__ = '2.11.0+cu130'\n").unwrap();
        project_folder(above.path()).unwrap();
    }
}
