//! What the weights alone say of a latent: the tokens its direction speaks for and against, its nearest relatives, its norms.
//!
//! ```text
//! cargo run --release --example anatomy                 # the embedded SAE, the latents that "sea" wakes most
//! cargo run --release --example anatomy -- 1072 344     # these latents
//! ```
#![allow(clippy::print_stdout, reason = "an example shows what it finds")]

use gemma_scope::{
    hooks::HookedModelExt as _,
    hub::Hub,
    load::{load_model, load_sae},
    model::LoadOptions,
    sae::{
        FeatureId, OpenOptions, SparseAutoencoder as _,
        anatomy::{Anatomy, LogitOptions, logit_effects},
        as_input, top_features,
    },
    tch::{self, Tensor},
};

fn main() -> anyhow::Result<()> {
    let _no_grad = tch::no_grad_guard();
    let gemma = load_model("tiny", &LoadOptions::default(), Hub::from_env)?;
    let scope = load_sae("tiny", None, &OpenOptions::default(), Hub::from_env)?;
    let (model, tokenizer, sae) = (&gemma.model, gemma.tokenizer()?, &scope.sae);

    let mut latents =
        std::env::args().skip(1).map(|l| l.parse().map(FeatureId)).collect::<Result<Vec<_>, _>>()?;
    if latents.is_empty() {
        let tokens = tokenizer.batch(&["The captain of the ship looked at the sea"])?;
        let acts = model.harvest(&tokens, &[scope.site])?;
        let features = sae.encode(&as_input(scope.site, acts.get(scope.site)?)?)?;
        let last = features.size()[1] - 1;
        latents =
            top_features(&features.f_narrow(1, last, 1)?, 4)?.into_iter().map(|hit| hit.feature).collect();
    }

    // W_U is the embedding turned around; the final norm's gain is left out, as in Neuronpedia.
    let unembed = |tokens: std::ops::Range<i64>| -> Result<Tensor, gemma_scope::sae::SaeError> {
        Ok(model.w_e().f_narrow(0, tokens.start, tokens.end - tokens.start)?.f_tr()?)
    };
    let anatomy = Anatomy::new(sae);
    let norms = anatomy.norms()?;
    let alignment = anatomy.encoder_decoder_cosine()?;
    let options = LogitOptions { k: 6, ..LogitOptions::default() };
    for latent in latents {
        let f = latent.0 as i64;
        println!("latent {latent}");
        println!("  ‖W_dec‖ {:.3}", norms.decoder.f_double_value(&[f])?);
        if let (Some(encoder), Some(cosine)) = (&norms.encoder, &alignment) {
            let (norm, cosine) = (encoder.f_double_value(&[f])?, cosine.f_double_value(&[f])?);
            println!("  ‖W_enc‖ {norm:.3}, cosine of what it reads and what it writes {cosine:.2}");
        }
        let near = anatomy.neighbours(latent, 3)?;
        let near: Vec<String> = near.iter().map(|(other, cosine)| format!("{other} ({cosine:.2})")).collect();
        println!("  nearest {}", near.join(", "));
        let direction = sae.w_dec(f..f + 1)?;
        for effect in logit_effects(&direction, unembed, model.config().dims.d_vocab as i64, &options)? {
            let words = |side: &[(i64, f32)]| -> String {
                side.iter()
                    .map(|(id, logit)| format!("{:?} {logit:+.2}", tokenizer.piece(*id)))
                    .collect::<Vec<_>>()
                    .join("  ")
            };
            println!("  for     {}\n  against {}", words(&effect.top), words(&effect.bottom));
        }
    }
    Ok(())
}
