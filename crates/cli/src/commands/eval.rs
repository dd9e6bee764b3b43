use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use gemma_scope::{
    corpus::{self, Batch, Content, Document, Field, Packing, ReadOptions, Summary},
    eval::{EvalOptions, Report, Timings, scored},
    hooks::Positions,
    load::LoadedModel,
    model::Gemma2Config,
    suite::{Entry, Part, Progress, Run, SaeDtype, Shard, Text, fingerprint},
};
use indicatif::ProgressBar;
use serde_json::{Map, Value, json};

use crate::{
    args::{ModelArgs, PositionArgs, SaeArgs},
    output::{bar, note, say},
    report::Reports,
    text::TextArgs,
};

/// The context of Gemma Scope's own evaluation.
const CONTEXT: usize = 1024;

/// Judges SAEs on texts, all in one shared pass: delta loss, loss recovered, KL, FVU, L0, density, and every other metric of the
/// field under its own name.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  gemma-scope eval --text-file heldout.txt --sae tiny --json report.json --html report.html\n  \
    gemma-scope eval --model google/gemma-2-2b --text-file pile.jsonl --subset-field meta.pile_set_name \\\n    \
    --sae 'gemma-scope-2b-pt-res/layer_20/width_16k/*' --resume runs/layer_20 --json report.json\n  \
    gemma-scope eval … --shard 3/16 --resume runs/all --json parts/3.json   # then: gemma-scope eval-merge parts/*.json --json report.json"
)]
pub(crate) struct Args {
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    corpus: CorpusArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    saes: SaeArgs,
    #[command(flatten)]
    positions: PositionArgs,
    #[command(flatten)]
    reports: Reports,
    /// Tokens a sequence, BOS included. 1024, or the model's context where that is less; the rows of `--tokens` may be as long as
    /// the model's context.
    #[arg(long, value_name = "N")]
    ctx: Option<usize>,
    /// Sequences run at a time.
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: usize,
    /// The dtype that the SAEs compute in: `f32`, `bf16`, or both, `f32,bf16`, side by side.
    #[arg(long, value_name = "D", value_delimiter = ',', default_value = "f32")]
    sae_dtype: Vec<SaeDtype>,
    /// Also measures `uniformity`, at N positions of each sequence: each costs a run and a backward pass.
    #[arg(long, value_name = "N", default_value_t = 0)]
    uniformity: usize,
    /// Also measures each latent's largest cosine with another: for 16k latents of a 2B some 2.5 TFLOP an SAE.
    #[arg(long)]
    neighbours: bool,
    /// GiB of SAEs held in memory at a time; more are judged in further passes.
    #[arg(long, value_name = "GIB", default_value_t = 8.0)]
    hold: f64,
    /// Writes what is done into DIR after each batch, and goes on from there. Shards may share it.
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,
    /// Judges on every N-th batch from number I on; `--json` then writes a part for `eval-merge`.
    #[arg(long, value_name = "I/N", default_value = "1/1")]
    shard: Shard,
    /// Only takes the mean activations, into the folder of `--resume`, so that shards need not each do it.
    #[arg(long, requires = "resume", conflicts_with_all = ["json", "csv", "html"])]
    means_only: bool,
}

/// How texts become sequences.
#[derive(Debug, clap::Args)]
pub(crate) struct CorpusArgs {
    /// The field or column that holds the text.
    #[arg(long, value_name = "FIELD", default_value = "text", conflicts_with = "chat")]
    text_field: String,
    /// The field or column that holds a conversation, `[{"role": …, "content": …}]`, written as Gemma's -it models see it. The
    /// roles are subsets of the report.
    #[arg(long, value_name = "FIELD", num_args = 0..=1, default_missing_value = "messages", conflicts_with = "tokens")]
    chat: Option<String>,
    /// The field or column that names the subset a text belongs to, like `meta.pile_set_name`: quality is reported for each.
    #[arg(long, value_name = "FIELD", conflicts_with = "tokens")]
    subset_field: Option<String>,
    /// One text a sequence, in place of sequences filled with one text after another.
    #[arg(long, conflicts_with = "tokens")]
    no_packing: bool,
}

/// Evaluates.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.batch > 0, "--batch must be at least 1");
    ensure!(args.hold > 0.0, "--hold must be above 0");
    let whole = args.shard == Shard::WHOLE;
    ensure!(
        whole || args.reports.only_json(),
        "--csv and --html show a whole evaluation: give them to eval-merge"
    );
    let names = args.saes.names(&args.model.model)?;
    args.reports.check(reads(args, &names).iter().map(PathBuf::as_path))?;
    ensure!(
        whole || args.means_only || args.reports.json.is_some() || args.resume.is_some(),
        "--shard leaves nothing without --json or --resume"
    );
    let mut dtypes = args.sae_dtype.clone();
    dtypes.sort();
    dtypes.dedup();
    let model = args.model.load()?;
    let text = text(args, &model)?;
    in_reach(args.positions.positions, &text)?;
    let device = args.model.machine.device()?;
    let open = gemma_scope::sae::OpenOptions::on(device);
    let mut saes = Vec::new();
    for name in &names {
        saes.extend(Entry::of(name, args.saes.hook, &dtypes, &open, || args.model.machine.hub())?);
    }
    let run = Run {
        model: &model.model,
        saes,
        text: &text,
        options: EvalOptions { positions: args.positions.positions, uniformity: args.uniformity },
        neighbours: args.neighbours,
        open,
        hold: (args.hold * f64::from(1 << 30)) as u64,
        shard: args.shard,
        folder: args.resume.clone(),
        provenance: provenance(args, &model, &text.summary)?,
    };
    let shown = Shown::default();
    if args.means_only {
        run.take_means(|progress| shown.show(&progress))?;
        shown.finish();
        return Ok(());
    }
    let part = run.judge(|| args.model.machine.hub(), |progress| shown.show(&progress))?;
    shown.finish();
    if whole {
        return args.reports.write(&part.reports()?);
    }
    let (saes, tokens) = (part.setting.saes.len(), part.tokens());
    say(&format!("shard {}: {saes} SAEs judged on {tokens} positions\n", args.shard))?;
    if let Some(path) = &args.reports.json {
        part.save(path)?;
        note(&format!("wrote {}, a part for eval-merge", path.display()));
    }
    Ok(())
}

/// Refuses positions that no sequence reaches, or that leave no loss to judge by.
fn in_reach(positions: Positions, text: &Text) -> Result<()> {
    let longest = text.batches.iter().map(|batch| batch.tokens.pos()).max().unwrap_or(0);
    match positions {
        Positions::Range { start, .. } if start >= longest => {
            bail!("--positions {positions}: the longest sequence has {longest} tokens")
        }
        _ => (),
    }
    for Batch { tokens, .. } in &text.batches {
        let kept = positions.over(tokens)?.columns(0, tokens.pos())?;
        if scored(&kept, tokens)?.f_any()?.f_int64_value(&[])? != 0 {
            return Ok(());
        }
    }
    bail!(
        "--positions {positions}: no position counts whose next counts as well, so there is no loss to judge by"
    )
}

/// The local files and folders that are read.
fn reads(args: &Args, saes: &[String]) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        [&args.text.text_file, &args.text.tokens].into_iter().flatten().cloned().collect();
    paths.push(args.model.model.clone().into());
    paths.extend(saes.iter().map(PathBuf::from));
    if let Some(folder) = &args.resume {
        let (index, of) = (args.shard.index(), args.shard.of());
        paths.extend([folder.join("means.json"), folder.join(format!("shard-{index}-of-{of}"))]);
    }
    paths
}

/// The text, in batches.
fn text(args: &Args, model: &LoadedModel) -> Result<Text> {
    let config = model.model.config();
    let ctx = context(args, config)?;
    let text = if let Some(path) = &args.text.tokens {
        Text::tokens(path, config, args.batch)?
    } else {
        let CorpusArgs { text_field, chat, subset_field, no_packing } = &args.corpus;
        let content = match chat {
            Some(field) => Field::Chat(field.clone()),
            None => Field::Text(text_field.clone()),
        };
        let options = ReadOptions { content, subset: subset_field.clone() };
        let given = args
            .text
            .text
            .iter()
            .map(|text| Ok(Document { content: Content::Text(text.clone()), subset: None }));
        ensure!(
            args.text.text.is_empty() || (chat.is_none() && subset_field.is_none()),
            "--text has no fields: --chat and --subset-field need a --text-file"
        );
        ensure!(
            args.text.text_file.is_some() || !args.text.text.is_empty(),
            "give a text with --text, --text-file or --tokens"
        );
        let file = args.text.text_file.as_ref().map(|path| corpus::open(path, &options)).transpose()?;
        let packing = if *no_packing { Packing::Separate } else { Packing::Packed };
        let documents = given.chain(file.into_iter().flatten());
        Text::pack(documents, model.tokenizer()?, (ctx, args.batch), packing)?
    };
    if text.batches.is_empty() {
        bail!("{}: there is no text in it", source(args).first().map_or("--text", String::as_str));
    }
    Ok(text)
}

fn context(args: &Args, config: &Gemma2Config) -> Result<usize> {
    let n_ctx = config.dims.n_ctx;
    let ctx = args.ctx.unwrap_or(CONTEXT.min(n_ctx));
    ensure!(
        (2..=n_ctx).contains(&ctx),
        "--ctx must lie between 2 and the model's context of {n_ctx}, but is {ctx}"
    );
    Ok(ctx)
}

/// The names of the files that the text comes from.
fn source(args: &Args) -> Vec<String> {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    [&args.text.text_file, &args.text.tokens].into_iter().flatten().filter_map(|path| name(path)).collect()
}

/// What every report says of the model and the text.
fn provenance(args: &Args, model: &LoadedModel, text: &Summary) -> Result<Map<String, Value>> {
    let rows = if args.text.tokens.is_some() {
        "as given"
    } else if args.corpus.no_packing {
        "one text each"
    } else {
        "packed"
    };
    let ctx = match &args.text.tokens {
        Some(_) => Value::Null,
        None => json!(context(args, model.model.config())?),
    };
    let all = json!({
        "model": model.name,
        "model_fingerprint": fingerprint(
            model.model.parameters().into_iter().map(|(name, t)| (name.to_owned(), t.shallow_clone())),
        )?,
        "dtype": args.model.dtype(),
        "device": args.model.machine.device,
        "ctx": ctx,
        "rows": rows,
        "chat": args.corpus.chat.is_some(),
        "batch": args.batch,
        "files": source(args),
        "text": serde_json::to_value(text).context("the text's summary")?,
    });
    match all {
        Value::Object(all) => Ok(all),
        _ => Ok(Map::new()),
    }
}

/// A bar for each pass, and a line for each SAE that is judged.
#[derive(Default)]
struct Shown {
    bar: std::cell::RefCell<Option<(&'static str, ProgressBar)>>,
}

impl Shown {
    fn show(&self, progress: &Progress<'_>) {
        match progress {
            Progress::Means { done, of } => self.at("mean activations", *done, *of),
            Progress::Batches { done, of, .. } => self.at("batches", *done, *of),
            Progress::Pass(timings) => self.note(&times(*timings)),
            Progress::Judged(report) => self.note(&format!("judged {}", report.id)),
        }
    }

    fn at(&self, what: &'static str, done: usize, of: usize) {
        if self.bar.borrow().as_ref().is_none_or(|(name, _)| *name != what) {
            // Before the next one is drawn: each clears the line that it stands in.
            self.finish();
            *self.bar.borrow_mut() = Some((what, bar(done as u64, of as u64, what)));
        }
        if let Some((_, bar)) = self.bar.borrow().as_ref() {
            bar.set_position(done as u64);
        }
    }

    /// A line of its own, above the bar.
    fn note(&self, text: &str) {
        match self.bar.borrow().as_ref() {
            Some((_, bar)) => bar.suspend(|| note(text)),
            None => note(text),
        }
    }

    fn finish(&self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn times(Timings { blocks, head, saes, metrics }: Timings) -> String {
    let all = (blocks + head + saes + metrics).as_secs_f64();
    let share = |part: std::time::Duration| format!("{:.0} %", 100.0 * part.as_secs_f64() / all.max(1e-9));
    format!(
        "{all:.1} s: {} in the model's blocks, {} in its logits, {} in SAEs, {} in metrics",
        share(blocks),
        share(head),
        share(saes),
        share(metrics)
    )
}

/// Joins the parts that `eval --shard` wrote, or the reports of several evaluations.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  gemma-scope eval-merge parts/*.json --json report.json --html report.html"
)]
pub(crate) struct MergeArgs {
    /// Parts of one evaluation: all of its shards. Or reports, which are put together.
    #[arg(required = true, value_name = "PART")]
    parts: Vec<PathBuf>,
    #[command(flatten)]
    reports: Reports,
}

/// Merges.
pub(crate) fn merge(args: &MergeArgs) -> Result<()> {
    args.reports.check(args.parts.iter().map(PathBuf::as_path))?;
    let (mut parts, mut reports): (Vec<Part>, Vec<Report>) = (Vec::new(), Vec::new());
    for path in &args.parts {
        let name = || path.display().to_string();
        let bytes = std::fs::read(path).with_context(name)?;
        let is_list = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
        if is_list {
            let found: Vec<Report> = serde_json::from_slice(&bytes)
                .with_context(|| format!("{}: no reports of an evaluation", name()))?;
            for report in found {
                let twice = reports.contains(&report);
                ensure!(!twice, "{}: the report of `{}` is there already", name(), report.id);
                reports.push(report);
            }
        } else {
            parts.push(Part::load(path)?);
        }
    }
    if !parts.is_empty() {
        let part = Part::merge(parts)?;
        let missing: Vec<String> = part.missing().iter().map(Shard::to_string).collect();
        ensure!(missing.is_empty(), "shards are missing: {}", missing.join(", "));
        reports.extend(part.reports()?);
    }
    args.reports.write(&reports)
}
