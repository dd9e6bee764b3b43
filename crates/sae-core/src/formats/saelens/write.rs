use std::{collections::HashMap, path::Path};

use hooks::HookPoint;
use serde_json::{Map, Value};
use tch::Device;
use tch_ext::write_safetensors;

use super::{
    super::{About, config::write_line},
    CFG, RESHAPE, WEIGHTS, old, set_reshape,
};
use crate::{Activation, Normalize, Result, Sae, SaeError, SparseAutoencoder as _};

/// The version whose files these are.
const VERSION: &str = "6.54.12";

/// Writes a folder of version 6 that SAELens opens and computes the same with, in float32.
///
/// A transcoder that subtracts `b_dec` is folded ([`Sae::fold_pre_encoder_bias`]), since SAELens has none. An SAE with a skip
/// connection is written as a transcoder, which computes the same.
///
/// # Errors
/// An architecture that SAELens does not have; the system's.
pub fn save(sae: &Sae, about: &About, folder: &Path) -> Result<()> {
    let folded;
    let architecture = expressible(sae)?;
    let transcoder = sae.is_transcoder() || sae.w_skip().is_some();
    let sae = if transcoder && sae.subtracts_b_dec() {
        folded = sae.to_device(Device::Cpu)?.fold_pre_encoder_bias()?;
        &folded
    } else {
        sae
    };
    let mut tensors = sae.parameters()?;
    for (name, tensor) in &mut tensors {
        if *name == "W_skip" {
            *tensor = tensor.f_tr()?; // [d_out, d_in]
        }
    }
    tensors.sort_by_key(|(name, _)| *name);
    let tensors = tensors.iter().map(|(name, tensor)| (*name, tensor));
    write_safetensors(&folder.join(WEIGHTS), tensors, HashMap::new())?;
    let reshape = about.metadata.get(RESHAPE).and_then(Value::as_str).unwrap_or("none");
    let mut cfg: Vec<(&str, Value)> = vec![
        ("d_in", sae.d_in().into()),
        ("d_sae", sae.d_sae().into()),
        ("dtype", "float32".into()),
        ("device", "cpu".into()),
        ("apply_b_dec_to_input", sae.subtracts_b_dec().into()),
        ("normalize_activations", sae.normalize().name().into()),
        ("reshape_activations", if reshape == "hook_z" { "hook_z" } else { "none" }.into()),
        ("metadata", metadata(about).into()),
    ];
    if let Activation::TopK { k } = sae.activation() {
        cfg.extend([("k", (*k).into()), ("rescale_acts_by_decoder_norm", false.into())]);
    }
    if transcoder {
        cfg.push(("d_out", sae.d_out().into()));
    }
    cfg.push(("architecture", architecture.into()));
    write_line(&folder.join(CFG), &cfg)
}

/// The architecture, if SAELens has it.
fn expressible(sae: &Sae) -> Result<&'static str> {
    let name = sae.architecture();
    let refused =
        |why: &str| Err(SaeError::Parts(format!("SAELens has no `{name}`{why}: it can't be written for it")));
    let skip = sae.w_skip().is_some();
    match sae.activation() {
        Activation::GroupMax { .. } => refused(""),
        Activation::TopK { .. } | Activation::Gated { .. } if skip || sae.is_transcoder() => refused(""),
        _ if skip && !sae.is_transcoder() && sae.normalize() != Normalize::None => {
            refused(&format!(" that undoes `{}` on its output", sae.normalize().name()))
        }
        _ => Ok(name),
    }
}

fn metadata(about: &About) -> Map<String, Value> {
    let mut metadata = about.metadata.clone();
    set_reshape(&mut metadata, false);
    // Anything older would be read by other rules.
    let version = metadata.get("sae_lens_version").and_then(Value::as_str);
    if version.and_then(old::before_6) != Some(false) {
        metadata.insert("sae_lens_version".to_owned(), VERSION.into());
    }
    if let Some(model) = &about.model {
        metadata.insert("model_name".to_owned(), model.as_str().into());
    }
    name_hook(&mut metadata, ["hook_name", "hf_hook_name"], about.hook.as_deref(), about.site);
    if about.hook_out.is_some() || about.site_out != about.site {
        let keys = ["hook_name_out", "hf_hook_name_out"];
        name_hook(&mut metadata, keys, about.hook_out.as_deref(), about.site_out);
    }
    metadata
}

/// TransformerLens' name where there is one, and beside it the one that the files had.
fn name_hook(
    metadata: &mut Map<String, Value>,
    keys: [&str; 2],
    hook: Option<&str>,
    site: Option<HookPoint>,
) {
    let ours = hook.is_some_and(|h| h.parse::<HookPoint>().is_ok());
    let site = site.filter(|_| !ours).map(|site| site.to_string());
    if let (Some(_), Some(hook)) = (&site, hook) {
        metadata.entry(keys[1]).or_insert_with(|| hook.into());
    }
    if let Some(name) = site.as_deref().or(hook) {
        metadata.insert(keys[0].to_owned(), name.into());
    }
}
