use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
};

use anyhow::{Result, ensure};
use gemma_scope::dashboard::{self, Prompt, SaeAt, TableOptions};

use crate::{
    args::{ModelArgs, SaeArgs},
    output::{note, say, width, write_json, write_text},
    text::TextArgs,
};

/// What `--demo` reads.
const DEMO: [&str; 4] = [
    "Call me Ishmael. Some years ago I went to sea, and the captain of the ship was an old man with a white beard.",
    "The Congress of the United States has the power to declare war, and I recommend that the treaty be ratified.",
    "Elizabeth was much too embarrassed to say a word, but Mr. Darcy drew his chair a little towards her.",
    "And the king said unto his servants, Bring me the sword of my father, and they brought it before the king.",
];

/// Runs texts through a model and shows each token's strongest latents, with the SAE's L0, FVU and share of variance
/// explained.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  gemma-scope analyze --text \"The ship sailed at dawn.\" --html page.html"
)]
pub(crate) struct Args {
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    saes: SaeArgs,
    /// Latents shown for each token.
    #[arg(long, default_value_t = 5)]
    top: usize,
    /// Writes all that was found.
    #[arg(long, value_name = "F")]
    json: Option<PathBuf>,
    /// Writes one self-contained page.
    #[arg(long, value_name = "F")]
    html: Option<PathBuf>,
    /// Reads built-in sentences.
    #[arg(long, conflicts_with_all = ["text", "text_file", "tokens"])]
    demo: bool,
}

/// Analyzes.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(args.json.is_none() || args.json != args.html, "--json and --html name the same file");
    ensure!(args.top > 0, "--top must be at least 1");
    let model = args.model.load()?;
    let saes = args.saes.load(&args.model.model, &args.model.machine)?;
    let demo = TextArgs { text: DEMO.map(str::to_owned).to_vec(), text_file: None, tokens: None };
    let rows = if args.demo { demo.rows(&model)? } else { args.text.rows(&model)? };
    let tokens = rows.batch(&model)?;
    let tokenizer = model.tokenizer().ok();
    let piece = |id: &i64| tokenizer.map_or_else(|| format!("<{id}>"), |t| t.piece(*id));
    let prompts: Vec<Prompt> = rows
        .ids
        .iter()
        .enumerate()
        .map(|(i, ids)| {
            // Padding is no part of a prompt.
            let mask = rows.masks.as_ref().and_then(|masks| masks.get(i));
            let attended = |pos: usize| mask.is_none_or(|m| m.get(pos) != Some(&0));
            let pieces: Vec<String> =
                ids.iter().enumerate().filter(|(pos, _)| attended(*pos)).map(|(_, id)| piece(id)).collect();
            let text = rows.texts.as_ref().and_then(|texts| texts.get(i)).cloned();
            Prompt { text: text.unwrap_or_else(|| pieces.concat()), pieces }
        })
        .collect();
    let saes: Vec<SaeAt<'_>> =
        saes.iter().map(|s| SaeAt { id: s.id.clone(), site: s.site, sae: &s.sae }).collect();
    let analysis = dashboard::analyze(&model.model, &model.name, &tokens, &prompts, &saes, args.top)?;
    let options = TableOptions { width: width(), colours: io::stdout().is_terminal() };
    say(&dashboard::table(&analysis, &options))?;
    if let Some(path) = &args.json {
        write_json(path, &analysis)?;
        note(&format!("wrote {}", path.display()));
    }
    if let Some(path) = &args.html {
        write_text(path, &dashboard::page(&analysis)?)?;
        note(&format!("wrote {}", path.display()));
    }
    Ok(())
}
