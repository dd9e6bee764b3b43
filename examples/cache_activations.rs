//! Looks at more than one thing in one run: norms along the way, an SAE spliced in, and what stands there afterwards.
//!
//! ```text
//! cargo run --release --example cache_activations
//! ```
#![allow(clippy::print_stdout, reason = "an example shows what it finds")]

use gemma_scope::{
    hooks::{ActivationCache, HookPoint, HookSet, HookedModel as _, HookedModelExt as _, observe},
    hub::Hub,
    load::{load_model, load_sae},
    model::LoadOptions,
    sae::{OpenOptions, Splice},
};

fn main() -> anyhow::Result<()> {
    let loaded = load_model("tiny", &LoadOptions::default(), Hub::from_env)?;
    let scope = load_sae("tiny", None, &OpenOptions::default(), Hub::from_env)?;
    let tokens = loaded.tokenizer()?.batch(&["The history of the world is the biography of great men."])?;

    let mut norms = Vec::new();
    let mut cache = ActivationCache::default();
    let mut hooks = HookSet::new();
    hooks
        .on_each(
            HookPoint::resid_posts(loaded.model.dims().n_layers),
            observe(|site, act| {
                norms.push((site, act.f_norm()?.f_double_value(&[])?));
                Ok(())
            }),
        )
        .on(scope.site, Splice::reconstruction(&scope.sae)) // runs second at its site
        .on(scope.site, &mut cache); // runs third: sees the reconstruction
    let logits = loaded.model.run(&tokens, hooks)?; // consumes the set: norms and cache are free again

    for (site, norm) in norms {
        println!("{:<28} norm {norm:.1}", site.to_string());
    }
    println!("what stood at {} after the splice: {:?}", scope.site, cache.get(scope.site)?.size());
    println!("logits {:?}", logits.size());
    Ok(())
}
