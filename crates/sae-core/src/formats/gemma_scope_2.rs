//! Gemma Scope 2 (for Gemma 3): a folder with `params.safetensors` and mostly `config.json`, as SAELens 6.54.12 reads them
//! (`gemma_3_sae_huggingface_loader`).
//!
//! Tensors: `w_enc` `[d_in, d_sae]`, `b_enc` and `threshold` `[d_sae]`, `w_dec` `[d_sae, d_out]`, `b_dec` `[d_out]`, and of
//! transcoders with a linear path beside the latents `affine_skip_connection` `[d_in, d_out]`. All are JumpReLU; nothing is
//! subtracted from the input.
//!
//! Where there is no `config.json`, the folder's name tells: `resid_post/layer_5_width_16k_l0_small`. Sizes are always those
//! of the tensors.
//!
//! Of the names of sites, `model.layers.5.output`, `….self_attn.o_proj.input` and `….post_feedforward_layernorm.output` are
//! the residual stream behind the block, all heads side by side, and what the MLP adds to the stream. Transcoders read
//! `….pre_feedforward_layernorm.output`, which is *with* the norm's gain: none of our sites, so that [`About::site`] is
//! `None`.
//!
//! Crosscoders and cross-layer transcoders are refused.

use std::{collections::HashMap, fs, path::Path};

use hooks::{HookPoint, LayerIdx};
use serde_json::{Map, Value};
use tch::Device;
use tch_ext::{SafetensorsFile, TensorError, write_atomically, write_safetensors};

use super::{
    About, Format, OpenOptions, Opened,
    config::{Config, bad},
    in_file,
    tensors::Tensors,
};
use crate::{Activation, Normalize, Result, Sae, SaeError, SaeParts, SparseAutoencoder as _};

const CONFIG: &str = "config.json";
const PARAMS: &str = "params.safetensors";
const SKIP: &str = "affine_skip_connection";

/// Opens a folder.
///
/// # Errors
/// A tensor that is missing, superfluous, misshapen, of integers, or not finite; a setting that is unknown, not read, or
/// contradicts the tensors; a crosscoder or cross-layer transcoder.
pub fn open(folder: &Path, options: &OpenOptions) -> Result<Opened> {
    let (config, params) = (folder.join(CONFIG), folder.join(PARAMS));
    let named = Named::of(folder);
    let said =
        if config.is_file() { Said::read(Config::read(&config)?, &named)? } else { Said::by_name(&named) };
    expect_one_layer(&params)?;
    let mut tensors = Tensors::safetensors(&params, options)?;
    let file = tensors.file().to_owned();
    let d_in = ("d_in", tensors.size(&[("w_enc", 0)]));
    let d_sae = [("w_enc", 1), ("w_dec", 0), ("b_enc", 0), ("threshold", 0)];
    let d_sae = ("d_sae", tensors.size(&d_sae));
    let d_out = ("d_out", tensors.size(&[("w_dec", 1), ("b_dec", 0), (SKIP, 1)]));
    let (w_enc, w_dec) =
        (tensors.matrix("w_enc", [d_in, d_sae], false)?, tensors.matrix("w_dec", [d_sae, d_out], false)?);
    let (b_enc, b_dec) = (tensors.vector("b_enc", d_sae)?, tensors.vector("b_dec", d_out)?);
    let threshold = tensors.vector("threshold", d_sae)?;
    let skip = tensors.has(SKIP);
    if let Some(affine) = said.affine.filter(|affine| *affine != skip) {
        let (says, there) = if affine { ("says", "none") } else { ("denies", "one") };
        let problem = format!("{} {says} that there is an `{SKIP}`, but there is {there}", said.source);
        return Err(bad(&file, &problem));
    }
    let w_skip = if skip { Some(tensors.tensor(SKIP, &[d_in, d_out])?) } else { None };
    tensors.finish()?;
    let transcoder = said.transcoder.unwrap_or(skip || d_in.1 != d_out.1);
    if skip && !transcoder {
        return Err(bad(
            &file,
            &format!("{} says that this is an SAE, but there is an `{SKIP}`", said.source),
        ));
    }
    let plain = SaeParts::plain(w_enc, b_enc, w_dec, b_dec, Activation::JumpRelu { threshold });
    let sae = Sae::new(SaeParts { w_skip, transcoder, ..plain }).map_err(|error| in_file(&file, error))?;
    let (hook, hook_out) = (said.hook, said.hook_out.filter(|_| transcoder));
    let site = hook.as_deref().and_then(site_of);
    let site_out = if transcoder { hook_out.as_deref().and_then(site_of) } else { site };
    let (model, metadata) = (said.model, said.metadata);
    Ok(Opened {
        sae,
        about: About { format: Format::GemmaScope2, model, hook, hook_out, site, site_out, metadata },
    })
}

/// A cross-layer transcoder writes to several layers: `w_dec` has an axis for them.
fn expect_one_layer(params: &Path) -> Result<()> {
    let file = SafetensorsFile::open(params)?;
    let axes = |name: &str| file.info(name).map_or(2, |info| info.shape.len());
    match (axes("w_enc"), axes("w_dec")) {
        (2, 3) => Err(bad(file.name(), "a cross-layer transcoder is not read: `w_dec` has three axes")),
        (3, _) => Err(bad(file.name(), "a crosscoder is not read: `w_enc` has three axes")),
        _ => Ok(()),
    }
}

/// What the config says, or else the folder's name.
struct Said {
    /// Who says so, for errors.
    source: &'static str,
    transcoder: Option<bool>,
    affine: Option<bool>,
    model: Option<String>,
    hook: Option<String>,
    hook_out: Option<String>,
    metadata: Map<String, Value>,
}

impl Said {
    /// Reads `config.json`; it says more than the folder's name.
    fn read(mut config: Config, named: &Named) -> Result<Self> {
        let architecture = config.text("architecture")?;
        let architecture = config.required("architecture", architecture)?;
        if architecture != "jump_relu" {
            return Err(
                config.bad(&format!("the architecture `{architecture}` is not read: only `jump_relu` is"))
            );
        }
        let (hook, hook_out) = (config.text("hf_hook_point_in")?, config.text("hf_hook_point_out")?);
        let elsewhere = hook_out.is_some() && hook_out != hook;
        let kind = config.text("type")?;
        let transcoder = match kind.as_deref() {
            Some("sae") if elsewhere => {
                return Err(config.bad("`type` is `sae`, but `hf_hook_point_out` is not `hf_hook_point_in`"));
            }
            Some("sae") => Some(false),
            Some("transcoder") => Some(true),
            Some("crosscoder") => return Err(config.bad("a crosscoder is not read")),
            Some("clt") => return Err(config.bad("a cross-layer transcoder is not read: `type` is `clt`")),
            Some(other) => return Err(config.bad(&format!("`type` is `{other}`, which is not read"))),
            None if elsewhere => Some(true),
            None => named.transcoder(),
        };
        let affine = config.flag("affine_connection")?;
        let model = config.text("model_name")?.or_else(|| named.model.clone());
        let metadata = config.harmless(&["width", "l0"]);
        config.finish()?;
        // A folder's name that speaks of something else says nothing of this.
        let by_name = Some(Self::by_name(named)).filter(|by_name| by_name.transcoder == transcoder);
        let hook = hook.or_else(|| by_name.as_ref()?.hook.clone());
        let hook_out = hook_out.or_else(|| by_name?.hook_out);
        Ok(Self { source: CONFIG, transcoder, affine, model, hook, hook_out, metadata })
    }

    fn by_name(named: &Named) -> Self {
        let within = |name: &str| named.layer.map(|LayerIdx(l)| format!("model.layers.{l}.{name}"));
        let (hook, hook_out) = match named.site {
            Some("resid_post") => ("output", None),
            Some("attn_out") => ("self_attn.o_proj.input", None),
            Some("mlp_out") => ("post_feedforward_layernorm.output", None),
            Some(_) => ("pre_feedforward_layernorm.output", Some("post_feedforward_layernorm.output")),
            None => ("", None),
        };
        Self {
            source: "the folder's name",
            transcoder: named.transcoder(),
            // What has no layer in its name is none of the release's folders.
            affine: named.site.filter(|_| named.layer.is_some()).map(|_| named.affine),
            model: named.model.clone(),
            hook: within(hook).filter(|_| !hook.is_empty()),
            hook_out: hook_out.and_then(within),
            metadata: Map::new(),
        }
    }
}

/// What a path in the layout of the repositories says: `gemma-scope-2-1b-pt/resid_post_all/layer_5_width_16k_l0_small`.
struct Named {
    model: Option<String>,
    site: Option<&'static str>,
    layer: Option<LayerIdx>,
    affine: bool,
}

impl Named {
    fn of(folder: &Path) -> Self {
        // Of `.` the whole path tells; what can't be resolved may still be read off.
        let whole = fs::canonicalize(Path::new(".").join(folder)).unwrap_or_else(|_| folder.to_owned());
        let parts: Vec<&str> = whole.iter().rev().filter_map(|part| part.to_str()).collect();
        let last = parts.first().copied().unwrap_or_default();
        let of_site = parts.get(1).copied().unwrap_or_default();
        let sites = ["resid_post", "attn_out", "mlp_out", "transcoder"];
        let site = sites.into_iter().find(|site| last.contains(site) || of_site.contains(site));
        let layer = last.strip_prefix("layer_").and_then(|rest| rest.split('_').next()).and_then(number);
        // SAELens makes the model's name of the repository's: `gemma-scope-2` is `gemma-3`.
        let of_repository = |part: &&str| {
            let (_, which) = part.split_once("gemma-scope-2-")?;
            let (size, tuned) = which.split_once('-')?;
            let size_is_one = size.strip_suffix(['b', 'm']).is_some_and(|n| number(n).is_some());
            let plain = size_is_one && matches!(tuned, "pt" | "it");
            plain.then(|| format!("google/gemma-3-{size}-{tuned}"))
        };
        Self { model: parts.iter().find_map(of_repository), site, layer, affine: last.contains("affine") }
    }

    fn transcoder(&self) -> Option<bool> {
        self.site.map(|site| site == "transcoder")
    }
}

fn number(text: &str) -> Option<LayerIdx> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok().map(LayerIdx) } else { None }
}

/// The site of a Hugging Face module's input or output, or of TransformerLens' name.
fn site_of(hook: &str) -> Option<HookPoint> {
    let Some((layer, name)) = hook.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) else {
        return hook.parse().ok();
    };
    let layer = number(layer)?;
    match name {
        "output" => Some(HookPoint::ResidPost(layer)),
        "self_attn.o_proj.input" => Some(HookPoint::AttnZ(layer)),
        "post_feedforward_layernorm.output" => Some(HookPoint::MlpOut(layer)),
        _ => None,
    }
}

/// The name of a site among Hugging Face's modules.
fn name_of(site: HookPoint) -> Option<String> {
    match site {
        HookPoint::ResidPost(LayerIdx(l)) => Some(format!("model.layers.{l}.output")),
        HookPoint::AttnZ(LayerIdx(l)) => Some(format!("model.layers.{l}.self_attn.o_proj.input")),
        HookPoint::MlpOut(LayerIdx(l)) => Some(format!("model.layers.{l}.post_feedforward_layernorm.output")),
        _ => None,
    }
}

/// Writes a folder, in float32.
///
/// What is subtracted from the input is folded ([`Sae::fold_pre_encoder_bias`]), and ReLU and Gated SAEs are written as the
/// JumpReLU SAEs that they are ([`Sae::to_jumprelu`]). An SAE with a skip connection is written as a transcoder.
///
/// # Errors
/// A TopK SAE, or one that normalises each token; no model's name, which the config needs; the system's.
pub fn save(sae: &Sae, about: &About, folder: &Path) -> Result<()> {
    if sae.normalize() != Normalize::None {
        let (of, name) = (sae.architecture(), sae.normalize().name());
        let problem =
            format!("a `{of}` SAE with the normalisation `{name}` can't be written for Gemma Scope 2");
        return Err(SaeError::Parts(problem));
    }
    let sae = sae.to_device(Device::Cpu)?.fold_pre_encoder_bias()?.to_jumprelu()?;
    if about.model.is_none() {
        let problem = "Gemma Scope 2 names the model in its config.json, and this SAE's files name none: give its name \
                       (`About::model`; `--model` on the command line)";
        return Err(SaeError::Parts(problem.to_owned()));
    }
    let transcoder = sae.is_transcoder() || sae.w_skip().is_some();
    let name = |name: &'static str| match name {
        "W_enc" => "w_enc",
        "W_dec" => "w_dec",
        "W_skip" => SKIP,
        other => other,
    };
    let mut tensors: Vec<_> = sae.parameters()?.into_iter().map(|(n, t)| (name(n), t)).collect();
    tensors.sort_by_key(|(name, _)| *name);
    let tensors = tensors.iter().map(|(name, tensor)| (*name, tensor));
    write_safetensors(&folder.join(PARAMS), tensors, HashMap::new())?;
    write_config(&folder.join(CONFIG), &config(&sae, transcoder, about))
}

/// The keys in the order of the released files.
fn config(sae: &Sae, transcoder: bool, about: &About) -> Vec<(&'static str, Value)> {
    let named = |hook: &Option<String>, site: Option<HookPoint>| {
        let theirs = hook.clone().filter(|h| h.starts_with("model."));
        theirs.or_else(|| site.and_then(name_of)).or_else(|| hook.clone())
    };
    let hook = named(&about.hook, about.site);
    let hook_out = if transcoder { named(&about.hook_out, about.site_out) } else { hook.clone() };
    vec![
        ("hf_hook_point_in", hook.into()),
        ("hf_hook_point_out", hook_out.into()),
        ("width", sae.d_sae().into()),
        ("model_name", about.model.clone().into()),
        ("architecture", "jump_relu".into()),
        ("l0", about.metadata.get("l0").cloned().unwrap_or_default()),
        ("affine_connection", sae.w_skip().is_some().into()),
        ("type", if transcoder { "transcoder" } else { "sae" }.into()),
    ]
}

/// Two blanks before each key, as Python's `json.dump` with `indent=2`; what is not known is left out.
fn write_config(path: &Path, keys: &[(&str, Value)]) -> Result<()> {
    use std::io::Write as _;
    let lines = keys.iter().filter(|(_, v)| !v.is_null()).map(|(key, value)| format!("  \"{key}\": {value}"));
    let text = format!("{{\n{}\n}}\n", lines.collect::<Vec<_>>().join(",\n"));
    let io = |e| TensorError::io(path, e);
    Ok(write_atomically(path, |file| file.write_all(text.as_bytes()).map_err(io))?)
}
