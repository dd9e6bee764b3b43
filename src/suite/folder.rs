use std::path::{Path, PathBuf};

use eval::{Means, Report, Sums};
use serde::{Deserialize, Serialize};
use tch_ext::write_atomically;

use super::{
    Result, Setting, Shard, SuiteError,
    part::{load, save},
};

/// The folder from which an evaluation that was killed goes on. All that is in it is written whole or not at all: sums after each batch,
/// reports after each pass.
///
/// ```text
/// means.json              the mean activations over all of the text; shards share it
/// shard-1-of-1/
///     setting.json        what is measured: another evaluation can't go on here
///     means.json          the pass that takes the means, while it is under way
///     group-0000.json     the sums of the first SAEs, and after how many batches
///     results.jsonl       the reports of the SAEs that are done, a line each (of the whole text alone)
/// ```
#[derive(Debug)]
pub(super) struct Folder {
    root: PathBuf,
    own: PathBuf,
}

/// Something summed over the first batches of a share.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Upto<T> {
    /// Batches that are in it.
    pub(super) batches: usize,
    /// What they sum to.
    pub(super) sums: T,
}

/// Means with what they are of.
#[derive(Debug, Serialize, Deserialize)]
struct SharedMeans {
    setting: Setting,
    means: Means,
}

impl Folder {
    /// Opens a folder, and makes it where there is none.
    pub(super) fn open(root: &Path, setting: &Setting, shard: Shard) -> Result<Self> {
        let own = root.join(format!("shard-{}-of-{}", shard.index(), shard.of()));
        let folder = Self { root: root.to_owned(), own };
        let file = folder.own.join("setting.json");
        if file.exists() {
            same(&file, setting, &load(&file)?)?;
        } else {
            save(&file, setting)?;
        }
        Ok(folder)
    }

    /// The means that this run or another share of it has taken.
    pub(super) fn shared_means(&self, setting: &Setting) -> Result<Option<Means>> {
        let file = self.root.join("means.json");
        if !file.exists() {
            return Ok(None);
        }
        let shared: SharedMeans = load(&file)?;
        same(&file, setting, &shared.setting)?;
        Ok(Some(shared.means))
    }

    pub(super) fn share_means(&self, setting: &Setting, means: &Means) -> Result<()> {
        let shared = SharedMeans { setting: setting.clone(), means: means.clone() };
        save(&self.root.join("means.json"), &shared)
    }

    pub(super) fn means(&self) -> Result<Option<Upto<Means>>> {
        some(&self.own.join("means.json"))
    }

    pub(super) fn save_means(&self, upto: &Upto<&Means>) -> Result<()> {
        save(&self.own.join("means.json"), upto)
    }

    pub(super) fn group(&self, group: usize) -> Result<Option<Upto<Sums>>> {
        some(&self.group_file(group))
    }

    pub(super) fn save_group(&self, group: usize, upto: &Upto<&Sums>) -> Result<()> {
        save(&self.group_file(group), upto)
    }

    fn group_file(&self, group: usize) -> PathBuf {
        self.own.join(format!("group-{group:04}.json"))
    }

    pub(super) fn save_results(&self, reports: &[Report]) -> Result<()> {
        let path = self.own.join("results.jsonl");
        Ok(write_atomically(&path, |file| {
            for report in reports {
                let io = |e: std::io::Error| tch_ext::TensorError::io(&path, e);
                serde_json::to_writer(&mut *file, report).map_err(|e| io(e.into()))?;
                std::io::Write::write_all(file, b"\n").map_err(io)?;
            }
            Ok(())
        })?)
    }
}

fn some<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if path.exists() { load(path).map(Some) } else { Ok(None) }
}

fn same(path: &Path, here: &Setting, there: &Setting) -> Result<()> {
    match here.difference(there) {
        None => Ok(()),
        Some((key, here, there)) => Err(SuiteError::Other { path: path.to_owned(), key, there, here }),
    }
}
