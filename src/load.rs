//! Models and SAEs by the names that a user types: the embedded default, something local, or something on the hub. This is
//! the one place where the hub meets the file formats.

use std::path::{Path, PathBuf};

use hooks::{HookError, HookPoint};
use hub::{Hub, HubError, RepoId};
use model::{Gemma2, LoadOptions, ModelError, Tokenizer};
use sae::{
    About, Format, OpenOptions, Opened, Place, Sae, SaeError, SaeId, SparseAutoencoder as _, catalogue,
};
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
        "`{0}` is no SAE: expected `tiny/…`, a file or folder of one that exists, or a name like \
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
    /// The path of what has none.
    #[error("`{0}` is embedded in the program: it has no file")]
    Embedded(String),
    /// An SAE whose path does not tell what it reads.
    #[error(
        "{0}: neither its path nor its files tell which activation it reads; name the hook point (`--hook` on the command line)"
    )]
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
    /// The site whose activation its output estimates, as far as that is known; of an SAE the one that it reads.
    pub site_out: Option<HookPoint>,
    /// The SAE.
    pub sae: Sae,
    /// What its files say.
    pub about: About,
}

/// Loads an SAE by name: `tiny` or `tiny/…`, a local file or folder in any of the public formats, a released SAE, or
/// `ORG/REPO/PATH` on the hub.
///
/// `site` overrides what name and files tell of the activation that it reads. `hub` is called for what is not local alone.
///
/// # Errors
/// A name that is none, and whatever stands in the way of what it names.
pub fn load_sae(
    name: &str,
    site: Option<HookPoint>,
    options: &OpenOptions,
    hub: impl FnOnce() -> Result<Hub, HubError>,
) -> Result<LoadedSae> {
    let (id, opened) = open_sae(name, options, hub)?;
    let Opened { sae, about } = opened;
    let Some(reads) = site.or(about.site) else {
        let hook = about.hook.as_ref().map_or(String::new(), |hook| format!(" (it says `{hook}`)"));
        return Err(LoadError::UnknownSite(format!("{name}{hook}")));
    };
    let moved = about.site.is_some_and(|told| told != reads);
    let site_out = if sae.is_transcoder() { about.site_out.filter(|_| !moved) } else { Some(reads) };
    Ok(LoadedSae { id, site: reads, site_out, sae, about })
}

/// As [`load_sae`], where it does not matter which site the SAE reads: its full name, the SAE, and what its files say.
///
/// # Errors
/// As [`load_sae`].
pub fn open_sae(
    name: &str,
    options: &OpenOptions,
    hub: impl FnOnce() -> Result<Hub, HubError>,
) -> Result<(String, Opened)> {
    if is_tiny(name) {
        return open_tiny(name, options.device);
    }
    let Found { id, path, released } = find_sae(name, hub)?;
    let opened = sae::open(&path, options)?;
    let Some(released) = released else {
        let opened = placed(opened, &id)?;
        return Ok((id, opened));
    };
    let mut opened = opened.at(released.place())?;
    opened.about.model = Some(released.model().to_owned());
    Ok((id, opened))
}

/// The file or folder that holds an SAE, downloaded if it is not local.
///
/// # Errors
/// A name that is none, or an embedded SAE's, which has no file; the hub's.
pub fn sae_path(name: &str, hub: impl FnOnce() -> Result<Hub, HubError>) -> Result<PathBuf> {
    if is_tiny(name) {
        return Err(LoadError::Embedded(name.to_owned()));
    }
    Ok(find_sae(name, hub)?.path)
}

/// An SAE's files.
struct Found {
    /// Its full name.
    id: String,
    path: PathBuf,
    /// The first Gemma Scope's files do not say what they are.
    released: Option<SaeId>,
}

fn find_sae(name: &str, hub: impl FnOnce() -> Result<Hub, HubError>) -> Result<Found> {
    let path = Path::new(name.trim_end_matches('/'));
    if path.exists() {
        return Ok(Found { id: name.to_owned(), path: path.to_owned(), released: None });
    }
    if looks_local(name) {
        return Err(LoadError::SaeName(name.to_owned()));
    }
    match name.parse::<SaeId>() {
        Ok(id) => {
            let path = hub()?.file(id.repo(), &id.params_path())?;
            Ok(Found { id: id.to_string(), path, released: Some(id) })
        }
        // A name of the project's own form that does not parse says best itself what is wrong with it.
        Err(error) if is_first_release(name) => Err(error.into()),
        Err(_) => {
            // Gemma Scope 2 by SAELens' release and id.
            let id = catalogue::find(name).map_or_else(|| name.to_owned(), |entry| entry.to_string());
            let path = find_in_repo(&id, hub)?;
            Ok(Found { id, path, released: None })
        }
    }
}

fn is_tiny(name: &str) -> bool {
    name == "tiny" || name.starts_with("tiny/")
}

/// Whether a name can only be meant as one of the first Gemma Scope's.
fn is_first_release(name: &str) -> bool {
    let name = name.trim_start_matches("google/");
    name.starts_with("gemma-scope-") && !name.starts_with("gemma-scope-2-")
}

/// A `params.npz` does not say what it was trained on: its path does.
fn placed(opened: Opened, path: &str) -> Result<Opened> {
    match Place::from_path(path) {
        Some(place) if opened.about.format == Format::GemmaScope => Ok(opened.at(place)?),
        _ => Ok(opened),
    }
}

/// `ORG/REPO/PATH`, where PATH is a file, or a folder in one of the formats whose files have fixed names.
fn find_in_repo(name: &str, hub: impl FnOnce() -> Result<Hub, HubError>) -> Result<PathBuf> {
    let unknown = || LoadError::SaeName(name.to_owned());
    let mut parts = name.splitn(3, '/');
    let (Some(org), Some(repo), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(unknown());
    };
    let repo: RepoId = format!("{org}/{repo}").parse().map_err(|_| unknown())?;
    let hub = hub()?;
    let path = path.trim_end_matches('/');
    if [".npz", ".pt", ".safetensors"].iter().any(|end| path.ends_with(end)) {
        return Ok(hub.file(repo, path)?);
    }
    let there = |file: &str| format!("{path}/{file}");
    let files: Vec<&str> = if hub.is_offline() {
        // What is in the cache, all of a format's files.
        let cached = |files: &&[&str]| files.iter().all(|f| hub.file(repo.clone(), &there(f)).is_ok());
        FOLDERS.into_iter().find(|files| cached(files)).unwrap_or(FOLDERS[0]).to_vec()
    } else {
        let listed = hub.list(repo.clone())?;
        let has = |file: &str| listed.contains(&there(file));
        let format = FOLDERS.into_iter().find(|files| has(files[0])).unwrap_or(FOLDERS[0]);
        // The weights are asked for in any case: if they are not there, the hub says what is near.
        format.iter().enumerate().filter(|(i, file)| *i == 0 || has(file)).map(|(_, file)| *file).collect()
    };
    let mut folder = PathBuf::new();
    for file in files {
        let found = hub.file(repo.clone(), &there(file))?;
        folder = found.ancestors().nth(file.split('/').count()).map(Path::to_owned).unwrap_or_default();
    }
    Ok(folder)
}

/// What makes a folder an SAE's, format by format, the weights first. Two formats call them `sae_weights.safetensors`.
const FOLDERS: [&[&str]; 6] = [
    &["params.npz"],
    &["params.safetensors", "config.json"],
    &["sae_weights.safetensors", "cfg.json", "config.json"],
    &["sae.safetensors", "cfg.json"],
    &["ae.pt", "config.json"],
    &["checkpoints/final.safetensors", "hyperparams.json"],
];

fn open_tiny(name: &str, device: Device) -> Result<(String, Opened)> {
    let known = || tiny::sae_ids().collect::<Vec<_>>().join(", ");
    let unknown = || LoadError::TinySae { name: name.to_owned(), known: known() };
    let id = if name == "tiny" { tiny::sae_ids().next() } else { tiny::sae_ids().find(|id| *id == name) };
    let id = id.ok_or_else(unknown)?;
    let place = Place::from_path(&format!("tiny-scope-res/{id}").replace("/tiny/", "/"));
    let sae = tiny::sae(id).ok_or_else(unknown)??.to_device(device)?;
    let opened =
        Opened { sae, about: About { model: Some("tiny".to_owned()), ..About::new(Format::GemmaScope) } };
    Ok((id.to_owned(), opened.at(place.ok_or_else(|| LoadError::UnknownSite(id.to_owned()))?)?))
}

/// A text that can only be meant as a path of this machine.
fn looks_local(name: &str) -> bool {
    name.starts_with(['.', '/', '~', '\\']) || Path::new(name).is_absolute()
}
