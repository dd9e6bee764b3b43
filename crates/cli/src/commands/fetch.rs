use anyhow::Result;
use gemma_scope::{
    hub::{Hub, RepoId},
    load::{model_folder, sae_path},
    sae::catalogue,
};

use crate::{
    args::expand,
    output::{download_progress, say},
};

/// Downloads models and SAEs into the hub's cache, and prints where they lie. What was begun goes on where it stopped.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  gemma-scope fetch google/gemma-2-2b 'gemma-scope-2b-pt-res/layer_20/width_16k/*'"
)]
pub(crate) struct Args {
    /// A model's repository, like `google/gemma-2-2b`; an SAE's name, or a glob of released ones.
    #[arg(required = true, value_name = "M|S")]
    names: Vec<String>,
}

/// Fetches.
pub(crate) fn run(args: &Args) -> Result<()> {
    let hub = || Ok(Hub::from_env()?.with_progress(download_progress()));
    // A name that is none stops before the first download.
    let names = args.names.iter().map(|name| expand(name)).collect::<Result<Vec<_>>>()?.concat();
    for name in &names {
        // A repository alone is a model, unless it is one of the SAEs that SAELens calls by two words.
        let is_model = name.parse::<RepoId>().is_ok() && catalogue::find(name).is_none();
        let path = if is_model { model_folder(name, hub)? } else { sae_path(name, hub)? };
        say(&format!("{}\n", path.display()))?;
    }
    Ok(())
}
