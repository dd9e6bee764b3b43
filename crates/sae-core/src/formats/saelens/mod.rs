//! SAELens' folders: `cfg.json` and `sae_weights.safetensors`, as `SAE.load_from_disk` of SAELens 6.54.12 reads them (its
//! `saes/*.py` and `loading/pretrained_sae_loaders.py`).
//!
//! | architecture | tensors |
//! |---|---|
//! | `standard`, `topk` | `W_enc` `[d_in, d_sae]`, `b_enc`, `W_dec` `[d_sae, d_in]`, `b_dec` |
//! | `jumprelu` | and `threshold` `[d_sae]`; in checkpoints of older trainings its logarithm, `log_threshold` |
//! | `gated` | `b_gate`, `b_mag`, `r_mag` instead of `b_enc` |
//! | `transcoder`, `jumprelu_transcoder` | as `standard` and `jumprelu`, with `d_out` |
//! | `skip_transcoder`, `jumprelu_skip_transcoder` | and `W_skip` `[d_out, d_in]`, transposed here |
//! | `batchtopk`, `matryoshka_batchtopk` | checkpoints of a training: as `standard`, and `topk_threshold` `[]` |
//!
//! A version before 6, or none, means the flat `cfg.json` of the time: names of keys and defaults are then those of
//! `handle_pre_6_0_config`.
//!
//! # Where this differs from SAELens
//!
//! * A key of `cfg.json` that is unknown is refused: SAELens drops it.
//! * Of an old folder, any `activation_fn` but `relu` and `topk` with its `k` is refused: SAELens takes all for ReLU.
//! * `expected_average_only_in` asks for a factor that is not in the folder, unless a checkpoint's `activation_scaler.json`
//!   holds it: it is then folded. Otherwise, and for `covariance_whitening`, the folder is refused: SAELens' `load_from_disk`
//!   normalises nothing, which gives other numbers than the training saw.
//! * A training's `batchtopk` is opened as what SAELens' `save_inference_model` makes of it: JumpReLU with one threshold.
//! * Weights are rounded to the dtype that `cfg.json` says, as SAELens does, and computed with in float32, which SAELens does
//!   not: it computes in that dtype.
//! * `hook_z` needs no reshaping here: [`as_input`](crate::as_input) has flattened the heads.

mod config;
mod old;
mod write;

use std::path::Path;

use hooks::HookPoint;
use serde_json::{Map, Value};
use tch::{Kind, Tensor};
use tch_ext::{Stored, expect_finite};

use self::config::{Latents, Settings};
use super::{
    About, Format, OpenOptions, Opened,
    config::{Config, bad},
    in_file,
    tensors::{Axis, Tensors},
};
use crate::{Activation, Matrix, Result, Sae, SaeParts, matrix::held};

pub use self::write::save;

/// The settings.
pub(crate) const CFG: &str = "cfg.json";
/// The weights.
pub(crate) const WEIGHTS: &str = "sae_weights.safetensors";
/// The factor of `expected_average_only_in`, while a training goes on.
const SCALER: &str = "activation_scaler.json";
/// Where [`About::metadata`] says that SAELens is to flatten heads.
const RESHAPE: &str = "reshape_activations";

/// Opens a folder.
///
/// # Errors
/// A tensor that is missing, superfluous, misshapen, of integers, or not finite; settings that are missing, unknown, or not
/// read; an architecture that is not read.
pub fn open(folder: &Path, options: &OpenOptions) -> Result<Opened> {
    let config = Config::read(&folder.join(CFG))?;
    let config = if old::is_old(&config)? { old::renewed(config)? } else { config };
    let file = config.file().to_owned();
    let settings = Settings::read(config)?;
    let scale = if settings.average { Some(scale_beside(folder, &file)?) } else { None };
    let tensors = Tensors::safetensors(&folder.join(WEIGHTS), options)?;
    let weights_file = tensors.file().to_owned();
    let parts = parts(Weights { tensors, dtype: settings.dtype, options }, &settings, scale)?;
    let sae = Sae::new(parts).map_err(|error| in_file(&weights_file, error))?;
    Ok(Opened { sae, about: about(settings) })
}

/// What the input was multiplied by in training (`sae_lens/training/activation_scaler.py`: `acts * scaling_factor`).
fn scale_beside(folder: &Path, cfg: &str) -> Result<f64> {
    let path = folder.join(SCALER);
    let mut factor = None;
    if path.is_file() {
        let mut scaler = Config::read(&path)?;
        factor = scaler.number("scaling_factor")?;
        scaler.only("has_whitening", &[false.into()])?;
        if factor.is_some_and(|s| s <= 0.0) {
            return Err(scaler.bad("`scaling_factor` must be positive"));
        }
    }
    factor.ok_or_else(|| {
        let problem = "`normalize_activations` is `expected_average_only_in`, and its factor is not in the folder: fold \
                       it with SAELens first (`fold_activation_norm_scaling_factor`)";
        bad(cfg, problem)
    })
}

/// Tensors that are rounded to the dtype of `cfg.json` first, as SAELens does (`load_state_dict`, then `to(dtype)`).
struct Weights<'o> {
    tensors: Tensors<'o>,
    dtype: Kind,
    options: &'o OpenOptions,
}

impl Weights<'_> {
    fn stored(&mut self, name: &str, axes: &[Axis]) -> Result<Stored> {
        let stored = self.tensors.stored(name, axes)?;
        let floats = matches!(stored.kind(), Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16);
        let narrow = matches!(self.dtype, Kind::Half | Kind::BFloat16);
        if !(floats && narrow) || stored.kind() == self.dtype {
            return Ok(stored);
        }
        let tensor = stored.tensor().map_err(|e| e.for_tensor(stored.what()))?;
        Ok(Stored::held(stored.what(), tensor.f_to_kind(self.dtype)?))
    }

    fn matrix(&mut self, name: &str, axes: [Axis; 2]) -> Result<Matrix> {
        Matrix::open(self.stored(name, &axes)?, false, self.options.hold_up_to, self.options.device)
    }

    fn tensor(&mut self, name: &str, axes: &[Axis]) -> Result<Tensor> {
        let stored = self.stored(name, axes)?;
        let tensor = held(&stored)?.f_to_device(self.options.device)?;
        expect_finite(stored.what(), &tensor)?;
        Ok(tensor)
    }
}

/// Takes all tensors.
fn parts(mut weights: Weights<'_>, settings: &Settings, scale: Option<f64>) -> Result<SaeParts> {
    let (d_in, d_sae) = (("d_in", settings.d_in), ("d_sae", settings.d_sae));
    let d_out = if settings.transcoder { ("d_out", settings.d_out) } else { d_in };
    let w_enc = weights.matrix("W_enc", [d_in, d_sae])?;
    let w_dec = weights.matrix("W_dec", [d_sae, d_out])?;
    let b_dec = weights.tensor("b_dec", &[d_out])?;
    let w_skip = if settings.skip {
        Some(weights.tensor("W_skip", &[d_out, d_in])?.f_tr()?.f_contiguous()?)
    } else {
        None
    };
    let b_enc = if matches!(settings.latents, Latents::Gated) { "b_gate" } else { "b_enc" };
    let b_enc = weights.tensor(b_enc, &[d_sae])?;
    let mut threshold_of_batches = None;
    let activation = match settings.latents {
        Latents::Relu => Activation::Relu,
        Latents::JumpRelu => Activation::JumpRelu { threshold: threshold(&mut weights, d_sae)? },
        Latents::Gated => Activation::Gated {
            r_mag: weights.tensor("r_mag", &[d_sae])?,
            b_mag: weights.tensor("b_mag", &[d_sae])?,
        },
        Latents::TopK { k, .. } => Activation::TopK { k },
        Latents::BatchTopK { .. } => {
            threshold_of_batches = Some(weights.tensors.number("topk_threshold")?);
            Activation::Relu
        }
    };
    expect_no_scaling(&mut weights, settings)?;
    weights.tensors.finish()?;
    let mut parts = SaeParts {
        w_enc,
        b_enc,
        w_dec,
        b_dec,
        w_skip,
        activation,
        normalize: settings.normalize,
        subtract_b_dec: settings.apply_b_dec,
        transcoder: settings.transcoder,
    };
    if let Some(scale) = scale {
        parts = parts.scale_input(scale)?;
    }
    if settings.rescale() {
        let norms = parts.decoder_norms()?;
        parts = parts.scale_latents(&norms)?;
    }
    if let Some(threshold) = threshold_of_batches {
        // The threshold is of latents times their decoder rows' norms, which the scale has divided (SAELens,
        // `BatchTopKTrainingSAE.fold_activation_norm_scaling_factor`).
        let threshold = if settings.rescale() { threshold / scale.unwrap_or(1.0) } else { threshold };
        let threshold = parts.b_enc.f_full_like(threshold)?;
        parts.activation = Activation::JumpRelu { threshold };
    }
    Ok(parts)
}

/// θ; the checkpoints of older trainings hold its logarithm (`log_threshold`; SAELens opens them for training alone).
fn threshold(weights: &mut Weights<'_>, d_sae: Axis) -> Result<Tensor> {
    if weights.tensors.has("log_threshold") && !weights.tensors.has("threshold") {
        return Ok(weights.tensor("log_threshold", &[d_sae])?.f_exp()?);
    }
    weights.tensor("threshold", &[d_sae])
}

/// A factor of each latent, left by a fine-tuning that SAELens has given up: 6.54.12 drops one that is 1 everywhere and opens
/// no other.
fn expect_no_scaling(weights: &mut Weights<'_>, settings: &Settings) -> Result<()> {
    const NAME: &str = "scaling_factor";
    let bad = |problem: &str| bad(weights.tensors.file(), problem);
    if !weights.tensors.has(NAME) {
        let missing = bad("`finetuning_scaling_factor` is set, but there is no `scaling_factor`");
        return if settings.finetuned { Err(missing) } else { Ok(()) };
    }
    let not_one = bad("a `scaling_factor` that is not 1 everywhere is not read");
    let factors = weights.tensor(NAME, &[("d_sae", settings.d_sae)])?;
    let (relative, absolute) = (1e-5, 1e-8); // `torch.allclose`'s
    let one = factors.f_allclose(&factors.f_ones_like()?, relative, absolute, false)?;
    if one { Ok(()) } else { Err(not_one) }
}

/// What the settings say besides.
fn about(settings: Settings) -> About {
    let Settings { mut metadata, hook_z, transcoder, .. } = settings;
    let mut text = |key: &str| match metadata.get(key) {
        Some(Value::String(_)) => metadata.remove(key).and_then(|v| v.as_str().map(str::to_owned)),
        _ => None,
    };
    let (model, hook) = (text("model_name"), text("hook_name"));
    let hook_out = if transcoder { text("hook_name_out") } else { None };
    // One head of a site is not the site.
    let whole = |key: &str| metadata.get(key).is_none_or(Value::is_null);
    let site = site(&hook).filter(|_| whole("hook_head_index"));
    let site_out =
        if transcoder { self::site(&hook_out).filter(|_| whole("hook_head_index_out")) } else { site };
    set_reshape(&mut metadata, hook_z);
    About { format: Format::SaeLens, model, hook, hook_out, site, site_out, metadata }
}

fn site(hook: &Option<String>) -> Option<HookPoint> {
    hook.as_ref()?.parse().ok()
}

fn set_reshape(metadata: &mut Map<String, Value>, hook_z: bool) {
    metadata.remove(RESHAPE);
    if hook_z {
        metadata.insert(RESHAPE.to_owned(), "hook_z".into());
    }
}

/// The names of dtypes, each of which may follow `torch.` (SAELens, `DTYPE_MAP`).
fn kind(name: &str) -> Option<Kind> {
    match name.strip_prefix("torch.").unwrap_or(name) {
        "float32" => Some(Kind::Float),
        "float64" => Some(Kind::Double),
        "float16" => Some(Kind::Half),
        "bfloat16" => Some(Kind::BFloat16),
        _ => None,
    }
}
