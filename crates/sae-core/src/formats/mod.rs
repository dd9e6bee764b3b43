//! The public file formats of SAEs. [`open`] recognises which one lies at a path; each has its own module, which says what of
//! the format it reads and writes, and where that is documented.
//!
//! Every reader is strict: a tensor that is missing, superfluous or misshapen, and a setting that is unknown and could change
//! the function, is an error that names it.

pub mod circuit_tracer;
mod config;
pub mod delphi;
pub mod dictionary_learning;
pub mod gemma_scope;
pub mod gemma_scope_2;
pub mod openai;
pub mod openmoss;
pub mod saelens;
pub mod sparsify;
mod tensors;
mod yaml;

use std::path::Path;

use hooks::HookPoint;
use serde_json::{Map, Value};
use tch::{Device, Kind};
use tch_ext::TensorError;

use crate::{Result, Sae, SaeError};

/// Where an opened SAE lives.
#[derive(Debug, Clone, Copy)]
pub struct OpenOptions {
    /// The device.
    pub device: Device,
    /// A weight matrix of more bytes than this (as float32) is left in its file and read as far as it is needed, where the
    /// device is the CPU and the file can be read in pieces.
    pub hold_up_to: u64,
}

impl Default for OpenOptions {
    /// On the CPU; matrices of up to 2 GiB in memory.
    fn default() -> Self {
        Self { device: Device::Cpu, hold_up_to: 2 << 30 }
    }
}

impl OpenOptions {
    /// The default on another device.
    pub fn on(device: Device) -> Self {
        Self { device, ..Self::default() }
    }
}

/// The public formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// [`gemma_scope`].
    GemmaScope,
    /// [`gemma_scope_2`].
    GemmaScope2,
    /// [`saelens`], of version 6 and before.
    SaeLens,
    /// [`dictionary_learning`].
    DictionaryLearning,
    /// [`sparsify`].
    Sparsify,
    /// [`openai`].
    OpenAi,
    /// [`openmoss`]: Llama Scope, and the newer files of the same project.
    OpenMoss,
    /// [`circuit_tracer`].
    CircuitTracer,
}

impl Format {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::GemmaScope => "gemma-scope",
            Self::GemmaScope2 => "gemma-scope-2",
            Self::SaeLens => "saelens",
            Self::DictionaryLearning => "dictionary-learning",
            Self::Sparsify => "sparsify",
            Self::OpenAi => "openai",
            Self::OpenMoss => "openmoss",
            Self::CircuitTracer => "circuit-tracer",
        }
    }

    /// The formats that are written.
    pub const WRITTEN: [Self; 4] = [Self::GemmaScope, Self::GemmaScope2, Self::SaeLens, Self::Sparsify];
}

/// An SAE and what its files say of it.
#[derive(Debug)]
pub struct Opened {
    /// The SAE.
    pub sae: Sae,
    /// What its files say.
    pub about: About,
}

/// What the files of an SAE say besides its weights.
#[derive(Debug, Clone, PartialEq)]
pub struct About {
    /// The format.
    pub format: Format,
    /// The model whose activations it reads, as the files name it.
    pub model: Option<String>,
    /// The activation that it reads, as the files name it.
    pub hook: Option<String>,
    /// The activation that it writes, as the files name it; of a transcoder alone.
    pub hook_out: Option<String>,
    /// The site that it reads, where `hook` is one of ours.
    pub site: Option<HookPoint>,
    /// The site whose activation its output estimates, where that is one of ours.
    pub site_out: Option<HookPoint>,
    /// Everything else that describes it and changes nothing, by the names of the files.
    pub metadata: Map<String, Value>,
}

impl About {
    /// Nothing but the format.
    pub fn new(format: Format) -> Self {
        Self {
            format,
            model: None,
            hook: None,
            hook_out: None,
            site: None,
            site_out: None,
            metadata: Map::new(),
        }
    }

    /// The activation that it reads: our name of it, or the files'.
    pub fn hook_name(&self) -> Option<String> {
        self.site.map(|site| site.to_string()).or_else(|| self.hook.clone())
    }

    /// The activation that its output estimates: our name of it, or the files'.
    pub fn hook_out_name(&self) -> Option<String> {
        self.site_out.map(|site| site.to_string()).or_else(|| self.hook_out.clone())
    }
}

/// Opens an SAE in any of the public formats: a file, or the folder that holds its files.
///
/// # Errors
/// A path that holds none; whatever its format's reader refuses.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Opened> {
    let bad =
        |problem: &str| SaeError::File { file: path.display().to_string(), problem: problem.to_owned() };
    // What the system says of a path that can't be followed says more than that nothing is there.
    std::fs::metadata(path).map_err(|e| TensorError::io(path, e))?;
    if path.is_file() {
        return open_file(path, options);
    }
    if !path.is_dir() {
        return Err(bad("is no ordinary file, and no folder"));
    }
    if let [first, second, ..] = weights_in(path)[..] {
        return Err(bad(&format!(
            "holds `{first}` and `{second}`: two SAEs, of which the file must be named"
        )));
    }
    let inside = |name: &str| path.join(name).is_file();
    match () {
        () if inside("sae_weights.safetensors") && !inside("config.json") => saelens::open(path, options),
        () if inside("sae.safetensors") => sparsify::open(path, options),
        () if inside("params.npz") => gemma_scope::open(&path.join("params.npz"), options),
        () if inside("params.safetensors") => gemma_scope_2::open(path, options),
        () if inside("cfg.json") => saelens::open(path, options),
        () if inside("ae.pt") => dictionary_learning::open(path, options),
        () if inside("hyperparams.json") => openmoss::open(path, options),
        () if inside("config.json") && inside("sae_weights.safetensors") => openmoss::open(path, options),
        () if inside("config.yaml") || inside("layer_0.safetensors") => circuit_tracer::open(path, options),
        () => Err(bad("no file in this folder is one of an SAE")),
    }
}

/// A file on its own, or one whose folder says what it is.
fn open_file(path: &Path, options: &OpenOptions) -> Result<Opened> {
    let bad =
        |problem: &str| SaeError::File { file: path.display().to_string(), problem: problem.to_owned() };
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let folder = path.parent().unwrap_or(Path::new(""));
    match name {
        "params.safetensors" => gemma_scope_2::open(folder, options),
        "sae.safetensors" => sparsify::open(folder, options),
        "ae.pt" => dictionary_learning::open(folder, options),
        "sae_weights.safetensors" if folder.join("cfg.json").is_file() => saelens::open(folder, options),
        "cfg.json" | "sae_weights.safetensors" | "hyperparams.json" => {
            open(if folder == Path::new("") { Path::new(".") } else { folder }, options)
        }
        _ if name.ends_with(".npz") => gemma_scope::open(path, options),
        _ if name.ends_with(".pt") => openai::open(path, options),
        _ if name.starts_with("layer_") && name.ends_with(".safetensors") => {
            circuit_tracer::open(path, options)
        }
        _ => Err(bad("this is no file of an SAE")),
    }
}

/// Writes an SAE into a folder, in a format of [`Format::WRITTEN`]; what the format can't say is folded into the weights where
/// that does not change the function.
///
/// # Errors
/// A format that is not written, or that can't express the SAE; the system's.
pub fn save(sae: &Sae, about: &About, format: Format, folder: &Path) -> Result<()> {
    expect_room(folder, format)?;
    match format {
        Format::GemmaScope => gemma_scope::save(sae, &folder.join("params.npz"), Kind::Float),
        Format::GemmaScope2 => gemma_scope_2::save(sae, about, folder),
        Format::SaeLens => saelens::save(sae, about, folder),
        Format::Sparsify => sparsify::save(sae, about, folder),
        other => Err(SaeError::Parts(format!("the format `{}` is read and not written", other.name()))),
    }
}

/// The files of weights by which a folder is one format's.
const WEIGHTS: [&str; 5] =
    ["params.npz", "params.safetensors", "sae_weights.safetensors", "sae.safetensors", "ae.pt"];

fn weights_in(folder: &Path) -> Vec<&'static str> {
    WEIGHTS.into_iter().filter(|file| folder.join(file).exists()).collect()
}

/// A folder in which nothing would be overwritten or hidden but an SAE of the same format.
fn expect_room(folder: &Path, format: Format) -> Result<()> {
    const OTHERS: [&str; 4] =
        ["hyperparams.json", "config.yaml", "model.safetensors", "model.safetensors.index.json"];
    let (own, config) = match format {
        Format::GemmaScope => ("params.npz", None),
        Format::GemmaScope2 => ("params.safetensors", Some("config.json")),
        Format::SaeLens => ("sae_weights.safetensors", Some("cfg.json")),
        _ => ("sae.safetensors", Some("cfg.json")),
    };
    let foreign = WEIGHTS.into_iter().chain(OTHERS).filter(|file| *file != own);
    // A config without its weights belongs to something else.
    let config = config.filter(|_| !folder.join(own).exists());
    match foreign.chain(config).find(|file| folder.join(file).exists()) {
        None => Ok(()),
        Some(file) => {
            let problem = format!(
                "holds `{file}`, which is not of the format `{}`: write into a folder of its own",
                format.name()
            );
            Err(SaeError::File { file: folder.display().to_string(), problem })
        }
    }
}

/// Puts the file's name before the tensor's.
pub(crate) fn in_file(file: &str, error: SaeError) -> SaeError {
    let within = |what: String| if what.starts_with(file) { what } else { format!("{file}: {what}") };
    match error {
        SaeError::Tensor(TensorError::Shape { what, expected, got }) => {
            TensorError::Shape { what: within(what), expected, got }.into()
        }
        SaeError::Tensor(TensorError::NotFinite { what, count }) => {
            TensorError::NotFinite { what: within(what), count }.into()
        }
        SaeError::File { problem, .. } | SaeError::Parts(problem) => {
            SaeError::File { file: file.to_owned(), problem }
        }
        other => other,
    }
}
