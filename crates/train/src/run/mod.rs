//! Many SAEs trained from one stream, in a run that can be stopped at any moment and gone on with.

mod events;
mod folder;
mod metrics;

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use activations::{Mixer, Rows, Site, Source};
use sae_core::{Sae, SparseAutoencoder as _};
use tch::{Device, Kind, Tensor};

use crate::{Result, StepStats, TrainError, Trainer};
use events::Events;
use folder::Checkpoints;
use metrics::{Clock, Frequencies, Line, Metrics};

/// One SAE of a run.
#[derive(Debug)]
pub struct Member {
    /// Its name: that of its files.
    pub name: String,
    /// Its trainer.
    pub trainer: Trainer,
    /// Which of the stream's sites it reads.
    pub read: usize,
    /// Which site it rebuilds: for a transcoder.
    pub written: Option<usize>,
    /// What those sites' activations are divided by: of what is read, and of what is written (for an SAE the same).
    pub scales: (f64, f64),
}

impl Member {
    /// The SAE as it stands, for activations as they come.
    ///
    /// # Errors
    /// [`Trainer::to_sae`]'s.
    pub fn to_sae(&self) -> Result<Sae> {
        self.trainer.to_sae(self.scales.0, self.scales.1)
    }
}

/// How long a run is, and what it writes when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOptions {
    /// Tokens of a batch.
    pub batch: usize,
    /// Steps in all.
    pub steps: u64,
    /// Steps between two lines of metrics.
    pub log_every: u64,
    /// Steps between two checkpoints; the last step has one in any case.
    pub checkpoint_every: u64,
    /// Steps between two calls of `evaluate`; 0 for none. The last step has one, unless it is 0.
    pub evaluate_every: u64,
}

impl RunOptions {
    fn check(&self) -> Result<()> {
        for (key, n) in [
            ("batch", self.batch as u64),
            ("steps", self.steps),
            ("log_every", self.log_every),
            ("checkpoint_every", self.checkpoint_every),
        ] {
            if n == 0 {
                return Err(TrainError::Config(format!("`{key}` must be at least 1")));
            }
        }
        Ok(())
    }
}

/// How far a run is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'p> {
    /// Steps taken.
    pub step: u64,
    /// Of how many.
    pub of: u64,
    /// What the step was like for each SAE, in their order.
    pub stats: &'p [StepStats],
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All steps were taken.
    Done,
    /// It was asked to stop; its checkpoint is of the last step.
    Stopped,
    /// The stream ended before; its checkpoint is of the last step.
    NoData,
}

/// Where a run's time went, in seconds, since it was begun or resumed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Times {
    /// In the stream: the model, or reading, and mixing.
    pub stream: f64,
    /// Of it, waiting for storage.
    pub waited: f64,
    /// In training steps.
    pub steps: f64,
    /// In evaluations.
    pub evaluate: f64,
    /// In checkpoints and logs.
    pub files: f64,
}

impl Times {
    /// The sum of what is no part of another.
    pub fn total(&self) -> f64 {
        self.stream + self.steps + self.evaluate + self.files
    }
}

/// What a run calls while it goes.
pub trait Watch {
    /// After each step.
    fn progress(&mut self, progress: Progress<'_>) {
        let _ = progress;
    }

    /// Asked after each step: whether to write a checkpoint and stop.
    fn stop(&mut self) -> bool {
        false
    }

    /// Measures the SAEs as they stand, which `evaluate_every` asks for: for each a list of names and values, in their order.
    ///
    /// # Errors
    /// What stands in the way, which ends the run.
    fn evaluate(&mut self, members: &[Member]) -> Result<Vec<Vec<(String, f64)>>> {
        Ok(members.iter().map(|_| Vec::new()).collect())
    }
}

/// Nothing is watched.
impl Watch for () {}

/// A run: SAEs, a stream, and a folder.
///
/// ```text
/// metrics.jsonl                     a line for each SAE at each logged step
/// tensorboard/NAME/events.out…      the same for TensorBoard
/// checkpoints/step-N/               the last checkpoints, whole or not there
///     run.json                      the step and the stream's place
///     NAME.safetensors              a trainer
/// ```
#[derive(Debug)]
pub struct Run<S> {
    members: Vec<Member>,
    mixer: Mixer<S>,
    options: RunOptions,
    step: u64,
    folder: PathBuf,
    times: Times,
    /// The last batch.
    last: Option<Rows>,
    /// The exported SAEs' L0 on the last batch, once the run has ended; its checkpoint holds them, so that a resumed export is the same.
    l0: Vec<f64>,
    /// Whether a step failed half-way: some SAEs may have taken it.
    failed: bool,
}

impl<S: Source> Run<S> {
    /// A run in a folder: from its last checkpoint where it has one, else from the start.
    ///
    /// # Errors
    /// Options that can't be; two SAEs of one name, or of a name that is no file name; sites that the stream does not have or that
    /// have another width; a checkpoint of another run; the system's.
    pub fn new(folder: &Path, members: Vec<Member>, mixer: Mixer<S>, options: RunOptions) -> Result<Self> {
        Self::check(&members, mixer.sites(), &options)?;
        let mut run = Self {
            members,
            mixer,
            options,
            step: 0,
            folder: folder.to_owned(),
            times: Times::default(),
            last: None,
            l0: Vec::new(),
            failed: false,
        };
        if let Some((step, stream, l0)) = Checkpoints::new(folder).restore(&mut run.members)? {
            run.mixer.restore(&stream)?;
            (run.step, run.l0) = (step, l0);
        }
        Ok(run)
    }

    /// Refuses what [`new`](Self::new) refuses before it looks at the folder.
    ///
    /// # Errors
    /// Options that can't be; two SAEs of one name, or of a name that is no file name; sites that are not there or have another width.
    pub fn check(members: &[Member], sites: &[Site], options: &RunOptions) -> Result<()> {
        options.check()?;
        check_members(members, sites)
    }

    /// Steps taken, those of earlier processes with them.
    pub fn step_count(&self) -> u64 {
        self.step
    }

    /// The SAEs.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Mean number of active latents a token of each SAE as it is exported, on the last batch: BatchTopK's is by its threshold. Empty
    /// before the run has ended.
    pub fn exported_l0(&self) -> &[f64] {
        &self.l0
    }

    fn measure_l0(&self, member: &Member) -> Result<f64> {
        let Some(x) = self.last.as_ref().and_then(|rows| rows.at.get(member.read)) else {
            return Ok(member.trainer.last_l0());
        };
        let x = x.f_to_device(member.trainer.params().w_enc.device())?.f_to_kind(Kind::Float)?;
        let features = member.to_sae()?.encode(&x)?;
        Ok(features.f_gt(0.0)?.f_sum(Kind::Int64)?.f_int64_value(&[])? as f64 / x.size()[0] as f64)
    }

    /// Where the time went.
    pub fn times(&self) -> Times {
        let stream = self.mixer.stats();
        Times { stream: stream.source + stream.mixing, waited: stream.waited, ..self.times }
    }

    /// Trains until all steps are taken or `watch` asks to stop.
    ///
    /// # Errors
    /// The stream's; [`TrainError::In`] with what went wrong with an SAE. The last checkpoint stays.
    pub fn go(&mut self, watch: &mut impl Watch) -> Result<End> {
        if self.failed {
            return Err(TrainError::Config(
                "a step of this run failed: begin it again from its checkpoint".to_owned(),
            ));
        }
        let mut metrics = Metrics::open(&self.folder.join("metrics.jsonl"), self.step)?;
        let names: Vec<&str> = self.members.iter().map(|m| m.name.as_str()).collect();
        let mut events = Events::open(&self.folder.join("tensorboard"), &names, self.step)?;
        let checkpoints = Checkpoints::new(&self.folder);
        let mut clock = Clock::new(self.step, self.times());
        while self.step < self.options.steps {
            let stats = match self.take_step() {
                Ok(Some(stats)) => stats,
                Ok(None) => {
                    self.l0 = self.members.iter().map(|m| self.measure_l0(m)).collect::<Result<_>>()?;
                    let (members, state, step) = (&self.members, self.mixer.state(), self.step);
                    timed(&mut self.times.files, || checkpoints.save(step, &state, members, &self.l0))?;
                    return Ok(End::NoData);
                }
                Err(error) => {
                    self.failed = true;
                    return Err(error);
                }
            };
            watch.progress(Progress { step: self.step, of: self.options.steps, stats: &stats });
            let (last, stop) = (self.step == self.options.steps, watch.stop());
            let due = |every: u64| every > 0 && (self.step.is_multiple_of(every) || last);
            let measured = match due(self.options.evaluate_every) {
                true => timed(&mut self.times.evaluate, || watch.evaluate(&self.members))?,
                false => self.members.iter().map(|_| Vec::new()).collect(),
            };
            if due(self.options.log_every) || measured.iter().any(|values| !values.is_empty()) {
                let speed = clock.speed(self.step, &self.options, self.times());
                let start = Instant::now();
                for ((member, stats), measured) in self.members.iter_mut().zip(&stats).zip(measured) {
                    let counts = member.trainer.take_counts();
                    let frequencies = Frequencies::new(&counts);
                    let line = Line { sae: &member.name, stats, frequencies, speed, measured };
                    events.write(&line)?;
                    metrics.write(&line)?;
                }
                self.times.files += start.elapsed().as_secs_f64();
            }
            if last {
                self.l0 = self.members.iter().map(|m| self.measure_l0(m)).collect::<Result<_>>()?;
            }
            if due(self.options.checkpoint_every) || stop {
                let (members, state, step) = (&self.members, self.mixer.state(), self.step);
                timed(&mut self.times.files, || checkpoints.save(step, &state, members, &self.l0))?;
            }
            if stop && !last {
                return Ok(End::Stopped);
            }
        }
        Ok(End::Done)
    }

    /// `None` where the stream has no whole batch left.
    fn take_step(&mut self) -> Result<Option<Vec<StepStats>>> {
        let batch = self.mixer.next_batch(self.options.batch)?;
        let Some(batch) = batch.filter(|rows| rows.rows() == self.options.batch as i64) else {
            return Ok(None);
        };
        let start = Instant::now();
        let mut scaled = Scaled { rows: &batch, made: Vec::new() };
        let mut stats = Vec::with_capacity(self.members.len());
        for member in &mut self.members {
            let device = member.trainer.params().w_enc.device();
            let x = scaled.get(member.read, member.scales.0, device)?;
            let target = member.written.map(|site| scaled.get(site, member.scales.1, device)).transpose()?;
            let taken = member.trainer.step(&x, target.as_ref());
            stats.push(taken.map_err(|e| TrainError::In { sae: member.name.clone(), source: Box::new(e) })?);
        }
        drop(scaled);
        self.last = Some(batch);
        self.times.steps += start.elapsed().as_secs_f64();
        self.step += 1;
        Ok(Some(stats))
    }
}

/// A batch's activations divided by scales, each quotient made once.
struct Scaled<'r> {
    rows: &'r Rows,
    made: Vec<(usize, f64, Tensor)>,
}

impl Scaled<'_> {
    fn get(&mut self, site: usize, scale: f64, device: Device) -> Result<Tensor> {
        let same = |(s, c, t): &&(usize, f64, Tensor)| *s == site && *c == scale && t.device() == device;
        if let Some((_, _, there)) = self.made.iter().find(same) {
            return Ok(there.shallow_clone());
        }
        let Some(x) = self.rows.at.get(site) else {
            return Err(TrainError::Config(format!("the stream has no site {site}")));
        };
        let x = x.f_to_device(device)?.f_to_kind(Kind::Float)?;
        let x = if scale == 1.0 { x } else { x.f_div_scalar(scale)? };
        self.made.push((site, scale, x.shallow_clone()));
        Ok(x)
    }
}

fn check_members(members: &[Member], sites: &[Site]) -> Result<()> {
    if members.is_empty() {
        return Err(TrainError::Config("there is no SAE to train".to_owned()));
    }
    for (i, member) in members.iter().enumerate() {
        let name = &member.name;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.=+".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(TrainError::Config(format!(
                "`{name}` can't name an SAE: letters, digits and -_.=+ make the names of its files"
            )));
        }
        if members[..i].iter().any(|other| other.name == *name) {
            return Err(TrainError::Config(format!("two SAEs are named `{name}`")));
        }
        let config = member.trainer.config();
        let read = (Some(member.read), config.d_in, "d_in");
        let written = (member.written, config.d_out(), "d_out");
        for (site, width, key) in [read, written] {
            let Some(site) = site else { continue };
            match sites.get(site) {
                Some(there) if there.width == width => {}
                Some(there) => {
                    let (hook, there) = (there.hook, there.width);
                    return Err(TrainError::Config(format!(
                        "{name}: `{key}` is {width}, but {hook} has {there} numbers"
                    )));
                }
                None => return Err(TrainError::Config(format!("{name}: the stream has no site {site}"))),
            }
        }
        if config.is_transcoder() != member.written.is_some() {
            return Err(TrainError::Config(format!(
                "{name}: a transcoder, and only it, has a site that it writes"
            )));
        }
    }
    Ok(())
}

fn timed<T>(seconds: &mut f64, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    *seconds += start.elapsed().as_secs_f64();
    done
}
