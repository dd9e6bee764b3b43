//! A training step with Adam, decoder projection and unit norm, of an SAE of 2B's width with random weights.

use anyhow::Result;
use clap::ValueEnum;
use gemma_scope::{
    tch::{self, Kind, Tensor},
    train::{
        Adam, AdamOptions, Params,
        config::{
            Aux, AuxForm, BiasInit, Config, Curve, Decoder, EncoderInit, GradientPath, Init, JumpRelu,
            Objective, Optimizer, Over, PrefixLoss, ReconstructionLoss, Scale, Span, Sparsity, Threshold,
            TopK,
        },
        objective::{Batch, Moment},
        sparse::{Update, step},
    },
};
use serde_json::json;

use crate::{
    sae::{Shape, Weights},
    timing::Clock,
    work::{On, finish},
};

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Trained {
    /// JumpReLU, thresholds as logarithms, `mean ‖x − x̂‖² + λ mean L0`.
    Jumprelu,
    /// TopK with AuxK.
    Topk,
    /// BatchTopK with AuxK.
    Batchtopk,
}

/// Adam as Gemma Scope has it.
const ADAM: AdamOptions = AdamOptions { beta1: 0.0, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
const LR: f64 = 7e-5;

/// Times the encoder's product, then a step on one batch, again and again. `dead` is the share of latents that AuxK counts as dead.
pub(crate) fn run(shape: &Shape, trained: Trained, dead: f64, clip: Option<f64>, on: On) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let Weights { x, w_enc, w_dec, threshold } = shape.weights(on)?;
    let clock = Clock::new(3, shape.batch as f64);
    clock.time("matmul", || {
        let product = x.f_matmul(&w_enc)?;
        finish(on);
        Ok(product)
    })?;
    let config = config(shape, trained, clip);
    let zeros = |n: i64| Tensor::f_zeros([n], (Kind::Float, on.device));
    let mut p = Params {
        w_enc: w_enc.f_tr()?.f_contiguous()?,
        b_enc: zeros(shape.width)?,
        w_dec,
        b_dec: zeros(shape.d_in)?,
        threshold: if trained == Trained::Jumprelu { Some(threshold.f_log()?) } else { None },
        r_mag: None,
        b_mag: None,
        w_skip: None,
    };
    drop(w_enc);
    let mut adams = Vec::new();
    for (name, tensor) in p.named() {
        adams.push((name, Adam::new(tensor, ADAM)?));
    }
    let n_dead = (dead * shape.width as f64) as i64;
    let dead = Tensor::f_randperm(shape.width, (Kind::Int64, on.device))?.f_lt(n_dead)?;
    let at = Moment { lambda: 1e-3, dead, n_dead, variance: 1.0 };
    let mut number = 0;
    let mut l0 = 0.0;
    clock.time("ours.train_step", || {
        number += 1;
        let update = Update {
            lr: LR,
            adam: ADAM,
            step: number,
            decoder: config.decoder,
            clip,
            most_error: f64::INFINITY,
        };
        let outcome = step(&config, &mut p, &mut adams, Batch { x: &x, target: &x }, &at, &update)?;
        finish(on);
        l0 = outcome.active.iter().map(|n| f64::from(*n)).sum::<f64>() / shape.batch as f64;
        Ok(outcome)
    })?;
    println!("{}", json!({"l0_of_the_last_step": l0, "dead": n_dead, "clip": clip}));
    Ok(())
}

fn config(shape: &Shape, trained: Trained, clip: Option<f64>) -> Config {
    let none = Span::Steps(0);
    let topk = |over: Over| {
        Objective::Topk(TopK {
            k: shape.k as f64,
            over,
            reconstruction: ReconstructionLoss::Sum,
            rescale_by_decoder_norm: false,
            aux: Some(Aux { coefficient: 1.0 / 32.0, k: None, form: AuxForm::Ratio }),
            threshold_lr: None,
            prefixes: Vec::new(),
            prefix_loss: PrefixLoss::Mean,
        })
    };
    let objective = match trained {
        Trained::Jumprelu => Objective::Jumprelu(JumpRelu {
            lambda: 1e-3,
            lambda_warmup: none,
            sparsity: Sparsity::L0,
            bandwidth: 1e-3,
            threshold: Threshold::Log,
            initial_threshold: 1e-3,
            gradient_to_input: false,
            pre_act: None,
            frequency_penalty: None,
            prefixes: Vec::new(),
            prefix_loss: PrefixLoss::Mean,
        }),
        Trained::Topk => topk(Over::Row),
        Trained::Batchtopk => topk(Over::Batch),
    };
    Config {
        d_in: shape.d_in,
        d_out: None,
        d_sae: shape.width,
        scale: Scale::None,
        skip: false,
        pre_encoder_bias: true,
        objective,
        optimizer: Optimizer {
            lr: LR,
            lr_warmup: none,
            lr_warmup_from: 1.0,
            lr_warmup_shape: Curve::Linear,
            lr_decay: none,
            lr_decay_to: 0.0,
            lr_decay_shape: Curve::Linear,
            beta1: ADAM.beta1,
            beta2: ADAM.beta2,
            eps: ADAM.eps,
            clip,
            ema: None,
        },
        decoder: Decoder { unit_norm: true, project_gradient: true },
        init: Init { decoder_norm: 1.0, encoder: EncoderInit::Transpose, b_dec: BiasInit::Zero },
        dead_after: 1_000_000,
        resample: None,
        gradients: GradientPath::Sparse,
    }
}
