//! Goes on with two texts at once, plain and with a latent steered, and watches the residual stream at every step.
//!
//! ```text
//! cargo run --release --example generate
//! ```
#![allow(clippy::print_stdout, reason = "an example shows what it finds")]

use gemma_scope::{
    hooks::{ActivationCache, HookSet, Positions, edit},
    hub::Hub,
    load::{load_model, load_sae},
    model::{GenerateOptions, Generation, LoadOptions, Sampling},
    sae::{FeatureId, OpenOptions, SaeExt as _},
};

const LATENT: FeatureId = FeatureId(120);

fn main() -> anyhow::Result<()> {
    let loaded = load_model("tiny", &LoadOptions::default(), Hub::from_env)?;
    let scope = load_sae("tiny", None, &OpenOptions::default(), Hub::from_env)?;
    let tokenizer = loaded.tokenizer()?;
    let texts = ["The captain of the ship", "Elizabeth was"];
    let prompts = texts.map(|text| tokenizer.encode(text)).into_iter().collect::<Result<Vec<_>, _>>()?;
    let sampling = Sampling { temperature: 0.8, top_p: Some(0.9), seed: 7, ..Sampling::default() };
    let options = GenerateOptions { sampling, ..GenerateOptions::greedy(24) };

    for strength in [0.0, 20.0] {
        let mut generation = Generation::new(&loaded.model, &prompts, options.clone())?;
        // Every position but BOS and padding, those that are yet to be written included.
        let counted = Positions::Counted.over(generation.prompt())?;
        let mut cache = ActivationCache::default();
        let mut hooks = HookSet::new();
        hooks.on(scope.site, edit::add(scope.sae.direction(LATENT)?, strength).at(counted));
        hooks.on(scope.site, &mut cache); // placed behind the edit: sees what it made
        let mut rows = vec![Vec::new(); prompts.len()];
        while let Some(tokens) = generation.step(&mut hooks)? {
            for (row, id) in rows.iter_mut().zip(tokens) {
                row.extend(id);
            }
        }
        hooks.finish()?;
        println!("latent {LATENT} at {strength}, {} saw {:?}:", scope.site, cache.get(scope.site)?.size());
        for (text, ids) in texts.iter().zip(&rows) {
            println!("  {text}{}", tokenizer.decode(ids)?);
        }
    }
    Ok(())
}
