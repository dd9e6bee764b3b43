//! The workspace, and how cargo is started in it.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::libtorch::Libtorch;

/// The workspace this program belongs to.
#[derive(Debug)]
pub(crate) struct Project {
    root: PathBuf,
    cargo: OsString,
}

impl Project {
    /// Finds the workspace: the folder above this package's.
    ///
    /// `cargo xtask` tells where the package is now; a binary started by hand knows where it was built.
    pub(crate) fn find() -> Result<Self> {
        let package = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
        let root = Path::new(&package).parent().map(Path::to_path_buf);
        match root {
            Some(root) if root.join("Cargo.toml").is_file() => {
                Ok(Self { root, cargo: env::var_os("CARGO").unwrap_or_else(|| "cargo".into()) })
            }
            _ => bail!("no workspace around {}: start this as `cargo xtask`", Path::new(&package).display()),
        }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Cargo, to be run in the workspace's root.
    pub(crate) fn cargo<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.cargo);
        command.current_dir(&self.root).args(args);
        command
    }

    /// Cargo with libtorch for what it builds and runs.
    ///
    /// The loader's path matters to doc-tests, which run from a temporary folder, to a libtorch that is not
    /// `.libtorch`, and to a target folder elsewhere; the binaries' RUNPATH serves the rest.
    pub(crate) fn cargo_with<S: AsRef<OsStr>>(
        &self,
        libtorch: &Libtorch,
        args: impl IntoIterator<Item = S>,
    ) -> Result<Command> {
        let variable = if cfg!(target_os = "macos") { "DYLD_LIBRARY_PATH" } else { "LD_LIBRARY_PATH" };
        // What the user has there goes first, as it does before a RUNPATH.
        let users = env::var_os(variable).unwrap_or_default();
        let folders = env::split_paths(&users).filter(|folder| !folder.as_os_str().is_empty());
        let folders = env::join_paths(folders.chain([libtorch.lib().to_path_buf()]))
            .with_context(|| format!("{} cannot stand in {variable}", libtorch.lib().display()))?;
        let mut command = self.cargo(args);
        command.env(variable, folders);
        if libtorch.is_the_projects() {
            // Cargo gave us its own `[env] LIBTORCH`. A cargo started by hand sees none, and a change of
            // LIBTORCH costs a rebuild of the C++ shim.
            command.env_remove("LIBTORCH");
        }
        Ok(command)
    }
}

/// Runs one step of several, says what it is, and ends with an error when it fails.
pub(crate) fn step(name: &str, command: &mut Command) -> Result<Duration> {
    announce(name, command);
    let start = Instant::now();
    expect_success(name, status(command)?)?;
    Ok(start.elapsed())
}

/// Says which command the step `name` is about to run.
pub(crate) fn announce(name: &str, command: &Command) {
    let args: Vec<_> = command.get_args().map(OsStr::to_string_lossy).collect();
    eprintln!("== {name}: cargo {}", args.join(" "));
}

/// The error of a step that failed.
pub(crate) fn expect_success(name: &str, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("the step `{name}` failed ({status})");
    }
    Ok(())
}

/// Runs a program whose exit code becomes ours.
pub(crate) fn pass_through(command: &mut Command) -> Result<ExitCode> {
    let code = status(command)?.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

fn status(command: &mut Command) -> Result<ExitStatus> {
    command.status().with_context(|| format!("cannot start {}", command.get_program().display()))
}
