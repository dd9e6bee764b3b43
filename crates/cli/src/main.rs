//! The `gemma-scope` command: arguments, progress and exit codes over the library.

mod args;
mod commands;
mod output;
mod text;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Gemma 2 with every activation named, and the sparse autoencoders that read it.
#[derive(Debug, Parser)]
#[command(name = "gemma-scope", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Shows which latents a text activates.
    Analyze(commands::analyze::Args),
    /// Writes a model's activations at any hook points.
    Activations(commands::activations::Args),
    /// Runs an SAE on stored activations.
    Encode(commands::encode::Args),
    /// Judges SAEs: delta loss, FVU, L0, dead latents.
    Eval(commands::eval::Args),
    /// Says what a model or an SAE is.
    Inspect(commands::inspect::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Analyze(args) => commands::analyze::run(&args),
        Command::Activations(args) => commands::activations::run(&args),
        Command::Encode(args) => commands::encode::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&error);
            ExitCode::FAILURE
        }
    }
}
