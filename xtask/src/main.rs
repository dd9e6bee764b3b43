//! The project's own commands, as `cargo xtask COMMAND`: [`cli`] lists them.
//!
//! Nothing here depends on `tch`, because the first of them, [`libtorch`], puts in place what `tch` needs to build.
//! What a command is asked for goes to stdout; what it says on the way goes to stderr.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool speaks through these two")]

mod cli;
mod libtorch;
mod project;
mod tasks;
mod tokenizer;

use std::process::ExitCode;

use cli::{Request, Task};
use project::Project;

/// Exit codes are those of the `gemma-scope` command: 0 done, 1 the work failed, 2 the command line is wrong.
fn main() -> ExitCode {
    let request = match cli::parse(std::env::args_os().skip(1)) {
        Ok(request) => request,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    match request {
        Request::Help(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Request::Run(task) => run(task).unwrap_or_else(|error| {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }),
    }
}

fn run(task: Task) -> anyhow::Result<ExitCode> {
    let project = Project::find()?;
    match task {
        Task::Libtorch => tasks::libtorch::run(&project),
        Task::Demo(demo) => tasks::demo::run(&project, &demo),
        Task::Test { args } => tasks::test::run(&project, &args),
        Task::Check { tests } => tasks::check::run(&project, tests),
        Task::Bench { args } => tasks::bench::run(&project, &args),
        Task::DocOnly => tasks::doc_only::run(&project),
    }
}
