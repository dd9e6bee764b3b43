//! The newer files: `config.json`, `sae_weights.safetensors`.

use std::path::Path;

use super::{Norm, hooks, model, scale};
use crate::{
    Activation, Matrix, Result, Sae, SaeParts,
    formats::{
        About, Format, OpenOptions, Opened,
        config::{Config, bad},
        in_file,
        tensors::{Axis, Tensors},
    },
};

const CONFIG: &str = "config.json";
const WEIGHTS: [&str; 3] =
    ["sae_weights.safetensors", "checkpoints/pruned.safetensors", "checkpoints/final.safetensors"];
const NORM: &str = "dataset_average_activation_norm";

/// What is about training, or about how fast it runs.
const TRAINING: [&str; 7] = [
    "jumprelu_threshold_window",
    "jumprelu_threshold_grad_scale",
    "use_triton_kernel",
    "sparsity_threshold_for_triton_spmm_kernel",
    "sae_pretrained_name_or_path",
    "strict_loading",
    "top_k",
];

/// Opens a folder.
pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Opened> {
    let mut config = Config::read(&path.join(CONFIG))?;
    config.only("sae_type", &["sae".into()])?;
    config.only("use_glu_encoder", &[false.into()])?;
    // Of the first of three generations, whose thresholds are a tensor already.
    config.only("jump_relu_threshold", &[0.into(), 0.0.into()])?;
    config.only("force_unit_decoder_norm", &[false.into()])?;
    let mut about = About::new(Format::OpenMoss);
    let transcoder = hooks(&mut config, &mut about)?;
    let norm = Norm::read(&mut config, transcoder)?;
    let d_in = config.size("d_model")?;
    let d_in = ("d_model", config.required("d_model", d_in)?);
    let factor = config.number("expansion_factor")?;
    let factor = config.required("expansion_factor", factor)?;
    let d_sae = ("d_sae", (d_in.1 as f64 * factor) as i64);
    let include_norms = config.flag("sparsity_include_decoder_norm")?.unwrap_or(true);
    let bias = config.flag("use_decoder_bias")?.unwrap_or(true);
    let subtract = bias && config.flag("apply_decoder_bias_to_pre_encoder")?.unwrap_or(false);
    if subtract && transcoder {
        return Err(config.bad("`apply_decoder_bias_to_pre_encoder` is not read of transcoders"));
    }
    let act_fn = config.text("act_fn")?.unwrap_or_else(|| "relu".to_owned());
    if !["relu", "jumprelu", "topk"].contains(&act_fn.as_str()) {
        return Err(config.bad(&format!("`act_fn` is `{act_fn}`, which is not read")));
    }
    let k = if act_fn == "topk" { config.size("top_k")?.unwrap_or(50) } else { 0 };
    about.metadata = config.harmless(&TRAINING);
    config.finish()?;
    about.model = model(path)?;

    let mut tensors = weights(path, options)?;
    let file = tensors.file().to_owned();
    let hook = about.hook.as_deref().unwrap_or_default();
    let hook_out = about.hook_out.as_deref().unwrap_or(hook);
    let (s_in, s_out) = scales(&mut tensors, norm, [hook, hook_out], d_in.1)?;
    let names = if ["W_E", "b_E", "W_D"].iter().any(|name| tensors.has(name)) {
        ["W_E", "b_E", "W_D", "b_D"]
    } else {
        ["encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"]
    };
    let [w_enc, w_dec] = matrices(&mut tensors, [names[0], names[2]], d_in, d_sae)?;
    let b_enc = tensors.vector(names[1], d_sae)?;
    let b_dec = if bias { tensors.vector(names[3], d_in)? } else { tensors.zeros(d_in)? };
    let log_threshold = match act_fn.as_str() {
        "jumprelu" => Some(tensors.vector(threshold_name(&tensors), d_sae)?),
        _ => None,
    };
    tensors.finish()?;

    let mut parts = SaeParts::plain(w_enc, b_enc, w_dec, b_dec, Activation::Relu);
    // Before the output's scale is folded: what the gate compares is p · ‖W_D‖.
    let norms = if include_norms && act_fn != "relu" { Some(parts.decoder_norms()?) } else { None };
    parts.w_enc = scaled(parts.w_enc, s_in)?;
    parts.w_dec = scaled(parts.w_dec, 1.0 / s_out)?;
    parts.b_dec = parts.b_dec.f_div_scalar(s_out)?;
    let parts = match (log_threshold, norms) {
        (Some(log), norms) => {
            let threshold = log.f_exp()?;
            let threshold = norms.map_or(Ok(threshold.shallow_clone()), |n| threshold.f_div(&n))?;
            SaeParts { activation: Activation::JumpRelu { threshold }, ..parts }
        }
        (None, norms) if act_fn == "topk" => {
            let parts = match norms {
                Some(norms) => parts.scale_latents(&norms)?,
                None => parts,
            };
            SaeParts { activation: Activation::TopK { k }, ..parts }
        }
        _ => parts,
    };
    let sae =
        Sae::new(SaeParts { normalize: norm.normalize(), subtract_b_dec: subtract, transcoder, ..parts });
    Ok(Opened { sae: sae.map_err(|e| in_file(&file, e))?, about })
}

/// The weights' file, in the order in which their loader looks.
fn weights<'o>(path: &Path, options: &'o OpenOptions) -> Result<Tensors<'o>> {
    let there = WEIGHTS.iter().map(|name| path.join(name)).find(|file| file.is_file());
    let there = there.ok_or_else(|| {
        let names = WEIGHTS.map(|name| format!("`{name}`")).join(", ");
        bad(&path.display().to_string(), &format!("none of {names} is there, and no other kind is read"))
    });
    Tensors::safetensors(&there?, options)
}

/// What inputs and outputs are multiplied by. Their writer leaves uninitialised memory where a norm was never set.
fn scales(tensors: &mut Tensors<'_>, norm: Norm, hooks: [&str; 2], d_in: i64) -> Result<(f64, f64)> {
    let names = hooks.map(|hook| format!("{NORM}.{hook}"));
    if norm != Norm::Dataset {
        names.iter().for_each(|name| tensors.harmless(name));
        return Ok((1.0, 1.0));
    }
    let file = tensors.file().to_owned();
    let [name_in, name_out] = names;
    let s_in = scale(&file, &name_in, tensors.number(&name_in)?, d_in)?;
    if name_in == name_out {
        return Ok((s_in, s_in));
    }
    Ok((s_in, scale(&file, &name_out, tensors.number(&name_out)?, d_in)?))
}

/// Encoder and decoder: `[d_in, d_sae]` and `[d_sae, d_in]`, which PyTorch's `Linear` keeps transposed.
fn matrices(tensors: &mut Tensors<'_>, names: [&str; 2], d_in: Axis, d_sae: Axis) -> Result<[Matrix; 2]> {
    let [encoder, decoder] = names;
    if encoder.ends_with(".weight") {
        let w_enc = tensors.matrix(encoder, [d_sae, d_in], true)?;
        return Ok([w_enc, tensors.matrix(decoder, [d_in, d_sae], true)?]);
    }
    let w_enc = tensors.matrix(encoder, [d_in, d_sae], false)?;
    Ok([w_enc, tensors.matrix(decoder, [d_sae, d_in], false)?])
}

/// The first generation's own, or the activation's of the later two.
fn threshold_name(tensors: &Tensors<'_>) -> &'static str {
    const FIRST: &str = "log_jumprelu_threshold";
    if tensors.has(FIRST) { FIRST } else { "activation_function.log_jumprelu_threshold" }
}

fn scaled(matrix: Matrix, by: f64) -> Result<Matrix> {
    if by == 1.0 { Ok(matrix) } else { Ok(matrix.whole()?.f_mul_scalar(by)?.into()) }
}
