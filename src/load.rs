//! Models and SAEs by the names that a user types: the embedded default, something local, or something on the hub. This is
//! the one place where the hub meets the file formats.

use std::path::{Path, PathBuf};

use hooks::{HookError, HookPoint, LayerIdx};
use hub::{Hub, HubError, RepoId};
use model::{Gemma2, LoadOptions, ModelError, Tokenizer};
use sae::{JumpRelu, SaeError, SaeId, load_gemma_scope};
use tch::Device;

use crate::{hooks, hub, model, sae, tiny};

/// What can go wrong between a name and what it names.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A text that names no model.
    #[error(
        "`{0}` is no model: expected `tiny`, a folder that exists, or a hub repository like `google/gemma-2-2b`"
    )]
    ModelName(String),
    /// A text that names no SAE.
    #[error(
        "`{0}` is no SAE: expected `tiny/…`, a `params.npz` or a folder of one that exists, or a name like \
         `gemma-scope-2b-pt-res/layer_20/width_16k/canonical`"
    )]
    SaeName(String),
    /// An embedded SAE that is not there.
    #[error("there is no embedded SAE `{name}`; there are: {known}")]
    TinySae {
        /// The name.
        name: String,
        /// The names that there are.
        known: String,
    },
    /// An SAE whose path does not tell what it reads.
    #[error("{0}: its path does not tell which activation it reads; name the hook point")]
    UnknownSite(String),
    /// A model without a tokenizer.
    #[error("{0} has no tokenizer.json: give token ids instead of text")]
    NoTokenizer(String),
    /// The hub's error.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The model's error.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The SAE's error.
    #[error(transparent)]
    Sae(#[from] SaeError),
    /// A hook point's error.
    #[error(transparent)]
    Hook(#[from] HookError),
}

/// The result of this module's functions.
pub type Result<T, E = LoadError> = std::result::Result<T, E>;

/// A model with what belongs to it.
#[derive(Debug)]
pub struct LoadedModel {
    /// The name it was asked for by.
    pub name: String,
    /// The model.
    pub model: Gemma2,
    tokenizer: Option<Tokenizer>,
}

impl LoadedModel {
    /// The tokenizer.
    ///
    /// # Errors
    /// [`LoadError::NoTokenizer`] for a folder without one.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| LoadError::NoTokenizer(self.name.clone()))
    }
}

/// Loads a model by name: `tiny`, a local folder in the Hugging Face layout, or a hub repository.
///
/// `hub` is called for a repository alone.
///
/// # Errors
/// A name that is none, and whatever stands in the way of what it names.
pub fn load_model(
    name: &str,
    options: &LoadOptions,
    hub: impl FnOnce() -> Result<Hub, HubError>,
) -> Result<LoadedModel> {
    load_model_with_progress(name, options, hub, |_, _| ())
}

/// As [`load_model`], and calls `progress(bytes taken, bytes in all)` after each tensor that is read.
///
/// # Errors
/// As [`load_model`].
pub fn load_model_with_progress(
    name: &str,
    options: &LoadOptions,
    hub: impl FnOnce() -> Result<Hub, HubError>,
    progress: impl FnMut(u64, u64) + Send + 'static,
) -> Result<LoadedModel> {
    if name == "tiny" {
        let (model, tokenizer) = (tiny::model(options)?, Some(tiny::tokenizer()?));
        return Ok(LoadedModel { name: name.to_owned(), model, tokenizer });
    }
    let folder = model_folder(name, hub)?;
    let model = Gemma2::load_with_progress(&folder, options, progress)?;
    let tokenizer = folder.join("tokenizer.json").exists().then(|| Tokenizer::load(&folder)).transpose()?;
    Ok(LoadedModel { name: name.to_owned(), model, tokenizer })
}

/// The folder that holds a model's files, downloaded if it is not local.
///
/// # Errors
/// A name that is none; the hub's.
pub fn model_folder(name: &str, hub: impl FnOnce() -> Result<Hub, HubError>) -> Result<PathBuf> {
    let path = Path::new(name);
    if path.exists() {
        return Ok(path.to_owned());
    }
    match name.parse::<RepoId>() {
        Ok(repo) if !looks_local(name) => Ok(hub()?.model_files(repo)?),
        _ => Err(LoadError::ModelName(name.to_owned())),
    }
}

/// An SAE with what belongs to it.
#[derive(Debug)]
pub struct LoadedSae {
    /// The name it was asked for by, with `canonical` resolved.
    pub id: String,
    /// The site that it reads.
    pub site: HookPoint,
    /// The SAE.
    pub sae: JumpRelu,
}

/// Loads an SAE by name: `tiny` or `tiny/…`, a local `params.npz` or its folder, a released SAE, or `ORG/REPO/PATH` on the hub.
///
/// `site` overrides what the name tells of the activation that it reads. `hub` is called for what is not local alone.
///
/// # Errors
/// A name that is none, and whatever stands in the way of what it names.
pub fn load_sae(
    name: &str,
    site: Option<HookPoint>,
    device: Device,
    hub: impl FnOnce() -> Result<Hub, HubError>,
) -> Result<LoadedSae> {
    if name == "tiny" || name.starts_with("tiny/") {
        return load_tiny(name, site, device);
    }
    let path = Path::new(name);
    if path.exists() {
        let file = if path.is_dir() { path.join("params.npz") } else { path.to_owned() };
        let told = || site_from_path(name).ok_or_else(|| LoadError::UnknownSite(name.to_owned()));
        let site = site.map_or_else(told, Ok)?;
        return Ok(LoadedSae { id: name.to_owned(), site, sae: load_gemma_scope(&file, device)? });
    }
    if looks_local(name) {
        return Err(LoadError::SaeName(name.to_owned()));
    }
    match name.parse::<SaeId>() {
        Ok(id) => {
            let file = hub()?.file(id.repo(), &id.params_path())?;
            let sae = load_gemma_scope(&file, device)?;
            Ok(LoadedSae { id: id.to_string(), site: site.unwrap_or_else(|| id.hook_point()), sae })
        }
        // A name of the project's own form that does not parse says best itself what is wrong with it.
        Err(error) if name.trim_start_matches("google/").starts_with("gemma-scope-") => Err(error.into()),
        Err(_) => load_from_repo(name, site, device, hub),
    }
}

/// `ORG/REPO/PATH`, where PATH is a `params.npz` or the folder of one.
fn load_from_repo(
    name: &str,
    site: Option<HookPoint>,
    device: Device,
    hub: impl FnOnce() -> Result<Hub, HubError>,
) -> Result<LoadedSae> {
    let unknown = || LoadError::SaeName(name.to_owned());
    let mut parts = name.splitn(3, '/');
    let (Some(org), Some(repo), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(unknown());
    };
    let repo: RepoId = format!("{org}/{repo}").parse().map_err(|_| unknown())?;
    let told = || site_from_path(name).ok_or_else(|| LoadError::UnknownSite(name.to_owned()));
    let site = site.map_or_else(told, Ok)?;
    let path = if path.ends_with(".npz") { path.to_owned() } else { format!("{path}/params.npz") };
    let file = hub()?.file(repo, &path)?;
    Ok(LoadedSae { id: name.to_owned(), site, sae: load_gemma_scope(&file, device)? })
}

fn load_tiny(name: &str, site: Option<HookPoint>, device: Device) -> Result<LoadedSae> {
    let known = || tiny::sae_ids().collect::<Vec<_>>().join(", ");
    let unknown = || LoadError::TinySae { name: name.to_owned(), known: known() };
    let id = if name == "tiny" { tiny::sae_ids().next() } else { tiny::sae_ids().find(|id| *id == name) };
    let id = id.ok_or_else(unknown)?;
    let site = site.or_else(|| site_from_path(&format!("tiny-scope-res/{id}").replace("/tiny/", "/")));
    let site = site.ok_or_else(|| LoadError::UnknownSite(id.to_owned()))?;
    Ok(LoadedSae { id: id.to_owned(), site, sae: tiny::sae(id).ok_or_else(unknown)??.to_device(device)? })
}

/// Reads the site off a path in the Gemma Scope layout: `…-res/layer_20/…`, `resid_post/layer_2/…`, `…/embedding/…`.
pub fn site_from_path(path: &str) -> Option<HookPoint> {
    let parts: Vec<&str> = path.split(['/', '\\']).collect();
    let (at, layer) = parts.iter().enumerate().rev().find_map(|(i, part)| {
        let number = part.strip_prefix("layer_")?.parse().ok()?;
        Some((i, LayerIdx(number)))
    })?;
    let kind = parts.get(at.checked_sub(1)?)?;
    let is = |short: &str, long: &str| kind.ends_with(&format!("-{short}")) || *kind == long;
    match () {
        () if is("res", "resid_post") => Some(HookPoint::ResidPost(layer)),
        () if is("att", "attn_z") => Some(HookPoint::AttnZ(layer)),
        () if is("mlp", "mlp_out") => Some(HookPoint::MlpOut(layer)),
        () if is("transcoders", "transcoder") => Some(HookPoint::Ln2Normalized(layer)),
        () => None,
    }
}

/// A text that can only be meant as a path of this machine.
fn looks_local(name: &str) -> bool {
    name.starts_with(['.', '/', '~', '\\']) || Path::new(name).is_absolute()
}
