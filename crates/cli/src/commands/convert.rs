use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use gemma_scope::{
    load::open_sae,
    sae::{Format, OpenOptions, Place, SparseAutoencoder as _, save},
    tch,
};

use crate::{
    args::MachineArgs,
    output::{note, say},
};

/// Changes an SAE's format, never its function.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  gemma-scope convert --sae tiny --to saelens --out my-sae/\n\nWhat the new format can't say is \
                  folded into the weights where that does not change the function, and refused where it would."
)]
pub(crate) struct Args {
    /// The SAE, in any format.
    #[arg(long, value_name = "S")]
    sae: String,
    /// `gemma-scope`, `gemma-scope-2`, `saelens` or `sparsify`.
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    to: Format,
    /// The folder to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The model to name as the one whose activations it reads, in place of what the SAE's own files say.
    #[arg(long, value_name = "M")]
    model: Option<String>,
    #[command(flatten)]
    machine: MachineArgs,
}

fn format(text: &str) -> Result<Format> {
    let known = Format::WRITTEN.iter().find(|f| f.name() == text);
    let names: Vec<_> = Format::WRITTEN.iter().map(|f| f.name()).collect();
    known.copied().with_context(|| format!("expected one of {}", names.join(", ")))
}

/// Converts.
pub(crate) fn run(args: &Args) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let device = args.machine.device()?;
    if args.out.is_file() {
        bail!("--out {}: is a file, and a folder is written", args.out.display());
    }
    let (id, opened) = open_sae(&args.sae, &OpenOptions::on(device), || args.machine.hub())?;
    let (mut sae, mut about) = (opened.sae, opened.about);
    if let Some(model) = &args.model {
        about.model = Some(model.clone());
    }
    let place = Place::from_path(&args.out.display().to_string());
    if args.to == Format::GemmaScope && place == Some(Place::Embedding) {
        // Whoever opens it there takes it for one of the table's rows.
        let d_model = sae.d_in() as f64;
        sae = sae.fold_input_scale(d_model.sqrt())?;
    }
    save(&sae, &about, args.to, &args.out).with_context(|| format!("{id} as {}", args.to.name()))?;
    let placed = place
        .is_some_and(|p| Some(p.site()) == about.site && (p.site_out() != p.site()) == sae.is_transcoder());
    if args.to == Format::GemmaScope && !placed {
        note(
            "a params.npz does not say what it reads: its folder's name does, as in resid_post/layer_20/… or transcoder/layer_3/…",
        );
    }
    say(&format!(
        "{}: {} of {} latents, from {}\n",
        args.out.display(),
        sae.architecture(),
        sae.d_sae(),
        about.format.name()
    ))
}
