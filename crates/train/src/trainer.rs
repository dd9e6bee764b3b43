use std::{collections::HashMap, path::Path};

use sae_core::Sae;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use tch_ext::{SafetensorsFile, TensorError, expect_kind, expect_shape, write_safetensors};

use crate::{
    Adam, AdamOptions, Params, Result, TrainError,
    config::{Config, GradientPath, Objective, ReconstructionLoss},
    export, init,
    objective::{self, Batch, Moment},
    resample, schedule,
    sparse::{self, Outcome, Update},
    update,
};

/// How much worse than on the first batch the reconstruction may become before a run counts as diverged.
const DIVERGED: f64 = 100.0;

/// Trains one SAE on activations that were divided by their scale.
///
/// Each step is a function of the parameters, the batch and nothing else: no random numbers but those of the start, and of
/// resampling, which are drawn from the seed and the step. So a trainer that was [saved](Self::save) and
/// [restored](Self::restore) goes on as if nothing had been, to the last bit on the same machine's CPU.
#[derive(Debug)]
pub struct Trainer {
    config: Config,
    total_steps: u64,
    seed: u64,
    params: Params,
    /// In the order of [`Params::named`].
    adams: Vec<(&'static str, Adam)>,
    /// Running means of the parameters, in the same order; empty without `optimizer.ema`.
    ema: Vec<Tensor>,
    state: State,
    /// How many tokens had been seen when each latent was last on: `[d_sae]`.
    last_active: Vec<u64>,
    counts: Counts,
}

/// The numbers of a trainer that are no tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    step: u64,
    tokens: u64,
    /// Mean `‖t − t̄‖²` of the first batch.
    variance: f64,
    /// Mean squared error of the first batch.
    first_error: f64,
    /// BatchTopK's.
    threshold: Option<f64>,
    /// Of the last step.
    l0: f64,
}

/// How often each latent was on since these counts were last taken.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Tokens.
    pub tokens: u64,
    /// Of them, those on which the latent was on: `[d_sae]`.
    pub active: Vec<u64>,
}

/// What a step was like, before it was taken.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepStats {
    /// The step, counted from 1.
    pub step: u64,
    /// Tokens seen, this step's with them.
    pub tokens: u64,
    /// The learning rate.
    pub lr: f64,
    /// λ; 0 for objectives without.
    pub lambda: f64,
    /// The loss: the sum of its parts.
    pub loss: f64,
    /// The loss's terms, weights included.
    pub parts: Vec<(String, f64)>,
    /// Mean number of active latents a token.
    pub l0: f64,
    /// `Σ ‖t − x̂‖² / Σ ‖t − t̄‖²` over the batch, t its targets: the FVU of `eval`, on one batch.
    pub fvu: f64,
    /// Latents that were on for none of the last `dead_after` tokens.
    pub dead: i64,
    /// The norm of all gradients before they were clipped, where they are.
    pub grad_norm: Option<f64>,
}

impl Trainer {
    /// Begins a run of `total_steps`; the same seed gives the same weights everywhere.
    ///
    /// # Errors
    /// [`TrainError::Config`]; libtorch's, as for a device that is not there.
    pub fn new(config: Config, total_steps: u64, seed: u64, device: Device) -> Result<Self> {
        config.validate()?;
        let params = init::params(&config, seed, device)?;
        let o = &config.optimizer;
        let options = AdamOptions { beta1: o.beta1, beta2: o.beta2, eps: o.eps, weight_decay: 0.0 };
        let adams = params.named().into_iter().map(|(name, t)| Ok((name, Adam::new(t, options)?)));
        let adams = adams.collect::<Result<_>>()?;
        let ema = match o.ema {
            Some(_) => params.named().into_iter().map(|(_, t)| t.f_zeros_like()).collect::<Result<_, _>>()?,
            None => Vec::new(),
        };
        let d_sae = config.d_sae as usize;
        let counts = Counts { tokens: 0, active: vec![0; d_sae] };
        let state = State::default();
        Ok(Self { total_steps, seed, params, adams, ema, state, last_active: vec![0; d_sae], counts, config })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// Steps taken.
    pub fn step_count(&self) -> u64 {
        self.state.step
    }

    /// Mean number of active latents a token at the last step; 0 before the first.
    pub fn last_l0(&self) -> f64 {
        self.state.l0
    }

    /// One step on a batch: `x` is `[B, d_in]`, `target` `[B, d_out]`, float32, both divided by their scales; an SAE's target is `x`
    /// itself and is not given.
    ///
    /// # Errors
    /// Activations of another shape or dtype, or that are not finite; a missing target; [`TrainError::Diverged`]. After an error no
    /// parameter has moved.
    pub fn step(&mut self, x: &Tensor, target: Option<&Tensor>) -> Result<StepStats> {
        let batch = self.check(x, target)?;
        let rows = batch.x.size()[0] as u64;
        let deviation = deviation(batch.target)?;
        if !deviation.is_finite() {
            return Err(TrainError::Activations { step: self.state.step + 1 });
        }
        if self.state.step == 0 {
            if deviation == 0.0 && self.normalizes() {
                let problem = "the first batch's rows are all the same: `objective.reconstruction = \"normalized\"` divides by their variance";
                return Err(TrainError::Config(problem.to_owned()));
            }
            self.begin(batch.target, deviation / rows as f64)?;
        }
        self.resample(batch)?;
        let at = self.moment()?;
        let lr = self.config.optimizer.rate(self.state.step, self.total_steps);
        let outcome = match self.config.gradients {
            GradientPath::Sparse if sparse::supports(&self.config, &self.params) => {
                self.sparse_step(batch, &at, lr)?
            }
            _ => self.plain_step(batch, &at, lr)?,
        };
        self.average()?;
        Ok(self.account(outcome, rows, deviation, &at, lr))
    }

    fn check<'b>(&self, x: &'b Tensor, target: Option<&'b Tensor>) -> Result<Batch<'b>> {
        let rows = x.size().first().copied().unwrap_or(0);
        expect_kind("the activations", x, &[Kind::Float])?;
        expect_shape("the activations", x, &[("rows", rows), ("d_in", self.config.d_in)])?;
        if rows == 0 {
            return Err(TrainError::Config("a batch must have rows".to_owned()));
        }
        let target = match (self.config.is_transcoder(), target) {
            (false, None) => x,
            (true, Some(target)) => target,
            (true, None) => return Err(TrainError::Config("a transcoder's batch needs a target".to_owned())),
            (false, Some(_)) => {
                return Err(TrainError::Config(
                    "an SAE's target is its input: none is to be given".to_owned(),
                ));
            }
        };
        expect_kind("the targets", target, &[Kind::Float])?;
        expect_shape("the targets", target, &[("rows", rows), ("d_out", self.config.d_out())])?;
        Ok(Batch { x, target })
    }

    /// What the first batch decides.
    fn begin(&mut self, target: &Tensor, variance: f64) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.params.b_dec.f_copy_(&init::b_dec(self.config.init.b_dec, target)?)?;
        self.state.variance = variance;
        Ok(())
    }

    fn resample(&mut self, batch: Batch<'_>) -> Result<()> {
        let Some(resample) = self.config.resample else { return Ok(()) };
        let step = self.state.step;
        if step == 0 || !step.is_multiple_of(resample.every) || step > resample.until {
            return Ok(());
        }
        let at = self.moment()?;
        if resample::resample(&self.config, &self.params, &mut self.adams, batch, &at, (self.seed, step))? {
            // They begin anew, and are dead again only after as long a silence as any other.
            for last in self.last_active.iter_mut().filter(|last| is_dead(**last, &self.state, &self.config))
            {
                *last = self.state.tokens;
            }
        }
        Ok(())
    }

    fn moment(&self) -> Result<Moment> {
        let (lambda, warmup) = self.config.lambda();
        let dead: Vec<bool> =
            self.last_active.iter().map(|last| is_dead(*last, &self.state, &self.config)).collect();
        let n_dead = dead.iter().filter(|dead| **dead).count() as i64;
        Ok(Moment {
            lambda: schedule::warmed(lambda, warmup, self.state.step, self.total_steps),
            dead: Tensor::f_from_slice(&dead)?.f_to_device(self.params.w_enc.device())?,
            n_dead,
            variance: if self.normalizes() { self.state.variance } else { 1.0 },
        })
    }

    fn normalizes(&self) -> bool {
        matches!(&self.config.objective, Objective::Topk(t) if t.reconstruction == ReconstructionLoss::Normalized)
    }

    fn sparse_step(&mut self, batch: Batch<'_>, at: &Moment, lr: f64) -> Result<Outcome> {
        let adam = AdamOptions {
            beta1: self.config.optimizer.beta1,
            beta2: self.config.optimizer.beta2,
            eps: self.config.optimizer.eps,
            weight_decay: 0.0,
        };
        let update = Update {
            lr,
            adam,
            step: self.state.step + 1,
            decoder: self.config.decoder,
            clip: self.config.optimizer.clip,
            most_error: self.most_error(batch.x.size()[0]),
        };
        let outcome = sparse::step(&self.config, &mut self.params, &mut self.adams, batch, at, &update)?;
        self.expect_sound(&outcome.parts, outcome.squared_error, outcome.grad_norm, batch)?;
        Ok(outcome)
    }

    fn plain_step(&mut self, batch: Batch<'_>, at: &Moment, lr: f64) -> Result<Outcome> {
        let (loss, grads) = objective::gradients(&self.config, &self.params, batch, at)?;
        let parts = loss.parts.iter().map(|(name, part)| Ok((name.clone(), part.f_double_value(&[])?)));
        let parts: Vec<(String, f64)> = parts.collect::<Result<_>>()?;
        let squared_error =
            batch.target.f_sub(&loss.recon)?.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
        self.expect_sound(&parts, squared_error, None, batch)?;
        let on = loss.features.f_gt(0.0)?;
        let active = on.f_sum_dim_intlist(0, false, Kind::Int64)?;
        let smallest = loss.features.f_masked_select(&on)?;
        let smallest_active = match smallest.numel() {
            0 => None,
            _ => Some(smallest.f_min()?.f_double_value(&[])?),
        };
        let grad_norm = update::apply(&self.config, &self.params, &mut self.adams, grads, lr)?;
        self.expect_sound(&parts, squared_error, grad_norm, batch)?;
        let active = Vec::<i64>::try_from(active.f_to_device(Device::Cpu)?)?;
        let active = active.into_iter().map(|n| n as u32).collect();
        Ok(Outcome { parts, squared_error, active, grad_norm, smallest_active })
    }

    /// Refuses a loss that is not finite, and a reconstruction far worse than the first.
    fn expect_sound(
        &mut self,
        parts: &[(String, f64)],
        squared_error: f64,
        grad_norm: Option<f64>,
        batch: Batch<'_>,
    ) -> Result<()> {
        let step = self.state.step + 1;
        if let Some((name, value)) = parts.iter().find(|(_, value)| !value.is_finite()) {
            let input = batch.x.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0;
            if !input {
                return Err(TrainError::Activations { step });
            }
            return Err(TrainError::Diverged {
                step,
                cause: format!("the loss's term `{name}` became {value}"),
            });
        }
        if let Some(norm) = grad_norm.filter(|norm| !norm.is_finite()) {
            return Err(TrainError::Diverged { step, cause: format!("the gradients' norm became {norm}") });
        }
        let rows = batch.x.size()[0];
        if squared_error > self.most_error(rows) {
            let (error, first) = (squared_error / rows as f64, self.state.first_error);
            let cause = format!(
                "the mean squared error became {error:.3e}, which on the first batch was {first:.3e}"
            );
            return Err(TrainError::Diverged { step, cause });
        }
        if self.state.step == 0 {
            self.state.first_error = squared_error / rows as f64;
        }
        Ok(())
    }

    /// The squared error of a batch of so many rows from which on a run counts as diverged.
    fn most_error(&self, rows: i64) -> f64 {
        if self.state.step == 0 {
            return f64::INFINITY;
        }
        DIVERGED * self.state.first_error.max(self.state.variance) * rows as f64
    }

    /// The running mean of the weights.
    fn average(&mut self) -> Result<()> {
        let Some(decay) = self.config.optimizer.ema else { return Ok(()) };
        let _no_grad = tch::no_grad_guard();
        for (mean, (_, tensor)) in self.ema.iter_mut().zip(self.params.named()) {
            let _ = mean.f_mul_scalar_(decay)?.f_add_(&tensor.f_mul_scalar(1.0 - decay)?)?;
        }
        Ok(())
    }

    fn account(&mut self, outcome: Outcome, rows: u64, deviation: f64, at: &Moment, lr: f64) -> StepStats {
        let s = &mut self.state;
        s.step += 1;
        s.tokens += rows;
        self.counts.tokens += rows;
        let mut active = 0;
        for ((last, count), rows) in
            self.last_active.iter_mut().zip(&mut self.counts.active).zip(&outcome.active)
        {
            if *rows > 0 {
                *last = s.tokens;
            }
            *count += u64::from(*rows);
            active += u64::from(*rows);
        }
        if let (Objective::Topk(t), Some(smallest)) = (&self.config.objective, outcome.smallest_active) {
            let moved = |rate| s.threshold.map_or(smallest, |there| (1.0 - rate) * there + rate * smallest);
            s.threshold = t.threshold_lr.map(moved);
        }
        s.l0 = active as f64 / rows as f64;
        let dead = self.last_active.iter().filter(|last| is_dead(**last, s, &self.config)).count() as i64;
        StepStats {
            step: s.step,
            tokens: s.tokens,
            lr,
            lambda: at.lambda,
            loss: outcome.parts.iter().map(|(_, part)| part).sum(),
            parts: outcome.parts,
            l0: s.l0,
            fvu: outcome.squared_error / deviation,
            dead,
            grad_norm: outcome.grad_norm,
        }
    }

    /// How often each latent was on since this was last asked.
    pub fn take_counts(&mut self) -> Counts {
        let fresh = Counts { tokens: 0, active: vec![0; self.counts.active.len()] };
        std::mem::replace(&mut self.counts, fresh)
    }

    /// The SAE for activations as they come: what it reads has the scale `read`, what it writes the scale `written` (for an SAE the
    /// same). Scales and pre-encoder bias are folded away (Gemma Scope, appendix B); a decoder of free norm becomes one of unit rows,
    /// its norms moved into the latents; BatchTopK and Matryoshka become JumpReLU. With `optimizer.ema` its mean is exported.
    ///
    /// # Errors
    /// A scale that is not positive; BatchTopK before its first step.
    pub fn to_sae(&self, read: f64, written: f64) -> Result<Sae> {
        let _no_grad = tch::no_grad_guard();
        let averaged = self.averaged()?;
        export::sae(
            &self.config,
            averaged.as_ref().unwrap_or(&self.params),
            self.state.threshold,
            (read, written),
        )
    }

    /// The bias-corrected running mean of the weights.
    fn averaged(&self) -> Result<Option<Params>> {
        let Some(decay) = self.config.optimizer.ema.filter(|_| self.state.step > 0) else { return Ok(None) };
        let share = 1.0 - decay.powf(self.state.step as f64);
        let mut means =
            self.ema.iter().map(|mean| mean.f_div_scalar(share)).collect::<Result<Vec<_>, _>>()?;
        let p = &self.params;
        let last = |there: bool, means: &mut Vec<Tensor>| if there { means.pop() } else { None };
        let w_skip = last(p.w_skip.is_some(), &mut means);
        let b_mag = last(p.b_mag.is_some(), &mut means);
        let r_mag = last(p.r_mag.is_some(), &mut means);
        let threshold = last(p.threshold.is_some(), &mut means);
        let Ok([w_enc, b_enc, w_dec, b_dec]) = <[Tensor; 4]>::try_from(means) else { return Ok(None) };
        Ok(Some(Params { w_enc, b_enc, w_dec, b_dec, threshold, r_mag, b_mag, w_skip }))
    }

    /// Writes all that [`restore`](Self::restore) needs.
    ///
    /// # Errors
    /// The system's.
    pub fn save(&self, path: &Path) -> Result<()> {
        let last: Vec<i64> = self.last_active.iter().map(|n| *n as i64).collect();
        let counts: Vec<i64> = self.counts.active.iter().map(|n| *n as i64).collect();
        let (last, counts) = (Tensor::f_from_slice(&last)?, Tensor::f_from_slice(&counts)?);
        let mut all = vec![("last_active".to_owned(), last), ("counts".to_owned(), counts)];
        for ((name, tensor), (_, adam)) in self.params.named().into_iter().zip(&self.adams) {
            all.push((name.to_owned(), tensor.f_to_device(Device::Cpu)?));
            for (moment, t) in adam.state().1 {
                all.push((format!("{name}#{moment}"), t.f_to_device(Device::Cpu)?));
            }
        }
        for ((name, _), mean) in self.params.named().into_iter().zip(&self.ema) {
            all.push((format!("{name}#ema"), mean.f_to_device(Device::Cpu)?));
        }
        let about = About {
            config: self.config.clone(),
            total_steps: self.total_steps,
            seed: self.seed,
            state: self.state,
            counted: self.counts.tokens,
        };
        let about = serde_json::to_string(&about).map_err(|e| TrainError::Config(e.to_string()))?;
        let text = HashMap::from([("trainer".to_owned(), about)]);
        Ok(write_safetensors(path, all.iter().map(|(name, t)| (name.clone(), t)), text)?)
    }

    /// Takes up what [`save`](Self::save) wrote: what follows is to the last bit what would have followed there.
    ///
    /// # Errors
    /// The system's; a checkpoint of another configuration, number of steps, or seed; tensors of other shapes.
    pub fn restore(&mut self, path: &Path) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let mut file = SafetensorsFile::open(path)?;
        let about = file.text().and_then(|text| text.get("trainer")).cloned();
        let missing =
            || TensorError::Missing { file: path.display().to_string(), name: "trainer".to_owned() };
        let about: About = serde_json::from_str(&about.ok_or_else(missing)?)
            .map_err(|e| TrainError::Checkpoint { path: path.to_owned(), problem: e.to_string() })?;
        let other = |what: &str| TrainError::Checkpoint {
            path: path.to_owned(),
            problem: format!("belongs to a run with another {what}"),
        };
        if about.config != self.config {
            return Err(other("configuration"));
        }
        if about.total_steps != self.total_steps {
            return Err(other(&format!("number of steps ({})", about.total_steps)));
        }
        if about.seed != self.seed {
            return Err(other(&format!("seed ({})", about.seed)));
        }
        for (name, tensor) in self.params.named() {
            fill(&mut file, tensor, name)?;
        }
        for ((name, _), mean) in self.params.named().into_iter().zip(&self.ema) {
            fill(&mut file, mean, &format!("{name}#ema"))?;
        }
        for (name, adam) in &mut self.adams {
            adam.restore(about.state.step as i64, |moment| Ok(file.read(&format!("{name}#{moment}"))?))?;
        }
        let d_sae = self.config.d_sae;
        self.last_active = integers(&mut file, "last_active", d_sae)?;
        self.counts = Counts { tokens: about.counted, active: integers(&mut file, "counts", d_sae)? };
        self.state = about.state;
        Ok(())
    }
}

/// The text of a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct About {
    config: Config,
    total_steps: u64,
    seed: u64,
    state: State,
    counted: u64,
}

fn is_dead(last_active: u64, state: &State, config: &Config) -> bool {
    state.tokens - last_active >= config.dead_after
}

fn fill(file: &mut SafetensorsFile, tensor: &Tensor, name: &str) -> Result<()> {
    let saved = file.read(name)?;
    let axes: Vec<_> = tensor.size().iter().map(|n| ("size", *n)).collect();
    expect_shape(&format!("{}: {name}", file.name()), &saved, &axes)?;
    Ok(tensor.shallow_clone().f_copy_(&saved)?)
}

fn integers(file: &mut SafetensorsFile, name: &str, n: i64) -> Result<Vec<u64>> {
    let saved = file.read_integers(name)?;
    expect_shape(&format!("{}: {name}", file.name()), &saved, &[("d_sae", n)])?;
    let saved = Vec::<i64>::try_from(saved)?;
    Ok(saved.into_iter().map(|n| n as u64).collect())
}

/// `Σ ‖t − t̄‖²` over the rows of `[B, d]`.
fn deviation(target: &Tensor) -> Result<f64> {
    let _no_grad = tch::no_grad_guard();
    let mean = target.f_mean_dim(0, true, Kind::Float)?;
    let rows = target.f_sub(&mean)?.f_square_()?.f_sum_dim_intlist(1, false, Kind::Float)?;
    Ok(rows.f_sum(Kind::Double)?.f_double_value(&[])?)
}
