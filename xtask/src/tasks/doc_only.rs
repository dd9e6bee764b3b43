//! `cargo xtask doc-only`: the types of all crates, checked without libtorch.

use std::process::ExitCode;

use anyhow::Result;

use crate::project::{Project, pass_through};

/// The target folder is its own, because the feature would have the others' builds made anew.
pub(crate) fn run(project: &Project) -> Result<ExitCode> {
    let args = ["check", "--workspace", "--features", "doc-only", "--target-dir", "target/doc-only"];
    pass_through(&mut project.cargo(args))
}
