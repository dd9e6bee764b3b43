use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use activations::MixerState;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tch_ext::{TensorError, write_atomically};

use super::Member;
use crate::{Result, TrainError};

/// Checkpoints that stay: the last, and the one before it.
const KEEP: usize = 2;

/// The checkpoints of a run, each in a folder that is there whole or not at all: it is written under another name and renamed.
#[derive(Debug)]
pub(super) struct Checkpoints {
    root: PathBuf,
}

/// What a checkpoint says besides its trainers.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    format: u32,
    step: u64,
    stream: MixerState,
    saes: Vec<Saved>,
    /// Of the last checkpoint, the exported SAEs' L0.
    l0: Vec<f64>,
}

/// A trainer's file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    name: String,
    sha256: String,
}

/// The step, the stream's place, and the exported SAEs' L0.
type Restored = (u64, MixerState, Vec<f64>);

const FORMAT: u32 = 1;

/// How names of folders begin that are not whole.
const PARTIAL: &str = ".partial-";

impl Checkpoints {
    pub(super) fn new(run: &Path) -> Self {
        Self { root: run.join("checkpoints") }
    }

    pub(super) fn save(&self, step: u64, stream: &MixerState, members: &[Member], l0: &[f64]) -> Result<()> {
        let last = self.root.join(format!("step-{step:012}"));
        let partial = self.root.join(format!("{PARTIAL}step-{step:012}"));
        if last.is_dir() {
            return Ok(());
        }
        self.sweep()?;
        fs::create_dir_all(&partial).map_err(|e| TensorError::io(&partial, e))?;
        let mut saes = Vec::with_capacity(members.len());
        for member in members {
            let path = partial.join(format!("{}.safetensors", member.name));
            member.trainer.save(&path)?;
            saes.push(Saved { name: member.name.clone(), sha256: sha256(&path)? });
        }
        let about = About { format: FORMAT, step, stream: stream.clone(), saes, l0: l0.to_vec() };
        write_atomically(&partial.join("run.json"), |out| {
            serde_json::to_writer(out, &about).map_err(|e| TensorError::io(&partial, e.into()))
        })?;
        sync_all(&partial)?;
        fs::rename(&partial, &last).map_err(|e| TensorError::io(&last, e))?;
        sync(&self.root)?;
        let steps = self.steps()?;
        for old in &steps[..steps.len().saturating_sub(KEEP)] {
            // Under another name first: what is half deleted must not look like a checkpoint.
            let gone = self.root.join(format!("{PARTIAL}old"));
            fs::rename(old, &gone).map_err(|e| TensorError::io(old, e))?;
            remove(&gone)?;
        }
        Ok(())
    }

    /// Takes up the last checkpoint.
    pub(super) fn restore(&self, members: &mut [Member]) -> Result<Option<Restored>> {
        let mut all = self.steps()?;
        let Some(last) = all.pop() else { return Ok(None) };
        let restored = Self::restore_from(&last, members);
        restored.map(Some).map_err(|error| match all.pop() {
            // It is for the user to say that the last steps may be taken again.
            Some(before) => TrainError::Checkpoint {
                path: last,
                problem: format!("{error}; without this folder the run goes on from {}", before.display()),
            },
            None => error,
        })
    }

    fn restore_from(last: &Path, members: &mut [Member]) -> Result<Restored> {
        let path = last.join("run.json");
        let problem = |problem: String| TrainError::Checkpoint { path: path.clone(), problem };
        let text = fs::read(&path).map_err(|e| TensorError::io(&path, e))?;
        let about: About = serde_json::from_slice(&text).map_err(|e| problem(e.to_string()))?;
        if about.format != FORMAT {
            return Err(problem(format!("has the format {}, and {FORMAT} is read here", about.format)));
        }
        let names: Vec<&str> = members.iter().map(|m| m.name.as_str()).collect();
        let saved: Vec<&str> = about.saes.iter().map(|saved| saved.name.as_str()).collect();
        if saved != names {
            return Err(problem(format!(
                "is of the SAEs {}, and not {}",
                saved.join(", "),
                names.join(", ")
            )));
        }
        for (member, saved) in members.iter_mut().zip(&about.saes) {
            let path = last.join(format!("{}.safetensors", member.name));
            if sha256(&path)? != saved.sha256 {
                return Err(TrainError::Checkpoint {
                    path,
                    problem: "is damaged: its checksum is another".to_owned(),
                });
            }
            member.trainer.restore(&path)?;
            if member.trainer.step_count() != about.step {
                return Err(TrainError::Checkpoint {
                    path,
                    problem: format!("is not of step {}", about.step),
                });
            }
        }
        Ok((about.step, about.stream, about.l0))
    }

    /// The folders of whole checkpoints, by step.
    fn steps(&self) -> Result<Vec<PathBuf>> {
        self.folders("step-")
    }

    /// Removes what killed processes left.
    fn sweep(&self) -> Result<()> {
        self.folders(PARTIAL)?.iter().try_for_each(|left| remove(left))
    }

    fn folders(&self, prefix: &str) -> Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(TensorError::io(&self.root, e).into()),
        };
        let paths = entries.map(|entry| entry.map(|e| e.path())).collect::<io::Result<Vec<_>>>();
        let mut paths = paths.map_err(|e| TensorError::io(&self.root, e))?;
        paths.retain(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix)));
        paths.sort();
        Ok(paths)
    }
}

/// The checksum of a file.
fn sha256(path: &Path) -> Result<String> {
    let mut sum = Sha256::new();
    let mut file = File::open(path).map_err(|e| TensorError::io(path, e))?;
    io::copy(&mut file, &mut sum).map_err(|e| TensorError::io(path, e))?;
    Ok(format!("{:x}", sum.finalize()))
}

/// Waits until a folder's files are on the disk.
fn sync_all(folder: &Path) -> Result<()> {
    let io = |e: io::Error| TensorError::io(folder, e);
    for entry in fs::read_dir(folder).map_err(io)? {
        sync(&entry.map_err(io)?.path())?;
    }
    sync(folder)
}

fn sync(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(|e| TensorError::io(path, e))?;
    Ok(file.sync_all().map_err(|e| TensorError::io(path, e))?)
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(TensorError::io(folder, e).into()),
        _ => Ok(()),
    }
}
