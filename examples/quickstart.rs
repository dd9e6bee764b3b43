//! The Gemma Scope tutorial: gather the residual stream by hand through a hook, encode it, reconstruct it, and look.
//!
//! ```text
//! cargo run --release --example quickstart                                # the embedded model and SAE
//! cargo run --release --example quickstart google/gemma-2-2b gemma-scope-2b-pt-res/layer_20/width_16k/canonical
//! ```
#![allow(clippy::print_stdout, reason = "an example shows what it finds")]

use std::env;

use gemma_scope::{
    eval::Reconstruction,
    hooks::{HookSet, HookedModelExt as _, observe},
    hub::Hub,
    load::{load_model, load_sae},
    model::LoadOptions,
    sae::{OpenOptions, SaeExt as _, SparseAutoencoder as _, as_input, top_features},
    tch::{self, Kind, Tensor},
};

fn main() -> anyhow::Result<()> {
    let _no_grad = tch::no_grad_guard();
    let model_name = env::args().nth(1).unwrap_or_else(|| "tiny".to_owned());
    let sae_name = env::args().nth(2).unwrap_or_else(|| "tiny".to_owned());

    // Load.
    let loaded = load_model(&model_name, &LoadOptions::default(), Hub::from_env)?;
    let scope = load_sae(&sae_name, None, &OpenOptions::default(), Hub::from_env)?;
    let (model, sae, site) = (&loaded.model, &scope.sae, scope.site);
    println!("{} at {site}: {} latents", scope.id, sae.d_sae());

    // Gather the residual by hand: a hook that looks and changes nothing. The run goes no deeper than the site.
    let text = "It was the best of times, it was the worst of times, and the President of the United States said so.";
    let tokens = loaded.tokenizer()?.batch(&[text])?;
    let mut seen = None;
    let mut hooks = HookSet::new();
    hooks.on(
        site,
        observe(|_, act| {
            seen = Some(act.shallow_clone());
            Ok(())
        }),
    );
    model.run_to(&tokens, hooks)?;
    let act = seen.ok_or_else(|| anyhow::anyhow!("the hook did not fire"))?;
    let x = as_input(site, &act)?; // [1, pos, d_in]

    // Encode and reconstruct.
    let features = sae.encode(&x)?; // [1, pos, d_sae]
    let x_hat = sae.finish(&sae.decode(&features)?, &x)?;

    // Variance explained, leaving BOS out: its norm is an outlier that would swamp the rest.
    let pos = tokens.pos();
    let without_bos = |t: &Tensor| t.f_narrow(1, 1, pos - 1)?.f_flatten(0, 1);
    let mut quality = Reconstruction::new(sae.d_in());
    quality.add(&without_bos(&x)?, &without_bos(&x_hat)?)?;
    match quality.fvu() {
        Some(fvu) => println!("variance explained without BOS: {:.3}", 1.0 - fvu),
        None => println!("variance explained: undefined, for the activations do not vary"),
    }

    // L0 of each token, and its strongest latent.
    let l0 = features.f_gt(0.0)?.f_sum_dim_intlist(-1, false, Kind::Int64)?; // [1, pos]
    println!("L0 of each token: {:?}", Vec::<i64>::try_from(l0.f_flatten(0, 1)?)?);
    let strongest = top_features(&features, 1)?;
    for hit in &strongest {
        let id = tokens.rows()[hit.row as usize][hit.pos as usize];
        println!(
            "{:>12}  latent {:>5} at {:.2}",
            format!("{:?}", loaded.tokenizer()?.piece(id)),
            hit.feature,
            hit.activation
        );
    }

    // The same tensors through the convenience: one call, and sparse inside.
    let again = sae.reconstruct(&x)?;
    let difference = again.f_sub(&x_hat)?.f_abs()?.f_max()?.f_double_value(&[])?;
    println!("dense and sparse reconstructions differ by {difference:.1e}");
    Ok(())
}
