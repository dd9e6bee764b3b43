//! What the papers used, as tables that a user's own keys override.

use toml::{Table, Value};

use crate::{Result, TrainError, config::Config};

/// The recipes by name: TOML files whose first lines name their source.
const RECIPES: [(&str, &str); 11] = [
    ("gemma-scope", include_str!("../recipes/gemma-scope.toml")),
    ("gemma-scope-2", include_str!("../recipes/gemma-scope-2.toml")),
    ("gemma-scope-transcoder", include_str!("../recipes/gemma-scope-transcoder.toml")),
    ("jumprelu-saelens", include_str!("../recipes/jumprelu-saelens.toml")),
    ("jumprelu-anthropic", include_str!("../recipes/jumprelu-anthropic.toml")),
    ("gated", include_str!("../recipes/gated.toml")),
    ("topk", include_str!("../recipes/topk.toml")),
    ("batchtopk", include_str!("../recipes/batchtopk.toml")),
    ("matryoshka", include_str!("../recipes/matryoshka.toml")),
    ("relu", include_str!("../recipes/relu.toml")),
    ("relu-resampled", include_str!("../recipes/relu-resampled.toml")),
];

/// The keys that `false` takes away.
const OPTIONAL: [&str; 8] =
    ["clip", "ema", "aux", "pre_act", "frequency_penalty", "prefixes", "threshold_lr", "resample"];

/// The names of all recipes, with the text of each.
pub fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    RECIPES.into_iter()
}

/// The configuration that a table gives: the key `recipe` names a recipe, every other key overrides it. A table given for a table
/// overrides key by key, but for `objective.sparsity`, which is replaced; `false` takes an optional key away (`clip = false`). Prefixes
/// may be shares of `d_sae`, as `prefixes = [0.25, 1.0]`.
///
/// # Errors
/// [`TrainError::Config`]: an unknown recipe or key, a key that is missing, a value that can't be.
pub fn configure(mut own: Table) -> Result<Config> {
    let mut table = match own.remove("recipe") {
        Some(Value::String(name)) => find(&name)?,
        Some(other) => return Err(TrainError::Config(format!("`recipe` must be a name, but is {other}"))),
        None => Table::new(),
    };
    overlay(&mut table, own);
    resolve_prefixes(&mut table)?;
    let config: Config =
        table.try_into().map_err(|e: toml::de::Error| TrainError::Config(one_line(e.message())))?;
    config.validate()?;
    Ok(config)
}

fn find(name: &str) -> Result<Table> {
    let Some((_, text)) = RECIPES.iter().find(|(own, _)| *own == name) else {
        let names: Vec<_> = RECIPES.iter().map(|(name, _)| *name).collect();
        let names = names.join(", ");
        return Err(TrainError::Config(format!("there is no recipe `{name}`; there are {names}")));
    };
    text.parse()
        .map_err(|e: toml::de::Error| TrainError::Config(format!("recipe {name}: {}", one_line(e.message()))))
}

/// Puts `own` over `table`.
fn overlay(table: &mut Table, own: Table) {
    for (key, value) in own {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(there)), Value::Table(own)) if key != "sparsity" => overlay(there, own),
            (_, Value::Boolean(false)) if OPTIONAL.contains(&key.as_str()) => {
                table.remove(&key);
            }
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

/// Shares of `d_sae` become widths.
fn resolve_prefixes(table: &mut Table) -> Result<()> {
    let d_sae = table.get("d_sae").and_then(Value::as_integer).unwrap_or(0);
    for prefix in list(table).into_iter().flatten() {
        let Value::Float(share) = prefix else { continue };
        if !(*share > 0.0 && *share <= 1.0) {
            return Err(TrainError::Config(format!(
                "`objective.prefixes` are widths or shares in 0..=1, but one is {share}"
            )));
        }
        *prefix = Value::Integer(((*share * d_sae as f64).round() as i64).max(1));
    }
    // Of a narrow SAE two shares may be the same width.
    if let Some(prefixes) = list(table) {
        prefixes.dedup();
    }
    Ok(())
}

fn list(table: &mut Table) -> Option<&mut Vec<Value>> {
    table.get_mut("objective")?.get_mut("prefixes")?.as_array_mut()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
