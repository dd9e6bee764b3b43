//! The program as its user starts it: exit codes and messages. Nothing here builds or downloads anything.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::process::{Command, Output};

/// Starts it in a project of its own, with no program in reach and an environment of little but `variables`.
fn xtask(args: &[&str], variables: &[(&str, &str)]) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let package = folder.path().join("xtask");
    std::fs::write(folder.path().join("Cargo.toml"), "[workspace]\n").unwrap();
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(args)
        .env_clear()
        .env("PATH", folder.path())
        .env("CARGO_MANIFEST_DIR", package)
        .env("GEMMA_SCOPE_CACHE", folder.path())
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

fn code_and_error(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_wrong_command_line_is_two() {
    let (code, error) = code_and_error(&xtask(&["tset"], &[]));
    assert_eq!(code, Some(2));
    assert!(error.starts_with("error: no command `tset`"), "{error}");
    assert_eq!(xtask(&[], &[]).status.code(), Some(2));
}

#[test]
fn help_goes_to_stdout() {
    let output = xtask(&["--help"], &[]);
    assert!(output.status.success() && output.stderr.is_empty());
    assert!(String::from_utf8_lossy(&output.stdout).contains("Usage: cargo xtask COMMAND"));
}

#[test]
fn a_failure_is_one_and_one_sentence() {
    let bad = std::env::temp_dir().join("no-such-libtorch");
    let users = [("LIBTORCH", bad.to_str().unwrap())];
    // The last finds no python3 to download with.
    for variables in [&users[..], &[("LIBTORCH_USE_PYTORCH", "1")], &[]] {
        let (code, error) = code_and_error(&xtask(&["libtorch"], variables));
        assert_eq!(code, Some(1), "{variables:?}: {error}");
        assert!(error.starts_with("error: ") && error.lines().count() == 1, "{variables:?}: {error}");
    }
}

#[test]
fn a_libtorch_of_the_users_is_used_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["include", "lib"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    let output = xtask(&["libtorch"], &[("LIBTORCH", &path(folder.path()))]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(
        said.starts_with("LIBTORCH is set") && said.contains(&path(&folder.path().join("lib"))),
        "{said}"
    );
}
