use std::path::PathBuf;

use corpus::Batch;
use eval::{EvalError, EvalOptions, Judged, Means, Report, Subsets, Suite, Timings, weight_metrics};
use hooks::HookedModel;
use hub::{Hub, HubError};
use sae_core::{OpenOptions, SparseAutoencoder};
use serde_json::{Map, Value};

use super::{
    Entry, Part, Result, Setting, Shard, SuiteError, Text,
    entry::groups,
    folder::{Folder, Upto},
};

/// An evaluation of many SAEs on one text.
#[derive(Debug)]
pub struct Run<'a> {
    /// The model.
    pub model: &'a dyn HookedModel,
    /// The SAEs, which are opened while they are judged alone.
    pub saes: Vec<Entry>,
    /// The text.
    pub text: &'a Text,
    /// Which positions count, and what is measured at some of them.
    pub options: EvalOptions,
    /// Also measures the largest cosine of each latent with another: `4 d_sae² d_in` operations.
    pub neighbours: bool,
    /// How SAEs are opened.
    pub open: OpenOptions,
    /// Bytes of SAEs that may be in memory at a time: more are judged in another pass.
    pub hold: u64,
    /// The share of the work.
    pub shard: Shard,
    /// The folder to go on from, written after each batch.
    pub folder: Option<PathBuf>,
    /// What every report's provenance says besides: the model, the text.
    pub provenance: Map<String, Value>,
}

/// How far a run is.
#[derive(Debug)]
pub enum Progress<'p> {
    /// The pass that takes the mean activations.
    Means {
        /// Batches done.
        done: usize,
        /// Of how many.
        of: usize,
    },
    /// The pass that judges some of the SAEs.
    Batches {
        /// Batches done, those of earlier passes with them.
        done: usize,
        /// Of how many, those of later passes with them.
        of: usize,
        /// SAEs in this pass.
        saes: usize,
    },
    /// A pass is over: where its time went (of what this run did itself).
    Pass(Timings),
    /// An SAE is judged (on this run's share of the text).
    Judged(&'p Report),
}

impl Run<'_> {
    /// Judges. What is done already is taken from the folder.
    ///
    /// # Errors
    /// A name that is none, what stands in the way of what it names, SAEs that do not fit; a folder of another evaluation; the
    /// model's and libtorch's. What was done before is in the folder.
    pub fn judge(
        &self,
        mut hub: impl FnMut() -> Result<Hub, HubError>,
        mut progress: impl FnMut(Progress<'_>),
    ) -> Result<Part> {
        if let Some(twice) =
            (1..self.saes.len()).find(|&i| self.saes[..i].iter().any(|e| e.id == self.saes[i].id))
        {
            return Err(SuiteError::Twice(self.saes[twice].id.clone()));
        }
        let batches: Vec<&Batch> =
            self.shard.batches(self.text.batches.len()).map(|i| &self.text.batches[i]).collect();
        let setting = self.setting();
        let folder =
            self.folder.as_deref().map(|root| Folder::open(root, &setting, self.shard)).transpose()?;
        let means = self.means(&setting, folder.as_ref(), &mut progress)?;
        let mut part = Part {
            shards: vec![self.shard],
            sums: Vec::new(),
            weights: vec![Default::default(); self.saes.len()],
            setting: setting.clone(),
        };
        let mut found = Vec::new();
        for (number, group) in setting.groups.iter().enumerate() {
            let opened: Vec<Box<dyn SparseAutoencoder>> =
                group.iter().map(|&i| self.saes[i].open(&self.open, &mut hub)).collect::<Result<_>>()?;
            let judged = group.iter().zip(&opened).map(|(&i, sae)| self.judged(i, sae.as_ref())).collect();
            let mut suite = Suite::new(self.model, judged, &means, self.options)?;
            let mut done = 0;
            if let Some(upto) = folder.as_ref().map(|folder| folder.group(number)).transpose()?.flatten() {
                suite.resume(&upto.sums)?;
                done = upto.batches.min(batches.len());
            }
            let (before, of) = (number * batches.len(), setting.groups.len() * batches.len());
            progress(Progress::Batches { done: before + done, of, saes: group.len() });
            for batch in &batches[done..] {
                let subsets = of_subsets(batch);
                let names = &self.text.groups;
                suite.add(&batch.tokens, Some(Subsets { names, of: &subsets }))?;
                done += 1;
                if let Some(folder) = &folder {
                    folder.save_group(number, &Upto { batches: done, sums: suite.sums() })?;
                }
                progress(Progress::Batches { done: before + done, of, saes: group.len() });
            }
            progress(Progress::Pass(suite.timings()));
            for (&i, sae) in group.iter().zip(&opened) {
                part.weights[i] = weight_metrics(sae.as_ref(), self.neighbours)?;
            }
            // In a share of the text nothing may count.
            let reports = match suite.reports() {
                Err(EvalError::Empty) if self.shard != Shard::WHOLE => Vec::new(),
                reports => reports?,
            };
            for (&i, report) in group.iter().zip(reports) {
                let report = part.complete(i, report);
                progress(Progress::Judged(&report));
                found.push(report);
            }
            if let Some(folder) = folder.as_ref().filter(|_| self.shard == Shard::WHOLE) {
                folder.save_results(&found)?;
            }
            part.sums.push(suite.sums().clone());
        }
        Ok(part)
    }

    /// Takes the mean activations alone, into the folder: shards that go on from there need not do it again.
    ///
    /// # Errors
    /// As [`judge`](Self::judge).
    pub fn take_means(&self, mut progress: impl FnMut(Progress<'_>)) -> Result<()> {
        let setting = self.setting();
        let folder =
            self.folder.as_deref().map(|root| Folder::open(root, &setting, self.shard)).transpose()?;
        self.means(&setting, folder.as_ref(), &mut progress).map(|_| ())
    }

    fn judged<'s>(&self, i: usize, sae: &'s dyn SparseAutoencoder) -> Judged<'s> {
        let Entry { id, site, site_out, .. } = &self.saes[i];
        Judged::new(id.clone(), *site, sae).put_at(*site_out)
    }

    fn setting(&self) -> Setting {
        Setting {
            format: 1,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            groups: groups(&self.saes, self.hold),
            saes: self.saes.clone(),
            batches: self.text.batches.len(),
            positions: self.options.positions.to_string(),
            uniformity: self.options.uniformity,
            neighbours: self.neighbours,
            provenance: self.provenance.clone(),
        }
    }

    /// The mean activations over all of the text, whatever the share: from the folder, or in a pass of their own.
    fn means(
        &self,
        setting: &Setting,
        folder: Option<&Folder>,
        progress: &mut impl FnMut(Progress<'_>),
    ) -> Result<Means> {
        let shared = || folder.map(|folder| folder.shared_means(setting)).transpose().map(Option::flatten);
        if let Some(means) = shared()? {
            return Ok(means);
        }
        let mut means = Means::new(self.model, self.saes.iter().map(|sae| sae.site_out))?;
        let mut done = 0;
        if let Some(upto) = folder.map(Folder::means).transpose()?.flatten() {
            (means, done) = (upto.sums, upto.batches);
        }
        let of = self.text.batches.len();
        progress(Progress::Means { done, of });
        for batch in self.text.batches.iter().skip(done) {
            means.add(self.model, &batch.tokens, self.options.positions)?;
            done += 1;
            if let Some(folder) = folder {
                folder.save_means(&Upto { batches: done, sums: &means })?;
            }
            progress(Progress::Means { done, of });
        }
        if let Some(folder) = folder {
            folder.share_means(setting, &means)?;
        }
        Ok(means)
    }
}

/// The subset of each position.
fn of_subsets(batch: &Batch) -> Vec<Vec<Option<u32>>> {
    batch.labels.iter().map(|row| row.iter().map(|label| label.group()).collect()).collect()
}
