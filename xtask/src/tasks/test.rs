//! `cargo xtask test`: builds everything, then runs the tests, then the doc-tests, and counts what ran.

use std::fmt;
use std::io::{self, IsTerminal, Read, Write};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::libtorch::{self, Libtorch};
use crate::project::{Project, announce, expect_success, step};
use crate::tokenizer;

pub(crate) fn run(project: &Project, args: &[String]) -> Result<ExitCode> {
    let start = Instant::now();
    let libtorch = libtorch::ensure(project.root())?;
    let counts = all(project, &libtorch, args)?;
    eprintln!("test: {counts} ({} s)", start.elapsed().as_secs());
    Ok(ExitCode::SUCCESS)
}

/// Every step of the tests; the first that fails is the error.
///
/// One profile serves them all, because the C++ shim of tch takes three minutes for each. The first step builds the
/// examples too: nothing runs them here, but tests may.
pub(crate) fn all(project: &Project, libtorch: &Libtorch, args: &[String]) -> Result<Counts> {
    let tokenizer = tokenizer::ensure_tokenizer();
    let cargo = |words: &[&str]| -> Result<Command> {
        let mut command = project.cargo_with(libtorch, ["test", "--release"])?;
        command.args(words).args(args);
        if let Some(folder) = &tokenizer {
            command.env(tokenizer::VARIABLE, folder);
        }
        Ok(command)
    };
    if names_a_package(args) {
        // A package may have no library to take doc-tests from: cargo's own choice of targets fits each.
        step("build", &mut cargo(&["--no-run"])?)?;
        return Ok(Counts { tests: counted("tests", cargo(&[])?)?, doc_tests: None });
    }
    step("build", &mut cargo(&["--workspace", "--no-run"])?)?;
    let tests = counted("tests", cargo(&["--workspace", "--lib", "--bins", "--tests"])?)?;
    let doc_tests = counted("doc-tests", cargo(&["--workspace", "--doc"])?)?;
    Ok(Counts { tests, doc_tests: Some(doc_tests) })
}

/// How many tests passed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    tests: Passed,
    /// `None` when they were counted with the tests.
    doc_tests: Option<Passed>,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let some = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let ignored = self.tests.ignored + self.doc_tests.map_or(0, |passed| passed.ignored);
        f.write_str(&some(self.tests.passed, "test"))?;
        if let Some(doc_tests) = self.doc_tests {
            write!(f, " and {}", some(doc_tests.passed, "doc-test"))?;
        }
        f.write_str(" passed")?;
        if ignored > 0 {
            write!(f, ", {ignored} ignored")?;
        }
        Ok(())
    }
}

fn names_a_package(args: &[String]) -> bool {
    let cargos = args.iter().take_while(|arg| *arg != "--");
    cargos
        .into_iter()
        .any(|arg| arg.starts_with("--package") || (arg.starts_with("-p") && !arg.starts_with("--")))
}

/// What the test programs of one step report together.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Passed {
    passed: u64,
    ignored: u64,
}

impl Passed {
    /// Adds a line such as `test result: ok. 3 passed; 0 failed; 1 ignored; …`; any other line adds nothing.
    fn add(&mut self, line: &str) {
        let Some((_, result)) = line.split_once("test result: ") else { return };
        let words: Vec<&str> = result.split([' ', ';']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let count = pair[0].parse().unwrap_or(0);
            match pair[1] {
                "passed" => self.passed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

/// Runs a step, shows its output as it comes, and counts what it reports.
fn counted(name: &str, mut command: Command) -> Result<Passed> {
    announce(name, &command);
    // One pipe for both keeps what cargo says and what the tests say in order.
    let (output, writer) = io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    if io::stdout().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let mut child =
        command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    // The pipe ends when nobody holds its other side any more.
    drop(command);
    let mut passed = Passed::default();
    show_lines(output, io::stdout().lock(), |line| passed.add(line))?;
    expect_success(name, child.wait()?)?;
    Ok(passed)
}

/// Copies `from` to `to` without waiting for whole lines, and hands on each line.
fn show_lines(mut from: impl Read, mut to: impl Write, mut each: impl FnMut(&str)) -> io::Result<()> {
    let mut chunk = [0; 8192];
    let mut line = Vec::new();
    loop {
        let n = match from.read(&mut chunk) {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if n == 0 {
            each(&String::from_utf8_lossy(&line));
            return Ok(());
        }
        to.write_all(&chunk[..n])?;
        to.flush()?;
        for part in chunk[..n].split_inclusive(|byte| *byte == b'\n') {
            line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                each(&String::from_utf8_lossy(&line));
                line.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_summed_over_the_programs() {
        let output = "running 2 tests\ntest a ... ok\ntest b passed ... ok\n\n\
            test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.00s\n\n\
            test result: ok. 40 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s";
        let mut passed = Passed::default();
        let mut shown = Vec::new();
        show_lines(output.as_bytes(), &mut shown, |line| passed.add(line)).unwrap();
        assert_eq!(shown, output.as_bytes());
        assert_eq!(passed, Passed { passed: 42, ignored: 1 });
        let one = Counts { tests: Passed { passed: 1, ignored: 0 }, doc_tests: None };
        assert_eq!(one.to_string(), "1 test passed");
        let counts = Counts { tests: passed, doc_tests: Some(Passed { passed: 3, ignored: 1 }) };
        assert_eq!(counts.to_string(), "42 tests and 3 doc-tests passed, 2 ignored");
    }

    #[test]
    fn a_package_is_seen_before_the_dashes_only() {
        let named =
            |words: &[&str]| names_a_package(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
        assert!(named(&["-p", "hooks"]) && named(&["-phooks"]) && named(&["--package=hooks"]));
        assert!(!named(&["order"]) && !named(&["--", "-p"]) && !named(&["--profile"]));
    }
}
