//! OpenMOSS' SAEs (`OpenMOSS/Language-Model-SAEs`, later `llamascopium`), of two ages.
//!
//! The first (Llama Scope, arXiv 2410.20526): `hyperparams.json` and `checkpoints/final.safetensors`, or
//! `pruned.safetensors`, which goes first. The second: `config.json` and `sae_weights.safetensors`, with three generations of
//! names for the tensors.
//!
//! Dataset-wise norms are folded into the weights, so that an SAE reads activations as the model makes them; a token's own norm
//! is [`Normalize::ConstantNorm`]. The ages differ in the unit of their latents, and so does this:
//!
//! * Llama Scope's are what their loader makes of them: as large as what they write, in units of the model's activations.
//!   SAELens' are √d_in / norm times as large; it looks neither at the decoder's norms nor at a transcoder's output norm.
//! * the newer ones' are in units of the normalised input, and the decoder's norms act on the gate alone, as in llamascopium with
//!   `fold_activation_scale=False` (that folding scales the activations and leaves the thresholds). Only TopK's are scaled by
//!   their decoder norms, as SAELens' `rescale_acts_by_decoder_norm` has it: those say which are the largest.

mod config;
mod hyperparams;

use std::path::Path;

use super::{About, OpenOptions, Opened, config::Config, config::bad};
use crate::{Normalize, Result};

/// Opens a folder.
///
/// # Errors
/// A file that is missing or damaged; a kind of SAE, an activation or a normalisation that is not read (crosscoders, CLTs,
/// Lorsa, MOLT, GLU encoders, what depends on the rest of the batch); a setting that is unknown; a tensor that is missing,
/// superfluous, of another shape or dtype, or not finite.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Opened> {
    if path.join(hyperparams::CONFIG).is_file() {
        return hyperparams::open(path, options);
    }
    config::open(path, options)
}

/// How inputs are normalised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Norm {
    Dataset,
    Token,
    None,
}

impl Norm {
    fn read(config: &mut Config, transcoder: bool) -> Result<Self> {
        match config.text("norm_activation")?.as_deref().unwrap_or("dataset-wise") {
            "dataset-wise" => Ok(Self::Dataset),
            // A transcoder's output would be scaled by the norm of the output to be estimated.
            "token-wise" if transcoder => {
                Err(config.bad("`norm_activation` is `token-wise`, which is not read of transcoders"))
            }
            "token-wise" => Ok(Self::Token),
            "inference" => Ok(Self::None),
            other => Err(config.bad(&format!("`norm_activation` is `{other}`, which is not read"))),
        }
    }

    fn normalize(self) -> Normalize {
        if self == Self::Token { Normalize::ConstantNorm } else { Normalize::None }
    }
}

/// `√d_in / norm`: what inputs are multiplied by.
fn scale(file: &str, name: &str, norm: f64, d_in: i64) -> Result<f64> {
    if norm > 0.0 && norm.is_finite() {
        return Ok((d_in as f64).sqrt() / norm);
    }
    Err(bad(file, &format!("`{name}` must be positive, but is {norm}")))
}

/// The hooks, and whether they differ.
fn hooks(config: &mut Config, about: &mut About) -> Result<bool> {
    let hook = config.text("hook_point_in")?;
    let hook = Some(config.required("hook_point_in", hook)?);
    let out = config.text("hook_point_out")?;
    let transcoder = out.is_some() && out != hook;
    about.site = hook.as_deref().and_then(|h| h.parse().ok());
    about.hook = hook;
    if transcoder {
        about.site_out = out.as_deref().and_then(|h| h.parse().ok());
        about.hook_out = out;
    }
    Ok(transcoder)
}

/// The model of `lm_config.json`, where there is one.
fn model(folder: &Path) -> Result<Option<String>> {
    let path = folder.join("lm_config.json");
    if path.is_file() { Config::read(&path)?.text("model_name") } else { Ok(None) }
}
