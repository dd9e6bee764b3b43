//! Which version of libtorch a folder holds, by what it says itself.

use std::fs;
use std::path::Path;

use super::wheels::VERSION;

/// The version in `torch`: a Python package writes it in `version.py`, a libtorch for C++ in `build-version`.
pub(crate) fn of(torch: &Path) -> Option<String> {
    let python = fs::read_to_string(torch.join("version.py")).unwrap_or_default();
    let quoted = |line: &str| {
        line.strip_prefix("__version__ = ").map(|value| value.trim_matches(['\'', '"']).to_owned())
    };
    let plain = || Some(fs::read_to_string(torch.join("build-version")).ok()?.trim().to_owned());
    python.lines().find_map(quoted).or_else(plain)
}

/// Whether a version such as `2.11.0+cu130` is the one that tch speaks to.
pub(crate) fn is_right(version: &str) -> bool {
    version.split('+').next() == Some(VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_read_from_either_file() {
        let torch = tempfile::tempdir().unwrap();
        assert_eq!(of(torch.path()), None);
        fs::write(torch.path().join("build-version"), "2.11.0+cpu\n").unwrap();
        assert_eq!(of(torch.path()).as_deref(), Some("2.11.0+cpu"));
        fs::write(torch.path().join("version.py"), "import x\n__version__ = '2.10.0+cu128'\ncuda = '12.8'\n")
            .unwrap();
        assert_eq!(of(torch.path()).as_deref(), Some("2.10.0+cu128"));
    }

    #[test]
    fn the_build_does_not_matter() {
        assert!(is_right("2.11.0") && is_right("2.11.0+cu130"));
        assert!(!is_right("2.11.01") && !is_right("2.10.0") && !is_right(""));
    }
}
