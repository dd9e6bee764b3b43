//! The clock and the line it prints.

use std::{fs, time::Instant};

use anyhow::Result;
use serde_json::json;

/// The median of `runs` times, in seconds, after one run that warms up.
pub(crate) fn median<T>(runs: usize, mut work: impl FnMut() -> Result<T>) -> Result<f64> {
    work()?;
    let mut times = Vec::with_capacity(runs);
    for _ in 0..runs {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[runs / 2])
}

/// Prints one measurement; `items` were worked on.
pub(crate) fn say(what: &str, seconds: f64, items: f64) {
    let line = json!({
        "what": what,
        "seconds": (seconds * 1e4).round() / 1e4,
        "per_second": (items / seconds * 10.0).round() / 10.0,
        "peak_rss_gb": peak_rss_gb(),
    });
    println!("{line}");
}

/// The most memory that the process has held, where the system tells (Linux).
fn peak_rss_gb() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some((kib / 1e4).round() / 1e2)
}
