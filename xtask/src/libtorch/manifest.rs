//! The list of what an unpacked libtorch holds, by which a damaged one is known.
//!
//! A text file, one thing to a line: what it is, `wheel SHA256 FILE` for each wheel, `file SIZE PATH` for each file,
//! and `end`, so that a list cut short is no list.

use std::fmt::{self, Write as _};
use std::fs;
use std::path::Path;

use super::wheels::{Release, VERSION};

/// The manifest's name in the folder it describes.
pub(crate) const NAME: &str = "MANIFEST";

/// What a folder should hold.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// From what it was made: the lines above the list.
    origin: String,
    files: Vec<(u64, String)>,
}

impl Manifest {
    /// The manifest of `release` unpacked into these files: their sizes, and their paths with `/`.
    pub(crate) fn new(release: &Release, files: Vec<(u64, String)>) -> Self {
        Self { origin: origin(release), files }
    }

    /// Reads the manifest of a folder, or says in a few words why it has none.
    pub(crate) fn read(folder: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(folder.join(NAME)).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => format!("its {NAME} is missing"),
            _ => format!("its {NAME} cannot be read ({error})"),
        })?;
        Self::parse(&text).ok_or_else(|| format!("its {NAME} is cut short or not ours"))
    }

    /// What is wrong with `folder` as an unpacked `release`: nothing, or a few words.
    pub(crate) fn damage(&self, release: &Release, folder: &Path) -> Option<String> {
        if self.origin != origin(release) {
            let first = self.origin.lines().next().unwrap_or_default();
            return Some(format!("it was made from other wheels, as {first}"));
        }
        self.files.iter().find_map(|(size, file)| match fs::metadata(folder.join(file)) {
            Ok(found) if found.is_file() && found.len() == *size => None,
            Ok(found) => Some(format!("{file} has {} bytes where {size} belong", found.len())),
            Err(_) => Some(format!("{file} is missing")),
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let (origin, list) = text.split_at(text.find("file ")?);
        let mut files = Vec::new();
        let mut lines = list.lines();
        for line in lines.by_ref() {
            if line == "end" {
                return lines.next().is_none().then(|| Self { origin: origin.to_owned(), files });
            }
            let (size, file) = line.strip_prefix("file ")?.split_once(' ')?;
            files.push((size.parse().ok()?, file.to_owned()));
        }
        None
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.origin)?;
        for (size, file) in &self.files {
            writeln!(f, "file {size} {file}")?;
        }
        f.write_str("end\n")
    }
}

fn origin(release: &Release) -> String {
    let mut text = format!("libtorch {VERSION} for {}\n", release.platform);
    for wheel in release.wheels {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "wheel {} {}", wheel.sha256, wheel.file);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::wheels;
    use super::*;

    fn linux() -> Release {
        wheels::release("linux", "x86_64", false).unwrap()
    }

    /// A folder with two files, and its manifest.
    fn folder() -> (tempfile::TempDir, Manifest) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("torch")).unwrap();
        fs::write(folder.path().join("torch/a"), "12345").unwrap();
        fs::write(folder.path().join("torch/b c"), "").unwrap();
        let manifest = Manifest::new(&linux(), vec![(5, "torch/a".into()), (0, "torch/b c".into())]);
        fs::write(folder.path().join(NAME), manifest.to_string()).unwrap();
        (folder, manifest)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let (folder, manifest) = folder();
        assert_eq!(Manifest::read(folder.path()).as_ref(), Ok(&manifest));
        assert_eq!(manifest.damage(&linux(), folder.path()), None);
    }

    #[test]
    fn damage_is_named() {
        let (folder, manifest) = folder();
        fs::write(folder.path().join("torch/a"), "123").unwrap();
        let damage = |release: Release| manifest.damage(&release, folder.path()).unwrap();
        assert_eq!(damage(linux()), "torch/a has 3 bytes where 5 belong");
        fs::remove_file(folder.path().join("torch/a")).unwrap();
        assert_eq!(damage(linux()), "torch/a is missing");
        let mac = wheels::release("macos", "aarch64", false).unwrap();
        assert_eq!(damage(mac), "it was made from other wheels, as libtorch 2.11.0 for linux-x86_64");
    }

    #[test]
    fn a_manifest_cut_anywhere_is_none() {
        let text = folder().1.to_string();
        for cut in 0..text.len() - 1 {
            assert_eq!(Manifest::parse(&text[..cut]), None, "cut at {cut}");
        }
        assert_eq!(Manifest::parse(&format!("{text}file 1 more\n")), None);
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::read(empty.path()), Err("its MANIFEST is missing".into()));
    }
}
