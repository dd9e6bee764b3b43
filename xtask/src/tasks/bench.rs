//! `cargo xtask bench`: libtorch, then the benchmark program with all that was given.

use std::process::ExitCode;

use anyhow::Result;

use crate::libtorch;
use crate::project::{Project, pass_through};

pub(crate) fn run(project: &Project, args: &[String]) -> Result<ExitCode> {
    let libtorch = libtorch::ensure(project.root())?;
    let mut command =
        project.cargo_with(&libtorch, ["run", "--release", "--bin", "gemma-scope-bench", "--"])?;
    pass_through(command.args(args))
}
