//! Configurations and parameters for the tests of the losses.

use tch::{Device, Kind, Tensor};
use testkit::{normal, uniform};
use train::{
    Params,
    config::{
        BiasInit, Config, Curve, Decoder, EncoderInit, Gated, GradientPath, Init, JumpRelu, Objective,
        Optimizer, Over, PrefixLoss, ReconstructionLoss, Relu, Scale, Span, Sparsity, Threshold, TopK,
    },
    objective::{Batch, Moment},
};

/// An SAE with a pre-encoder bias; of the rest, losses read nothing.
pub(crate) fn sae(d_in: i64, d_sae: i64, objective: Objective) -> Config {
    let none = Span::Steps(0);
    Config {
        d_in,
        d_out: None,
        d_sae,
        scale: Scale::None,
        skip: false,
        pre_encoder_bias: true,
        objective,
        optimizer: Optimizer {
            lr: 1e-3,
            lr_warmup: none,
            lr_warmup_from: 0.0,
            lr_warmup_shape: Curve::Linear,
            lr_decay: none,
            lr_decay_to: 0.0,
            lr_decay_shape: Curve::Linear,
            beta1: 0.0,
            beta2: 0.999,
            eps: 1e-8,
            clip: None,
            ema: None,
        },
        decoder: Decoder { unit_norm: false, project_gradient: false },
        init: Init { decoder_norm: 1.0, encoder: EncoderInit::Transpose, b_dec: BiasInit::Zero },
        dead_after: 1000,
        resample: None,
        gradients: GradientPath::Plain,
    }
}

/// A transcoder to `d_out`.
pub(crate) fn transcoder(d_in: i64, d_out: i64, d_sae: i64, skip: bool, objective: Objective) -> Config {
    Config { d_out: Some(d_out), skip, pre_encoder_bias: false, ..sae(d_in, d_sae, objective) }
}

/// Gemma Scope's JumpReLU with a wide kernel.
pub(crate) fn jumprelu() -> JumpRelu {
    JumpRelu {
        lambda: 0.03,
        lambda_warmup: Span::Steps(0),
        sparsity: Sparsity::L0,
        bandwidth: 0.5,
        threshold: Threshold::Log,
        initial_threshold: 0.4,
        gradient_to_input: false,
        pre_act: None,
        frequency_penalty: None,
        prefixes: vec![],
        prefix_loss: PrefixLoss::Mean,
    }
}

/// The paper's Gated objective.
pub(crate) fn gated() -> Gated {
    Gated { lambda: 0.05, lambda_warmup: Span::Steps(0), frozen_decoder: true, l1_by_decoder_norm: false }
}

/// TopK without auxiliary loss.
pub(crate) fn topk(k: f64, over: Over) -> TopK {
    TopK {
        k,
        over,
        reconstruction: ReconstructionLoss::Sum,
        rescale_by_decoder_norm: false,
        aux: None,
        threshold_lr: None,
        prefixes: vec![],
        prefix_loss: PrefixLoss::Mean,
    }
}

/// L1 as of before 2024.
pub(crate) fn relu() -> Relu {
    Relu { lambda: 0.05, lambda_warmup: Span::Steps(0), l1_by_decoder_norm: false }
}

/// One of each architecture.
pub(crate) fn every_architecture() -> [(&'static str, Objective); 5] {
    [
        ("jumprelu", Objective::Jumprelu(jumprelu())),
        ("gated", Objective::Gated(gated())),
        ("topk", Objective::Topk(topk(3.0, Over::Row))),
        ("batchtopk", Objective::Topk(topk(2.5, Over::Batch))),
        ("relu", Objective::Relu(relu())),
    ]
}

/// Parameters with nothing at zero or at one: thresholds between 0.2 and 1, decoder rows of different norms.
pub(crate) fn params(config: &Config, seed: u64) -> Params {
    let (d_in, d_sae) = (config.d_in, config.d_sae);
    let d_out = config.d_out.unwrap_or(d_in);
    let of = |size: &[i64], scale: f64, n: u64| normal(size, 100 * seed + n) * scale;
    let is_gated = matches!(config.objective, Objective::Gated(_));
    let theta = uniform(&[d_sae], 0.2, 1.0, 100 * seed + 9);
    Params {
        w_enc: of(&[d_sae, d_in], 1.0 / (d_in as f64).sqrt(), 1),
        b_enc: of(&[d_sae], 0.2, 2),
        w_dec: of(&[d_sae, d_out], 1.0 / (d_out as f64).sqrt(), 3),
        b_dec: of(&[d_out], 0.2, 4),
        threshold: match &config.objective {
            Objective::Jumprelu(j) if j.threshold == Threshold::Log => Some(theta.log()),
            Objective::Jumprelu(_) => Some(theta),
            _ => None,
        },
        r_mag: is_gated.then(|| of(&[d_sae], 0.2, 5)),
        b_mag: is_gated.then(|| of(&[d_sae], 0.2, 6)),
        w_skip: config.skip.then(|| of(&[d_out, d_in], 0.3, 7)),
    }
}

/// Every tensor put through `f`, which gets its name.
pub(crate) fn map(p: &Params, mut f: impl FnMut(&'static str, &Tensor) -> Tensor) -> Params {
    Params {
        w_enc: f("W_enc", &p.w_enc),
        b_enc: f("b_enc", &p.b_enc),
        w_dec: f("W_dec", &p.w_dec),
        b_dec: f("b_dec", &p.b_dec),
        threshold: p.threshold.as_ref().map(|t| f("threshold", t)),
        r_mag: p.r_mag.as_ref().map(|t| f("r_mag", t)),
        b_mag: p.b_mag.as_ref().map(|t| f("b_mag", t)),
        w_skip: p.w_skip.as_ref().map(|t| f("W_skip", t)),
    }
}

/// A batch that owns its tensors.
pub(crate) struct Rows {
    pub(crate) x: Tensor,
    pub(crate) target: Tensor,
}

impl Rows {
    /// Random rows for `config`; a transcoder's targets are others than its inputs.
    pub(crate) fn new(config: &Config, rows: i64, seed: u64) -> Self {
        let x = normal(&[rows, config.d_in], 100 * seed + 11) * 1.5 + 0.2;
        let target = match config.d_out {
            Some(d_out) => normal(&[rows, d_out], 100 * seed + 12),
            None => x.shallow_clone(),
        };
        Self { x, target }
    }

    pub(crate) fn batch(&self) -> Batch<'_> {
        Batch { x: &self.x, target: &self.target }
    }

    pub(crate) fn in_kind(&self, kind: Kind) -> Self {
        Self { x: self.x.to_kind(kind), target: self.target.to_kind(kind) }
    }

    /// Rows `from..to`.
    pub(crate) fn part(&self, from: i64, to: i64) -> Self {
        Self { x: self.x.narrow(0, from, to - from), target: self.target.narrow(0, from, to - from) }
    }
}

/// λ, with these latents dead.
pub(crate) fn moment(lambda: f64, d_sae: i64, dead: &[i64]) -> Moment {
    let mask = Tensor::zeros([d_sae], (Kind::Bool, Device::Cpu));
    for i in dead {
        let _ = mask.get(*i).fill_(1);
    }
    Moment { lambda, dead: mask, n_dead: dead.len() as i64, variance: 1.0 }
}
