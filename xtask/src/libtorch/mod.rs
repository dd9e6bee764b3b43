//! libtorch for the whole project: the user's own where one is set, else `.libtorch`, downloaded on first use.
//!
//! The download lies once per machine in the user's cache folder ([`store`]), made of the wheels in [`wheels`] that
//! `pip` fetches, and every checkout links to it ([`link`]). Each of these is checked each time and mended when it is
//! not as it should be.

mod fault;
mod link;
mod manifest;
mod pip;
mod store;
mod unpack;
mod users;
mod version;
mod wheels;

#[cfg(test)]
mod tests;

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use link::Link;
use pip::Pip;
use store::Store;
use wheels::VERSION;

/// A libtorch that is there and of the right version.
#[derive(Debug)]
pub(crate) enum Libtorch {
    /// `.libtorch` in the project, and where it leads.
    Project { lib: PathBuf, place: PathBuf },
    /// The user's own, set by the variable named.
    User { lib: PathBuf, variable: &'static str },
}

impl Libtorch {
    /// The folder of the shared libraries.
    pub(crate) fn lib(&self) -> &Path {
        match self {
            Self::Project { lib, .. } | Self::User { lib, .. } => lib,
        }
    }

    /// Whether it is `.libtorch`, which cargo's configuration names without our help.
    pub(crate) fn is_the_projects(&self) -> bool {
        matches!(self, Self::Project { .. })
    }
}

impl fmt::Display for Libtorch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Project { place, .. } => {
                write!(f, "libtorch {VERSION} is in place: .libtorch is {}", place.display())
            }
            Self::User { lib, variable } => {
                write!(f, "{variable} is set: libtorch is yours, in {}, and nothing was done", lib.display())
            }
        }
    }
}

/// Makes sure that there is a libtorch for the project at `root`. When there is, this takes milliseconds.
pub(crate) fn ensure(root: &Path) -> Result<Libtorch> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty());
    // Like torch-sys, take LIBTORCH_USE_PYTORCH as set whatever its value.
    if env::var_os("LIBTORCH_USE_PYTORCH").is_some() {
        let python = if variable("VIRTUAL_ENV").is_some() { "python" } else { "python3" };
        return users::pytorch(Path::new(python));
    }
    if let Some(libtorch) = variable("LIBTORCH").filter(|libtorch| !is_cargos(Path::new(libtorch), root)) {
        return users::folder(Path::new(&libtorch));
    }
    let release = || wheels::release(env::consts::OS, env::consts::ARCH, cfg!(target_env = "musl"));
    let store = || Ok(Store::new(cache_folder(variable)?, release()?, Pip::new("python3")));
    place(root, store)
}

/// Whether `LIBTORCH` is what `.cargo/config.toml` sets for all that cargo runs, `cargo xtask` among them.
fn is_cargos(libtorch: &Path, root: &Path) -> bool {
    let same = |a: &Path, b: &Path| match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    };
    libtorch.ends_with(".libtorch/torch")
        && libtorch.ancestors().nth(2).is_some_and(|above| same(above, root))
}

/// Makes sure that `.libtorch` in `root` is a good libtorch; what it links to comes from `store` when needed.
fn place(root: &Path, store: impl FnOnce() -> Result<Store>) -> Result<Libtorch> {
    let path = root.join(".libtorch");
    match link::look(&path)? {
        Link::Theirs => users::project_folder(&path)?,
        Link::Ours(target) => {
            let store = store()?;
            // It may lead to another cache folder than today's; what it holds is as good.
            if store.at(&target).state() != store::State::Good {
                link::make(&path, store.ensure()?)?;
            }
        }
        Link::Absent => link::make(&path, store()?.ensure()?)?,
    }
    let place = path.canonicalize().with_context(|| format!("cannot follow {}", path.display()))?;
    Ok(Libtorch::Project { lib: path.join("torch/lib"), place })
}

/// The user's cache folder, as the platform has it, with our name.
pub(crate) fn cache_folder(variable: impl Fn(&'static str) -> Option<OsString>) -> Result<PathBuf> {
    let folder = |name| variable(name).map(PathBuf::from);
    let cache = if let Some(cache) = folder("GEMMA_SCOPE_CACHE") {
        std::path::absolute(cache)?
    } else if let Some(cache) = folder("XDG_CACHE_HOME").filter(|cache| cache.is_absolute()) {
        cache
    } else {
        let home =
            folder("HOME").context("HOME is not set: set GEMMA_SCOPE_CACHE to a folder for libtorch")?;
        home.join(if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" })
    };
    Ok(cache.join(store::FOLDER))
}
