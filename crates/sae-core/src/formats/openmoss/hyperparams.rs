//! Llama Scope: `hyperparams.json`, `checkpoints/`.

use std::path::Path;

use serde_json::Value;

use super::{Norm, hooks, model, scale};
use crate::{
    Activation, Result, Sae, SaeParts,
    formats::{About, Format, OpenOptions, Opened, config::Config, in_file, tensors::Tensors},
};

pub(super) const CONFIG: &str = "hyperparams.json";

/// What is about training, or about how their library was to load it.
const TRAINING: [&str; 24] = [
    "bias_init_method",
    "decoder_bias_init_method",
    "decoder_exactly_fixed_norm",
    "init_decoder_norm",
    "init_encoder_norm",
    "init_encoder_with_decoder_transpose",
    "init_search",
    "lp",
    "l1_coefficient",
    "l1_coefficient_warmup_steps",
    "k_warmup_steps",
    "initial_k",
    "use_batch_norm_mse",
    "use_ghost_grads",
    "tp_size",
    "ddp_size",
    "seed",
    "device",
    "dtype",
    "exp_name",
    "exp_series",
    "exp_result_path",
    "sae_pretrained_name_or_path",
    "strict_loading",
];

/// Opens a folder.
pub(super) fn open(path: &Path, options: &OpenOptions) -> Result<Opened> {
    let mut config = Config::read(&path.join(CONFIG))?;
    config.only("sae_type", &["sae".into()])?;
    config.only("use_glu_encoder", &[false.into()])?;
    let mut about = About::new(Format::OpenMoss);
    let transcoder = hooks(&mut config, &mut about)?;
    let norm = Norm::read(&mut config, transcoder)?;
    let d_in = config.size("d_model")?;
    let d_in = ("d_model", config.required("d_model", d_in)?);
    let d_sae = ("d_sae", d_sae(&mut config, d_in.1)?);
    let include_norms = config.flag("sparsity_include_decoder_norm")?.unwrap_or(true);
    let bias = config.flag("use_decoder_bias")?.unwrap_or(true);
    let subtract = config.flag("apply_decoder_bias_to_pre_encoder")?.unwrap_or(false);
    let activation = Act::read(&mut config)?;
    let (s_in, s_out) = scales(&mut config, norm, d_in.1)?;
    about.metadata = config.harmless(&TRAINING);
    config.finish()?;
    about.model = model(path)?;

    let checkpoints = path.join("checkpoints");
    let pruned = checkpoints.join("pruned.safetensors");
    let weights = if pruned.is_file() { pruned } else { checkpoints.join("final.safetensors") };
    let mut tensors = Tensors::safetensors(&weights, options)?;
    let file = tensors.file().to_owned();
    let w_enc = tensors.matrix("encoder.weight", [d_sae, d_in], true)?;
    let b_enc = tensors.vector("encoder.bias", d_sae)?.f_div_scalar(s_in)?;
    let w_dec = tensors.matrix("decoder.weight", [d_in, d_sae], true)?;
    let w_dec = if s_in == s_out { w_dec } else { w_dec.whole()?.f_mul_scalar(s_in / s_out)?.into() };
    let b_dec = if bias {
        tensors.vector("decoder.bias", d_in)?.f_div_scalar(s_out)?
    } else {
        tensors.zeros(d_in)?
    };
    tensors.finish()?;
    let parts = SaeParts::plain(w_enc, b_enc, w_dec, b_dec, Activation::Relu);
    // Before the activation is set: thresholds are in units of the latents that this makes.
    let parts = if include_norms {
        let norms = parts.decoder_norms()?;
        parts.scale_latents(&norms)?
    } else {
        parts
    };
    let activation = activation.of(&parts)?;
    let normalize = norm.normalize();
    let sae =
        Sae::new(SaeParts { activation, normalize, subtract_b_dec: subtract && bias, transcoder, ..parts });
    Ok(Opened { sae: sae.map_err(|e| in_file(&file, e))?, about })
}

/// `d_sae`, or `d_model · expansion_factor`; given both, they must agree.
fn d_sae(config: &mut Config, d_in: i64) -> Result<i64> {
    let said = config.size("d_sae")?;
    let product = config.number("expansion_factor")?.map(|factor| (d_in as f64 * factor) as i64);
    match (said, product) {
        // The product may have been rounded.
        (Some(n), Some(product)) if (n - product).abs() > 1 => {
            Err(config.bad(&format!("`d_sae` is {n}, but `d_model` times `expansion_factor` is {product}")))
        }
        (said, product) => config.required("d_sae", said.or(product)),
    }
}

/// What inputs and outputs are multiplied by.
fn scales(config: &mut Config, norm: Norm, d_in: i64) -> Result<(f64, f64)> {
    let norms = config.object("dataset_average_activation_norm")?;
    if norm != Norm::Dataset {
        return Ok((1.0, 1.0));
    }
    let mut norms = config.required("dataset_average_activation_norm", norms)?;
    let mut scale_of = |key: &str| {
        let value = norms.number(key)?;
        scale(
            norms.file(),
            &format!("dataset_average_activation_norm.{key}"),
            norms.required(key, value)?,
            d_in,
        )
    };
    let scales = (scale_of("in")?, scale_of("out")?);
    norms.finish()?;
    Ok(scales)
}

/// The activation, before the tensors are there.
enum Act {
    Relu,
    JumpRelu(f64),
    TopK(i64),
}

impl Act {
    fn read(config: &mut Config) -> Result<Self> {
        let name = config.take("act_fn");
        let name = name.as_ref().map_or(Some("relu"), Value::as_str).unwrap_or_default().to_lowercase();
        let threshold = config.number("jump_relu_threshold")?.unwrap_or(0.0);
        let k = config.size("top_k")?;
        match name.as_str() {
            "relu" => Ok(Self::Relu),
            // TopK SAEs are converted after training, and what says so is the threshold.
            "topk" if threshold <= 0.0 => Ok(Self::TopK(config.required("top_k", k)?)),
            "topk" | "jumprelu" if threshold >= 0.0 => Ok(Self::JumpRelu(threshold)),
            "jumprelu" => {
                let problem = "which lets negative latents through";
                Err(config.bad(&format!("`jump_relu_threshold` is {threshold}, {problem}")))
            }
            other => Err(config.bad(&format!("`act_fn` is `{other}`, which is not read"))),
        }
    }

    fn of(self, parts: &SaeParts) -> Result<Activation> {
        Ok(match self {
            Self::Relu => Activation::Relu,
            Self::TopK(k) => Activation::TopK { k },
            Self::JumpRelu(threshold) => {
                Activation::JumpRelu { threshold: parts.b_enc.f_full_like(threshold)? }
            }
        })
    }
}
