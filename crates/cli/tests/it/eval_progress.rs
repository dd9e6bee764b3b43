//! What `eval` shows of its progress: a bar at a terminal, and nothing of it anywhere else.

use std::{
    fs::File,
    io::Read as _,
    num::NonZero,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
};

use rustix::{
    fs::{Mode, OFlags},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};
use tempfile::TempDir;

use crate::{
    command::{gemma_scope, run},
    suite::{kill_after, many_tokens, path, suite},
};

const ROWS: NonZero<u16> = NonZero::new(24).unwrap();
const COLUMNS: NonZero<u16> = NonZero::new(80).unwrap();

/// A terminal: the program's end, and ours.
fn terminal() -> (OwnedFd, File) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let size = Winsize { ws_row: ROWS.get(), ws_col: COLUMNS.get(), ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&ours, size).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let programs = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    (programs, File::from(ours))
}

/// What a run showed at a terminal.
struct Shown {
    /// The states of a bar, in their order.
    bars: Vec<Bar>,
    /// What stands there at the end.
    left: String,
}

#[derive(Debug, Clone, PartialEq)]
struct Bar {
    /// What is counted.
    what: String,
    done: usize,
    of: usize,
    /// Such as `12s`.
    time_left: Option<String>,
}

impl Bar {
    /// `batches ██████░░░░ 12/48, 3s left`, as wide as the terminal; nothing for any other line, or one that is still being written.
    fn parse(line: &str) -> Option<Self> {
        if line.chars().count() != usize::from(COLUMNS.get()) {
            return None;
        }
        let (what, rest) = line.split_once(" █").or_else(|| line.split_once(" ░"))?;
        let rest = rest.trim_start_matches(['█', '░']).strip_prefix(' ')?;
        let (count, time_left) = match rest.split_once(", ") {
            Some((count, left)) => (count, Some(left.strip_suffix(" left")?.to_owned())),
            None => (rest, None),
        };
        let (done, of) = count.split_once('/')?;
        Some(Self { what: what.to_owned(), done: done.parse().ok()?, of: of.parse().ok()?, time_left })
    }
}

/// Runs the suite with stderr at a terminal.
fn at_a_terminal(tokens: &str, more: &[&str]) -> Shown {
    let (programs, mut ours) = terminal();
    let mut command = gemma_scope();
    command.args(suite(tokens)).args(more).env("TERM", "xterm-256color");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(programs);
    let mut child = command.spawn().unwrap();
    // This process's copy of the program's end.
    drop(command);
    let mut screen = vt100::Parser::new(ROWS, COLUMNS, 0);
    let mut bars: Vec<Bar> = Vec::new();
    let mut bytes = [0; 4096];
    // Linux says EIO, and not an end, once nobody holds the other side.
    while let Some(n) = ours.read(&mut bytes).ok().filter(|n| *n > 0) {
        for byte in &bytes[..n] {
            screen.process(std::slice::from_ref(byte));
            let row = screen.screen().cursor_position().0;
            let line = screen.screen().rows(0, COLUMNS.get()).nth(row.into()).unwrap();
            if let Some(bar) = Bar::parse(line.trim_end()).filter(|bar| bars.last() != Some(bar)) {
                bars.push(bar);
            }
        }
    }
    assert!(child.wait().unwrap().success(), "{}", screen.screen().contents());
    Shown { bars, left: screen.screen().contents() }
}

/// 48 batches.
const BATCH: [&str; 2] = ["--batch", "2"];

#[test]
fn a_terminal_shows_how_far_it_is_and_how_long_it_takes() {
    let folder = TempDir::new().unwrap();
    let shown = at_a_terminal(&many_tokens(&folder), &BATCH);
    for what in ["mean activations", "batches"] {
        let bars: Vec<&Bar> = shown.bars.iter().filter(|bar| bar.what == what).collect();
        assert!(bars.iter().all(|bar| bar.of == 48 && bar.done <= 48), "{bars:?}");
        assert!(bars.is_sorted_by_key(|bar| bar.done), "{bars:?}");
        // At the beginning nothing tells how long it takes.
        assert_eq!(bars.first().map(|bar| (bar.done, bar.time_left.clone())), Some((0, None)), "{what}");
    }
    // A frame is drawn every twentieth of a second: of a longer pass many are seen.
    let timed: Vec<(usize, &String)> = shown
        .bars
        .iter()
        .filter(|bar| bar.what == "batches")
        .filter_map(|bar| Some((bar.done, bar.time_left.as_ref()?)))
        .collect();
    assert!(timed.iter().filter(|(done, _)| (1..48).contains(done)).count() >= 3, "{:?}", shown.bars);
    for (done, left) in timed {
        let (number, unit) = left.split_at(left.trim_end_matches(char::is_alphabetic).len());
        assert!(number.parse::<u64>().is_ok() && ["s", "m"].contains(&unit), "at {done}: {left}");
    }

    // At the end the bar is gone, and every remark has its line.
    let lines: Vec<&str> = shown.left.lines().filter(|line| !line.is_empty()).collect();
    assert!(!shown.left.contains(['█', '░']), "{}", shown.left);
    assert!(lines[0].contains(" s: ") && lines[0].contains("in the model's blocks"), "{}", shown.left);
    assert_eq!(lines.iter().filter(|line| line.starts_with("judged ")).count(), 4, "{}", shown.left);
}

#[test]
fn what_was_done_before_does_not_count_as_fast() {
    let folder = TempDir::new().unwrap();
    let (tokens, state) = (many_tokens(&folder), path(&folder, "state"));
    let args = [&BATCH[..], &["--resume", &state]].concat();
    let file = PathBuf::from(&state).join("shard-1-of-1/group-0000.json");
    kill_after(&tokens, &args, &file, 20);
    let shown = at_a_terminal(&tokens, &args);
    let first = shown.bars.first().unwrap();
    assert!((20..48).contains(&first.done) && first.what == "batches", "the means are there: {first:?}");
    assert_eq!(first.time_left, None);
    assert!(Path::new(&file).exists());
}

#[test]
fn a_file_gets_remarks_and_no_bar() {
    let folder = TempDir::new().unwrap();
    let tokens = many_tokens(&folder);
    let args = [suite(&tokens), BATCH.map(str::to_owned).to_vec()].concat();
    let piped = run(&args.iter().map(String::as_str).collect::<Vec<_>>());
    for (name, text) in [("stdout", &piped.stdout), ("stderr", &piped.stderr)] {
        assert!(!text.contains(['\r', '\u{1b}', '█', '░']), "{name}: {text:?}");
        assert!(!text.contains("/48") && !text.contains(" left"), "{name}: {text:?}");
    }
    assert_eq!(piped.stderr.lines().count(), 1 + 4, "{}", piped.stderr);
    assert_eq!(
        piped.stderr.lines().filter(|line| line.starts_with("judged ")).count(),
        4,
        "{}",
        piped.stderr
    );
}
