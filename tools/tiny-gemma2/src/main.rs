//! Makes the project's embedded default from public-domain prose, step by step:
//!
//! ```text
//! python3 tools/tiny-gemma2/corpus.py runs/tiny/corpus
//! cargo run --release -p tiny-gemma2 -- tokenizer      # a BPE of 4,096 entries
//! cargo run --release -p tiny-gemma2 -- train          # the model; goes on where it stopped
//! cargo run --release -p tiny-gemma2 -- sae            # the SAE; goes on where it stopped
//! cargo run --release -p tiny-gemma2 -- ship           # assets/ and its card
//! ```
//!
//! `make.sh` does all of it.
#![allow(clippy::print_stdout, reason = "a tool for the terminal")]

mod baseline;
mod bpe;
mod corpus;
mod data;
mod lm;
mod sae;
mod ship;

use std::path::PathBuf;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about)]
struct Args {
    /// Where everything is kept while it is being made.
    #[arg(long, default_value = "runs/tiny")]
    run: PathBuf,
    #[command(subcommand)]
    step: Step,
}

#[derive(Subcommand)]
enum Step {
    /// Trains the tokenizer on the corpus and encodes the corpus with it.
    Tokenizer {
        /// Entries of the vocabulary, special tokens and bytes included.
        #[arg(long, default_value_t = 4096)]
        vocab: usize,
    },
    /// Trains the language model.
    Train(lm::Options),
    /// Trains the SAE.
    Sae(sae::Options),
    /// Writes `assets/`, judged on the held-out documents.
    Ship {
        /// The SAE's folder under the run's.
        #[arg(long, default_value = "sae")]
        sae: String,
        /// The block that it reads.
        #[arg(long, default_value_t = 3)]
        layer: usize,
        /// Where to.
        #[arg(long, default_value = "assets")]
        assets: PathBuf,
    },
    /// Scores unigram and interpolated bigram models with the same tokenizer.
    Baseline,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match args.step {
        Step::Tokenizer { vocab } => {
            bpe::train(&args.run, vocab)?;
            data::encode(&args.run)
        }
        Step::Train(options) => lm::train(&args.run, &options),
        Step::Sae(options) => sae::train(&args.run, &options),
        Step::Ship { sae, layer, assets } => ship::ship(&args.run, &sae, layer, &assets),
        Step::Baseline => baseline::print(&args.run),
    }
}
