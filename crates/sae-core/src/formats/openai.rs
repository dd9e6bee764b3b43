//! OpenAI's autoencoders (`openai/sparse_autoencoder`, `model.py`): one `.pt` with `encoder.weight` `[d_sae, d_in]`,
//! `latent_bias` `[d_sae]`, `decoder.weight` `[d_in, d_sae]`, `pre_bias` `[d_in]`, the activation's name and its settings, and
//! statistics of the training, which change nothing.
//!
//! `pre_bias` is subtracted from the input, and is the output's bias. TopK, and TopK alone, normalises each token
//! ([`Normalize::LayerNorm`]). The file names neither the model nor the site.

use std::path::Path;

use serde_json::Value;
use tch_ext::TorchValue;

use super::{About, Format, OpenOptions, Opened, config::bad, in_file, tensors::Tensors};
use crate::{Activation, Normalize, Result, Sae, SaeError, SaeParts};

/// Statistics of the training.
const STATISTICS: [&str; 3] = ["stats_last_nonzero", "latents_activation_frequency", "latents_mean_square"];

/// Opens a `.pt`.
///
/// # Errors
/// A damaged file, or one that asks for code; a tensor that is missing, superfluous, of another shape or dtype, or not finite;
/// an activation that is not read: `TopK` with a `postact_fn` that is not `ReLU` has negative latents.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Opened> {
    let mut tensors = Tensors::torch(path, options)?;
    let file = tensors.file().to_owned();
    if tensors.has("decoder.linear.weight") {
        // Their own code can't load what it wrote here.
        return Err(bad(&file, "`decoder.linear.weight`, of a tied autoencoder, is not read"));
    }
    let (activation, normalize) = activation(&mut tensors)?;
    let latent_axes =
        [("encoder.weight", 0), ("latent_bias", 0), ("decoder.weight", 1), ("stats_last_nonzero", 0)];
    let d_sae = ("d_sae", tensors.size(&latent_axes));
    let d_in = ("d_in", tensors.size(&[("encoder.weight", 1), ("pre_bias", 0), ("decoder.weight", 0)]));
    let w_enc = tensors.matrix("encoder.weight", [d_sae, d_in], true)?;
    let w_dec = tensors.matrix("decoder.weight", [d_in, d_sae], true)?;
    let (b_enc, b_dec) = (tensors.vector("latent_bias", d_sae)?, tensors.vector("pre_bias", d_in)?);
    STATISTICS.iter().for_each(|name| tensors.harmless(name));
    tensors.finish()?;
    let mut about = About::new(Format::OpenAi);
    about.metadata.insert("activation".to_owned(), Value::from(if normalize { "TopK" } else { "ReLU" }));
    let plain = SaeParts::plain(w_enc, b_enc, w_dec, b_dec, activation);
    let normalize = if normalize { Normalize::LayerNorm } else { Normalize::None };
    let sae = Sae::new(SaeParts { subtract_b_dec: true, normalize, ..plain });
    Ok(Opened { sae: sae.map_err(|e| in_file(&file, e))?, about })
}

/// The activation, and whether tokens are normalised.
fn activation(tensors: &mut Tensors<'_>) -> Result<(Activation, bool)> {
    let file = tensors.file().to_owned();
    let name = match tensors.value("activation") {
        // `from_state_dict` takes an unknown name for ReLU too; that is refused here.
        None => "ReLU".to_owned(),
        Some(TorchValue::Str(name)) => name,
        Some(_) => return Err(bad(&file, "`activation` must be a text")),
    };
    let settings = match tensors.value("activation_state_dict") {
        None => Vec::new(),
        Some(TorchValue::Dict(entries)) => entries,
        Some(_) => return Err(bad(&file, "`activation_state_dict` must be a dict")),
    };
    let setting = |key: &str| settings.iter().find(|(k, _)| k.as_str() == Some(key)).map(|(_, v)| v);
    let known: &[&str] = if name == "TopK" { &["k", "postact_fn"] } else { &[] };
    if let Some((key, _)) = settings.iter().find(|(k, _)| !k.as_str().is_some_and(|k| known.contains(&k))) {
        let key = key.as_str().unwrap_or("a key that is no text");
        return Err(bad(&file, &format!("`activation_state_dict` of `{name}` has an unknown `{key}`")));
    }
    match name.as_str() {
        "ReLU" => Ok((Activation::Relu, false)),
        "TopK" => {
            let k = setting("k").and_then(TorchValue::as_int);
            let k = k.ok_or_else(|| bad(&file, "`activation_state_dict` must have an integer `k`"))?;
            // Absent, it is ReLU: `TopK.__init__`.
            match setting("postact_fn").map(|v| v.as_str().unwrap_or("no text")) {
                None | Some("ReLU") => Ok((Activation::TopK { k }, true)),
                Some(other) => Err(negative(&file, other)),
            }
        }
        other => Err(bad(&file, &format!("the activation `{other}` is not read"))),
    }
}

fn negative(file: &str, postact_fn: &str) -> SaeError {
    bad(file, &format!("`postact_fn` is `{postact_fn}`, which is not read: latents would be negative"))
}
