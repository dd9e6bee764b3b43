//! circuit-tracer's per-layer transcoders (0.5, `transcoder/single_layer_transcoder.py`): a set is a folder of `config.yaml` and
//! one `layer_{i}.safetensors` for each layer, with `W_enc` `[d_transcoder, d_model]` (a row for each latent), `W_dec`
//! `[d_transcoder, d_model]`, `b_enc`, `b_dec`, and where there are such `activation_function.threshold` and `W_skip`
//! `[d_model, d_model]`.
//!
//! With a threshold the activation is JumpReLU, else ReLU: no key of the config chooses. Nothing is subtracted from the input.
//! Cross-layer transcoders are refused.

use std::{fs, path::Path};

use hooks::HookPoint;
use serde_json::Value;
use tch_ext::TensorError;

use super::{
    About, Format, OpenOptions, Opened,
    config::{Config, bad},
    in_file,
    tensors::Tensors,
    yaml,
};
use crate::{Activation, Result, Sae, SaeParts};

const CONFIG: &str = "config.yaml";
const THRESHOLD: &str = "activation_function.threshold";

/// Opens one layer's file, or the folder of a set that has no other layer.
///
/// # Errors
/// A folder of several layers: its error lists them, to name one. A file that is missing or damaged; a setting that is
/// unknown, or not read; a tensor that is missing, superfluous, of another shape or dtype, or not finite; a negative
/// threshold, which their JumpReLU (without a ReLU) lets negative latents through.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Opened> {
    if path.is_dir() {
        let config = read_config(path)?;
        return open_layer(&path.join(only_layer(path)?), config, options);
    }
    open_layer(path, read_config(path.parent().unwrap_or(Path::new("")))?, options)
}

fn open_layer(path: &Path, config: Option<Config>, options: &OpenOptions) -> Result<Opened> {
    let layer = path.file_name().and_then(|name| layer_of(name.to_str()?));
    let mut tensors = Tensors::safetensors(path, options)?;
    let file = tensors.file().to_owned();
    let d_sae = [("W_enc", 0), ("b_enc", 0), ("W_dec", 0), (THRESHOLD, 0)];
    let d_sae = ("d_transcoder", tensors.size(&d_sae));
    let d_in = ("d_model", tensors.size(&[("W_enc", 1), ("b_dec", 0), ("W_dec", 1)]));
    let w_enc = tensors.matrix("W_enc", [d_sae, d_in], true)?;
    let w_dec = tensors.matrix("W_dec", [d_sae, d_in], false)?;
    let (b_enc, b_dec) = (tensors.vector("b_enc", d_sae)?, tensors.vector("b_dec", d_in)?);
    let activation = if tensors.has(THRESHOLD) {
        let threshold = tensors.vector(THRESHOLD, d_sae)?;
        if threshold.f_lt(0.0)?.f_any()?.f_int64_value(&[])? != 0 {
            let problem =
                "`activation_function.threshold` is negative somewhere, which lets negative latents through";
            return Err(bad(&file, problem));
        }
        Activation::JumpRelu { threshold }
    } else {
        Activation::Relu
    };
    let w_skip = if tensors.has("W_skip") {
        let out = ("d_out", d_in.1);
        Some(tensors.tensor("W_skip", &[out, d_in])?.f_tr()?)
    } else {
        None
    };
    tensors.finish()?;
    let about = match config {
        Some(config) => about(config, layer, matches!(activation, Activation::JumpRelu { .. }))?,
        None => About::new(Format::CircuitTracer),
    };
    let plain = SaeParts::plain(w_enc, b_enc, w_dec, b_dec, activation);
    let sae = Sae::new(SaeParts { w_skip, transcoder: true, ..plain });
    Ok(Opened { sae: sae.map_err(|e| in_file(&file, e))?, about })
}

/// The config of a set, where there is one.
fn read_config(folder: &Path) -> Result<Option<Config>> {
    let path = folder.join(CONFIG);
    if !path.is_file() {
        return Ok(None);
    }
    let mut config = yaml::read(&path)?;
    let kind = config.text("model_kind")?;
    match config.required("model_kind", kind)?.as_str() {
        "transcoder_set" => Ok(Some(config)),
        "cross_layer_transcoder" => Err(config
            .bad("`model_kind` is `cross_layer_transcoder`, which writes to several layers and is not read")),
        other => Err(config.bad(&format!("`model_kind` is `{other}`, which is not read"))),
    }
}

/// What the config says of a layer.
fn about(mut config: Config, layer: Option<usize>, jumprelu: bool) -> Result<About> {
    // circuit-tracer reads neither: what they say must be what the tensors say.
    let activations: &[Value] =
        &if jumprelu { ["jump_relu".into(), "jumprelu".into()] } else { ["relu".into(), "ReLU".into()] };
    config.only("activation", activations)?;
    let mut about = About::new(Format::CircuitTracer);
    about.model = config.text("model_name")?;
    let hooks = [config.text("feature_input_hook")?, config.text("feature_output_hook")?];
    about.metadata = config.harmless(&[
        "scan",
        "transcoders",
        "repo_id",
        "revision",
        "subfolder",
        // The same hooks by the names of other libraries.
        "feature_input_hook_in",
        "feature_input_hook_out",
        "feature_output_hook_in",
        "feature_output_hook_out",
    ]);
    config.finish()?;
    let full = |hook: &String| layer.map_or_else(|| hook.clone(), |layer| format!("blocks.{layer}.{hook}"));
    let [hook, hook_out] = hooks.map(|hook| hook.as_ref().map(full));
    about.site = hook.as_deref().and_then(site);
    about.site_out = hook_out.as_deref().and_then(site);
    (about.hook, about.hook_out) = (hook, hook_out);
    Ok(about)
}

/// The hook, where it is one of those that mean the same in our model: TransformerLens' `mlp.hook_in`, behind the norm's gain,
/// is none of ours.
fn site(hook: &str) -> Option<HookPoint> {
    let site = hook.parse().ok()?;
    let known = matches!(site, HookPoint::Ln2Normalized(_) | HookPoint::ResidMid(_) | HookPoint::MlpOut(_));
    known.then_some(site)
}

/// 3 of `layer_3.safetensors`.
fn layer_of(name: &str) -> Option<usize> {
    let digits = name.strip_prefix("layer_")?.strip_suffix(".safetensors")?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// The one layer's file of a folder.
fn only_layer(folder: &Path) -> Result<String> {
    let io = |e| TensorError::io(folder, e);
    let refused = |problem: &str| Err(bad(&folder.display().to_string(), problem));
    let mut layers = Vec::new();
    for entry in fs::read_dir(folder).map_err(io)? {
        let name = entry.map_err(io)?.file_name().to_string_lossy().into_owned();
        layers.extend(layer_of(&name).map(|layer| (layer, name)));
    }
    layers.sort();
    match layers.as_slice() {
        [] => refused("there is no `layer_{i}.safetensors` of a set of transcoders"),
        [(_, name)] => Ok(name.clone()),
        several => {
            const SHOWN: usize = 40;
            let mut names =
                several.iter().take(SHOWN).map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(", ");
            if several.len() > SHOWN {
                names += ", …";
            }
            refused(&format!(
                "is a set of {} transcoders, of which one must be named: {names}",
                several.len()
            ))
        }
    }
}
