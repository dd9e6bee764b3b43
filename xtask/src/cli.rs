//! The command line: which commands there are, what each takes, and what its `--help` says.

use std::ffi::OsString;
use std::fmt;

/// What a command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// Print this text.
    Help(String),
    /// Do this.
    Run(Task),
}

/// One of the commands, with what was given to it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Task {
    Libtorch,
    Demo(Demo),
    Test { args: Vec<String> },
    Check { tests: bool },
    Bench { args: Vec<String> },
    DocOnly,
}

/// What `demo` was given.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Demo {
    /// The texts to analyze; with none, the texts of the built-in demo.
    pub(crate) texts: Vec<String>,
    /// Show the page in the browser afterwards.
    pub(crate) open: bool,
}

/// A command line that is wrong: what is wrong with it, in one sentence, and where the right one is described.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UsageError(String);

impl fmt::Display for UsageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

/// Reads the words after `cargo xtask`.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Request, UsageError> {
    let mut words = Vec::new();
    for arg in args {
        words
            .push(arg.into_string().map_err(|arg| UsageError(format!("the argument {arg:?} is not UTF-8")))?);
    }
    let Some((name, rest)) = words.split_first() else {
        return Err(UsageError(format!("no command given\n\n{}", overview())));
    };
    if is_help(name) || name == "help" {
        return Ok(Request::Help(match rest.first() {
            Some(topic) => command(topic)?.help(),
            None => overview(),
        }));
    }
    let command = command(name)?;
    // Past `--`, and past the WHAT of a bench, a `--help` is meant for the program that is run.
    let ours = if command.name == "bench" { rest.get(..1) } else { rest.split(|word| word == "--").next() };
    if ours.unwrap_or_default().iter().any(|word| is_help(word)) {
        return Ok(Request::Help(command.help()));
    }
    match command.name {
        "libtorch" => nothing_more(command, rest, Task::Libtorch),
        "demo" => parse_demo(command, rest),
        "test" => Ok(Request::Run(Task::Test { args: rest.to_vec() })),
        "check" => match rest.split_first() {
            Some((flag, rest)) if flag == "--no-test" => {
                nothing_more(command, rest, Task::Check { tests: false })
            }
            _ => nothing_more(command, rest, Task::Check { tests: true }),
        },
        "bench" if rest.is_empty() => Ok(Request::Help(command.help())),
        "bench" => Ok(Request::Run(Task::Bench { args: rest.to_vec() })),
        _ => nothing_more(command, rest, Task::DocOnly),
    }
}

fn parse_demo(command: &Command, words: &[String]) -> Result<Request, UsageError> {
    let mut demo = Demo::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--" => demo.texts.extend(words.by_ref().cloned()),
            "--open" => demo.open = true,
            flag if flag.starts_with('-') => return Err(command.unexpected(flag)),
            text => demo.texts.push(text.to_owned()),
        }
    }
    Ok(Request::Run(Task::Demo(demo)))
}

fn nothing_more(command: &Command, rest: &[String], task: Task) -> Result<Request, UsageError> {
    match rest.first() {
        Some(word) => Err(command.unexpected(word)),
        None => Ok(Request::Run(task)),
    }
}

fn is_help(word: &str) -> bool {
    matches!(word, "--help" | "-h")
}

/// A command as its help shows it.
struct Command {
    name: &'static str,
    usage: &'static str,
    summary: &'static str,
    details: &'static str,
}

impl Command {
    fn help(&self) -> String {
        format!("{}\n\nUsage: cargo xtask {}\n\n{}", self.summary, self.usage, self.details)
    }

    fn unexpected(&self, word: &str) -> UsageError {
        let name = self.name;
        UsageError(format!("`cargo xtask {name}` does not take `{word}`: see `cargo xtask {name} --help`"))
    }
}

fn command(name: &str) -> Result<&'static Command, UsageError> {
    COMMANDS.iter().find(|command| command.name == name).ok_or_else(|| {
        let names: Vec<_> = COMMANDS.iter().map(|command| command.name).collect();
        UsageError(format!("no command `{name}`: there are {}; see `cargo xtask --help`", names.join(", ")))
    })
}

fn overview() -> String {
    let mut text = String::from("The project's own commands\n\nUsage: cargo xtask COMMAND\n\n");
    for command in COMMANDS {
        text.push_str(&format!("  {:<28}{}\n", command.usage, command.summary));
    }
    text.push_str("\n`cargo xtask COMMAND --help` says more. All but doc-only first put libtorch in place.");
    text
}

static COMMANDS: &[Command] = &[
    Command {
        name: "libtorch",
        usage: "libtorch",
        summary: "Puts libtorch in place",
        details: "\
Downloads libtorch 2.11.0 with `python3 -m pip download` on first use, keeps it once per machine in the user's
cache folder, and links it into the project as `.libtorch`. When it is there, nothing happens. What is damaged,
half made or of another version is made anew.

  LIBTORCH=DIR              use this libtorch (absolute path; it holds include/ and lib/) and download nothing
  LIBTORCH_USE_PYTORCH=1    use the libtorch of the Python package torch, which must be 2.11.0
  GEMMA_SCOPE_CACHE=DIR     keep the download in DIR/gemma-scope instead of the user's cache folder

pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, PIP_PROXY, PIP_CERT, ...) are pip's to follow.",
    },
    Command {
        name: "demo",
        usage: "demo [--open] [-- TEXT...]",
        summary: "Analyzes a text and writes a page that shows its latents",
        details: "\
Runs `gemma-scope analyze --demo --html target/demo/index.html`, or with texts of your own
`gemma-scope analyze --text TEXT ... --html target/demo/index.html`, and says where the page is.

  --open    show the page in the browser

Example: cargo xtask demo --open -- \"The Eiffel Tower is in Paris\"",
    },
    Command {
        name: "test",
        usage: "test [ARGS...]",
        summary: "Builds everything, then runs the tests and the doc-tests",
        details: "\
All in the release profile, so that the C++ part of tch is compiled once. ARGS go to `cargo test` as they are:
a filter on the tests' names, `-p PACKAGE` for one package, `-- --nocapture` for the test programs.

Example: cargo xtask test -p hooks order",
    },
    Command {
        name: "check",
        usage: "check [--no-test]",
        summary: "Runs all that must hold before a commit: format, clippy, docs, tests",
        details: "\
The cheapest goes first, the first failure ends it.

  --no-test    leave the tests out",
    },
    Command {
        name: "bench",
        usage: "bench WHAT [FLAGS...]",
        summary: "Times this project on the work the peers are timed on",
        details: "\
Runs `gemma-scope-bench WHAT FLAGS`, which prints one JSON object per line. WHAT is one of

  forward     Gemma 2's shapes: backbone, logits, loss, all activations cached
  generate    greedy generation with the cache
  sae         encode, decode and forward of a JumpReLU SAE
  train       a JumpReLU training step
  load        reading a params.npz
  sweep       clean, spliced and ablated losses for several SAEs

Example: cargo xtask bench forward --layers 8 --seq 512",
    },
    Command {
        name: "doc-only",
        usage: "doc-only",
        summary: "Type-checks all crates without libtorch",
        details: "\
Runs `cargo check --workspace --features doc-only` with a target folder of its own, target/doc-only.",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &[&str]) -> Result<Request, UsageError> {
        parse(line.iter().map(OsString::from))
    }

    fn task(line: &[&str]) -> Task {
        match read(line).unwrap() {
            Request::Run(task) => task,
            Request::Help(text) => panic!("{line:?} gave the help {text}"),
        }
    }

    fn help(line: &[&str]) -> String {
        match read(line).unwrap() {
            Request::Help(text) => text,
            Request::Run(task) => panic!("{line:?} gave {task:?}"),
        }
    }

    fn error(line: &[&str]) -> String {
        read(line).unwrap_err().to_string()
    }

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    #[test]
    fn commands_take_what_their_help_says() {
        assert_eq!(task(&["libtorch"]), Task::Libtorch);
        assert_eq!(task(&["doc-only"]), Task::DocOnly);
        assert_eq!(task(&["check"]), Task::Check { tests: true });
        assert_eq!(task(&["check", "--no-test"]), Task::Check { tests: false });
        assert_eq!(
            task(&["test", "order", "--", "--nocapture"]),
            Task::Test { args: strings(&["order", "--", "--nocapture"]) }
        );
        assert_eq!(
            task(&["bench", "sae", "--help"]),
            Task::Bench { args: strings(&["sae", "--help"]) },
            "help of what is run is that program's"
        );
    }

    #[test]
    fn a_demo_takes_texts_after_dashes_or_plain() {
        assert_eq!(task(&["demo"]), Task::Demo(Demo::default()));
        let texts = strings(&["one", "--two", "--open"]);
        assert_eq!(
            task(&["demo", "--open", "one", "--", "--two", "--open"]),
            Task::Demo(Demo { texts, open: true })
        );
        assert!(error(&["demo", "--two"]).contains("`cargo xtask demo` does not take `--two`"));
    }

    #[test]
    fn help_is_there_for_all_and_for_each() {
        for flag in ["--help", "-h", "help"] {
            for command in COMMANDS {
                assert!(help(&[flag]).contains(command.summary));
            }
        }
        for command in COMMANDS {
            assert_eq!(help(&[command.name, "--help"]), help(&["help", command.name]));
        }
        assert!(help(&["bench"]).contains("sweep"), "without WHAT the list of WHATs");
    }

    #[test]
    fn a_wrong_line_names_the_word_at_fault() {
        assert!(error(&[]).starts_with("no command given"));
        assert!(error(&["tset"]).contains("no command `tset`: there are libtorch, demo, test"));
        assert!(error(&["help", "tset"]).contains("no command `tset`"));
        assert!(error(&["libtorch", "now"]).contains("does not take `now`"));
        assert!(error(&["check", "--no-test", "--fast"]).contains("does not take `--fast`"));
        assert!(error(&["check", "--notest"]).contains("does not take `--notest`"));
    }
}
