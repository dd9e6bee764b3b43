//! Fetches a file, or all files of a model, and prints where they lie.
//!
//! ```text
//! fetch google/gemma-2-2b
//! fetch google/gemma-scope-2b-pt-res layer_20/width_16k/average_l0_71/params.npz
//! ```

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program, not a library")]

use std::env;

use anyhow::{Result, bail};
use hub::Hub;

fn main() -> Result<()> {
    let hub = Hub::from_env()?.with_progress(|progress| {
        let total = progress.total.map_or_else(|| "?".to_owned(), |total| total.to_string());
        eprint!("\r{}: {} of {total} bytes ", progress.file, progress.done);
    });
    let arguments: Vec<String> = env::args().skip(1).collect();
    let path = match arguments.as_slice() {
        [repo] => hub.model_files(repo)?,
        [repo, file] => hub.file(repo, file)?,
        _ => bail!("fetch REPO[@REVISION] [FILE]"),
    };
    println!("{}", path.display());
    Ok(())
}
