//! What goes into `assets/`: the model in bfloat16, the SAE in float16, and a card whose every number is measured on them.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use eval::{EvalError, EvalOptions, evaluate};
use gemma_model::{Gemma2, LoadOptions};
use hooks::{HookPoint, LayerIdx, TokenBatch};
use sae_core::{OpenOptions, formats::gemma_scope, open};
use serde_json::{Value, json};
use tch::Kind;

use crate::{baseline, data, lm};

/// Writes the assets and the card.
pub(crate) fn ship(run: &Path, sae_folder: &str, layer: usize, assets: &Path) -> Result<()> {
    let log = run.join(sae_folder).join("train.jsonl");
    let folder = assets.join("tiny-gemma2");
    Gemma2::load(&run.join("model"), &LoadOptions::default())?.save(&folder, Kind::BFloat16)?;
    let tokenizer: Value = serde_json::from_str(&fs::read_to_string(run.join("tokenizer.json"))?)?;
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string())?;
    let model = Gemma2::load(&folder, &LoadOptions::default())?;
    let config = model.config().clone();

    // Rounded as it will be shipped, then judged.
    let source = open(&run.join(sae_folder).join("params.npz"), &OpenOptions::default())?.sae;
    let rounded = run.join(sae_folder).join("rounded.npz");
    gemma_scope::save(&source, &rounded, Kind::Half)?;
    let sae = open(&rounded, &OpenOptions::default())?.sae;

    let windows = data::windows(&data::load(run, "heldout")?, config.dims.n_ctx, config.bos);
    let batches =
        windows.chunks(16).map(|rows| TokenBatch::new(rows, &config.special()).map_err(EvalError::from));
    let site = HookPoint::ResidPost(LayerIdx(layer));
    let report = evaluate(&model, site, &sae, batches, &EvalOptions::default())?;
    println!("{report}");
    let l0 = report.metrics.get("l0").context("no L0")?;
    let id = format!("tiny-scope-res/layer_{layer}/width_2k/average_l0_{l0:.0}");
    let target = assets.join(&id);
    if assets.join("tiny-scope-res").exists() {
        fs::remove_dir_all(assets.join("tiny-scope-res"))?;
    }
    fs::create_dir_all(&target)?;
    fs::rename(&rounded, target.join("params.npz"))?;

    let parameters: usize = model.parameters().iter().map(|(_, w)| w.numel()).sum();
    let facts = json!({
        "parameters": parameters,
        "heldout_loss": lm::heldout_loss(&model, &windows)?,
        "heldout_tokens": windows.len() * (config.dims.n_ctx - 1),
        "baselines": baseline::score(run)?,
        "training": training(run)?,
        "sae": {"id": id, "tokens": report.tokens, "metrics": report.metrics.values,
                "options": serde_json::from_str::<Value>(&fs::read_to_string(run.join(sae_folder).join("options.json"))?)?,
                "training": last_line(&log)?},
        "sources": serde_json::from_str::<Value>(&fs::read_to_string(run.join("corpus/SOURCES.json"))?)?,
    });
    fs::write(assets.join("facts.json"), format!("{facts:#}\n"))?;
    fs::write(assets.join("MODEL_CARD.md"), card(&facts)?)?;
    println!("{}: {parameters} parameters, held-out loss {}", folder.display(), facts["heldout_loss"]);
    Ok(())
}

/// Steps and wall time, from the log.
fn training(run: &Path) -> Result<Value> {
    let log = fs::read_to_string(run.join("train.jsonl"))?;
    let mut lines = log.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
    lines.rfind(|l| l.get("smooth").is_some()).context("train.jsonl is empty")
}

fn last_line(path: &Path) -> Result<Value> {
    let log = fs::read_to_string(path)?;
    serde_json::from_str(log.lines().next_back().unwrap_or_default())
        .with_context(|| path.display().to_string())
}

/// The template with every `{{/json/pointer}}` replaced by the fact that it points at.
fn card(facts: &Value) -> Result<String> {
    let mut text = String::new();
    let mut rest = include_str!("../MODEL_CARD.template.md");
    while let Some((before, after)) = rest.split_once("{{") {
        let (pointer, after) = after.split_once("}}").context("an unclosed {{ in the template")?;
        let fact = facts.pointer(pointer).with_context(|| format!("the template asks for {pointer}"))?;
        text += before;
        text += &match fact {
            Value::Number(n) if n.is_i64() || n.is_u64() => grouped(n.as_i64().unwrap_or_default()),
            Value::Number(n) => short(n.as_f64().unwrap_or(f64::NAN)),
            Value::String(s) => s.clone(),
            other => other.to_string(),
        };
        rest = after;
    }
    Ok(text + rest)
}

/// Four digits behind the point, or as it is where that would say nothing.
fn short(x: f64) -> String {
    if x != 0.0 && x.abs() < 0.01 { format!("{x}") } else { format!("{x:.4}") }
}

/// Thousands parted by commas.
fn grouped(n: i64) -> String {
    let digits = n.to_string();
    let first = digits.len() % 3;
    let (head, tail) = digits.split_at(first);
    let groups = tail.as_bytes().chunks(3).map(|c| String::from_utf8_lossy(c).into_owned());
    let all: Vec<String> = (first > 0).then(|| head.to_owned()).into_iter().chain(groups).collect();
    all.join(",")
}
