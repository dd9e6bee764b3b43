//! Training of the language model.

use std::{
    collections::HashMap,
    fs::{self, OpenOptions},
    io::Write as _,
    path::Path,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use gemma_model::{Gemma2, Gemma2Config};
use hooks::{HookSet, HookedModelExt as _, ModelDims, TokenBatch};
use serde_json::json;
use tch::{Kind, Tensor};
use tch_ext::{SafetensorsFile, TensorError, write_safetensors};
use train::{Adam, AdamOptions, schedule};

use crate::data;

/// Flags of the step `train`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Steps in all; the learning rate decays towards the last.
    #[arg(long, default_value_t = 2600)]
    steps: usize,
    /// Sequences a step.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Peak learning rate.
    #[arg(long, default_value_t = 3e-3)]
    lr: f64,
    /// Of initial weights and of the order of sequences.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Steps between checkpoints and held-out losses.
    #[arg(long, default_value_t = 200)]
    every: usize,
    /// Stops after this many steps of this run, for the schedule of `steps` in all.
    #[arg(long)]
    stop_after: Option<usize>,
}

/// The shape: Gemma 2 2B's relations (both layer kinds, groups of two, heads of query_pre_attn_scalar) in small.
pub(crate) fn config() -> Gemma2Config {
    let dims = ModelDims {
        n_layers: 6,
        d_model: 256,
        n_heads: 4,
        n_kv_heads: 2,
        d_head: 64,
        d_mlp: 512,
        d_vocab: 4096,
        n_ctx: 256,
    };
    Gemma2Config {
        layer_kinds: Gemma2Config::alternating(dims.n_layers),
        dims,
        sliding_window: 128,
        query_pre_attn_scalar: 64.0,
        attn_softcap: Some(50.0),
        final_softcap: Some(30.0),
        rms_eps: 1e-6,
        rope_theta: 10_000.0,
        bos: 2,
        eos: vec![1],
        pad: 0,
    }
}

/// Mean loss in nats over every next token of the batch.
fn loss(model: &Gemma2, rows: &[Vec<i64>]) -> Result<Tensor> {
    let tokens = TokenBatch::new(rows, &[])?;
    let logits = model.forward(&tokens, &mut HookSet::new())?;
    let pos = tokens.pos();
    let before = logits.f_narrow(1, 0, pos - 1)?.f_flatten(0, 1)?.f_to_kind(Kind::Float)?;
    let next = tokens.ids().f_narrow(1, 1, pos - 1)?.f_flatten(0, 1)?;
    Ok(before.f_cross_entropy_loss(&next, None::<Tensor>, tch::Reduction::Mean, -100, 0.0)?)
}

/// Mean loss in nats per token over held-out windows.
pub(crate) fn heldout_loss(model: &Gemma2, windows: &[Vec<i64>]) -> Result<f64> {
    let _no_grad = tch::no_grad_guard();
    let (mut sum, mut n) = (0.0, 0.0);
    for rows in windows.chunks(16) {
        sum += loss(model, rows)?.f_double_value(&[])? * rows.len() as f64;
        n += rows.len() as f64;
    }
    Ok(sum / n)
}

/// Trains, or goes on from `checkpoint/`; logs to `train.jsonl`; leaves the model in `model/`.
pub(crate) fn train(run: &Path, options: &Options) -> Result<()> {
    let config = config();
    let documents = data::load(run, "train")?;
    let heldout = data::windows(&data::load(run, "heldout")?, config.dims.n_ctx, config.bos);
    let quick: Vec<_> = heldout.iter().step_by(8).cloned().collect();
    let model = Gemma2::init(config.clone(), options.seed)?;
    let mut trainer = Trainer::new(&model)?;
    let start = trainer.resume(&run.join("checkpoint.safetensors"))?;
    let mut log = OpenOptions::new().create(true).append(true).open(run.join("train.jsonl"))?;
    let clock = Instant::now();
    let per_epoch =
        data::epoch(&documents, config.dims.n_ctx, config.bos, options.seed, 0).len() / options.batch;
    ensure!(per_epoch > 0, "the corpus is smaller than a batch");
    let mut order = (u64::MAX, Vec::new());
    let mut smooth = None;
    for step in start..options.steps {
        if options.stop_after.is_some_and(|n| step >= start + n) {
            break;
        }
        let epoch = (step / per_epoch) as u64;
        if order.0 != epoch {
            order = (epoch, data::epoch(&documents, config.dims.n_ctx, config.bos, options.seed, epoch));
        }
        let at = (step % per_epoch) * options.batch;
        let rows = order.1.get(at..at + options.batch).context("an epoch is shorter than the first")?;
        let rate = schedule::linear_warmup(step + 1, 150)
            * schedule::linear_decay(step, options.steps, options.steps * 7 / 10, 0.02);
        let value = trainer.step(&model, rows, options.lr * rate)?;
        ensure!(value.is_finite(), "the loss became {value} at step {step}");
        let mean = smooth.map_or(value, |s: f64| 0.98 * s + 0.02 * value);
        smooth = Some(mean);
        let done = step + 1;
        if done % 20 == 0 {
            let seconds = clock.elapsed().as_secs_f64() / (done - start) as f64;
            let line = json!({"step": done, "loss": value, "smooth": mean, "lr": options.lr * rate, "s_per_step": seconds});
            writeln!(log, "{line}")?;
        }
        if done % options.every == 0 || done == options.steps {
            let held = heldout_loss(&model, &quick)?;
            writeln!(log, "{}", json!({"step": done, "heldout_eighth": held}))?;
            println!(
                "step {done}: loss {mean:.4}, held out {held:.4}, {:.0} s",
                clock.elapsed().as_secs_f64()
            );
            trainer.save(&run.join("checkpoint.safetensors"), done)?;
        }
    }
    let full = heldout_loss(&model, &heldout)?;
    writeln!(log, "{}", json!({"heldout": full}))?;
    println!("held-out loss {full:.4} nats per token");
    model.save(&run.join("model"), Kind::Float)?;
    fs::copy(run.join("tokenizer.json"), run.join("model/tokenizer.json"))?;
    Ok(())
}

/// The same model in bfloat16, whose gradients flow back to the float32 weights: mixed precision. On CPUs with bfloat16
/// units the matmuls are five times as fast; elsewhere float32 would be, and this step is merely slow.
fn rounded(model: &Gemma2) -> Result<Gemma2> {
    let mut weights: HashMap<String, &Tensor> = model.parameters().into_iter().collect();
    Ok(Gemma2::from_fn(model.config().clone(), |name, _| {
        let missing = || TensorError::Missing { file: "the model".to_owned(), name: name.to_owned() };
        Ok(weights.remove(name).ok_or_else(missing)?.f_to_kind(Kind::BFloat16)?)
    })?)
}

/// The parameters with their optimiser states.
struct Trainer {
    parameters: Vec<(String, Tensor)>,
    states: Vec<Adam>,
}

impl Trainer {
    fn new(model: &Gemma2) -> Result<Self> {
        let parameters: Vec<_> =
            model.parameters().into_iter().map(|(n, p)| (n, p.shallow_clone())).collect();
        let state = |(_, p): &(String, Tensor)| {
            let weight_decay = if p.dim() == 2 { 0.1 } else { 0.0 };
            Adam::new(p, AdamOptions { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay })
        };
        let states = parameters.iter().map(state).collect::<Result<_, _>>()?;
        Ok(Self { parameters, states })
    }

    /// One step; returns the loss. Gradients are clipped to a norm of 1.
    fn step(&mut self, model: &Gemma2, rows: &[Vec<i64>], lr: f64) -> Result<f64> {
        let loss = loss(&rounded(model)?, rows)?;
        let inputs: Vec<&Tensor> = self.parameters.iter().map(|(_, p)| p).collect();
        let grads = Tensor::f_run_backward(&[&loss], &inputs, false, false)?;
        let mut square = 0.0;
        for grad in &grads {
            square += grad.f_square()?.f_sum(Kind::Float)?.f_double_value(&[])?;
        }
        let clip = (1.0 / square.sqrt().max(1e-12)).min(1.0);
        for (((_, parameter), state), mut grad) in self.parameters.iter().zip(&mut self.states).zip(grads) {
            state.step(parameter, &grad.f_mul_scalar_(clip)?, lr)?;
        }
        Ok(loss.f_double_value(&[])?)
    }

    fn save(&self, path: &Path, step: usize) -> Result<()> {
        let mut tensors: Vec<(String, &Tensor)> = Vec::new();
        for ((name, parameter), state) in self.parameters.iter().zip(&self.states) {
            tensors.push((name.clone(), parameter));
            tensors.extend(state.state().1.into_iter().map(|(moment, t)| (format!("{name}#{moment}"), t)));
        }
        let text = HashMap::from([("step".to_owned(), step.to_string())]);
        Ok(write_safetensors(path, tensors, text)?)
    }

    /// The step to go on from: 0 where there is no checkpoint.
    fn resume(&mut self, path: &Path) -> Result<usize> {
        if !path.exists() {
            return Ok(0);
        }
        let mut file = SafetensorsFile::open(path)?;
        let step =
            file.text().and_then(|t| t.get("step")?.parse().ok()).context("the checkpoint has no step")?;
        let _no_grad = tch::no_grad_guard();
        for ((name, parameter), state) in self.parameters.iter_mut().zip(&mut self.states) {
            parameter.f_copy_(&file.read(name)?)?;
            state.restore(step as i64, |moment| Ok(file.read(&format!("{name}#{moment}"))?))?;
        }
        println!("going on from step {step}");
        Ok(step)
    }
}
