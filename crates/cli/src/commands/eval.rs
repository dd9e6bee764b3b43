use std::path::PathBuf;

use anyhow::{Result, ensure};
use gemma_scope::{
    eval::{EvalOptions, Evaluation, METRICS, Report},
    hooks::TokenBatch,
    load::{LoadedModel, LoadedSae},
};
use serde_json::{Value, json};

use crate::{
    args::{ModelArgs, PositionArgs, SaeArgs},
    output::{bar, note, say, write_json},
    text::{Rows, TextArgs},
};

/// The context of Gemma Scope's own evaluation.
const CONTEXT: usize = 1024;

/// Judges SAEs on texts: cross-entropy clean, spliced and zero-ablated, delta loss, FVU, L0, dead latents.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  gemma-scope eval --text-file heldout.txt --sae tiny --json report.json")]
pub(crate) struct Args {
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    saes: SaeArgs,
    #[command(flatten)]
    positions: PositionArgs,
    /// Writes every metric, the frequency of each latent and the definitions.
    #[arg(long, value_name = "F")]
    json: Option<PathBuf>,
    /// Tokens a sequence, BOS included: longer texts are cut into several. 1024, or the model's context where that is less.
    #[arg(long, value_name = "N")]
    ctx: Option<usize>,
    /// Sequences run at a time.
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: usize,
}

/// Evaluates.
pub(crate) fn run(args: &Args) -> Result<()> {
    let model = args.model.load()?;
    let saes = args.saes.load(&args.model.model, &args.model.machine)?;
    let n_ctx = model.model.config().dims.n_ctx;
    let ctx = args.ctx.unwrap_or(CONTEXT.min(n_ctx));
    ensure!(
        (2..=n_ctx).contains(&ctx),
        "--ctx must lie between 2 and the model's context of {n_ctx}, but is {ctx}"
    );
    ensure!(args.batch > 0, "--batch must be at least 1");
    let batches = batches(&model, &args.text.rows(&model)?, ctx, args.batch)?;
    let options = EvalOptions { positions: args.positions.positions };
    let mut found = Vec::new();
    let progress = bar((batches.len() * saes.len()) as u64, "batches");
    for sae in &saes {
        let mut evaluation = Evaluation::new(&model.model, sae.site, &sae.sae, options)?;
        for tokens in &batches {
            evaluation.add(tokens)?;
            progress.inc(1);
        }
        found.push((sae, evaluation.report()?));
    }
    progress.finish_and_clear();
    say(&table(&found))?;
    if let Some(path) = &args.json {
        let provenance = |sae: &LoadedSae| {
            json!({
                "model": model.name, "dtype": args.model.dtype(), "sae": sae.id, "hook": sae.site, "ctx": ctx,
                "positions": args.positions.positions.to_string(), "version": env!("CARGO_PKG_VERSION"),
            })
        };
        let objects: Vec<Value> =
            found.iter().map(|(sae, report)| object(sae, report, provenance(sae))).collect();
        write_json(path, &objects)?;
        note(&format!("wrote {}", path.display()));
    }
    Ok(())
}

/// Rows of at most `ctx` tokens. Texts are cut, each piece with a BOS of its own; the rows of `--tokens` must fit.
fn batches(model: &LoadedModel, rows: &Rows, ctx: usize, batch: usize) -> Result<Vec<TokenBatch>> {
    let config = model.model.config();
    let special = config.special();
    if rows.texts.is_none() {
        let masks = rows.masks.as_deref();
        if let Some(masks) = masks {
            ensure!(
                masks.len() == rows.ids.len(),
                "--tokens: {} rows, but {} masks",
                rows.ids.len(),
                masks.len()
            );
        }
        let spans = (0..rows.ids.len()).step_by(batch).map(|i| i..(i + batch).min(rows.ids.len()));
        let of = |span: std::ops::Range<usize>| match masks {
            Some(masks) => TokenBatch::with_mask(&rows.ids[span.clone()], &masks[span], &special),
            None => TokenBatch::padded(&rows.ids[span], config.pad, &special),
        };
        ensure!(!rows.ids.is_empty(), "--tokens: there are no sequences");
        return Ok(spans.map(of).collect::<Result<_, _>>()?);
    }
    let mut pieces: Vec<Vec<i64>> = Vec::new();
    for row in &rows.ids {
        let (bos, body) = row.split_at(1);
        pieces.extend(body.chunks(ctx - 1).map(|piece| [bos, piece].concat()));
    }
    Ok(pieces
        .chunks(batch)
        .map(|rows| TokenBatch::padded(rows, config.pad, &special))
        .collect::<Result<_, _>>()?)
}

fn object(sae: &LoadedSae, report: &Report, provenance: Value) -> Value {
    let mut metrics: serde_json::Map<String, Value> =
        report.metrics.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    metrics.insert("frequency".to_owned(), json!(report.frequency));
    metrics.insert("tokens".to_owned(), json!(report.tokens));
    json!({
        "id": sae.id, "metrics": metrics, "definitions": report.definitions, "tokens": report.tokens,
        "provenance": provenance,
    })
}

/// A block a metric, a line an SAE.
fn table(found: &[(&LoadedSae, Report)]) -> String {
    let mut text = String::new();
    for (sae, report) in found {
        text += &format!("{} at {}, {} tokens\n", sae.id, sae.site, report.tokens);
        for metric in METRICS {
            let value = report.metrics.get(metric.name).map_or("undefined".to_owned(), |v| format!("{v:.5}"));
            text += &format!("  {:<20} {value:>12}  {}\n", metric.name, metric.unit);
        }
    }
    text
}
