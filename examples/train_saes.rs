//! Two SAEs, JumpReLU and TopK, trained from one stream of the embedded model's activations, then opened as anybody's.
//!
//! ```console
//! cargo run --release --example train_saes
//! ```
#![allow(clippy::print_stdout, reason = "an example shows what it found")]

use std::fs;

use gemma_scope::{
    hub::Hub,
    load::{load_model, load_sae},
    model::LoadOptions,
    sae::{OpenOptions, SparseAutoencoder as _},
    tch::Device,
    train::run::{Progress, Watch},
    training::{File, Training},
};

const CONFIG: &str = r#"
[data]
text = ["TEXT"]
ctx = 64

[run]
steps = 60
batch = 256
buffer = 4096
scale_rows = 2000

[[sae]]
name = "jumprelu"
hook = "blocks.3.hook_resid_post"
d_sae = 512
recipe = "gemma-scope"               # a million steps' recipe: a short run needs a higher rate and a wider kernel
objective.lambda = 3e-3
objective.lambda_warmup = 0.3
objective.bandwidth = 0.03
objective.initial_threshold = 0.03
optimizer.lr = 3e-3
optimizer.lr_warmup = 5

[[sae]]
name = "topk"
hook = "blocks.3.hook_resid_post"
d_sae = 512
recipe = "topk"
objective.k = 16
optimizer.lr = 3e-3
"#;

/// Prints every twentieth step.
struct Printed;

impl Watch for Printed {
    fn progress(&mut self, progress: Progress<'_>) {
        if progress.step.is_multiple_of(20) {
            for stats in progress.stats {
                println!("step {:3}: L0 {:6.1}, FVU {:.3}", stats.step, stats.l0, stats.fvu);
            }
        }
    }
}

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let (text, config) = (folder.path().join("text.txt"), folder.path().join("config.toml"));
    fs::write(&text, include_str!("../README.md"))?;
    fs::write(&config, CONFIG.replace("TEXT", &text.display().to_string()))?;

    let gemma = load_model("tiny", &LoadOptions::default(), Hub::from_env)?;
    let file = File::read(&config, &[], &[])?;
    let run = folder.path().join("run");
    let training = Training {
        file: &file,
        folder: &run,
        model: Some(&gemma),
        device: Device::Cpu,
        storage: &[],
        resume: false, // true goes on with the run that the folder holds
    };
    let outcome = training.go(&mut Printed)?;
    for trained in &outcome.saes {
        let (_, folder) = &trained.folders[0]; // SAELens' format; JumpReLU is there in Gemma Scope's layout too
        let opened = load_sae(&folder.display().to_string(), None, &OpenOptions::default(), Hub::from_env)?;
        println!(
            "{}: {} with {} latents at {}",
            trained.name,
            opened.sae.architecture(),
            opened.sae.d_sae(),
            opened.site
        );
    }
    Ok(())
}
