//! Does with this project exactly the work that `tools/bench/peer_bench.py` does with the peers: the same flags, the same
//! defaults, the same kind of JSON lines. `cargo xtask bench WHAT` runs it.
#![allow(clippy::print_stdout, reason = "a tool for the terminal")]

mod forward;
mod generate;
mod load;
mod sae;
mod suite;
mod timing;
mod train;
mod work;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use gemma_scope::tensors::{keep_freed_memory, open_device, parse_device, parse_kind};

use crate::{sae::Shape, train::Trained, work::On};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    /// Backbone, logits, loss and a full cache of a 2B-shaped model.
    Forward,
    /// A long context: the backbone, once.
    Context,
    /// Greedy generation with a cache.
    Generate,
    /// Reading a `params.npz`.
    Load,
    /// Reading the model of `--checkpoint`.
    LoadModel,
    /// Encode, decode and forward of a JumpReLU SAE, and of a TopK SAE.
    Sae,
    /// Several SAEs at the middle residual site of a 2B-shaped model, judged.
    Sweep,
    /// `--saes` at each of three sites of every layer of the embedded model, judged on `--tokens` tokens.
    Suite,
    /// A training step of `--objective`, all in.
    Train,
    /// Encode, decode and forward of an SAE too wide for memory: 256 rows of 256 numbers, 2^20 latents, unless it is said otherwise.
    Wide,
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
    /// Tokens to generate, or to judge on.
    #[arg(long, default_value_t = 32, default_value_if("what", "suite", "100000"))]
    tokens: usize,
    /// Rows of an SAE's input.
    #[arg(long, default_value_t = 4096, default_value_if("what", "wide", "256"))]
    batch: i64,
    /// Width of an SAE's input.
    #[arg(long, default_value_t = 2304, default_value_if("what", "wide", "256"))]
    d_in: i64,
    /// The latents that a TopK SAE keeps.
    #[arg(long, default_value_t = 64)]
    k: i64,
    /// What `train` trains.
    #[arg(long, value_enum, default_value_t = Trained::Jumprelu)]
    objective: Trained,
    /// The share of latents that `train` counts as dead, for AuxK.
    #[arg(long, default_value_t = 0.05)]
    dead: f64,
    /// The norm to which `train` clips gradients.
    #[arg(long)]
    clip: Option<f64>,
    /// SAEs to judge.
    #[arg(long, default_value_t = 5, default_value_if("what", "suite", "6"))]
    saes: usize,
    /// Sequences generated side by side.
    #[arg(long, default_value_t = 1)]
    sequences: usize,
    /// Latents.
    #[arg(long, default_value_t = 16384, default_value_ifs([("what", "wide", "1048576"), ("what", "suite", "2048")]))]
    width: i64,
    /// Mean active latents.
    #[arg(long, default_value_t = 70.0)]
    l0: f64,
    /// A model's folder.
    #[arg(long)]
    checkpoint: Option<PathBuf>,
    /// `cpu`, `cuda` or `cuda:N`.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// `f32` or `bf16`.
    #[arg(long, default_value = "f32")]
    dtype: String,
    /// Leaves the allocator as the system has it.
    #[arg(long)]
    plain_allocator: bool,
}

impl Flags {
    fn shape(&self) -> Shape {
        Shape { batch: self.batch, d_in: self.d_in, width: self.width, l0: self.l0, k: self.k }
    }
}

fn main() -> Result<()> {
    let flags = Flags::parse();
    if !flags.plain_allocator {
        let _kept = keep_freed_memory();
    }
    let on = On { kind: parse_kind(&flags.dtype)?, device: open_device(parse_device(&flags.device)?)? };
    match flags.what {
        What::Forward => forward::run(flags.layers, flags.seq, on),
        What::Context => forward::context(flags.layers, flags.seq, on),
        What::Generate => generate::run(flags.layers, flags.tokens, flags.sequences, on),
        What::Load => load::npz(flags.width),
        What::LoadModel => {
            load::checkpoint(&flags.checkpoint.context("load-model needs --checkpoint DIR")?, on)
        }
        What::Sae => sae::run(&flags.shape(), on),
        What::Sweep => suite::sweep(flags.layers, flags.seq, flags.saes, on),
        What::Suite => suite::suite(flags.saes, flags.tokens, flags.width, on),
        What::Train => train::run(&flags.shape(), flags.objective, flags.dead, flags.clip, on),
        What::Wide => sae::wide(&flags.shape(), on),
    }
}
