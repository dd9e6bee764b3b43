use std::ops::RangeInclusive;

use anyhow::{Context as _, Result};
use gemma_scope::sae::catalogue::{self, Entry, Filter, Site, Width};

use crate::output::say;

/// Lists the released SAEs: the catalogue that `--sae` takes its names from.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  gemma-scope list --model 2b --site res --layer 20 --width 16k --l0 50:150\n\n\
                  A glob names the same SAEs here and after --sae:\n  \
                  gemma-scope list 'gemma-scope-2b-pt-res/layer_*/width_16k/canonical'"
)]
pub(crate) struct Args {
    /// Only names that fit this, like `gemma-scope-2b-pt-res/layer_20/**`.
    #[arg(value_name = "GLOB")]
    glob: Option<String>,
    /// The model that they read: `2b`, `9b-it`, `gemma-3-1b`, `google/gemma-2-2b`.
    #[arg(long, value_name = "M")]
    model: Option<String>,
    /// What they read: `res`, `att`, `mlp`, `transcoder` or `embedding`.
    #[arg(long)]
    site: Option<Site>,
    /// A layer, or a range with both its ends: `20`, `5:12`, `20:`.
    #[arg(long, value_name = "LAYERS", value_parser = range)]
    layer: Option<RangeInclusive<u32>>,
    /// How many latents: `16k`, `1m`, `16384`.
    #[arg(long)]
    width: Option<Width>,
    /// The mean number of active latents: `50:150`, both ends included; `71`, `:100`.
    #[arg(long, value_name = "L0S", value_parser = range)]
    l0: Option<RangeInclusive<u32>>,
    /// Only the canonical ones: of each layer and width the one with L0 nearest 100, as SAELens and Neuronpedia chose.
    #[arg(long)]
    canonical: bool,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// Lists.
pub(crate) fn run(args: &Args) -> Result<()> {
    let Args { glob, model, site, layer, width, l0, canonical, json } = args;
    let filter = Filter {
        release: None,
        model: model.clone(),
        site: *site,
        layers: layer.as_ref().map(|range| *range.start() as usize..=*range.end() as usize),
        width: *width,
        l0: l0.clone(),
        canonical: *canonical,
    };
    let named = match glob {
        Some(glob) => catalogue::matching(glob)?,
        None => catalogue::all().collect(),
    };
    let entries = filter.choose(named)?;
    if *json {
        return say(&format!("{}\n", serde_json::to_string_pretty(&entries).context("the list as JSON")?));
    }
    say(&table(&entries))
}

fn table(entries: &[Entry]) -> String {
    let names: Vec<String> = entries.iter().map(Entry::to_string).collect();
    let widest =
        |lengths: &mut dyn Iterator<Item = usize>, head: &str| lengths.max().unwrap_or(0).max(head.len());
    let name = widest(&mut names.iter().map(String::len), "sae");
    let model = widest(&mut entries.iter().map(|e| e.model.len()), "model");
    let mut text = format!("{:<name$}  {:<model$}  {:<10}  layer  width   l0\n", "sae", "model", "site");
    for (entry, sae) in entries.iter().zip(&names) {
        let layer = entry.layer.map_or_else(|| "-".to_owned(), |layer| layer.0.to_string());
        let mark = if entry.canonical { "  canonical" } else { "" };
        let Entry { model: of, site, width, l0, .. } = entry;
        text += &format!("{sae:<name$}  {of:<model$}  {site:<10}  {layer:>5}  {width:>5}  {l0:>3}{mark}\n");
    }
    text
}

/// `5`, `5:12`, `5:` or `:12`, with both ends.
fn range(text: &str) -> Result<RangeInclusive<u32>, String> {
    let end = |part: &str, open: u32| if part.is_empty() { Ok(open) } else { number(part) };
    let (first, last) = match text.split_once(':') {
        None => (number(text)?, number(text)?),
        Some((first, last)) => (end(first, 0)?, end(last, u32::MAX)?),
    };
    if first > last {
        return Err("the range ends before it begins".to_owned());
    }
    Ok(first..=last)
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "expected a number, or a range like 5:12".to_owned())
}
