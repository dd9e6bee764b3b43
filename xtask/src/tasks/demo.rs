//! `cargo xtask demo`: libtorch, then `gemma-scope analyze`, then where its page is.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::cli::Demo;
use crate::libtorch;
use crate::project::{Project, pass_through};

/// The page, seen from the workspace's root.
const PAGE: &str = "target/demo/index.html";

pub(crate) fn run(project: &Project, demo: &Demo) -> Result<ExitCode> {
    let libtorch = libtorch::ensure(project.root())?;
    let page = project.root().join(PAGE);
    if let Some(folder) = page.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let mut command = project.cargo_with(&libtorch, ["run", "--release", "--bin", "gemma-scope", "--"])?;
    let code = pass_through(command.args(analyze(&demo.texts)))?;
    if code == ExitCode::SUCCESS {
        println!("The page is {}", page.display());
        if demo.open {
            show(&page)?;
        }
    }
    Ok(code)
}

/// The command line of `gemma-scope`.
fn analyze(texts: &[String]) -> Vec<&str> {
    let mut args = vec!["analyze"];
    if texts.is_empty() {
        args.push("--demo");
    }
    for text in texts {
        args.extend(["--text", text]);
    }
    args.extend(["--html", PAGE]);
    args
}

fn show(page: &Path) -> Result<()> {
    let opener = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let status = Command::new(opener).arg(page).status();
    let status = status.with_context(|| format!("cannot start {opener}: open the page by hand"))?;
    anyhow::ensure!(status.success(), "{opener} could not show the page ({status}): open it by hand");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_texts_the_built_in_demo_runs() {
        assert_eq!(analyze(&[]), ["analyze", "--demo", "--html", PAGE]);
        let texts = ["one".to_owned(), "--two".to_owned()];
        assert_eq!(analyze(&texts), ["analyze", "--text", "one", "--text", "--two", "--html", PAGE]);
    }
}
