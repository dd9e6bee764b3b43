//! Five headlines, and the latents that each of them activates most: the walk-through of the Gemma Scope demo.
//!
//! ```text
//! cargo run --release --example headlines
//! ```
#![allow(clippy::print_stdout, reason = "an example shows what it finds")]

use std::collections::BTreeMap;

use gemma_scope::{
    hooks::HookedModelExt as _,
    hub::Hub,
    load::{load_model, load_sae},
    model::LoadOptions,
    sae::{FeatureId, OpenOptions, SparseAutoencoder as _, as_input},
    tch,
};

const HEADLINES: [&str; 5] = [
    "Congress passes the treaty of peace with Great Britain after a long debate.",
    "Fishermen of the village report a great white whale near the southern islands.",
    "The public debt is reduced by three millions of dollars in the fiscal year.",
    "Miss Bennet is to marry a gentleman of large fortune in the spring.",
    "Priests carry the ark of the covenant before the people of Israel.",
];

fn main() -> anyhow::Result<()> {
    let _no_grad = tch::no_grad_guard();
    let loaded = load_model("tiny", &LoadOptions::default(), Hub::from_env)?;
    let scope = load_sae("tiny", None, &OpenOptions::default(), Hub::from_env)?;
    let tokenizer = loaded.tokenizer()?;
    let mut strongest_of_all: BTreeMap<FeatureId, Vec<usize>> = BTreeMap::new();
    for (i, headline) in HEADLINES.iter().enumerate() {
        let tokens = tokenizer.batch(&[headline])?;
        let ids = &tokens.rows()[0];
        let acts = loaded.model.harvest(&tokens, &[scope.site])?;
        let x = as_input(scope.site, acts.get(scope.site)?)?.f_squeeze_dim(0)?; // [pos, d_in]
        let features = scope.sae.encode_sparse(&x)?;

        // The strongest activation of each latent over the headline, BOS left out, and on how many tokens it is active.
        let mut best: BTreeMap<FeatureId, (f64, usize, usize)> = BTreeMap::new();
        for (pos, row) in features.top_k(usize::MAX)?.into_iter().enumerate().skip(1) {
            for (feature, activation) in row {
                let (strongest, at, tokens) = best.entry(feature).or_insert((0.0, pos, 0));
                *tokens += 1;
                if activation > *strongest {
                    (*strongest, *at) = (activation, pos);
                }
            }
        }
        // JumpReLU SAEs have a few latents that are active nearly everywhere and tell little: they are left out here.
        let counted = features.n_rows() as usize - 1;
        let mut ranked: Vec<_> =
            best.into_iter().filter(|(_, (_, _, tokens))| 2 * tokens <= counted).collect();
        ranked.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
        println!("\n{headline}");
        for (feature, (activation, pos, tokens)) in ranked.iter().take(5) {
            let piece = tokenizer.piece(ids[*pos]);
            println!(
                "  latent {feature:>5}  {activation:>7.2}  on {piece:?} (active on {tokens} of {counted} tokens)"
            );
            strongest_of_all.entry(*feature).or_default().push(i);
        }
    }
    let shared = strongest_of_all.values().filter(|headlines| headlines.len() > 1).count();
    println!(
        "\n{} different latents among the five strongest of each; {shared} of them in several",
        strongest_of_all.len()
    );
    Ok(())
}
