//! Running the program.

use std::process::{Command, Output};

/// What a run left.
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The program with nothing of the user's own hub in its environment.
pub(crate) fn gemma_scope() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gemma-scope"));
    for name in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_ENDPOINT"] {
        command.env_remove(name);
    }
    command.env("HF_HUB_OFFLINE", "1");
    command
}

/// Runs to the end.
pub(crate) fn finish(mut command: Command) -> Run {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { code: status.code().expect("no signal"), stdout: text(stdout), stderr: text(stderr) }
}

/// Runs with arguments and expects success.
#[track_caller]
pub(crate) fn run(args: &[&str]) -> Run {
    let mut command = gemma_scope();
    command.args(args);
    let run = finish(command);
    assert_eq!(run.code, 0, "{args:?}: {}", run.stderr);
    run
}

/// Expects that a run failed with one sentence on stderr that names every one of `parts`.
#[track_caller]
pub(crate) fn expect_refusal(run: &Run, parts: &[&str]) {
    assert_eq!(run.code, 1, "stdout {:?}, stderr {:?}", run.stdout, run.stderr);
    let sentence = run.stderr.trim_end();
    assert!(sentence.starts_with("error: ") && !sentence.contains('\n'), "one sentence: {sentence:?}");
    assert!(!sentence.contains("panicked") && !sentence.contains("frame #"), "{sentence}");
    for part in parts {
        assert!(sentence.contains(part), "{sentence:?} does not name {part:?}");
    }
}

/// Runs with arguments and expects a refusal.
#[track_caller]
pub(crate) fn refuse(args: &[&str], parts: &[&str]) {
    let mut command = gemma_scope();
    command.args(args);
    expect_refusal(&finish(command), parts);
}

/// A path under `fixtures/`.
pub(crate) fn fixture(path: &str) -> String {
    format!("{}/../../fixtures/{path}", env!("CARGO_MANIFEST_DIR"))
}
