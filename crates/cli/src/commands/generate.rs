use std::{
    io::{self, IsTerminal as _},
    path::PathBuf,
    str::FromStr,
    time::Instant,
};

use anyhow::{Context as _, Result, bail, ensure};
use gemma_scope::{
    hooks::{HookPoint, HookSet, edit},
    load::{LoadedModel, LoadedSae, load_sae},
    model::{GenerateOptions, Generation, Role, Sampling, Turn},
    sae::{FeatureId, OpenOptions, SaeExt as _, SparseAutoencoder as _, Splice},
};
use serde_json::json;

use crate::{
    args::{ModelArgs, PositionArgs},
    output::{note, say, write_json},
};

/// Goes on with a text, one token at a time, with a cache of keys and values. Edits act at every step.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  gemma-scope generate --prompt \"The captain\" --max-tokens 40\n  \
                        gemma-scope generate --prompt \"The captain\" --steer tiny:120:8 --temperature 0.8 --top-p 0.9 --seed 1\n  \
                        gemma-scope generate --model google/gemma-2-2b-it --chat --prompt \"What is a whale?\"")]
pub(crate) struct Args {
    /// The text to go on with. Several are run side by side and printed when all have ended; each draws its own tokens, by
    /// its place.
    #[arg(long, value_name = "T", required = true)]
    prompt: Vec<String>,
    #[command(flatten)]
    model: ModelArgs,
    /// Adds STRENGTH times a latent's decoder direction at its SAE's site. Repeatable.
    #[arg(long, value_name = "S:LATENT:STRENGTH", allow_hyphen_values = true)]
    steer: Vec<Steer>,
    /// The hook point that the SAEs read, where their names and files do not tell.
    #[arg(long, value_name = "H")]
    hook: Option<HookPoint>,
    /// Takes a latent out: sets it to zero and keeps what the SAE does not explain. Repeatable.
    #[arg(long, value_name = "S:LATENT")]
    ablate: Vec<Ablate>,
    #[command(flatten)]
    positions: PositionArgs,
    /// Tokens to write, at most.
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_tokens: usize,
    /// 0 takes the likeliest token each time.
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f64,
    /// Draws from the K likeliest tokens alone.
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draws from the likeliest tokens that together have this probability.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Draws from the tokens at least this many times as likely as the likeliest.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    min_p: Option<f64>,
    /// Also ends at this token, given as its text (like `<end_of_turn>`); it is the last one written. Repeatable.
    #[arg(long, value_name = "TOKEN")]
    stop: Vec<String>,
    /// Puts the prompt into the template of the -it models, as the user's turn.
    #[arg(long)]
    chat: bool,
    /// Writes prompts, tokens and texts.
    #[arg(long, value_name = "F")]
    json: Option<PathBuf>,
}

/// `S:LATENT:STRENGTH`.
#[derive(Debug, Clone)]
struct Steer {
    latent: Ablate,
    strength: f64,
}

impl FromStr for Steer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` does not read S:LATENT:STRENGTH, like tiny:120:8");
        let (latent, strength) = text.rsplit_once(':').ok_or_else(bad)?;
        let strength: f64 = strength.parse().map_err(|_| bad())?;
        if !strength.is_finite() {
            return Err(format!("the strength in `{text}` must be finite"));
        }
        Ok(Self { latent: latent.parse().map_err(|_| bad())?, strength })
    }
}

/// `S:LATENT`.
#[derive(Debug, Clone)]
struct Ablate {
    sae: String,
    latent: usize,
}

impl FromStr for Ablate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` does not read S:LATENT, like tiny:120");
        let (sae, latent) = text.rsplit_once(':').filter(|(sae, _)| !sae.is_empty()).ok_or_else(bad)?;
        Ok(Self { sae: sae.to_owned(), latent: latent.parse().map_err(|_| bad())? })
    }
}

/// Generates.
pub(crate) fn run(args: &Args) -> Result<()> {
    let filtered = args.top_k.is_some() || args.top_p.is_some() || args.min_p.is_some();
    ensure!(
        args.temperature != 0.0 || !filtered,
        "--top-k, --top-p and --min-p change nothing at temperature 0: give a --temperature"
    );
    let model = args.model.load()?;
    let tokenizer =
        model.tokenizer().ok().with_context(|| format!("{} has no tokenizer.json", model.name))?;
    let encode = |text: &String| {
        let encoded = match args.chat {
            true => tokenizer.encode_chat(&[Turn { role: Role::User, text }]),
            false => tokenizer.encode(text),
        };
        encoded.context("--prompt")
    };
    let prompts = args.prompt.iter().map(encode).collect::<Result<Vec<_>>>()?;
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        min_p: args.min_p,
        seed: args.model.seed,
    };
    let options =
        GenerateOptions { max_new_tokens: args.max_tokens, sampling, stop: Some(stops(args, &model)?) };
    let mut generation = Generation::new(&model.model, &prompts, options)?;
    let saes = Saes::load(args)?;
    let mut hooks = HookSet::new();
    for steer in &args.steer {
        let sae = saes.get(&steer.latent.sae)?;
        // A direction acts where the SAE writes, which for a transcoder is another site than where it reads.
        let site = sae.site_out.with_context(|| format!("--steer: where {} writes is not known", sae.id))?;
        fits(sae, site, sae.sae.d_out(), &model).context("--steer")?;
        let direction = sae.sae.direction(FeatureId(steer.latent.latent)).context("--steer")?;
        // At attention's site the SAE's width is heads times their width.
        let shape = site.shape(&model.model.config().dims, 1, 1);
        let direction = direction.f_reshape(shape.get(2..).unwrap_or_default())?;
        let positions = args.positions.positions.over(generation.prompt())?;
        hooks.on(site, edit::add(direction, steer.strength).at(positions));
    }
    for ablate in &args.ablate {
        let sae = saes.get(&ablate.sae)?;
        fits(sae, sae.site, sae.sae.d_in(), &model).context("--ablate")?;
        ensure!(
            !sae.sae.is_transcoder(),
            "--ablate: {} is a transcoder, whose output stands for another site's activation; it can be steered",
            sae.id
        );
        let splice =
            Splice::reconstruction(&sae.sae).clamp(FeatureId(ablate.latent), 0.0).context("--ablate")?;
        let positions = args.positions.positions.over(generation.prompt())?;
        hooks.on(sae.site, splice.keep_error().at(positions));
    }
    hooks.check(&model.model.config().dims)?;

    let streams = args.prompt.len() == 1;
    let mut decoders: Vec<_> = prompts.iter().map(|_| tokenizer.stream()).collect();
    let mut rows: Vec<(Vec<i64>, String)> = vec![Default::default(); prompts.len()];
    if streams && !args.chat {
        say(&args.prompt.concat())?;
    }
    let start = Instant::now();
    while let Some(tokens) = generation.step(&mut hooks)? {
        for ((id, decoder), (ids, text)) in tokens.iter().zip(&mut decoders).zip(&mut rows) {
            let Some(id) = *id else { continue };
            let new = decoder.push(id)?;
            ids.push(id);
            *text += &new;
            if streams {
                say(&new)?;
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    for (decoder, (_, text)) in decoders.into_iter().zip(&mut rows) {
        let rest = decoder.finish();
        *text += &rest;
        if streams {
            say(&(rest + "\n"))?;
        }
    }
    if !streams {
        for (i, (prompt, (_, text))) in args.prompt.iter().zip(&rows).enumerate() {
            let shown = if args.chat { text.clone() } else { format!("{prompt}{text}") };
            say(&format!("[{i}] {shown}\n"))?;
        }
    }
    if args.max_tokens > 0 {
        hooks.finish()?;
    }
    let written: usize = rows.iter().map(|(ids, _)| ids.len()).sum();
    if io::stderr().is_terminal() {
        note(&format!("{written} tokens, {:.1} a second", written as f64 / seconds));
    }
    if let Some(path) = &args.json {
        let mut all = Vec::new();
        for ((text, ids), (new, written)) in args.prompt.iter().zip(&prompts).zip(&rows) {
            all.push(json!({ "prompt": text, "prompt_ids": ids, "ids": new, "text": written }));
        }
        let steered =
            args.steer.iter().map(|s| format!("{}:{}:{}", s.latent.sae, s.latent.latent, s.strength));
        let ablated = args.ablate.iter().map(|a| format!("{}:{}", a.sae, a.latent));
        let settings = json!({
            "max_tokens": args.max_tokens, "temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p,
            "min_p": args.min_p, "seed": args.model.seed, "stop": args.stop, "chat": args.chat,
            "steer": steered.collect::<Vec<_>>(), "ablate": ablated.collect::<Vec<_>>(),
            "positions": args.positions.positions.to_string(), "dtype": args.model.dtype(),
            "version": env!("CARGO_PKG_VERSION"),
        });
        write_json(path, &json!({ "model": model.name, "settings": settings, "rows": all }))?;
        note(&format!("wrote {}", path.display()));
    }
    Ok(())
}

/// That an SAE's `d` numbers a token are as many as the model has at a site.
fn fits(sae: &LoadedSae, site: HookPoint, d: i64, model: &LoadedModel) -> Result<()> {
    let dims = &model.model.config().dims;
    HookSet::new().on(site, edit::zero()).check(dims)?;
    let width: i64 = site.shape(dims, 1, 1).iter().skip(2).product();
    ensure!(d == width, "{} has {d} numbers a token, but `{site}` of this model has {width}", sae.id);
    Ok(())
}

/// The model's own ends, and the tokens of `--stop`.
fn stops(args: &Args, model: &LoadedModel) -> Result<Vec<i64>> {
    let tokenizer = model.tokenizer()?;
    let mut stop = model.model.config().eos.clone();
    for text in &args.stop {
        match tokenizer.encode_plain(text)?[..] {
            [id] => stop.push(id),
            ref ids => bail!("--stop {text}: is {} tokens, not one", ids.len()),
        }
    }
    Ok(stop)
}

/// Each SAE of the command line, loaded once.
struct Saes(Vec<(String, LoadedSae)>);

impl Saes {
    fn load(args: &Args) -> Result<Self> {
        let machine = &args.model.machine;
        let device = machine.device()?;
        let mut saes: Vec<(String, LoadedSae)> = Vec::new();
        for name in args.steer.iter().map(|s| &s.latent.sae).chain(args.ablate.iter().map(|a| &a.sae)) {
            if saes.iter().all(|(known, _)| known != name) {
                saes.push((
                    name.clone(),
                    load_sae(name, args.hook, &OpenOptions::on(device), || machine.hub())
                        .context("--steer or --ablate")?,
                ));
            }
        }
        Ok(Self(saes))
    }

    fn get(&self, name: &str) -> Result<&LoadedSae> {
        let found = self.0.iter().find(|(known, _)| known == name);
        Ok(&found.with_context(|| format!("{name} was not loaded"))?.1)
    }
}
