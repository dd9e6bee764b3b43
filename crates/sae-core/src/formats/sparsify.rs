//! EleutherAI's `sparsify` (1.x, `sparse_coder.py`): a folder, named for the module that it reads, of `cfg.json` and
//! `sae.safetensors` with `encoder.weight` `[d_sae, d_in]`, `encoder.bias` `[d_sae]`, `W_dec` `[d_sae, d_in]`, `b_dec` `[d_in]`
//! and, with `skip_connection`, `W_skip` `[d_in, d_in]`.
//!
//! The k largest of the activations after ReLU are kept, which is [`Activation::TopK`], or with `activation: groupmax` the
//! largest of each of k groups, [`Activation::GroupMax`]. `b_dec` is subtracted from the input
//! unless `transcode` is set; the skip reads the input as it came. `normalize_decoder` and `multi_topk` are about
//! training (with the latter, their `forward` gives what 4k latents make, and `encode` and `decode` do not).
//! SAELens' own loader transposes `W_dec` and can't open what sparsify 1.x writes.

use std::{collections::HashMap, fs, path::Path};

use hooks::{HookPoint, LayerIdx};
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};
use tch_ext::{TensorError, write_safetensors};

use super::{
    About, Format, OpenOptions, Opened,
    config::{Config, write_line},
    in_file,
    tensors::Tensors,
};
use crate::{Activation, Normalize, Result, Sae, SaeError, SaeParts, SparseAutoencoder as _};

const CONFIG: &str = "cfg.json";
const WEIGHTS: &str = "sae.safetensors";

/// What a config that says nothing means (`SparseCoderConfig`).
const EXPANSION_FACTOR: i64 = 32;
const K: i64 = 32;

/// Opens a folder.
///
/// # Errors
/// A file that is missing or damaged; a setting that is unknown, or not read; a tensor that is missing, superfluous, of
/// another shape or dtype, or not finite.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Opened> {
    let mut config = Config::read(&path.join(CONFIG))?;
    let activation = config.text("activation")?;
    // Of before version 1: TopK by magnitude.
    config.only("signed", &[false.into()])?;
    let d_in = config.size("d_in")?;
    let d_in = ("d_in", config.required("d_in", d_in)?);
    let k = config.size("k")?.unwrap_or(K);
    let activation = match activation.as_deref() {
        None | Some("topk") => Activation::TopK { k },
        Some("groupmax") => Activation::GroupMax { k },
        Some(other) => {
            return Err(
                config.bad(&format!("`activation` is `{other}`, which is neither `topk` nor `groupmax`"))
            );
        }
    };
    let transcode = config.flag("transcode")?.unwrap_or(false);
    let skip = config.flag("skip_connection")?.unwrap_or(false);
    let mut about = About::new(Format::Sparsify);
    about.metadata = config.harmless(&["normalize_decoder", "multi_topk", "expansion_factor", "num_latents"]);
    let d_sae = ("num_latents", num_latents(&config, &about.metadata, d_in.1)?);
    config.finish()?;

    let mut tensors = Tensors::safetensors(&path.join(WEIGHTS), options)?;
    let file = tensors.file().to_owned();
    let w_enc = tensors.matrix("encoder.weight", [d_sae, d_in], true)?;
    let w_dec = tensors.matrix("W_dec", [d_sae, d_in], false)?;
    let (b_enc, b_dec) = (tensors.vector("encoder.bias", d_sae)?, tensors.vector("b_dec", d_in)?);
    let w_skip = if skip {
        let w_skip = tensors.tensor("W_skip", &[("d_out", d_in.1), d_in])?;
        Some(w_skip.f_tr()?)
    } else {
        None
    };
    tensors.finish()?;
    let plain = SaeParts::plain(w_enc, b_enc, w_dec, b_dec, activation);
    let sae = Sae::new(SaeParts { w_skip, subtract_b_dec: !transcode, transcoder: transcode, ..plain });
    describe(&mut about, path, transcode);
    Ok(Opened { sae: sae.map_err(|e| in_file(&file, e))?, about })
}

/// `num_latents`, or where it is 0 `d_in · expansion_factor`.
fn num_latents(config: &Config, metadata: &Map<String, Value>, d_in: i64) -> Result<i64> {
    let mut sizes = Config::new(config.file(), metadata.clone());
    let zero = metadata.get("num_latents").is_some_and(|n| n.as_f64() == Some(0.0));
    if !zero && let Some(n) = sizes.size("num_latents")? {
        return Ok(n);
    }
    let factor = sizes.size("expansion_factor")?.unwrap_or(EXPANSION_FACTOR);
    d_in.checked_mul(factor).ok_or_else(|| {
        config.bad(&format!("`expansion_factor` is {factor}: that is more latents than can be"))
    })
}

/// What the folder's name says, and the run's `config.json` above it.
fn describe(about: &mut About, path: &Path, transcode: bool) {
    let Ok(path) = std::path::absolute(path) else { return };
    let name = |path: &Path| path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
    let mut folder = path.as_path();
    // A run with several seeds has a folder for each below the module's.
    if name(folder).strip_prefix("seed").is_some_and(|n| n.parse::<u64>().is_ok())
        && let Some(parent) = folder.parent()
    {
        folder = parent;
    }
    let hook = name(folder);
    let run = folder.parent().map(|parent| parent.join("config.json")).filter(|file| file.is_file());
    // It describes the training of the whole run and changes nothing, so what can't be read of it is passed over.
    let mut run = run.and_then(|file| Config::read(&file).ok());
    let listed = run.as_mut().and_then(|run| run.take("hookpoints"));
    let listed =
        listed.is_some_and(|l| l.as_array().is_some_and(|l| l.contains(&Value::from(hook.as_str()))));
    let layer = layer_of(&hook);
    about.model = run.as_mut().and_then(|run| run.text("model").ok().flatten());
    if !listed && layer.is_none() && !hook.starts_with("layers.") && !hook.starts_with("h.") {
        return;
    }
    about.hook_out = transcode.then(|| hook.clone());
    // A transcoder reads its module's input.
    about.site = layer.map(if transcode { HookPoint::ResidPre } else { HookPoint::ResidPost });
    about.site_out = layer.map(HookPoint::ResidPost).filter(|_| transcode);
    about.hook = Some(hook);
}

/// The layer of a module that is a whole block, whose output is the residual stream: `layers.5`, `h.5`. Other modules' outputs
/// are not the same sites in every model.
fn layer_of(module: &str) -> Option<LayerIdx> {
    let layer = module.strip_prefix("layers.").or_else(|| module.strip_prefix("h."))?;
    layer.parse().ok().map(LayerIdx)
}

/// Writes a folder that `SparseCoder.load_from_disk` of sparsify 1.x opens, in float32.
///
/// # Errors
/// The system's; an SAE that is neither TopK nor GroupMax, normalises its input, or is wider at one end: the format can't
/// express it.
pub fn save(sae: &Sae, about: &About, folder: &Path) -> Result<()> {
    let (activation, k) = expressible(sae)?;
    // An SAE subtracts `b_dec` from its input there, and a transcoder does not.
    let sae = sae.to_device(Device::Cpu)?;
    let sae = if sae.is_transcoder() { sae.fold_pre_encoder_bias()? } else { sae.unfold_pre_encoder_bias()? };
    let d_sae = sae.d_sae();
    let said = |key: &str| about.metadata.get(key).cloned().filter(|_| about.format == Format::Sparsify);
    let flag = |key: &str, default: bool| said(key).and_then(|v| v.as_bool()).unwrap_or(default).into();
    let sizes = ["expansion_factor", "num_latents"].map(|key| said(key).and_then(|v| v.as_i64()));
    let sizes = match sizes.map(|n| n.unwrap_or(0)) {
        [factor, 0] if sae.d_in().checked_mul(factor) == Some(d_sae) => [factor, 0],
        [factor, _] if factor > 0 => [factor, d_sae],
        _ => [EXPANSION_FACTOR, d_sae],
    };
    // The order of `SparseCoderConfig`'s fields.
    let fields: [(&str, Value); 9] = [
        ("activation", activation.into()),
        ("expansion_factor", sizes[0].into()),
        ("normalize_decoder", flag("normalize_decoder", true)),
        ("num_latents", sizes[1].into()),
        ("k", k.into()),
        ("multi_topk", flag("multi_topk", false)),
        ("skip_connection", sae.w_skip().is_some().into()),
        ("transcode", sae.is_transcoder().into()),
        ("d_in", sae.d_in().into()),
    ];
    let [mut w_dec, mut w_skip, mut b_dec, mut bias, mut weight] = [const { None }; 5];
    for (name, tensor) in sae.parameters()? {
        let transposed = |t: Tensor| -> Result<Tensor> { Ok(t.f_tr()?) };
        match name {
            "W_enc" => weight = Some(transposed(tensor)?),
            "W_skip" => w_skip = Some(transposed(tensor)?),
            "W_dec" => w_dec = Some(tensor),
            "b_enc" => bias = Some(tensor),
            "b_dec" => b_dec = Some(tensor),
            _ => (),
        }
    }
    // The order in which their writer lays them.
    let named = [
        ("W_dec", w_dec),
        ("W_skip", w_skip),
        ("b_dec", b_dec),
        ("encoder.bias", bias),
        ("encoder.weight", weight),
    ];
    let tensors = named.into_iter().filter_map(|(name, t)| Some((name, t?)));
    let tensors: Vec<(&str, Tensor)> =
        tensors.map(|(name, t)| Ok((name, t.f_to_kind(Kind::Float)?))).collect::<Result<_>>()?;
    fs::create_dir_all(folder).map_err(|e| TensorError::io(folder, e))?;
    write_safetensors(&folder.join(WEIGHTS), tensors.iter().map(|(n, t)| (*n, t)), HashMap::new())?;
    write_line(&folder.join(CONFIG), &fields)
}

/// The activation's name and k of an SAE that the format can express.
fn expressible(sae: &Sae) -> Result<(&'static str, i64)> {
    let bad = |problem: &str| {
        let of = sae.architecture();
        Err(SaeError::Parts(format!("a `{of}` SAE {problem}, which sparsify's format can't express")))
    };
    if sae.normalize() != Normalize::None {
        return bad(&format!("has the normalisation `{}`", sae.normalize().name()));
    }
    if sae.d_in() != sae.d_out() {
        return bad("has an input and an output of different widths");
    }
    match sae.activation() {
        Activation::TopK { k } => Ok(("topk", *k)),
        Activation::GroupMax { k } => Ok(("groupmax", *k)),
        _ => bad("is neither TopK nor GroupMax"),
    }
}
