use std::path::Path;

use activations::{Mixer, MixerOptions, Moments, Source};
use hooks::HookPoint;
use tch::Device;
use train::{
    Trainer,
    run::{End, Member, Run, RunOptions, Times, Watch},
};

use super::{
    Exported, File, Result, TextSource, TrainingError,
    evaluate::{Evaluation, Watched},
    export::export,
    file::Wanted,
    settings::{self, Resolved, Scales, Settings},
    source::{manifest_fingerprint, shards, width},
};
use crate::{load::LoadedModel, suite::fingerprint};

/// A run that a configuration describes, in a folder:
///
/// ```text
/// config.toml         the configuration, with what was set over it
/// resolved.toml       every key of every SAE
/// settings.json       both, with fingerprints of model and data: what a resumed run is compared with
/// scales.json         the sums behind each site's scale
/// metrics.jsonl       a line for each SAE at each logged step
/// tensorboard/        the same for TensorBoard
/// checkpoints/        the last two
/// saes/NAME/          the trained SAE in SAELens' format, and in Gemma Scope's
/// ```
#[derive(Debug)]
pub struct Training<'a> {
    /// The configuration.
    pub file: &'a File,
    /// The folder.
    pub folder: &'a Path,
    /// The model, where activations come from text, or SAEs are judged on some.
    pub model: Option<&'a LoadedModel>,
    /// Where SAEs are trained.
    pub device: Device,
    /// Options of the storage that shards are read from, such as `aws_region`.
    pub storage: &'a [(String, String)],
    /// Whether to go on with the run that the folder holds; else the folder must be empty or not there.
    pub resume: bool,
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// Whether all steps were taken.
    pub end: End,
    /// Steps taken, those of earlier processes with them.
    pub steps: u64,
    /// Where this process's time went.
    pub times: Times,
    /// What was exported, where the run is done.
    pub saes: Vec<Exported>,
}

impl Training<'_> {
    /// Trains to the end, or until `watch` asks to stop; [`resume`](Self::resume) goes on from there.
    ///
    /// # Errors
    /// A configuration, a model or data that do not fit each other; a folder that is taken; whatever stops the training, which names the
    /// step and the SAE. The last checkpoint stays.
    pub fn go(&self, watch: &mut dyn Watch) -> Result<Outcome> {
        let wanted = self.file.wanted()?;
        let sites = sites_of(&wanted);
        let (mut source, manifest) = self.source(&sites)?;
        let saes = wanted.iter().map(|one| resolve(one, source.as_ref())).collect::<Result<Vec<_>>>()?;
        let run = &self.file.run;
        let mixing = MixerOptions {
            buffer_rows: run.buffer.min(self.file.steps() * run.batch as u64),
            seed: run.seed,
            dtype: run.buffer_dtype,
            ..MixerOptions::default()
        };
        let evaluation = self.evaluation(&saes, manifest.as_ref())?;
        let settings = self.settings(manifest.as_ref(), &saes)?;
        settings::check(self.folder, &settings, self.resume)?;
        let moments = self.moments(source.as_mut(), manifest.as_ref(), &saes)?;
        let members = saes
            .iter()
            .map(|sae| member(sae, source.as_ref(), &moments, self.file.steps(), self.device))
            .collect::<Result<Vec<_>>>()?;
        let options = RunOptions {
            batch: run.batch,
            steps: self.file.steps(),
            log_every: run.log_every,
            checkpoint_every: run.checkpoint_every,
            evaluate_every: self.file.eval.as_ref().map_or(0, |eval| eval.every),
        };
        // What can't be was said before the folder is taken.
        let mixer = Mixer::new(source, mixing)?;
        Run::<Box<dyn Source>>::check(&members, mixer.sites(), &options)?;
        settings::take(self.folder, &settings)?;
        settings::write(&self.folder.join(SCALES), &moments)?;
        let mut watched = Watched { user: watch, evaluation };
        let mut run = Run::new(self.folder, members, mixer, options)?;
        let end = run.go(&mut watched)?;
        let mut exported = Vec::new();
        if end != End::Stopped {
            let harvested = manifest.as_ref().map(|manifest| manifest.model.as_str());
            let model = harvested.or(self.model.map(|model| model.name.as_str()));
            for ((member, sae), l0) in run.members().iter().zip(&saes).zip(run.exported_l0()) {
                exported.push(export(self.folder, member, sae, model, *l0)?);
            }
        }
        Ok(Outcome { end, steps: run.step_count(), times: run.times(), saes: exported })
    }

    /// The stream, and where it is read from shards their manifest.
    fn source(&self, sites: &[HookPoint]) -> Result<(Box<dyn Source + '_>, Option<activations::Manifest>)> {
        let data = &self.file.data;
        if let Some(place) = &data.shards {
            let (shards, manifest) = shards(place, self.storage, sites, data.epochs)?;
            return Ok((Box::new(shards), Some(manifest)));
        }
        let model = self.model.ok_or(TrainingError::NoModel)?;
        let live = TextSource::of(data).stream(model, sites, data.epochs)?;
        Ok((Box::new(live), None))
    }

    fn settings(&self, manifest: Option<&activations::Manifest>, saes: &[Resolved]) -> Result<Settings> {
        let model = match self.model {
            Some(model) => Some((model.name.clone(), model_fingerprint(model)?)),
            None => None,
        };
        let data = match manifest {
            Some(manifest) => manifest_fingerprint(manifest),
            None => TextSource::of(&self.file.data).fingerprint()?,
        };
        Ok(Settings {
            format: 1,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            file: self.file.clone(),
            model,
            data,
            saes: saes.to_vec(),
        })
    }

    /// The sums behind the scales: of a harvest all rows, else measured once and kept.
    fn moments(
        &self,
        source: &mut dyn Source,
        manifest: Option<&activations::Manifest>,
        saes: &[Resolved],
    ) -> Result<Scales> {
        let sites: Vec<HookPoint> = source.sites().iter().map(|site| site.hook).collect();
        if let Some(manifest) = manifest {
            let sites = sites.iter().filter_map(|site| Some((*site, manifest.moments(*site)?))).collect();
            return Ok(Scales { sites });
        }
        let there = if self.resume { settings::read::<Scales>(&self.folder.join(SCALES))? } else { None };
        if let Some(there) = there {
            return Ok(there);
        }
        let moments = match saes.iter().any(|sae| sae.config.scale.is_measured()) {
            true => Moments::estimate(source, self.file.run.scale_rows)?,
            false => vec![Moments::default(); sites.len()],
        };
        Ok(Scales { sites: sites.into_iter().zip(moments).collect() })
    }

    fn evaluation(
        &self,
        saes: &[Resolved],
        manifest: Option<&activations::Manifest>,
    ) -> Result<Option<Evaluation<'_>>> {
        let Some(table) = &self.file.eval else { return Ok(None) };
        let model = self.model.ok_or(TrainingError::NoModel)?;
        if let Some(manifest) = manifest {
            let (there, here) = (&manifest.model_fingerprint, model_fingerprint(model)?);
            if *there != here {
                let what = format!("the shards are of the model `{}`, and this is another", manifest.model);
                return Err(TrainingError::Set { key: "model".to_owned(), what });
            }
        }
        Evaluation::new(model, table, &TextSource::of(&self.file.data), saes).map(Some)
    }
}

/// Tells a model from others: the dtype that it computes in, and its [`fingerprint`]. A harvest's manifest holds the same.
///
/// # Errors
/// libtorch's.
pub fn model_fingerprint(model: &LoadedModel) -> Result<String> {
    let parameters = model.model.parameters();
    let kind = parameters.first().map(|(_, t)| t.f_kind()).transpose()?.map_or("", tch_ext::kind_name);
    let parameters = parameters.into_iter().map(|(name, t)| (name.to_owned(), t.shallow_clone()));
    Ok(format!("{kind} {}", fingerprint(parameters)?))
}

/// The file of the sums behind the scales.
const SCALES: &str = "scales.json";

/// Every site that is read or written, each once.
fn sites_of(wanted: &[Wanted]) -> Vec<HookPoint> {
    let mut sites = Vec::new();
    for site in wanted.iter().flat_map(|one| [Some(one.hook), one.hook_out]).flatten() {
        if !sites.contains(&site) {
            sites.push(site);
        }
    }
    sites
}

fn resolve(wanted: &Wanted, source: &dyn Source) -> Result<Resolved> {
    let width = |hook: HookPoint| width(source, hook).map(|(_, width)| width);
    let missing = |hook: HookPoint| TrainingError::Set {
        key: format!("sae {}: hook", wanted.name),
        what: format!("the stream has no `{hook}`"),
    };
    let d_in = width(wanted.hook).ok_or_else(|| missing(wanted.hook))?;
    let d_out = wanted.hook_out.map(|hook| width(hook).ok_or_else(|| missing(hook))).transpose()?;
    Ok(Resolved {
        name: wanted.name.clone(),
        hook: wanted.hook,
        hook_out: wanted.hook_out,
        seed: wanted.seed,
        config: wanted.config(d_in, d_out)?,
    })
}

fn member(
    sae: &Resolved,
    source: &dyn Source,
    scales: &Scales,
    steps: u64,
    device: Device,
) -> Result<Member> {
    let place = |hook: HookPoint| -> Result<(usize, f64)> {
        let missing = || TrainingError::Set {
            key: format!("sae {}: hook", sae.name),
            what: format!("the stream has no `{hook}`"),
        };
        let (index, width) = width(source, hook).ok_or_else(missing)?;
        let site = activations::Site { hook, width };
        let (_, moments) = scales.sites.iter().find(|(site, _)| *site == hook).ok_or_else(missing)?;
        Ok((index, sae.config.scale.divisor(site, moments)?))
    };
    let (read, scale) = place(sae.hook)?;
    let (written, scale_out) = match sae.hook_out.map(place).transpose()? {
        Some((site, scale)) => (Some(site), scale),
        None => (None, scale),
    };
    let trainer = Trainer::new(sae.config.clone(), steps, sae.seed, device)?;
    Ok(Member { name: sae.name.clone(), trainer, read, written, scales: (scale, scale_out) })
}
