use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    time::Instant,
};

use serde::Serialize;
use serde_json::{Map, Value};
use tch_ext::{TensorError, write_atomically};

use super::{RunOptions, Times};
use crate::{Counts, Result, StepStats};

/// What is logged of one SAE at one step.
#[derive(Debug)]
pub(super) struct Line<'l> {
    pub(super) sae: &'l str,
    pub(super) stats: &'l StepStats,
    pub(super) frequencies: Frequencies,
    pub(super) speed: Speed,
    /// What an evaluation found.
    pub(super) measured: Vec<(String, f64)>,
}

impl Line<'_> {
    /// Counts by name, but for the step.
    pub(super) fn counts(&self) -> [(&'static str, u64); 2] {
        [("tokens", self.stats.tokens), ("dead", self.stats.dead.unsigned_abs())]
    }

    /// All other numbers by name.
    pub(super) fn values(&self) -> Vec<(String, f64)> {
        let s = self.stats;
        let mut all: Vec<(String, f64)> = [
            ("loss", s.loss),
            ("l0", s.l0),
            ("fvu", s.fvu),
            ("lr", s.lr),
            ("lambda", s.lambda),
            ("above_1_percent", self.frequencies.above_1_percent),
            ("above_10_percent", self.frequencies.above_10_percent),
            ("silent", self.frequencies.silent),
            ("tokens_per_second", self.speed.tokens_per_second),
            ("seconds_left", self.speed.seconds_left),
            ("stream_share", self.speed.stream_share),
            ("wait_share", self.speed.wait_share),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        all.extend(s.grad_norm.map(|norm| ("grad_norm".to_owned(), norm)));
        all.extend(s.parts.iter().map(|(name, part)| (format!("loss/{name}"), *part)));
        all.extend(self.measured.iter().map(|(name, value)| (format!("eval/{name}"), *value)));
        all
    }
}

/// How often latents were on since the last line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Frequencies {
    /// Share of latents on for more than 1 % of the tokens.
    pub(super) above_1_percent: f64,
    /// Share of latents on for more than 10 %.
    pub(super) above_10_percent: f64,
    /// Share of latents that were never on.
    pub(super) silent: f64,
    /// Latents by the decimal logarithm of their frequency: below −6, then a bin for each half down from 0, rising.
    pub(super) histogram: [u64; 13],
}

impl Frequencies {
    pub(super) fn new(counts: &Counts) -> Self {
        let n = counts.active.len().max(1) as f64;
        let of = |on: u64| on as f64 / counts.tokens.max(1) as f64;
        let share =
            |keep: &dyn Fn(f64) -> bool| counts.active.iter().filter(|on| keep(of(**on))).count() as f64 / n;
        let mut histogram = [0; 13];
        for on in counts.active.iter().filter(|on| **on > 0) {
            let bin = 13.0 + (2.0 * of(*on).log10()).floor();
            histogram[(bin.max(0.0) as usize).min(12)] += 1;
        }
        Self {
            above_1_percent: share(&|p| p > 0.01),
            above_10_percent: share(&|p| p > 0.1),
            silent: share(&|p| p == 0.0),
            histogram,
        }
    }
}

/// How fast a run is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Speed {
    tokens_per_second: f64,
    seconds_left: f64,
    stream_share: f64,
    wait_share: f64,
}

/// Tells the speed since it was last asked.
#[derive(Debug)]
pub(super) struct Clock {
    since: Instant,
    step: u64,
    begun: Times,
}

impl Clock {
    pub(super) fn new(step: u64, begun: Times) -> Self {
        Self { since: Instant::now(), step, begun }
    }

    pub(super) fn speed(&mut self, step: u64, options: &RunOptions, times: Times) -> Speed {
        let seconds = self.since.elapsed().as_secs_f64().max(1e-9);
        let steps = (step - self.step).max(1) as f64;
        let total = (times.total() - self.begun.total()).max(1e-9);
        let speed = Speed {
            tokens_per_second: steps * options.batch as f64 / seconds,
            seconds_left: options.steps.saturating_sub(step) as f64 * seconds / steps,
            stream_share: (times.stream - self.begun.stream) / total,
            wait_share: (times.waited - self.begun.waited) / total,
        };
        *self = Self { since: Instant::now(), step, begun: times };
        speed
    }
}

/// `metrics.jsonl`.
#[derive(Debug)]
pub(super) struct Metrics {
    path: PathBuf,
    file: File,
}

impl Metrics {
    /// The file, with the lines up to a step: what a killed run wrote after its checkpoint will be written again.
    pub(super) fn open(path: &Path, step: u64) -> Result<Self> {
        let io = |e: io::Error| TensorError::io(path, e);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(|e| TensorError::io(folder, e))?;
        }
        let mut keep = Vec::new();
        match File::open(path) {
            Ok(file) => {
                for line in BufReader::new(file).lines() {
                    let line = line.map_err(io)?;
                    let there = serde_json::from_str::<Value>(&line).ok();
                    let at = there.as_ref().and_then(|v| v.get("step")?.as_u64());
                    if at.is_some_and(|at| at <= step) {
                        keep.push(line);
                    }
                }
                write_atomically(path, |out| {
                    keep.iter().try_for_each(|line| writeln!(out, "{line}")).map_err(io)
                })?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(io(e).into()),
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io)?;
        Ok(Self { path: path.to_owned(), file })
    }

    pub(super) fn write(&mut self, line: &Line<'_>) -> Result<()> {
        // What is written to a file that was removed is lost without an error.
        fs::metadata(&self.path).map_err(|e| TensorError::io(&self.path, e))?;
        let mut object = Map::new();
        object.insert("step".to_owned(), line.stats.step.into());
        object.insert("sae".to_owned(), line.sae.into());
        for (name, count) in line.counts() {
            object.insert(name.to_owned(), count.into());
        }
        for (name, value) in line.values() {
            object.insert(name, value.into());
        }
        object.insert("frequency_histogram".to_owned(), line.frequencies.histogram.to_vec().into());
        let text = format!("{}\n", Value::Object(object));
        Ok(self.file.write_all(text.as_bytes()).map_err(|e| TensorError::io(&self.path, e))?)
    }
}
