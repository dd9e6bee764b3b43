use std::{collections::BTreeMap, fmt, fs, path::Path, str::FromStr};

use eval::{Report, Sums};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch_ext::write_atomically;

use super::{Entry, Result, SuiteError};

/// A share of the work: every `of`-th batch, from number `index` on, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shard {
    /// Which.
    pub index: usize,
    /// Of how many.
    pub of: usize,
}

impl Shard {
    /// All of the work.
    pub const WHOLE: Self = Self { index: 1, of: 1 };

    /// The numbers of its batches.
    pub(super) fn batches(self, all: usize) -> impl ExactSizeIterator<Item = usize> {
        (self.index - 1..all).step_by(self.of)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl FromStr for Shard {
    type Err = SuiteError;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_once('/').and_then(|(i, n)| Some((i.parse().ok()?, n.parse().ok()?)));
        match numbers {
            Some((index, of)) if 1 <= index && index <= of => Ok(Self { index, of }),
            _ => Err(SuiteError::Shard(text.to_owned())),
        }
    }
}

/// All that a suite's numbers depend on but for the share: two runs with equal settings can be merged, or one go on with the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// The version of the program that measured.
    pub version: String,
    /// The SAEs.
    pub saes: Vec<Entry>,
    /// The numbers of those that were judged in one pass, pass by pass.
    pub groups: Vec<Vec<usize>>,
    /// Batches of the whole text.
    pub batches: usize,
    /// Which positions count.
    pub positions: String,
    /// Positions of each sequence for the metric `uniformity`.
    pub uniformity: usize,
    /// Whether cosines with other latents are measured.
    pub neighbours: bool,
    /// What else belongs to every report's provenance: the model, its dtype, the text and how it was packed.
    pub provenance: Map<String, Value>,
}

impl Setting {
    /// The first thing in which another differs: its name, and both values.
    pub(super) fn difference(&self, other: &Self) -> Option<(String, String, String)> {
        let flat = |setting: &Self| -> BTreeMap<String, String> {
            let Ok(Value::Object(mut all)) = serde_json::to_value(setting) else { return BTreeMap::new() };
            if let Some(Value::Object(inner)) = all.remove("provenance") {
                all.extend(inner);
            }
            // What the reader of a message knows it by.
            let name = |key: String| {
                if key == "groups" { "hold (the passes that it makes)".to_owned() } else { key }
            };
            all.into_iter().map(|(key, value)| (name(key), short(&value.to_string()))).collect()
        };
        let (own, theirs) = (flat(self), flat(other));
        let keys: std::collections::BTreeSet<&String> = own.keys().chain(theirs.keys()).collect();
        let nothing = || "nothing".to_owned();
        keys.into_iter().find(|key| own.get(*key) != theirs.get(*key)).map(|key| {
            let of = |all: &BTreeMap<String, String>| all.get(key).cloned().unwrap_or_else(nothing);
            (key.clone(), of(&own), of(&theirs))
        })
    }
}

fn short(text: &str) -> String {
    const MOST: usize = 200;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// What a run came to: exact sums over its share of the text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Part {
    /// What was measured.
    pub setting: Setting,
    /// The shares that are in it, in ascending order.
    pub shards: Vec<Shard>,
    /// The sums of each group.
    pub(super) sums: Vec<Sums>,
    /// What the weights of each SAE tell.
    pub(super) weights: Vec<BTreeMap<String, Vec<f64>>>,
}

impl Part {
    /// Whether all of the text is in it.
    pub fn is_whole(&self) -> bool {
        self.shards.first().is_some_and(|first| self.shards.len() == first.of)
    }

    /// Positions that counted.
    pub fn tokens(&self) -> u64 {
        self.sums.first().map_or(0, Sums::tokens)
    }

    /// A report for each SAE, in the order in which they were asked for.
    ///
    /// # Errors
    /// [`eval::EvalError::Empty`] where nothing counted.
    pub fn reports(&self) -> Result<Vec<Report>> {
        let mut found: Vec<Option<Report>> = vec![None; self.setting.saes.len()];
        for (group, sums) in self.setting.groups.iter().zip(&self.sums) {
            for (&i, report) in group.iter().zip(sums.reports()?) {
                found[i] = Some(self.complete(i, report));
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// Adds to a report what the evaluation itself does not know.
    pub(super) fn complete(&self, i: usize, report: Report) -> Report {
        let weights = self.weights.get(i).cloned().unwrap_or_default();
        let mut report = report.with_weights(weights);
        let more = &mut report.provenance.more;
        more.extend(self.setting.provenance.clone());
        more.insert("sae_dtype".to_owned(), self.setting.saes[i].dtype.to_string().into());
        more.insert("version".to_owned(), self.setting.version.clone().into());
        if self.setting.uniformity > 0 {
            more.insert("uniformity_positions".to_owned(), self.setting.uniformity.into());
        }
        report
    }

    /// Joins shares of one evaluation.
    ///
    /// # Errors
    /// [`SuiteError::Merge`] for no parts, for parts of different evaluations, and for shares that are there twice.
    pub fn merge(parts: Vec<Self>) -> Result<Self> {
        let mut parts = parts.into_iter();
        let mut all = parts.next().ok_or_else(|| SuiteError::Merge("there are none".to_owned()))?;
        for part in parts {
            if let Some((key, own, theirs)) = all.setting.difference(&part.setting) {
                return Err(SuiteError::Merge(format!("`{key}` is {own} in one and {theirs} in another")));
            }
            for shard in &part.shards {
                if let Some(first) = all.shards.first().filter(|first| first.of != shard.of) {
                    let problem = format!("one is of {} shards, another of {}", first.of, shard.of);
                    return Err(SuiteError::Merge(problem));
                }
                if all.shards.contains(shard) {
                    return Err(SuiteError::Merge(format!("shard {shard} is there twice")));
                }
                all.shards.push(*shard);
            }
            for (sums, theirs) in all.sums.iter_mut().zip(&part.sums) {
                sums.merge(theirs)?;
            }
        }
        all.shards.sort();
        Ok(all)
    }

    /// The shares that are missing.
    pub fn missing(&self) -> Vec<Shard> {
        let of = self.shards.first().map_or(0, |first| first.of);
        (1..=of).map(|index| Shard { index, of }).filter(|shard| !self.shards.contains(shard)).collect()
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// The system's.
    pub fn save(&self, path: &Path) -> Result<()> {
        save(path, self)
    }

    /// Reads one that [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// The system's; [`SuiteError::File`] for another file.
    pub fn load(path: &Path) -> Result<Self> {
        let part: Self = load(path)?;
        let setting = &part.setting;
        let named: usize = setting.groups.iter().map(Vec::len).sum();
        let known = setting.groups.iter().flatten().all(|i| *i < setting.saes.len());
        let fits =
            part.sums.iter().zip(&setting.groups).all(|(sums, group)| sums.ids().count() == group.len());
        if named != setting.saes.len() || !known || part.sums.len() != setting.groups.len() || !fits {
            let problem = "its sums and its list of SAEs contradict each other".to_owned();
            return Err(SuiteError::File { path: path.to_owned(), problem });
        }
        Ok(part)
    }
}

pub(super) fn save(path: &Path, what: &impl Serialize) -> Result<()> {
    Ok(write_atomically(path, |file| {
        serde_json::to_writer(file, what).map_err(|e| tch_ext::TensorError::io(path, e.into()))
    })?)
}

pub(super) fn load<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = fs::read(path).map_err(|e| tch_ext::TensorError::io(path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| SuiteError::File {
        path: path.to_owned(),
        problem: format!("no file of an evaluation's sums: {e}"),
    })
}
