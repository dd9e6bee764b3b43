use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::Path,
    str::FromStr,
};

use eval::{Report, Sums};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch_ext::write_atomically;

use super::{Entry, Result, SuiteError};

/// A share of the work: every `of`-th batch, from number `index` on, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shard {
    index: usize,
    of: usize,
}

impl Shard {
    /// All of the work.
    pub const WHOLE: Self = Self { index: 1, of: 1 };

    /// Share number `index` of `of`.
    ///
    /// # Errors
    /// [`SuiteError::Shard`] for one that is not among them.
    pub fn new(index: usize, of: usize) -> Result<Self> {
        let shard = Self { index, of };
        if shard.is_one() { Ok(shard) } else { Err(SuiteError::Shard(shard.to_string())) }
    }

    fn is_one(self) -> bool {
        (1..=self.of).contains(&self.index)
    }

    /// Which, counted from 1.
    pub fn index(self) -> usize {
        self.index
    }

    /// Of how many.
    pub fn of(self) -> usize {
        self.of
    }

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
            Some((index, of)) => Self::new(index, of),
            None => Err(SuiteError::Shard(text.to_owned())),
        }
    }
}

/// All that a suite's numbers depend on but for the share: two runs with equal settings can be merged, or one go on with the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setting {
    /// The form of this file and of the sums.
    pub format: u32,
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
        let flat = |setting: &Self| -> BTreeMap<String, Value> {
            let Ok(Value::Object(mut all)) = serde_json::to_value(setting) else { return BTreeMap::new() };
            if let Some(Value::Object(inner)) = all.remove("provenance") {
                all.extend(inner);
            }
            // What the reader of a message knows it by.
            let name = |key: String| {
                if key == "groups" { "hold (the passes that it makes)".to_owned() } else { key }
            };
            all.into_iter().map(|(key, value)| (name(key), value)).collect()
        };
        let (own, theirs) = (flat(self), flat(other));
        let keys: BTreeSet<&String> = own.keys().chain(theirs.keys()).collect();
        let differs = keys.into_iter().find(|key| own.get(*key) != theirs.get(*key))?;
        let (own, theirs) = (own.get(differs), theirs.get(differs));
        // Of two lists it is the first entries that differ which tell.
        let (own, theirs) = match (own, theirs) {
            (Some(Value::Array(own)), Some(Value::Array(theirs))) => {
                let i = (0..own.len().max(theirs.len())).find(|&i| own.get(i) != theirs.get(i)).unwrap_or(0);
                (own.get(i), theirs.get(i))
            }
            both => both,
        };
        let shown =
            |value: Option<&Value>| value.map_or("nothing".to_owned(), |value| short(&value.to_string()));
        Some((differs.clone(), shown(own), shown(theirs)))
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
        more.insert("sae_fingerprint".to_owned(), self.setting.saes[i].fingerprint.clone().into());
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
        let named: BTreeSet<usize> = setting.groups.iter().flatten().copied().collect();
        let once = setting.groups.iter().flatten().count() == named.len();
        let known =
            named.iter().copied().eq(0..setting.saes.len()) && part.weights.len() == setting.saes.len();
        let shards: BTreeSet<Shard> = part.shards.iter().copied().collect();
        let shares =
            shards.iter().all(|shard| shard.is_one() && Some(shard.of) == part.shards.first().map(|s| s.of));
        let of = |group: &[usize]| {
            group.iter().filter_map(|i| setting.saes.get(*i)).map(|sae| sae.id.clone()).collect::<Vec<_>>()
        };
        let fits = part.sums.iter().zip(&setting.groups).all(|(sums, group)| sums.ids().eq(of(group)));
        let sound = once && known && shares && fits && shards.len() == part.shards.len();
        if !sound || part.shards.is_empty() || part.sums.len() != setting.groups.len() {
            let problem = "its sums, its shards and its list of SAEs contradict each other".to_owned();
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
