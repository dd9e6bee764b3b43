//! The cache folder's libtorch: one folder per version and platform, made once per machine.
//!
//! It is made in `NAME.part` beside its final place from wheels in `NAME.wheels`, and renamed when complete; a lock on
//! `NAME.lock` keeps a second process out meanwhile. A run that ends in between leaves these for the next to clear.

use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::fault;
use super::manifest::{self, Manifest};
use super::pip::Pip;
use super::wheels::{Release, VERSION, Wheel};
use super::{unpack, version};

/// Our folder in the user's cache folder.
pub(crate) const FOLDER: &str = "gemma-scope";

const PREFIX: &str = "libtorch-";

/// Whether a link's target is a folder that a [`Store`] makes.
pub(crate) fn is_ours(target: &Path) -> bool {
    let above = target.parent().and_then(Path::file_name);
    let name = target.file_name().and_then(|name| name.to_str());
    above.is_some_and(|above| above == FOLDER) && name.is_some_and(|name| name.starts_with(PREFIX))
}

/// The place of one release, and the means to fill it.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    folder: PathBuf,
    release: Release,
    pip: Pip,
}

/// How the folder is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum State {
    Good,
    Absent,
    /// Something else is there: what is wrong with it, in a few words.
    Bad(String),
}

impl Store {
    /// The place of `release` in `cache`.
    pub(crate) fn new(cache: PathBuf, release: Release, pip: Pip) -> Self {
        Self { folder: cache.join(format!("{PREFIX}{VERSION}-{}", release.platform)), release, pip }
    }

    /// The same release in another place.
    pub(crate) fn at(&self, folder: &Path) -> Self {
        Self { folder: folder.to_path_buf(), ..self.clone() }
    }

    /// Compares the folder with its manifest, presence and size of every file, and asks torch for its version.
    pub(crate) fn state(&self) -> State {
        if let Err(error) = fs::symlink_metadata(&self.folder)
            && error.kind() == ErrorKind::NotFound
        {
            return State::Absent;
        }
        match Manifest::read(&self.folder).map(|manifest| manifest.damage(&self.release, &self.folder)) {
            Ok(None) => match version::of(&self.folder.join("torch")) {
                Some(version) if version::is_right(&version) => State::Good,
                Some(version) => State::Bad(format!("torch/version.py says {version}")),
                None => State::Bad("torch/version.py says no version".to_owned()),
            },
            Ok(Some(damage)) | Err(damage) => State::Bad(damage),
        }
    }

    /// Makes the folder unless it is good, and returns it.
    pub(crate) fn ensure(&self) -> Result<&Path> {
        if self.state() == State::Good {
            return Ok(&self.folder);
        }
        if let Some(cache) = self.folder.parent() {
            fs::create_dir_all(cache).map_err(|error| fault::writing(cache, error))?;
        }
        let _lock = self.lock()?;
        match self.state() {
            // Another process made it while this one waited.
            State::Good => return Ok(&self.folder),
            State::Absent => {}
            State::Bad(damage) => {
                eprintln!("libtorch: {} is damaged ({damage}): making it anew", self.folder.display());
            }
        }
        self.make()?;
        Ok(&self.folder)
    }

    /// Downloads, unpacks, puts in place. The caller holds the lock.
    fn make(&self) -> Result<()> {
        let part = self.beside("part");
        if remove(&part)? {
            eprintln!("libtorch: removed {}, left by an interrupted run", part.display());
        }
        let wheels = self.beside("wheels");
        let made = self.download(&wheels).and_then(|()| self.unpack(&wheels, &part));
        if made.is_err() {
            // Whole wheels stay for the next run; the folder goes when there is none. Neither can help the error.
            let _ = remove(&part);
            let _ = fs::remove_dir(&wheels);
            return made;
        }
        let old = self.beside("old");
        remove(&old)?;
        if self.state() != State::Absent {
            fs::rename(&self.folder, &old).map_err(|error| fault::writing(&self.folder, error))?;
        }
        fs::rename(&part, &self.folder).map_err(|error| fault::writing(&self.folder, error))?;
        remove(&old)?;
        remove(&wheels)?;
        Ok(())
    }

    /// Leaves every wheel in the folder `wheels`, each with the right hash. One that is there already is kept.
    fn download(&self, wheels: &Path) -> Result<()> {
        fs::create_dir_all(wheels).map_err(|error| fault::writing(wheels, error))?;
        let mut absent = Vec::new();
        for wheel in self.release.wheels {
            let path = wheels.join(wheel.file);
            if !path.is_file() || unpack::sha256(&path)? != wheel.sha256 {
                remove(&path)?;
                absent.push(wheel);
            }
        }
        if absent.len() < self.release.wheels.len() {
            let there = self.release.wheels.len() - absent.len();
            eprintln!(
                "libtorch: {there} of {} wheels are there from an earlier run",
                self.release.wheels.len()
            );
        }
        if absent.is_empty() {
            return Ok(());
        }
        self.pip.check()?;
        eprintln!(
            "libtorch: downloading libtorch {VERSION} for {} with pip, {:.0} MB, once per machine; it is kept in {}",
            self.release.platform,
            absent.iter().map(|wheel| wheel.bytes).sum::<u64>() as f64 / 1e6,
            self.folder.display()
        );
        let scratch = wheels.join("scratch");
        remove(&scratch)?;
        fs::create_dir(&scratch).map_err(|error| fault::writing(&scratch, error))?;
        let downloaded = absent.into_iter().try_for_each(|wheel| {
            let path = wheels.join(wheel.file);
            let fetched = self.pip.download(wheel, wheels, &scratch).and_then(|()| verify(wheel, &path));
            if fetched.is_err() {
                // A half or a wrong wheel is of no use, and the error is what matters.
                let _ = remove(&path);
            }
            fetched
        });
        remove(&scratch)?;
        downloaded
    }

    /// Unpacks every wheel into `part` and writes the manifest, last.
    fn unpack(&self, wheels: &Path, part: &Path) -> Result<()> {
        fs::create_dir(part).map_err(|error| fault::writing(part, error))?;
        let mut files = Vec::new();
        for wheel in self.release.wheels {
            files.extend(unpack::unpack(wheel, &wheels.join(wheel.file), part)?);
        }
        let path = part.join(manifest::NAME);
        let text = Manifest::new(&self.release, files).to_string();
        fs::write(&path, text).map_err(|error| fault::writing(&path, error))
    }

    /// Keeps other processes out until it is dropped, and waits for one that is at work.
    fn lock(&self) -> Result<File> {
        let path = self.beside("lock");
        let file = File::create(&path).map_err(|error| fault::writing(&path, error))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("libtorch: another process is putting it in place; waiting for it");
                file.lock().with_context(|| format!("cannot lock {}", path.display()))?;
            }
            // Some network file systems have no locks; there a second process is one's own affair.
            Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        Ok(file)
    }

    fn beside(&self, what: &str) -> PathBuf {
        let mut name = self.folder.as_os_str().to_owned();
        name.push(format!(".{what}"));
        name.into()
    }
}

/// Fails when the file is not the wheel.
fn verify(wheel: &Wheel, path: &Path) -> Result<()> {
    if !path.is_file() {
        bail!("pip reports success for {}, but left no {}", wheel.requirement, wheel.file);
    }
    let found = unpack::sha256(path)?;
    if found != wheel.sha256 {
        bail!(
            "{} has the SHA-256 {found} instead of {}, and was removed: run `cargo xtask libtorch` again, and if that \
             does not help check which index pip uses",
            wheel.file,
            wheel.sha256
        );
    }
    Ok(())
}

/// Removes a file or a folder with all it holds; `false` when there is none.
fn remove(path: &Path) -> Result<bool> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(fault::writing(path, error)),
    }
}
