use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::{Table, Value};
use train::recipe;

use super::{Result, TrainingError};

/// A training configuration, as its TOML file says it. Unknown keys are refused everywhere.
///
/// ```toml
/// model = "tiny"
///
/// [data]
/// text = ["corpus.txt"]
///
/// [run]
/// tokens = 10_000_000
///
/// [[sae]]
/// hook = "blocks.3.hook_resid_post"
/// d_sae = 2048
/// recipe = "gemma-scope"
/// objective.lambda = 1e-3
///
/// [sweep]
/// "objective.lambda" = [5e-4, 1e-3, 2e-3]
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The model whose activations are read; `tiny` unless it is said. Not for harvested activations.
    pub model: Option<String>,
    /// Where activations come from.
    pub data: Data,
    /// How long the run is.
    pub run: RunTable,
    /// What is measured on other text while it goes.
    pub eval: Option<EvalTable>,
    /// The SAEs: `name`, `hook`, `hook_out` (for a transcoder), `seed`, `d_sae`, `recipe`, and the keys of
    /// [`train::config::Config`].
    pub sae: Vec<Table>,
    /// Keys of SAEs with the values to try: each SAE is trained with each combination.
    #[serde(default)]
    pub sweep: Table,
}

/// Where activations come from: text through the model, or shards that were harvested.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Files of text: `.txt`, `.jsonl`, `.parquet`.
    #[serde(default)]
    pub text: Vec<PathBuf>,
    /// The field or column that holds the text; `text` unless it is said.
    pub text_field: Option<String>,
    /// The field that holds a conversation, in place of text.
    pub chat: Option<String>,
    /// Tokens a sequence; 1024 (Gemma Scope, section 3), or the model's context where that is less.
    pub ctx: Option<usize>,
    /// Sequences of a model pass.
    #[serde(default = "eight")]
    pub rows: usize,
    /// A folder or an `s3://` address of harvested shards.
    pub shards: Option<String>,
    /// How often the data is gone through; for ever unless it is said.
    pub epochs: Option<u64>,
}

/// How long a run is, and what it writes when.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunTable {
    /// Tokens to train on: steps of `batch` tokens, the last of them whole.
    pub tokens: Option<u64>,
    /// Steps, in place of `tokens`.
    pub steps: Option<u64>,
    /// Tokens a step.
    #[serde(default = "batch")]
    pub batch: usize,
    /// Seeds the order of the data, and the SAEs that have no `seed` of their own.
    #[serde(default)]
    pub seed: u64,
    /// Rows that are mixed at a time: about 10⁶ (Gemma Scope, section 3.1); no more than are trained on. They are made before the first
    /// step, and lie where the stream makes them: in memory, or on the model's device.
    #[serde(default = "buffer")]
    pub buffer: u64,
    /// How the buffer keeps numbers: `f32` or `bf16`.
    #[serde(default)]
    pub buffer_dtype: activations::Dtype,
    /// Rows on which the scales are measured.
    #[serde(default = "scale_rows")]
    pub scale_rows: u64,
    /// Steps between lines of `metrics.jsonl`.
    #[serde(default = "log_every")]
    pub log_every: u64,
    /// Steps between checkpoints.
    #[serde(default = "checkpoint_every")]
    pub checkpoint_every: u64,
}

/// Delta loss and its kin on text that is not trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalTable {
    /// A file of text.
    pub text: PathBuf,
    /// Steps between evaluations.
    pub every: u64,
    /// Sequences of it that are used: the first ones.
    #[serde(default = "eight")]
    pub rows: usize,
}

fn eight() -> usize {
    8
}

fn batch() -> usize {
    4096
}

fn buffer() -> u64 {
    1 << 20
}

fn scale_rows() -> u64 {
    100_000
}

fn log_every() -> u64 {
    100
}

fn checkpoint_every() -> u64 {
    1000
}

impl File {
    /// Reads a file, puts `set`'s keys and values over it and `sweep`'s to its sweep, and checks what can be checked without a model.
    ///
    /// A key is a path with dots; `sae.KEY` means every SAE, `sae.0.KEY` the first. A value is TOML, or else plain text; in a sweep
    /// several, with commas between them.
    ///
    /// # Errors
    /// A file that is not there or no TOML; unknown keys; values that can't be.
    pub fn read(path: &Path, set: &[(String, String)], sweep: &[(String, String)]) -> Result<Self> {
        let problem = |problem: String| TrainingError::File { path: path.to_owned(), problem };
        let text = std::fs::read_to_string(path).map_err(|e| problem(e.to_string()))?;
        let mut table: Table = text.parse().map_err(|e: toml::de::Error| problem(placed(&text, &e)))?;
        for (key, value) in set {
            put(&mut table, key, value_of(value))
                .map_err(|what| TrainingError::Set { key: key.clone(), what })?;
        }
        for (key, values) in sweep {
            let all = match value_of(&format!("[{values}]")) {
                Value::Array(all) => all,
                _ => values.split(',').map(|value| value_of(value.trim())).collect(),
            };
            let Value::Table(there) = table.entry("sweep").or_insert_with(|| Value::Table(Table::new()))
            else {
                return Err(problem("`sweep` must be a table".to_owned()));
            };
            there.insert(key.clone(), Value::Array(all));
        }
        let file: Self = table.try_into().map_err(|e: toml::de::Error| problem(one_line(e.message())))?;
        file.check().map_err(problem)?;
        Ok(file)
    }

    fn check(&self) -> Result<(), String> {
        if self.sae.is_empty() {
            return Err("names no SAE: add a table [[sae]]".to_owned());
        }
        match (&self.run.tokens, &self.run.steps) {
            (None, None) => {
                return Err("says not how long to train: set `run.tokens` or `run.steps`".to_owned());
            }
            (Some(_), Some(_)) => return Err("sets both `run.tokens` and `run.steps`".to_owned()),
            _ => {}
        }
        if self.run.batch == 0 || self.data.rows == 0 {
            return Err("`run.batch` and `data.rows` must be at least 1".to_owned());
        }
        if self.steps() == 0 {
            return Err("`run.tokens` and `run.steps` must be at least 1".to_owned());
        }
        match (self.data.text.is_empty(), &self.data.shards) {
            (true, None) => return Err("names no data: set `data.text` or `data.shards`".to_owned()),
            (false, Some(_)) => return Err("sets both `data.text` and `data.shards`".to_owned()),
            _ => {}
        }
        if self.data.epochs == Some(0) {
            return Err("`data.epochs` must be at least 1".to_owned());
        }
        if self.data.chat.is_some() && self.data.text_field.is_some() {
            return Err("sets both `data.chat` and `data.text_field`".to_owned());
        }
        if self.data.shards.is_some() && (self.data.chat.is_some() || self.data.ctx.is_some()) {
            return Err("`data.chat` and `data.ctx` were settled when the shards were harvested".to_owned());
        }
        if self.run.scale_rows == 0 {
            return Err("`run.scale_rows` must be at least 1".to_owned());
        }
        if self.eval.as_ref().is_some_and(|eval| eval.every == 0 || eval.rows == 0) {
            return Err("`eval.every` and `eval.rows` must be at least 1".to_owned());
        }
        Ok(())
    }

    /// Steps of the run.
    pub fn steps(&self) -> u64 {
        match (self.run.steps, self.run.tokens) {
            (Some(steps), _) => steps,
            (None, Some(tokens)) => tokens.div_ceil(self.run.batch as u64),
            (None, None) => 0,
        }
    }

    /// The SAEs to train: each of `sae` with each combination of `sweep`'s values, named after what differs.
    pub(super) fn wanted(&self) -> Result<Vec<Wanted>> {
        let mut all = Vec::new();
        for (i, table) in self.sae.iter().enumerate() {
            let mut variants = vec![(String::new(), table.clone())];
            for (key, values) in &self.sweep {
                // As `--set` says it: `sae.KEY` is every SAE's, `sae.0.KEY` the first's.
                let own = key.strip_prefix("sae.").unwrap_or(key);
                let own = match own.split_once('.') {
                    Some((number, below)) if number.parse::<usize>().is_ok() => {
                        if number.parse() != Ok(i) {
                            continue;
                        }
                        below
                    }
                    _ => own,
                };
                let bad =
                    |what: &str| TrainingError::Set { key: format!("sweep.{key}"), what: what.to_owned() };
                let values = values
                    .as_array()
                    .filter(|v| !v.is_empty())
                    .ok_or_else(|| bad("must be a list of values"))?;
                let mut next = Vec::new();
                for (name, table) in &variants {
                    for value in values {
                        let mut table = table.clone();
                        put(&mut table, own, value.clone()).map_err(|what| bad(&what))?;
                        let short = key.rsplit('.').next().unwrap_or(key);
                        next.push((format!("{name}-{short}={}", plain(value)), table));
                    }
                }
                variants = next;
            }
            for (suffix, table) in variants {
                all.push(Wanted::new(table, i, &suffix, self.run.seed)?);
            }
        }
        Ok(all)
    }
}

/// One SAE that a file asks for.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) hook: hooks::HookPoint,
    pub(super) hook_out: Option<hooks::HookPoint>,
    pub(super) seed: u64,
    /// The keys of its `Config`, but for the widths that the model decides.
    table: Table,
}

impl Wanted {
    fn new(mut table: Table, number: usize, suffix: &str, seed: u64) -> Result<Self> {
        let default = || format!("sae-{number}");
        let name = text_key(&mut table, "name")?.unwrap_or_else(default) + suffix;
        let of = |key: &str, what: String| TrainingError::Set { key: format!("sae {name}: {key}"), what };
        let hook = |table: &mut Table, key: &str| -> Result<Option<hooks::HookPoint>> {
            let Some(text) = text_key(table, key)? else { return Ok(None) };
            Ok(Some(text.parse().map_err(|e: hooks::HookError| of(key, e.to_string()))?))
        };
        let hook_out = hook(&mut table, "hook_out")?;
        let read = hook(&mut table, "hook")?;
        let hook = read.ok_or_else(|| of("hook", "is missing: the hook point that it reads".to_owned()))?;
        let seed = match table.remove("seed") {
            None => seed,
            Some(Value::Integer(seed)) if seed >= 0 => seed as u64,
            Some(other) => return Err(of("seed", format!("must be a whole number, but is {other}"))),
        };
        for key in ["d_in", "d_out"] {
            if table.contains_key(key) {
                return Err(of(key, "is not to be set: the hook point's width decides it".to_owned()));
            }
        }
        Ok(Self { name, hook, hook_out, seed, table })
    }

    /// Its configuration, for the widths of its sites.
    pub(super) fn config(&self, d_in: i64, d_out: Option<i64>) -> Result<train::config::Config> {
        let mut table = self.table.clone();
        table.insert("d_in".to_owned(), Value::Integer(d_in));
        if let Some(d_out) = d_out {
            table.insert("d_out".to_owned(), Value::Integer(d_out));
        }
        recipe::configure(table)
            .map_err(|e| TrainingError::Set { key: format!("sae {}", self.name), what: e.to_string() })
    }
}

fn text_key(table: &mut Table, key: &str) -> Result<Option<String>> {
    match table.remove(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(TrainingError::Set {
            key: format!("sae.{key}"),
            what: format!("must be text, but is {other}"),
        }),
    }
}

/// Sets a value at a path with dots. In a list of tables, a number chooses one, and no number all.
fn put(table: &mut Table, path: &str, value: Value) -> Result<(), String> {
    let (key, rest) = match path.split_once('.') {
        Some((key, rest)) => (key, Some(rest)),
        None => (path, None),
    };
    if key.is_empty() {
        return Err("is no path of keys".to_owned());
    }
    let Some(rest) = rest else {
        table.insert(key.to_owned(), value);
        return Ok(());
    };
    match table.entry(key.to_owned()).or_insert_with(|| Value::Table(Table::new())) {
        Value::Table(inner) => put(inner, rest, value),
        Value::Array(all) => {
            let (number, below) = match rest.split_once('.') {
                Some((first, below)) if first.parse::<usize>().is_ok() => {
                    (first.parse::<usize>().ok(), below)
                }
                _ => (None, rest),
            };
            let count = all.len();
            if number.is_some_and(|n| n >= count) {
                return Err(format!("there are only {count}"));
            }
            for (i, one) in all.iter_mut().enumerate() {
                match one {
                    Value::Table(inner) if number.is_none_or(|n| n == i) => put(inner, below, value.clone())?,
                    Value::Table(_) => {}
                    _ => return Err(format!("`{key}` is no list of tables")),
                }
            }
            Ok(())
        }
        _ => Err(format!("`{key}` has no keys of its own")),
    }
}

/// TOML where it is TOML, else text.
fn value_of(text: &str) -> Value {
    let table: Result<Table, _> = format!("value = {text}").parse();
    table.ok().and_then(|mut table| table.remove("value")).unwrap_or_else(|| Value::String(text.to_owned()))
}

/// A value as a part of a name.
fn plain(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    text.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect()
}

/// A reader's message with its line.
fn placed(text: &str, error: &toml::de::Error) -> String {
    let message = one_line(error.message());
    match error.span().and_then(|span| text.get(..span.start)) {
        Some(before) => format!("line {}: {message}", before.matches('\n').count() + 1),
        None => message,
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
