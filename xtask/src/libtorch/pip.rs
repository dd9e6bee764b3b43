//! pip as the downloader: it knows the user's index, proxy and certificates.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, ErrorKind, IsTerminal};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::fault;
use super::wheels::{VERSION, Wheel};

/// Python with pip, to be started by these words; tests put a stand-in of theirs here.
#[derive(Debug, Clone)]
pub(crate) struct Pip {
    words: Vec<OsString>,
}

impl Pip {
    pub(crate) fn new(python: &str) -> Self {
        Self::from_words([python.into()])
    }

    pub(crate) fn from_words(words: impl IntoIterator<Item = OsString>) -> Self {
        Self { words: words.into_iter().collect() }
    }

    /// Fails unless there is a Python with pip.
    pub(crate) fn check(&self) -> Result<()> {
        let output = match self.command()?.arg("--version").stdin(Stdio::null()).output() {
            Ok(output) => output,
            Err(error) if error.kind() == ErrorKind::NotFound => bail!(
                "there is no python3, whose pip downloads libtorch: install Python 3 with pip, or set LIBTORCH to \
                 the folder of a libtorch {VERSION} of your own"
            ),
            Err(error) => return Err(error).context("cannot start python3"),
        };
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("No module named") {
            bail!(
                "python3 has no pip, which downloads libtorch: install it (`python3 -m ensurepip`, or your system's \
                 python3-pip), or set LIBTORCH to the folder of a libtorch {VERSION} of your own"
            );
        }
        bail!(
            "`python3 -m pip --version` fails ({}): mend it, or set LIBTORCH",
            last_line(&said, output.status)
        )
    }

    /// Downloads a wheel into `folder`; what pip needs on the way it keeps in `scratch`.
    pub(crate) fn download(&self, wheel: &Wheel, folder: &Path, scratch: &Path) -> Result<()> {
        let mut command = self.command()?;
        command.arg("download");
        if !std::io::stderr().is_terminal() {
            command.arg("--quiet");
        }
        let mut child = command
            .args(["--disable-pip-version-check", "--no-input"])
            // pip's cache would keep half a gigabyte that nobody asks for again.
            .args(["--no-cache-dir", "--no-deps", "--only-binary=:all:"])
            .args(["--python-version", "3.12", "--implementation", "cp", "--abi", "cp312"])
            .args(["--platform", wheel.tag, "--dest"])
            .arg(folder)
            .arg(wheel.requirement)
            // Else a pip that is killed leaves the half of a large file where nobody looks for it.
            .env("TMPDIR", scratch)
            .env("PIP_REQUIRE_VIRTUALENV", "0")
            .stdin(Stdio::null())
            // pip's progress goes where ours goes.
            .stdout(std::io::stderr())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot start python3")?;
        let mut said = String::new();
        if let Some(stderr) = child.stderr.take() {
            for line in BufReader::new(stderr).split(b'\n') {
                let line = String::from_utf8_lossy(&line?).into_owned();
                // Its first warning tells why it takes long; the next ones are the same, once for each try.
                if line.starts_with("WARNING: ") && !said.contains("WARNING: ") {
                    eprintln!("pip: {line}");
                }
                said.push_str(&line);
                said.push('\n');
            }
        }
        let status = child.wait()?;
        if status.success() {
            return Ok(());
        }
        if said.contains("No space left on device") {
            return Err(fault::disk_full(folder));
        }
        bail!(
            "pip could not download {} ({}): check the network, pip's settings and that pip is 20.3 or newer, and run \
             `cargo xtask libtorch` again, or set LIBTORCH",
            wheel.requirement,
            last_line(&said, status)
        )
    }

    fn command(&self) -> Result<Command> {
        let (program, args) = self.words.split_first().context("no python to start")?;
        let mut command = Command::new(program);
        command.args(args).args(["-m", "pip"]);
        Ok(command)
    }
}

/// The last error that pip names, else the last thing it said, else how it ended.
fn last_line(said: &str, status: std::process::ExitStatus) -> String {
    let lines = || said.lines().map(str::trim).filter(|line| !line.is_empty()).rev();
    match lines().find_map(|line| line.strip_prefix("ERROR: ")).or_else(|| lines().next()) {
        Some(line) => line.to_owned(),
        None => status.to_string(),
    }
}
