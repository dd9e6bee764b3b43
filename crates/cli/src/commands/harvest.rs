use std::{ops::ControlFlow, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use gemma_scope::{
    activations::{self, HarvestOptions, Store, harvest},
    corpus::{Field, ReadOptions},
    hooks::{HookPoint, HookedModel as _},
    tch,
    training::{TextSource, model_fingerprint},
};

use crate::{
    args::{Dtype, ModelArgs},
    output::{bar, say},
};

/// Writes a model's activations on text as shards with checksums, for `train`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  gemma-scope harvest --text-file corpus.txt --hooks 'blocks.*.hook_resid_post' --out acts/\n  \
    gemma-scope harvest --text-file pile.jsonl --hooks blocks.12.hook_mlp_out --out s3://bucket/prefix --store bf16\n\n\
    S3-compatible storage is told by the usual AWS_* variables (AWS_ENDPOINT, AWS_REGION, AWS_ACCESS_KEY_ID, …)."
)]
pub(crate) struct Args {
    /// A file of texts: `.txt` with blank lines between documents, `.jsonl`, or `.parquet`. Repeatable.
    #[arg(long, value_name = "F", required = true)]
    text_file: Vec<PathBuf>,
    /// The field or column that holds the text.
    #[arg(long, value_name = "FIELD", default_value = "text", conflicts_with = "chat")]
    text_field: String,
    /// The field or column that holds a conversation.
    #[arg(long, value_name = "FIELD", num_args = 0..=1, default_missing_value = "messages")]
    chat: Option<String>,
    /// The hook points, with commas between them; `*` stands for every layer.
    #[arg(long, value_name = "H")]
    hooks: String,
    /// The folder, or the `s3://bucket/prefix`, to write.
    #[arg(long, value_name = "DIR")]
    out: String,
    /// Goes on with what is there: the shards made before stay.
    #[arg(long)]
    resume: bool,
    /// Tokens a sequence, BOS included; 1024, or the model's context where that is less.
    #[arg(long, value_name = "N")]
    ctx: Option<usize>,
    /// Sequences run at a time.
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: usize,
    /// How numbers are stored.
    #[arg(long, value_enum, default_value = "f32")]
    store: Dtype,
    /// Rows of a shard.
    #[arg(long, value_name = "N", default_value_t = 1 << 14)]
    shard_rows: u64,
    /// Stops after this many rows (tokens that count); all of the text unless it is said.
    #[arg(long, value_name = "N")]
    rows: Option<u64>,
    #[command(flatten)]
    model: ModelArgs,
}

/// Harvests.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.batch > 0, "--batch must be at least 1");
    ensure!(args.shard_rows > 0, "--shard-rows must be at least 1");
    let model = args.model.load()?;
    let sites = HookPoint::parse_list(&args.hooks, model.model.dims().n_layers).context("--hooks")?;
    let content = match &args.chat {
        Some(field) => Field::Chat(field.clone()),
        None => Field::Text(args.text_field.clone()),
    };
    let text = TextSource {
        paths: args.text_file.clone(),
        options: ReadOptions { content: content.clone(), subset: None },
        ctx: args.ctx,
        rows: args.batch,
    };
    let store = Store::open(&args.out, storage())?;
    let there = gemma_scope::activations::Manifest::read(&store);
    ensure!(
        args.resume || there.is_err(),
        "--out {}: holds a harvest already: go on with --resume, or name a new folder",
        args.out
    );
    let ctx = text.context(&model)?;
    let options = HarvestOptions {
        model: model.name.clone(),
        model_fingerprint: model_fingerprint(&model)?,
        text_fingerprint: format!("{} ctx={ctx} rows={} {content:?}", text.fingerprint()?, args.batch),
        dtype: match args.store {
            Dtype::F32 => activations::Dtype::F32,
            Dtype::Bf16 => activations::Dtype::Bf16,
        },
        shard_rows: args.shard_rows,
        rows: args.rows,
        ..HarvestOptions::default()
    };
    let _no_grad = tch::no_grad_guard();
    let mut live = text.stream(&model, &sites, Some(1))?;
    let mut shown = None;
    let manifest = harvest(&mut live, &store, &options, |progress| {
        let bar = shown.get_or_insert_with(|| bar(progress.rows, args.rows.unwrap_or(0), "rows"));
        if args.rows.is_none() {
            bar.set_length(progress.rows);
        }
        bar.set_position(progress.rows);
        ControlFlow::Continue(())
    });
    if let Some(bar) = shown {
        bar.finish_and_clear();
    }
    let manifest = manifest?;
    say(&format!(
        "{}: {} rows at {} sites in {} shards, {:.1} MB\n",
        args.out,
        manifest.stored_rows(),
        manifest.sites.len(),
        manifest.shards.len(),
        manifest.stored_bytes() as f64 / 1e6
    ))
}

/// The options of S3-compatible storage, as the environment's AWS_* variables say them.
pub(crate) fn storage() -> Vec<(String, String)> {
    let text = std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    let ours = text.filter(|(key, _)| key.starts_with("AWS_") && Store::is_s3_option(key));
    ours.map(|(key, value)| (key.to_lowercase(), value)).collect()
}
