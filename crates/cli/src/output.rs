//! What leaves the program: results on stdout, the rest on stderr, files whole or not at all.

use std::{
    fmt,
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    time::Duration,
};

use anyhow::{Context as _, Result};
use gemma_scope::{hub::Progress, tensors::write_atomically};
use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde::Serialize;

/// Writes a result to stdout. A reader that has heard enough (`| head`) is no error.
pub(crate) fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e).context("standard output"),
        _ => Ok(()),
    }
}

/// Writes a remark to stderr.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Writes an error to stderr: one sentence, its causes behind colons, nothing said twice.
pub(crate) fn complain(error: &anyhow::Error) {
    let mut sentence = String::new();
    // What libtorch says goes on with a C++ backtrace that helps no user.
    let lines = error.chain().map(|cause| cause.to_string().lines().next().unwrap_or_default().to_owned());
    for cause in lines {
        if !sentence.contains(&cause) {
            if !sentence.is_empty() {
                sentence += ": ";
            }
            sentence += cause.trim_end_matches('.');
        }
    }
    note(&format!("error: {}", sentence.replace('\n', " ")));
}

/// Writes JSON to a file.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    write_text(path, &format!("{text}\n"))
}

/// Writes a text to a file.
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    write_atomically(path, |file| {
        file.write_all(text.as_bytes()).map_err(|e| gemma_scope::tensors::TensorError::io(path, e))
    })?;
    Ok(())
}

/// The terminal's width in columns, 100 where there is none.
pub(crate) fn width() -> u16 {
    terminal_size::terminal_size().map_or(100, |(width, _)| width.0)
}

/// A bar on stderr with the time that is left, which draws nothing where that is no terminal. What is done before it begins does not
/// count in its speed.
pub(crate) fn bar(done: u64, length: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::hidden());
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len}{left}") {
        bar.set_style(style.with_key("left", left));
    }
    bar.set_message(what);
    bar.set_position(done);
    bar.reset_eta();
    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar.tick();
    bar
}

/// The time that is left, as soon as there is a speed to tell it by.
fn left(state: &ProgressState, out: &mut dyn fmt::Write) {
    if state.per_sec() > 0.0 {
        let _ = write!(out, ", {:#} left", HumanDuration(state.eta()));
    }
}

/// Shows downloads on a terminal.
pub(crate) fn download_progress() -> impl Fn(Progress<'_>) + Send + Sync + 'static {
    let bar = ProgressBar::hidden();
    if io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::stderr());
    }
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    move |progress| {
        bar.set_message(format!("{}: {}", progress.repo, progress.file));
        if let Some(total) = progress.total {
            bar.set_length(total);
        }
        bar.set_position(progress.done);
        if Some(progress.done) == progress.total {
            bar.finish_and_clear();
        }
    }
}

/// Shows the reading of a model's files on a terminal.
pub(crate) fn load_progress() -> impl FnMut(u64, u64) + Send + 'static {
    let bar = ProgressBar::hidden();
    if io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::stderr());
    }
    if let Ok(style) =
        ProgressStyle::with_template("loading {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}")
    {
        bar.set_style(style);
    }
    move |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        if done == total {
            bar.finish_and_clear();
        }
    }
}
