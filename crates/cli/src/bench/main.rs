//! Does with this project exactly the work that `tools/bench/peer_bench.py` does with the peers: the same flags, the same
//! defaults, the same kind of JSON lines. `cargo xtask bench WHAT` runs it.
#![allow(clippy::print_stdout, reason = "a tool for the terminal")]

mod forward;
mod sae;
mod timing;

use anyhow::Result;
use clap::{Parser, ValueEnum};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// Backbone, logits, loss and a full cache of a 2B-shaped model.
    Forward,
    /// Encode, decode and forward of a JumpReLU SAE.
    Sae,
}

/// Times this project on fixed work.
#[derive(Debug, Parser)]
#[command(name = "gemma-scope-bench")]
struct Flags {
    what: What,
    /// Blocks.
    #[arg(long, default_value_t = 8)]
    layers: usize,
    /// Positions.
    #[arg(long, default_value_t = 256)]
    seq: usize,
    /// Rows.
    #[arg(long, default_value_t = 4096)]
    batch: i64,
    /// Latents.
    #[arg(long, default_value_t = 16384)]
    width: i64,
    /// Mean active latents.
    #[arg(long, default_value_t = 70.0)]
    l0: f64,
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    match flags.what {
        What::Forward => forward::run(flags.layers, flags.seq),
        What::Sae => sae::run(flags.batch, flags.width, flags.l0),
    }
}
