//! Adds a latent's direction to the residual stream and watches the next token's distribution move.
//!
//! ```text
//! cargo run --release --example steer
//! ```
#![allow(clippy::print_stdout, reason = "an example shows what it finds")]

use gemma_scope::{
    hooks::{HookSet, HookedModelExt as _, edit},
    hub::Hub,
    load::{load_model, load_sae},
    model::LoadOptions,
    sae::{OpenOptions, SaeExt as _, SparseAutoencoder as _, as_input, top_features},
    tch::{self, Kind, Tensor},
};

fn main() -> anyhow::Result<()> {
    let _no_grad = tch::no_grad_guard();
    let loaded = load_model("tiny", &LoadOptions::default(), Hub::from_env)?;
    let scope = load_sae("tiny", None, &OpenOptions::default(), Hub::from_env)?;
    let (model, sae, site) = (&loaded.model, &scope.sae, scope.site);
    let tokenizer = loaded.tokenizer()?;

    // The strongest latent on the last word of one text that is active on few of its other words …
    let source = tokenizer.batch(&["And the captain steered the ship"])?;
    let acts = model.harvest(&source, &[site])?;
    let features = sae.encode(&as_input(site, acts.get(site)?)?)?; // [1, pos, d_sae]
    let tokens_active = features.f_gt(0.0)?.f_sum_dim_intlist(1, true, Kind::Int64)?; // [1, 1, d_sae]
    let selective = features.f_mul(&tokens_active.f_le(2)?)?;
    let hits = top_features(&selective, 1)?;
    let hit = hits.last().ok_or_else(|| anyhow::anyhow!("no such latent is active"))?;
    println!("latent {} is active at {:.2} on the last token", hit.feature, hit.activation);

    // … is added to another, at three times the size it had.
    let target = tokenizer.batch(&["They looked at the"])?;
    let clean = model.logits(&target)?;
    let mut hooks = HookSet::new();
    hooks.on(site, edit::add(sae.direction(hit.feature)?, 3.0 * hit.activation));
    let steered = model.run(&target, hooks)?;
    for (name, logits) in [("clean", clean), ("steered", steered)] {
        let last = logits.f_select(1, target.pos() - 1)?.f_select(0, 0)?.f_softmax(-1, Kind::Float)?;
        println!("{name:>8}: {}", top(&last, |id| tokenizer.piece(id))?);
    }
    Ok(())
}

/// The five likeliest next tokens.
fn top(p: &Tensor, piece: impl Fn(i64) -> String) -> anyhow::Result<String> {
    let (p, ids) = p.f_topk(5, -1, true, true)?;
    let (p, ids) = (Vec::<f32>::try_from(p)?, Vec::<i64>::try_from(ids)?);
    Ok(ids.iter().zip(p).map(|(id, p)| format!("{:?} {p:.3}", piece(*id))).collect::<Vec<_>>().join("  "))
}
