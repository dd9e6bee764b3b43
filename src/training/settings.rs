use std::{fs, io, path::Path};

use activations::Moments;
use hooks::HookPoint;
use serde::{Deserialize, Serialize};
use tch_ext::{TensorError, write_atomically};
use train::config::Config;

use super::{File, Result, TrainingError};

/// What a run was begun with. A run goes on with the same alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    pub(super) format: u32,
    pub(super) version: String,
    /// The configuration with what was set over it.
    pub(super) file: File,
    /// The model's name and fingerprint, where one runs.
    pub(super) model: Option<(String, String)>,
    /// Of the text, or of the harvest's manifest.
    pub(super) data: String,
    pub(super) saes: Vec<Resolved>,
}

/// One SAE with every key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Resolved {
    pub(super) name: String,
    pub(super) hook: HookPoint,
    pub(super) hook_out: Option<HookPoint>,
    pub(super) seed: u64,
    pub(super) config: Config,
}

/// The sums that scales are made of, for each site of the stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Scales {
    pub(super) sites: Vec<(HookPoint, Moments)>,
}

/// Refuses a folder that can't be taken so. Nothing is written.
pub(super) fn check(folder: &Path, settings: &Settings, resume: bool) -> Result<()> {
    let path = folder.join("settings.json");
    let there = read::<serde_json::Value>(&path)?;
    let problem = |problem: String| TrainingError::Folder { path: folder.to_owned(), problem };
    match there {
        None if resume => Err(problem("holds no run to go on with".to_owned())),
        None => {
            let used = match fs::read_dir(folder) {
                // What a killed process was writing is no obstacle.
                Ok(entries) => entries
                    .flatten()
                    .any(|entry| !entry.file_name().to_string_lossy().starts_with(".partial-")),
                Err(e) if e.kind() == io::ErrorKind::NotFound => false,
                Err(e) => return Err(TensorError::io(folder, e).into()),
            };
            if used {
                return Err(problem("is not empty, and holds no run: name a new folder".to_owned()));
            }
            Ok(())
        }
        Some(_) if !resume => {
            Err(problem("holds a run already: go on with --resume, or name a new folder".to_owned()))
        }
        Some(there) => {
            let here = serde_json::to_value(settings).map_err(|e| problem(e.to_string()))?;
            match first_difference("", &there, &here) {
                None => Ok(()),
                Some((key, there, here)) => {
                    Err(problem(format!("belongs to a run with another `{key}` ({there}, and not {here})")))
                }
            }
        }
    }
}

/// Makes a folder the run's.
pub(super) fn take(folder: &Path, settings: &Settings) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| TensorError::io(folder, e))?;
    // First what a resumed run looks for: whatever is killed after it can be gone on with.
    write(&folder.join("settings.json"), settings)?;
    write_toml(&folder.join("config.toml"), &settings.file)?;
    write_toml(&folder.join("resolved.toml"), &Listed { sae: &settings.saes })
}

#[derive(Serialize)]
struct Listed<'s> {
    sae: &'s [Resolved],
}

/// The first key, in a walk by name, where two values differ.
fn first_difference(
    at: &str,
    there: &serde_json::Value,
    here: &serde_json::Value,
) -> Option<(String, String, String)> {
    use serde_json::Value::{Array, Null, Object};
    let below = |key: &str| if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
    match (there, here) {
        (Object(a), Object(b)) => a.keys().chain(b.keys()).find_map(|key| {
            first_difference(&below(key), a.get(key).unwrap_or(&Null), b.get(key).unwrap_or(&Null))
        }),
        (Array(a), Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(i, (a, b))| first_difference(&below(&i.to_string()), a, b))
        }
        (Array(a), Array(b)) if a.len() != b.len() => {
            Some((at.to_owned(), format!("{} of them", a.len()), b.len().to_string()))
        }
        (a, b) if a == b => None,
        (a, b) => Some((at.to_owned(), a.to_string(), b.to_string())),
    }
}

/// A JSON file, or nothing where there is none.
pub(super) fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(TensorError::io(path, e).into()),
    };
    let value = serde_json::from_slice(&text);
    value.map(Some).map_err(|e| TrainingError::File { path: path.to_owned(), problem: e.to_string() })
}

/// Writes a JSON file.
pub(super) fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    Ok(write_atomically(path, |out| {
        serde_json::to_writer_pretty(out, value).map_err(|e| TensorError::io(path, e.into()))
    })?)
}

fn write_toml(path: &Path, value: &impl Serialize) -> Result<()> {
    use io::Write as _;
    let text = toml::to_string(value)
        .map_err(|e| TrainingError::File { path: path.to_owned(), problem: e.to_string() })?;
    Ok(write_atomically(path, |out| out.write_all(text.as_bytes()).map_err(|e| TensorError::io(path, e)))?)
}
