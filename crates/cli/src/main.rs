//! The `gemma-scope` command: arguments, progress and exit codes over the library.

mod args;
mod commands;
mod output;
mod report;
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
    /// Changes the format of an SAE.
    Convert(commands::convert::Args),
    /// Runs an SAE on stored activations.
    Encode(commands::encode::Args),
    /// Judges SAEs: delta loss, FVU, L0, dead latents and every other metric, many SAEs in one pass.
    Eval(commands::eval::Args),
    /// Joins the parts of an evaluation that was divided.
    EvalMerge(commands::eval::MergeArgs),
    /// Downloads models and SAEs into the hub's cache.
    Fetch(commands::fetch::Args),
    /// Writes text, with SAE latents steered or ablated at every step if asked.
    Generate(commands::generate::Args),
    /// Writes activations as shards, for training.
    Harvest(commands::harvest::Args),
    /// Says what a model or an SAE is.
    Inspect(commands::inspect::Args),
    /// Lists the released SAEs.
    List(commands::list::Args),
    /// Trains SAEs, many from one stream, as a configuration says.
    Train(commands::train::Args),
}

fn main() -> ExitCode {
    // A tenth of a forward pass on the CPU is page faults otherwise.
    let _kept = gemma_scope::tensors::keep_freed_memory();
    let result = match Cli::parse().command {
        Command::Analyze(args) => commands::analyze::run(&args),
        Command::Activations(args) => commands::activations::run(&args),
        Command::Convert(args) => commands::convert::run(&args),
        Command::Encode(args) => commands::encode::run(&args),
        Command::Eval(args) => commands::eval::run(&args),
        Command::EvalMerge(args) => commands::eval::merge(&args),
        Command::Fetch(args) => commands::fetch::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Harvest(args) => commands::harvest::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::List(args) => commands::list::run(&args),
        Command::Train(args) => commands::train::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&error);
            ExitCode::FAILURE
        }
    }
}
