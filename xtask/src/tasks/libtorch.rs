//! `cargo xtask libtorch`: puts libtorch in place and says which one it is.

use std::process::ExitCode;

use anyhow::Result;

use crate::libtorch;
use crate::project::Project;

pub(crate) fn run(project: &Project) -> Result<ExitCode> {
    println!("{}", libtorch::ensure(project.root())?);
    Ok(ExitCode::SUCCESS)
}
