//! The clock and the line it prints.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde_json::json;

/// Times some work again and again.
pub(crate) struct Clock {
    runs: usize,
    /// How many items one run works on.
    items: f64,
}

impl Clock {
    pub(crate) fn new(runs: usize, items: f64) -> Self {
        Self { runs, items }
    }

    /// Prints the median time, after one run that warms up, and how far the process's memory rose above what it held before.
    pub(crate) fn time<T>(&self, what: &str, mut work: impl FnMut() -> Result<T>) -> Result<()> {
        let before = forget_peak();
        work()?;
        let mut times = Vec::with_capacity(self.runs);
        for _ in 0..self.runs {
            let start = Instant::now();
            let result = work()?;
            times.push(start.elapsed().as_secs_f64());
            drop(result);
        }
        times.sort_by(f64::total_cmp);
        let seconds = times[self.runs / 2];
        let peak = memory("VmHWM:");
        let rise = peak.zip(before).map(|(peak, before)| round(peak - before, 1e3));
        println!(
            "{}",
            json!({
                "what": what,
                "seconds": round(seconds, 1e4),
                "per_second": round(self.items / seconds, 10.0),
                "peak_rss_gb": peak.map(|gb| round(gb, 1e2)),
                "peak_over_start_gb": rise,
            })
        );
        Ok(())
    }
}

fn round(value: f64, by: f64) -> f64 {
    (value * by).round() / by
}

/// Has the system count the peak anew, and returns what is held now; `None` where it can't (not Linux).
fn forget_peak() -> Option<f64> {
    fs::write("/proc/self/clear_refs", "5").ok()?;
    memory("VmRSS:")
}

/// A line of the process's status, in GB.
fn memory(line: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|l| l.strip_prefix(line))?;
    let kib: f64 = kib.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib / 1e6 * 1.024)
}

/// Watches the memory that belongs to no file, which mapped weights do not count to.
pub(crate) struct AnonymousMemory {
    start_kib: u64,
    peak_kib: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
}

impl AnonymousMemory {
    pub(crate) fn watch() -> Self {
        let now = || memory("RssAnon:").map_or(0, |gb| (gb * 1e6 / 1.024) as u64);
        let (peak_kib, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (peak, stop) = (Arc::clone(&peak_kib), Arc::clone(&done));
        thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                peak.fetch_max(now(), Ordering::Relaxed);
                thread::sleep(Duration::from_millis(1));
            }
        });
        Self { start_kib: now(), peak_kib, done }
    }

    /// How far it rose, in MiB.
    pub(crate) fn rise_mib(&self) -> u64 {
        self.peak_kib.load(Ordering::Relaxed).saturating_sub(self.start_kib) / 1024
    }
}

impl Drop for AnonymousMemory {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}
