use std::{collections::HashMap, path::PathBuf};

use anyhow::{Result, ensure};
use gemma_scope::{
    eval::loss_per_token,
    hooks::{ActivationCache, HookPoint, HookSet, HookedModelExt as _},
    tch::{self, Kind, Tensor},
    tensors::write_safetensors,
};

use crate::{args::ModelArgs, output::say, text::TextArgs};

/// Runs a model once and writes named activations, float32, in TransformerLens' shapes. Shorter texts are padded on the
/// right; then, and where a file of tokens has padding, `attention_mask` is written too.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  gemma-scope activations --text \"The ship sailed.\" --hooks \"blocks.*.hook_resid_post,logits\" \
                  --out acts.safetensors"
)]
pub(crate) struct Args {
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// Hook points, comma-separated, `*` for every layer; `logits` and `loss_per_token` are names here too.
    #[arg(long, value_name = "H")]
    hooks: String,
    /// The file to write.
    #[arg(long, value_name = "F.safetensors")]
    out: PathBuf,
}

/// Gathers.
pub(crate) fn run(args: &Args) -> Result<()> {
    let model = args.model.load()?;
    let n_layers = model.model.config().dims.n_layers;
    let names: Vec<&str> = args.hooks.split(',').map(str::trim).filter(|n| !n.is_empty()).collect();
    ensure!(!names.is_empty(), "--hooks names no hook point");
    let (extra, sites): (Vec<&str>, Vec<&str>) =
        names.iter().partition(|n| matches!(**n, "logits" | "loss_per_token"));
    let mut sites = match sites.is_empty() {
        true => Vec::new(),
        false => HookPoint::parse_list(&sites.join(","), n_layers)?,
    };
    sites.sort();
    sites.dedup();
    let tokens = args.text.rows(&model)?.batch(&model)?;

    let _no_grad = tch::no_grad_guard();
    let mut cache = ActivationCache::default();
    let mut hooks = HookSet::new();
    hooks.on_each(sites.iter().copied(), &mut cache);
    let needs_end = !extra.is_empty() || sites.iter().any(|s| s.is_final());
    let needed = sites.iter().map(|s| s.blocks_needed(n_layers)).max().unwrap_or(0);
    let resid = model.model.residual(&tokens, if needs_end { n_layers } else { needed }, &mut hooks)?;
    let mut found: Vec<(String, Tensor)> = Vec::new();
    if extra.contains(&"logits") || sites.iter().any(|s| s.is_final()) {
        let logits = model.model.unembed(&resid, &mut hooks)?;
        if extra.contains(&"logits") {
            found.push(("logits".to_owned(), logits));
        }
    }
    hooks.finish()?;
    if extra.contains(&"loss_per_token") {
        let losses = loss_per_token(&model.model, &resid, &tokens, &mut HookSet::new())?;
        found.push(("loss_per_token".to_owned(), losses));
    }
    for (site, act) in cache.iter() {
        found.push((site.to_string(), act.shallow_clone()));
    }
    // What stands at padding means nothing: the file says where that is.
    if let Some(attended) = tokens.attended() {
        found.push(("attention_mask".to_owned(), attended.shallow_clone()));
    }
    let found: Vec<(String, Tensor)> =
        found.into_iter().map(|(name, t)| Ok((name, t.f_to_kind(Kind::Float)?))).collect::<Result<_>>()?;
    let text = HashMap::from([("model".to_owned(), model.name.clone())]);
    write_safetensors(&args.out, found.iter().map(|(name, t)| (name.clone(), t)), text)?;
    let mut table = String::new();
    for (name, tensor) in &found {
        table += &format!("{name:<40} {:?}\n", tensor.size());
    }
    say(&table)
}
