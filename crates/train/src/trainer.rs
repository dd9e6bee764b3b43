use std::{collections::HashMap, path::Path};

use rand::{SeedableRng as _, rngs::StdRng};
use rand_distr::{Distribution as _, StandardNormal};
use sae_core::Sae;
use tch::{Kind, Tensor};
use tch_ext::{SafetensorsFile, TensorError, expect_shape, write_safetensors};

use crate::{Adam, AdamOptions, Gradients, Parameters, Result, TrainError, gradients, schedule};

/// The Gemma Scope recipe (section 3), with every constant open.
#[derive(Debug, Clone, PartialEq)]
pub struct JumpReluConfig {
    /// Width of the activations.
    pub d_in: i64,
    /// Number of latents.
    pub d_sae: i64,
    /// Steps in all.
    pub steps: usize,
    /// λ, the price of an active latent, after its warm-up.
    pub lambda: f64,
    /// Steps over which λ rises from 0.
    pub lambda_warmup: usize,
    /// The learning rate, after its warm-up.
    pub lr: f64,
    /// Steps over which the learning rate rises from a tenth.
    pub lr_warmup: usize,
    /// Last steps over which the learning rate falls to zero. Gemma Scope has none.
    pub lr_decay: usize,
    /// ε of the straight-through kernel.
    pub bandwidth: f64,
    /// θ at the start.
    pub initial_threshold: f64,
}

impl JumpReluConfig {
    /// Gemma Scope's constants, for activations of unit mean square norm. They are made for 10⁶ steps and more: over a few
    /// thousand, thresholds that move by a rate of 7e-5 stay where they began.
    pub fn gemma_scope(d_in: i64, d_sae: i64, steps: usize, lambda: f64) -> Self {
        Self {
            d_in,
            d_sae,
            steps,
            lambda,
            lambda_warmup: 10_000,
            lr: 7e-5,
            lr_warmup: 1_000,
            lr_decay: 0,
            bandwidth: 0.001,
            initial_threshold: 0.001,
        }
    }

    fn validate(&self) -> Result<()> {
        let positive = [
            ("d_in", self.d_in as f64),
            ("d_sae", self.d_sae as f64),
            ("lr", self.lr),
            ("bandwidth", self.bandwidth),
            ("initial_threshold", self.initial_threshold),
        ];
        match positive.iter().find(|(_, v)| !(v.is_finite() && *v > 0.0)) {
            Some((name, v)) => Err(TrainError::Config(format!("`{name}` must be positive, but is {v}"))),
            None if !(self.lambda.is_finite() && self.lambda >= 0.0) => {
                Err(TrainError::Config(format!("`lambda` must not be negative, but is {}", self.lambda)))
            }
            None => Ok(()),
        }
    }
}

/// What a step was like, before it was taken.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepStats {
    /// Mean of `‖x − x̂‖²`; with unit mean square norm this is near the FVU.
    pub mse: f64,
    /// Mean number of active latents.
    pub l0: f64,
    /// Latents that no row of the last [`WINDOW`](Self::WINDOW) steps activated.
    pub silent: i64,
}

impl StepStats {
    /// Steps without an activation after which a latent is called silent.
    pub const WINDOW: i64 = 200;
}

/// Trains a JumpReLU SAE on normalised activations.
///
/// Adam with β = (0, 0.999) and ε = 1e-8; thresholds as their logarithms; decoder rows kept at unit norm, with the part of
/// their gradient along them taken out before Adam sees it; encoder begun as the decoder's transpose; biases at zero.
#[derive(Debug)]
pub struct JumpReluTrainer {
    config: JumpReluConfig,
    parameters: Parameters,
    log_threshold: Tensor,
    /// In the order of [`NAMES`].
    adams: [Adam; 5],
    step: usize,
    /// The step at which each latent was last active: `[d_sae]`, int64.
    last_fired: Tensor,
}

/// The trained tensors, by their names in a checkpoint.
const NAMES: [&str; 5] = ["W_enc", "b_enc", "W_dec", "b_dec", "log_threshold"];

impl JumpReluTrainer {
    /// Begins. The same seed gives the same weights everywhere.
    ///
    /// # Errors
    /// [`TrainError::Config`].
    pub fn new(config: JumpReluConfig, seed: u64) -> Result<Self> {
        config.validate()?;
        let count = (config.d_in * config.d_sae) as usize;
        let values: Vec<f32> = StandardNormal.sample_iter(StdRng::seed_from_u64(seed)).take(count).collect();
        let w_dec = unit_rows(&Tensor::f_from_slice(&values)?.f_reshape([config.d_sae, config.d_in])?)?;
        let zeros = |n: i64| Tensor::f_zeros([n], (Kind::Float, tch::Device::Cpu));
        let log_threshold = zeros(config.d_sae)?.f_add_scalar(config.initial_threshold.ln())?;
        let parameters = Parameters {
            w_enc: w_dec.f_tr()?.f_contiguous()?,
            b_enc: zeros(config.d_sae)?,
            b_dec: zeros(config.d_in)?,
            threshold: log_threshold.f_exp()?,
            w_dec,
        };
        let options = AdamOptions { beta1: 0.0, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
        let p = &parameters;
        let adam = |t: &Tensor| Adam::new(t, options);
        let adams =
            [adam(&p.w_enc)?, adam(&p.b_enc)?, adam(&p.w_dec)?, adam(&p.b_dec)?, adam(&log_threshold)?];
        let last_fired = Tensor::f_zeros([config.d_sae], (Kind::Int64, tch::Device::Cpu))?;
        Ok(Self { config, parameters, log_threshold, adams, step: 0, last_fired })
    }

    /// How many steps have been taken.
    pub fn steps_taken(&self) -> usize {
        self.step
    }

    /// One step on a batch of activations, `[B, d_in]`, divided by the scale that makes their mean square norm one.
    ///
    /// # Errors
    /// Activations of another width; [`TrainError::Diverged`].
    pub fn step(&mut self, x: &Tensor) -> Result<StepStats> {
        let _no_grad = tch::no_grad_guard();
        let c = &self.config;
        expect_shape(
            "activations",
            x,
            &[("rows", x.size().first().copied().unwrap_or(0)), ("d_in", c.d_in)],
        )?;
        let lambda = c.lambda * schedule::linear_warmup(self.step, c.lambda_warmup);
        let lr = c.lr
            * schedule::cosine_warmup(self.step, c.lr_warmup, 0.1)
            * schedule::linear_decay(self.step, c.steps, c.lr_decay, 0.0);
        let grads = gradients(&self.parameters, x, lambda, c.bandwidth)?;
        if !grads.mse.is_finite() {
            return Err(TrainError::Diverged { step: self.step, loss: grads.mse });
        }
        self.step += 1;
        let now = Tensor::f_full_like(&self.last_fired, self.step as i64)?;
        self.last_fired = now.f_where_self(&grads.fired, &self.last_fired)?;
        let silent = self.last_fired.f_lt(self.step as i64 - StepStats::WINDOW)?.f_sum(Kind::Int64)?;
        self.apply(&grads, lr)?;
        Ok(StepStats { mse: grads.mse, l0: grads.l0, silent: silent.f_int64_value(&[])? })
    }

    fn apply(&mut self, grads: &Gradients, lr: f64) -> Result<()> {
        let p = &mut self.parameters;
        let along = grads.w_dec.f_mul(&p.w_dec)?.f_sum_dim_intlist(1, true, Kind::Float)?;
        let across = grads.w_dec.f_sub(&p.w_dec.f_mul(&along)?)?;
        let d_log = grads.threshold.f_mul(&p.threshold)?;
        let [w_enc, b_enc, w_dec, b_dec, log_threshold] = &mut self.adams;
        w_enc.step(&p.w_enc, &grads.w_enc, lr)?;
        b_enc.step(&p.b_enc, &grads.b_enc, lr)?;
        w_dec.step(&p.w_dec, &across, lr)?;
        b_dec.step(&p.b_dec, &grads.b_dec, lr)?;
        log_threshold.step(&self.log_threshold, &d_log, lr)?;
        p.w_dec = unit_rows(&p.w_dec)?;
        p.threshold = self.log_threshold.f_exp()?;
        Ok(())
    }

    /// The SAE for activations as they come, whose mean square norm is `scale²`, with scale and pre-encoder bias folded in
    /// (Gemma Scope, appendix B): `b_enc' = C (b_enc − b_dec W_enc)`, `b_dec' = C b_dec`, `θ' = C θ`.
    ///
    /// # Errors
    /// A scale that is not positive.
    pub fn to_sae(&self, scale: f64) -> Result<Sae> {
        if !(scale.is_finite() && scale > 0.0) {
            return Err(TrainError::Config(format!("the scale must be positive, but is {scale}")));
        }
        let p = &self.parameters;
        let b_enc = p.b_enc.f_sub(&p.w_enc.f_tr()?.f_mv(&p.b_dec)?)?.f_mul_scalar(scale)?;
        let scaled = |t: &Tensor| t.f_mul_scalar(scale);
        let copy = |t: &Tensor| t.f_mul_scalar(1.0);
        Ok(Sae::jumprelu(copy(&p.w_enc)?, b_enc, copy(&p.w_dec)?, scaled(&p.b_dec)?, scaled(&p.threshold)?)?)
    }

    fn tensors(&self) -> [&Tensor; 5] {
        let p = &self.parameters;
        [&p.w_enc, &p.b_enc, &p.w_dec, &p.b_dec, &self.log_threshold]
    }

    /// Writes all that [`resume`](Self::resume) needs.
    ///
    /// # Errors
    /// The system's.
    pub fn save(&self, path: &Path) -> Result<()> {
        let mut all: Vec<(String, &Tensor)> = vec![("last_fired".to_owned(), &self.last_fired)];
        for ((name, tensor), adam) in NAMES.iter().zip(self.tensors()).zip(&self.adams) {
            all.push(((*name).to_owned(), tensor));
            all.extend(adam.state().1.into_iter().map(|(moment, t)| (format!("{name}#{moment}"), t)));
        }
        let text = HashMap::from([("step".to_owned(), self.step.to_string())]);
        Ok(write_safetensors(path, all, text)?)
    }

    /// Goes on from a checkpoint: what follows is to the last bit what would have followed then.
    ///
    /// # Errors
    /// The system's; a checkpoint of other shapes.
    pub fn resume(config: JumpReluConfig, path: &Path) -> Result<Self> {
        let mut trainer = Self::new(config, 0)?;
        let mut file = SafetensorsFile::open(path)?;
        let step = file.text().and_then(|t| t.get("step")?.parse().ok());
        let missing = || TensorError::Missing { file: path.display().to_string(), name: "step".to_owned() };
        trainer.step = step.ok_or_else(missing)?;
        let mut fill = |tensor: &Tensor, name: &str| -> Result<()> {
            let saved = file.read(name)?;
            let axes: Vec<_> = tensor.size().iter().map(|n| ("size", *n)).collect();
            expect_shape(&format!("{}: {name}", path.display()), &saved, &axes)?;
            Ok(tensor.shallow_clone().f_copy_(&saved)?)
        };
        for (name, tensor) in NAMES.iter().zip(trainer.tensors()) {
            fill(tensor, name)?;
        }
        fill(&trainer.last_fired, "last_fired")?;
        for (name, adam) in NAMES.iter().zip(&mut trainer.adams) {
            adam.restore(trainer.step as i64, |moment| Ok(file.read(&format!("{name}#{moment}"))?))?;
        }
        trainer.parameters.threshold = trainer.log_threshold.f_exp()?;
        Ok(trainer)
    }
}

/// Each row divided by its norm.
fn unit_rows(w: &Tensor) -> Result<Tensor> {
    let norm = w.f_square()?.f_sum_dim_intlist(1, true, Kind::Float)?.f_sqrt()?;
    Ok(w.f_div(&norm.f_clamp_min(1e-12)?)?)
}
