use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use anyhow::{Context as _, Result, bail, ensure};
use gemma_scope::{
    load::LoadedModel,
    tch,
    train::{
        recipe,
        run::{End, Progress, Times, Watch},
    },
    training::{Exported, File, Training},
};
use indicatif::ProgressBar;

use crate::{
    args::{Dtype, MachineArgs, load},
    commands::harvest::storage,
    output::{bar, note, say},
};

/// Trains SAEs on a model's activations, many from one stream: JumpReLU, Gated, TopK, BatchTopK, Matryoshka, ReLU, and transcoders
/// of each.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  gemma-scope train my.toml\n  gemma-scope train my.toml --out runs/b --set sae.d_sae=4096 --sweep objective.lambda=5e-4,1e-3,2e-3\n  \
    gemma-scope train --resume runs/my                  # goes on after a stop or a kill, to the same weights\n  \
    gemma-scope train --recipes                         # what the papers used, as TOML\n\nA configuration:\n  \
    [data]\n  text = [\"corpus.txt\"]          # or: shards = \"harvested/\"\n\n  [run]\n  tokens = 10_000_000\n\n  \
    [[sae]]\n  hook = \"blocks.3.hook_resid_post\"\n  d_sae = 2048\n  recipe = \"gemma-scope\"\n  objective.lambda = 1e-3\n  # a short run needs a higher rate and a wider kernel than a million steps\n  \
    optimizer.lr = 1e-3\n  objective.bandwidth = 0.03\n  objective.initial_threshold = 0.03"
)]
pub(crate) struct Args {
    /// The configuration; with `--resume` the run's own unless it is said.
    #[arg(value_name = "CONFIG.toml", required_unless_present_any = ["recipes", "resume"])]
    config: Option<PathBuf>,
    /// The folder of the run: `runs/` and the configuration's name unless it is said.
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    out: Option<PathBuf>,
    /// Goes on with the run that DIR holds, from its last checkpoint.
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,
    /// Sets a key of the configuration, such as `run.steps=500`; `sae.KEY` means every SAE, `sae.0.KEY` the first. Repeatable.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    /// Trains every SAE with each of these values of a key, such as `objective.lambda=5e-4,1e-3`. Repeatable: all combinations.
    #[arg(long, value_name = "KEY=V,V,…", value_parser = pair)]
    sweep: Vec<(String, String)>,
    /// Prints the recipes and stops.
    #[arg(long)]
    recipes: bool,
    #[command(flatten)]
    machine: MachineArgs,
    /// The dtype that the model computes in. SAEs are trained in float32.
    #[arg(long, value_enum, default_value = "f32")]
    dtype: Dtype,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.trim().to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

/// Trains.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.recipes {
        let all: Vec<String> = recipe::all().map(|(name, text)| format!("## {name}\n\n{text}")).collect();
        return say(&all.join("\n"));
    }
    let of_the_run = args.resume.as_ref().map(|folder| folder.join("config.toml"));
    let config = args.config.as_ref().or(of_the_run.as_ref()).context("a configuration is missing")?;
    let file = File::read(config, &args.set, &args.sweep)?;
    let default = || Path::new("runs").join(config.file_stem().unwrap_or_default());
    let folder = args.resume.clone().or_else(|| args.out.clone()).unwrap_or_else(default);
    let device = args.machine.device()?;
    let model: Option<LoadedModel> = match needs_model(&file) {
        true => Some(load(file.model.as_deref().unwrap_or("tiny"), &args.machine, args.dtype)?),
        false => None,
    };
    ensure!(
        model.is_some() || file.model.is_none(),
        "{}: `model` is for text: these activations were harvested",
        config.display()
    );
    let _no_grad = tch::no_grad_guard();
    ctrlc::set_handler(|| {
        // A second time it ends at once, as it would have without us.
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        note("stopping after the next step; again to stop at once");
    })
    .context("the handler of Ctrl-C")?;
    let training = Training {
        file: &file,
        folder: &folder,
        model: model.as_ref(),
        device,
        storage: &storage(),
        resume: args.resume.is_some(),
    };
    let rows = file.run.buffer.min(file.steps() * file.run.batch as u64);
    note(&format!(
        "measuring scales and filling the buffer with {rows} rows (`run.buffer`) before the first step"
    ));
    let mut shown = Shown { bar: None };
    let outcome = training.go(&mut shown);
    shown.finish();
    let outcome = outcome?;
    note(&times(outcome.times));
    let place = folder.display();
    if outcome.end == End::Stopped {
        bail!("stopped after step {}: go on with `gemma-scope train --resume {place}`", outcome.steps);
    }
    let mut text = format!("{place}: {} steps, metrics in metrics.jsonl\n", outcome.steps);
    for Exported { name, folders, refused } in &outcome.saes {
        for (_, folder) in folders {
            text += &format!("{name}: {}\n", folder.display());
        }
        for (format, why) in refused {
            note(&format!("{name}: not written as {}, since {why}", format.name()));
        }
    }
    say(&text)?;
    ensure!(
        outcome.end == End::Done,
        "the data ended at step {} of {}, and the SAEs were written as they stood then: let a new run go through it more often \
         (`data.epochs`), or for fewer steps",
        outcome.steps,
        file.steps()
    );
    Ok(())
}

fn needs_model(file: &File) -> bool {
    !file.data.text.is_empty() || file.eval.is_some()
}

/// Set by Ctrl-C.
static STOP: AtomicBool = AtomicBool::new(false);

/// A bar with the worst FVU and the mean L0.
struct Shown {
    bar: Option<ProgressBar>,
}

impl Shown {
    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Watch for Shown {
    fn progress(&mut self, progress: Progress<'_>) {
        let bar = self.bar.get_or_insert_with(|| bar(progress.step, progress.of, "steps"));
        bar.set_position(progress.step);
        if let [only] = progress.stats {
            bar.set_message(format!(
                "loss {:.4} L0 {:.1} FVU {:.3} dead {}",
                only.loss, only.l0, only.fvu, only.dead
            ));
        } else {
            let worst = progress.stats.iter().map(|s| s.fvu).fold(0.0, f64::max);
            bar.set_message(format!("{} SAEs, FVU up to {worst:.3}", progress.stats.len()));
        }
    }

    fn stop(&mut self) -> bool {
        STOP.load(Ordering::Relaxed)
    }
}

fn times(times: Times) -> String {
    let all = times.total();
    let share = |part: f64| format!("{:.0} %", 100.0 * part / all.max(1e-9));
    format!(
        "{all:.1} s: {} in the stream ({} waiting for storage), {} in training steps, {} in evaluations, {} in checkpoints and logs",
        share(times.stream),
        share(times.waited),
        share(times.steps),
        share(times.evaluate),
        share(times.files)
    )
}
