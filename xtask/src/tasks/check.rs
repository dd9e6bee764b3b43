//! `cargo xtask check`: all that must hold before a commit, the cheapest first.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use super::test;
use crate::libtorch;
use crate::project::{Project, step};

/// Everything is built in the release profile, which the tests use too: the C++ shim of tch is compiled once.
pub(crate) fn run(project: &Project, tests: bool) -> Result<ExitCode> {
    let start = Instant::now();
    step("format", &mut project.cargo(["fmt", "--all", "--check"]))?;
    let libtorch = libtorch::ensure(project.root())?;
    let clippy = ["clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"];
    step("clippy", &mut project.cargo_with(&libtorch, clippy)?)?;
    let docs = ["doc", "--release", "--workspace", "--no-deps"];
    step("docs", project.cargo_with(&libtorch, docs)?.env("RUSTDOCFLAGS", "-D warnings"))?;
    let tested = if tests {
        test::all(project, &libtorch, &[])?.to_string()
    } else {
        "tests were left out".to_owned()
    };
    eprintln!("check: format, clippy and docs hold, {tested} ({} s)", start.elapsed().as_secs());
    Ok(ExitCode::SUCCESS)
}
