//! Judges the embedded SAE on a text: delta loss, FVU, L0, dead latents, each with its definition.
//!
//! ```text
//! cargo run --release --example evaluate_sae
//! ```
#![allow(clippy::print_stdout, reason = "an example shows what it finds")]

use gemma_scope::{
    eval::{EvalOptions, METRICS, evaluate},
    hub::Hub,
    load::{load_model, load_sae},
    model::{LoadOptions, ModelError},
    sae::OpenOptions,
};

const TEXTS: [&str; 3] = [
    "Fellow citizens of the Senate and of the House of Representatives: the state of the Union is peaceful.",
    "There was no possibility of taking a walk that day; the rain had begun early, and the wind was cold.",
    "In the beginning the earth was without form, and darkness was upon the face of the deep.",
];

fn main() -> anyhow::Result<()> {
    let loaded = load_model("tiny", &LoadOptions::default(), Hub::from_env)?;
    let scope = load_sae("tiny", None, &OpenOptions::default(), Hub::from_env)?;
    let tokenizer = loaded.tokenizer()?;
    let batches = TEXTS.iter().map(|text| tokenizer.batch(&[text]).map_err(to_hook_error));
    let report = evaluate(&loaded.model, scope.site, &scope.sae, batches, &EvalOptions::default())?;
    println!("{report}");
    for metric in METRICS {
        println!("{}: {}", metric.name, metric.definition);
    }
    Ok(())
}

/// A tokenizer's error on its way through the evaluation.
fn to_hook_error(error: ModelError) -> gemma_scope::hooks::HookError {
    error.into()
}
