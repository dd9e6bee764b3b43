//! Arguments that several commands share, and what they name.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;
use gemma_scope::{
    hooks::{HookPoint, Positions},
    hub::{Hub, HubError},
    load::{LoadedModel, LoadedSae, load_model_with_progress, load_sae},
    model::LoadOptions,
    sae::{OpenOptions, catalogue},
    tch::{self, Device, Kind},
    tensors::{open_device, parse_device},
    tiny,
};

use crate::output::{download_progress, load_progress};

/// The dtypes that a model computes in.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Dtype {
    /// float32.
    F32,
    /// bfloat16: half the memory, rounded where the reference rounds.
    Bf16,
}

/// Which model, and where it runs.
#[derive(Debug, clap::Args)]
pub(crate) struct ModelArgs {
    /// `tiny` (embedded), a local folder, or a hub repository like `google/gemma-2-2b`.
    #[arg(long, value_name = "M", default_value = "tiny")]
    pub(crate) model: String,
    #[command(flatten)]
    pub(crate) machine: MachineArgs,
    /// The dtype to compute in.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
    /// Seeds whatever is drawn at random.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
}

/// Where the work is done.
#[derive(Debug, clap::Args)]
pub(crate) struct MachineArgs {
    /// `cpu`, `cuda` or `cuda:N`.
    #[arg(long, default_value = "cpu")]
    pub(crate) device: String,
    /// Threads for tensor work; all cores where it is not given.
    #[arg(long, value_name = "N")]
    threads: Option<i32>,
    /// Never touches the network: what is not in the hub's cache is an error.
    #[arg(long)]
    offline: bool,
}

impl MachineArgs {
    /// Sets the threads and returns the device.
    pub(crate) fn device(&self) -> Result<Device> {
        match self.threads {
            // libtorch hangs long before it refuses a number.
            Some(n) if !(1..=1024).contains(&n) => bail!("--threads must lie between 1 and 1024, but is {n}"),
            Some(n) => tch::set_num_threads(n),
            None => (),
        }
        let device = parse_device(&self.device).context("--device")?;
        open_device(device).context("--device")
    }

    /// The hub, asked for when something is not local.
    pub(crate) fn hub(&self) -> Result<Hub, HubError> {
        let hub = Hub::from_env()?;
        // HF_HUB_OFFLINE may have said so already.
        let hub = if self.offline { hub.with_offline(true) } else { hub };
        Ok(hub.with_progress(download_progress()))
    }
}

/// Loads a model, with a bar for a large one.
pub(crate) fn load(model: &str, machine: &MachineArgs, dtype: Dtype) -> Result<LoadedModel> {
    let kind = match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::Bf16 => Kind::BFloat16,
    };
    let options = LoadOptions { device: machine.device()?, kind };
    Ok(load_model_with_progress(model, &options, || machine.hub(), load_progress())?)
}

impl ModelArgs {
    /// Loads the model, with a bar for a large one.
    pub(crate) fn load(&self) -> Result<LoadedModel> {
        load(&self.model, &self.machine, self.dtype)
    }

    /// The dtype's name, for provenance.
    pub(crate) fn dtype(&self) -> &'static str {
        match self.dtype {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
        }
    }
}

/// Which SAEs.
#[derive(Debug, clap::Args)]
pub(crate) struct SaeArgs {
    /// An SAE: `tiny/…` (embedded), a local file or folder, or a released one like
    /// `gemma-scope-2b-pt-res/layer_20/width_16k/canonical`. A glob names many of one of these kinds. Repeatable. The
    /// embedded one where none is given and the model is `tiny`.
    #[arg(long, value_name = "S")]
    sae: Vec<String>,
    /// The hook point that the SAEs read, where their names do not tell.
    #[arg(long, value_name = "H")]
    pub(crate) hook: Option<HookPoint>,
}

impl SaeArgs {
    /// Their names, globs expanded; the default of the embedded model where none is given.
    pub(crate) fn names(&self, model: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for name in &self.sae {
            names.extend(expand(name).context("--sae")?);
        }
        if names.is_empty() {
            if model != "tiny" {
                bail!(
                    "--sae: name an SAE for {model}, for example gemma-scope-2b-pt-res/layer_20/width_16k/canonical"
                );
            }
            names.push("tiny".to_owned());
        }
        Ok(names)
    }

    /// Loads them.
    pub(crate) fn load(&self, model: &str, machine: &MachineArgs) -> Result<Vec<LoadedSae>> {
        let device = machine.device()?;
        let names = self.names(model)?;
        names
            .iter()
            .map(|name| Ok(load_sae(name, self.hook, &OpenOptions::on(device), || machine.hub())?))
            .collect()
    }
}

/// A glob to what it names: local files, else embedded SAEs, else released ones. Any other text to itself.
pub(crate) fn expand(name: &str) -> Result<Vec<String>> {
    if !name.contains(['*', '?', '[']) || Path::new(name).exists() {
        return Ok(vec![name.to_owned()]);
    }
    let no_glob = || format!("`{name}` is no glob");
    let found: Vec<String> = glob::glob(name)
        .with_context(no_glob)?
        .map(|p| Ok(p?.display().to_string()))
        .collect::<Result<_, glob::GlobError>>()?;
    if !found.is_empty() {
        return Ok(found);
    }
    if name.starts_with("tiny/") {
        let pattern = glob::Pattern::new(name).with_context(no_glob)?;
        let fitting: Vec<String> =
            tiny::sae_ids().filter(|id| pattern.matches(id)).map(str::to_owned).collect();
        let known = || tiny::sae_ids().collect::<Vec<_>>().join(", ");
        ensure!(!fitting.is_empty(), "no embedded SAE fits `{name}`; there are: {}", known());
        return Ok(fitting);
    }
    // What can only be meant as a path of this machine is no released SAE.
    let local = name.starts_with(['.', '/', '~', '\\']) || Path::new(name).is_absolute();
    ensure!(!local, "no file fits `{name}`");
    match catalogue::matching(name) {
        Ok(released) => Ok(released.iter().map(ToString::to_string).collect()),
        Err(error) => bail!("no file fits, and {error}"),
    }
}

/// Which positions are spliced, edited and counted.
#[derive(Debug, clap::Args)]
pub(crate) struct PositionArgs {
    /// `counted` (not BOS, EOS, PAD), `all`, or `i:j`.
    #[arg(long, value_name = "P", default_value = "counted")]
    pub(crate) positions: Positions,
}
