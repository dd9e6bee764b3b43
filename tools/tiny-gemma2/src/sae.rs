//! Training of the SAE on the model's own activations.

use std::{fs::OpenOptions, io::Write as _, path::Path, time::Instant};

use anyhow::{Context as _, Result, ensure};
use gemma_model::{Gemma2, LoadOptions};
use hooks::{HookPoint, HookedModelExt as _, LayerIdx, TokenBatch};
use rand::{SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};
use sae_core::{as_input, formats::gemma_scope};
use serde_json::json;
use tch::{Device, Kind, Tensor};
use train::{Trainer, config::Config, recipe};

use crate::data;

/// Flags of the step `sae`.
#[derive(Debug, Clone, clap::Args, serde::Serialize)]
pub(crate) struct Options {
    /// The block whose output is read.
    #[arg(long, default_value_t = 3)]
    layer: usize,
    /// Latents.
    #[arg(long, default_value_t = 2048)]
    width: i64,
    /// Steps in all.
    #[arg(long, default_value_t = 1500)]
    steps: usize,
    /// Activations a step.
    #[arg(long, default_value_t = 4096)]
    batch: i64,
    /// λ, the price of an active latent.
    #[arg(long, default_value_t = 1.5e-3)]
    lambda: f64,
    /// Learning rate.
    #[arg(long, default_value_t = 2e-3)]
    lr: f64,
    /// ε of the straight-through kernel.
    #[arg(long, default_value_t = 0.03)]
    bandwidth: f64,
    /// θ at the start.
    #[arg(long, default_value_t = 0.03)]
    threshold: f64,
    /// Of initial weights and of the order of activations.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where under the run's folder the SAE is kept.
    #[arg(long, default_value = "sae")]
    out: String,
    /// Stops after this many steps of this run, for the schedule of `steps` in all.
    #[arg(long)]
    stop_after: Option<usize>,
}

/// Tokens whose activations are shuffled together.
const POOL: usize = 1 << 17;

/// Trains, or goes on from `OUT/checkpoint.safetensors`; leaves `OUT/params.npz`.
pub(crate) fn train(run: &Path, o: &Options) -> Result<()> {
    let folder = run.join(&o.out);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("options.json"), serde_json::to_string_pretty(o)?)?;
    let model = Gemma2::load(&run.join("model"), &LoadOptions::default())?;
    let site = HookPoint::ResidPost(LayerIdx(o.layer));
    let sequences = Sequences::new(run, &model, o.seed)?;
    // √(mean ‖x‖²), fixed before training (Gemma Scope, section 3.1).
    let scale = {
        let sample = sequences.activations(&model, site, 0, POOL)?;
        sample
            .f_square()?
            .f_sum_dim_intlist(1, false, Kind::Double)?
            .f_mean(Kind::Double)?
            .f_double_value(&[])?
            .sqrt()
    };
    let config = config(o, model.config().dims.d_model as i64)?;
    let checkpoint = folder.join("checkpoint.safetensors");
    let mut trainer = Trainer::new(config, o.steps as u64, o.seed, Device::Cpu)?;
    if checkpoint.exists() {
        trainer.restore(&checkpoint)?;
    }
    let start = trainer.step_count() as usize;
    println!("scale {scale:.4}, from step {start}");
    let mut log = OpenOptions::new().create(true).append(true).open(folder.join("train.jsonl"))?;
    let clock = Instant::now();
    let per_pool = POOL as i64 / o.batch;
    ensure!(per_pool > 0, "a batch may hold {POOL} activations at most");
    let mut pool = (usize::MAX, Tensor::new());
    for step in start..o.steps {
        if o.stop_after.is_some_and(|n| step >= start + n) {
            break;
        }
        let index = step / per_pool as usize;
        if pool.0 != index {
            let acts = sequences.activations(&model, site, index, POOL)?;
            pool = (index, acts.f_div_scalar(scale)?);
        }
        let x = pool.1.f_narrow(0, (step as i64 % per_pool) * o.batch, o.batch)?;
        let stats = trainer.step(&x, None)?;
        if (step + 1) % 50 == 0 {
            let line = json!({"step": step + 1, "fvu": stats.fvu, "l0": stats.l0, "dead": stats.dead,
                              "s_per_step": clock.elapsed().as_secs_f64() / (step + 1 - start) as f64});
            writeln!(log, "{line}")?;
            if (step + 1) % 250 == 0 {
                println!("{line}");
                trainer.save(&checkpoint)?;
            }
        }
    }
    trainer.save(&checkpoint)?;
    gemma_scope::save(&trainer.to_sae(scale, scale)?, &folder.join("params.npz"), Kind::Float)?;
    Ok(())
}

/// Gemma Scope's recipe, with the rates of a short run.
fn config(o: &Options, d_model: i64) -> Result<Config> {
    let mut table: toml::Table = "recipe = 'gemma-scope'\ndead_after = 409_600".parse()?;
    let mut put = |key: &str, value: toml::Value| table.insert(key.to_owned(), value);
    put("d_in", d_model.into());
    put("d_sae", o.width.into());
    put(
        "objective",
        toml::Value::try_from(json!({
            "lambda": o.lambda, "lambda_warmup": o.steps / 4, "bandwidth": o.bandwidth, "initial_threshold": o.threshold,
        }))?,
    );
    put(
        "optimizer",
        toml::Value::try_from(json!({
            "lr": o.lr, "lr_warmup": o.steps / 20, "lr_decay": o.steps / 4,
        }))?,
    );
    Ok(recipe::configure(table)?)
}

/// The training sequences in one fixed order, over and over.
struct Sequences {
    rows: Vec<Vec<i64>>,
    special: Vec<i64>,
    seed: u64,
}

impl Sequences {
    fn new(run: &Path, model: &Gemma2, seed: u64) -> Result<Self> {
        let config = model.config();
        let rows = data::epoch(&data::load(run, "train")?, config.dims.n_ctx, config.bos, seed, 1_000);
        Ok(Self { rows, special: config.special(), seed })
    }

    /// The `index`-th pool: `n` activations, shuffled; BOS, EOS and PAD left out. The same index gives the same pool.
    fn activations(&self, model: &Gemma2, site: HookPoint, index: usize, n: usize) -> Result<Tensor> {
        let each = self.rows.first().map_or(1, Vec::len);
        let needed = n.div_ceil(each - 2) + 1;
        let mut parts = Vec::new();
        let chosen: Vec<_> =
            (0..needed).map(|i| &self.rows[(index * needed + i) % self.rows.len()]).cloned().collect();
        for rows in chosen.chunks(32) {
            let tokens = TokenBatch::new(rows, &self.special)?;
            let mut cache = model.harvest(&tokens, &[site])?;
            let x = as_input(site, &cache.take(site)?)?;
            parts.push(x.f_masked_select(&tokens.counted().f_unsqueeze(-1)?)?.f_reshape([-1, x.size()[2]])?);
        }
        let all = Tensor::f_cat(&parts, 0)?;
        let mut order: Vec<i64> = (0..all.size()[0]).collect();
        order.shuffle(&mut StdRng::seed_from_u64(self.seed ^ (index as u64) << 20));
        let order = order.get(..n).context("too few activations in a pool")?;
        Ok(all.f_index_select(0, &Tensor::f_from_slice(order)?)?)
    }
}
