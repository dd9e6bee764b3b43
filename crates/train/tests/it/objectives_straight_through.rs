//! The pseudo-derivatives by their definition, on numbers that float32 holds exactly: one latent, one row at a time, `π = x`.
//!
//! θ = 1, ε = 1/2, so that the window is 3/4 < π < 5/4, without its ends.

use tch::{Kind, Tensor};
use train::{
    Params,
    config::{JumpRelu, Objective, Sparsity, Threshold},
    objective::{Batch, Loss, gradients, loss, threshold_of},
};

use crate::objectives_common::{Rows, jumprelu, map, moment, params, sae};

const LAMBDA: f64 = 0.5;
/// The decoder's one entry; `b_dec` is 1/4, and the target is x.
const W: f64 = 2.0;
const B: f64 = 0.25;

fn config(threshold: Threshold, gradient_to_input: bool) -> train::config::Config {
    let objective = JumpRelu { threshold, gradient_to_input, ..jumprelu() };
    let mut config = sae(1, 1, Objective::Jumprelu(objective));
    config.pre_encoder_bias = false;
    config
}

fn one_latent(threshold: f32) -> Params {
    let of = |v: f32| Tensor::from_slice(&[v]);
    Params {
        w_enc: of(1.0).view([1, 1]),
        b_enc: of(0.0),
        w_dec: of(W as f32).view([1, 1]),
        b_dec: of(B as f32),
        threshold: Some(of(threshold)),
        r_mag: None,
        b_mag: None,
        w_skip: None,
    }
}

/// Loss, ∂/∂threshold and ∂/∂b_enc (which is ∂/∂π) of one row.
fn at(config: &train::config::Config, p: &Params, pi: f64) -> (Loss, f64, f64) {
    let x = Tensor::from_slice(&[pi as f32]).view([1, 1]);
    let (loss, grads) = gradients(config, p, Batch { x: &x, target: &x }, &moment(LAMBDA, 1, &[])).unwrap();
    let of = |name: &str| grads.iter().find(|(n, _)| *n == name).unwrap().1.double_value(&[0]);
    let (threshold, pre_act) = (of("threshold"), of("b_enc"));
    (loss, threshold, pre_act)
}

/// π, whether it is on, whether it is inside of the window.
const WINDOW: [(f64, bool, bool); 8] = [
    (-1.0, false, false),
    (0.5, false, false),
    (0.75, false, false),
    (0.875, false, true),
    (1.0, false, true), // H(0) is 0
    (1.125, true, true),
    (1.25, true, false),
    (2.0, true, false),
];

#[test]
fn below_at_and_above_the_threshold() {
    for to_input in [false, true] {
        // θ = 1 either way, and log 1 = 0 with the factor θ = 1.
        for (threshold, raw) in [(Threshold::Log, 0.0), (Threshold::Direct, 1.0)] {
            for (pi, on, near) in WINDOW {
                let (loss, d_threshold, d_pi) = at(&config(threshold, to_input), &one_latent(raw), pi);
                let f = if on { pi } else { 0.0 };
                let recon = W * f + B;
                let df = 2.0 * (recon - pi) * W;
                let kernel = if near { 1.0 / 0.5 } else { 0.0 };
                let through = kernel * (1.0 * df + LAMBDA);
                assert_eq!(loss.features.double_value(&[0, 0]), f, "f at π = {pi}");
                assert_eq!(loss.parts[0].1.double_value(&[]), (recon - pi).powi(2), "error at π = {pi}");
                assert_eq!(
                    loss.parts[1].1.double_value(&[]),
                    if on { LAMBDA } else { 0.0 },
                    "L0 at π = {pi}"
                );
                assert_eq!(d_threshold, -through, "∂/∂θ at π = {pi}");
                let direct = if on { df } else { 0.0 };
                let want = if to_input { direct + through } else { direct };
                assert_eq!(d_pi, want, "∂/∂π at π = {pi}, to_input = {to_input}");
            }
        }
    }
}

/// `∂/∂ log θ = θ ∂/∂θ`, and the jump's slope is θ/ε, not π/ε: with θ = 2 the two differ.
#[test]
fn the_factor_of_a_log_threshold() {
    let theta = 2.0_f64;
    let log = theta.ln() as f32;
    for pi in [1.875, 2.125] {
        let (_, d_log, _) = at(&config(Threshold::Log, false), &one_latent(log), pi);
        let (_, d_direct, _) = at(&config(Threshold::Direct, false), &one_latent(2.0), pi);
        let f = if pi > theta { pi } else { 0.0 };
        let df = 2.0 * (W * f + B - pi) * W;
        assert_eq!(d_direct, -(theta * df + LAMBDA) / 0.5);
        assert!((d_log - theta * d_direct).abs() < 1e-6 * d_log.abs(), "{d_log} is not θ · {d_direct}");
    }
}

/// At θ = 0 nothing at or below 0 is on, the jump's slope is 0, and the step's alone moves θ: back up.
#[test]
fn a_direct_threshold_at_zero_and_below() {
    for raw in [0.0, -0.5] {
        let (config, p) = (config(Threshold::Direct, false), one_latent(raw));
        assert_eq!(threshold_of(&config, &p).unwrap().double_value(&[0]), 0.0);
        for (pi, on, near) in
            [(-0.125, false, true), (0.0, false, true), (0.125, true, true), (0.5, true, false)]
        {
            let (loss, d_threshold, _) = at(&config, &p, pi);
            assert_eq!(loss.features.double_value(&[0, 0]), if on { pi } else { 0.0 }, "f at π = {pi}");
            assert_eq!(d_threshold, if near { -LAMBDA / 0.5 } else { 0.0 }, "∂/∂θ at π = {pi}");
        }
    }
}

/// The surrogates add exactly nothing: features are `π H(π − θ)` to the last bit, and the L0 term counts whole latents.
#[test]
fn values_are_exact() {
    for threshold in [Threshold::Log, Threshold::Direct] {
        let objective = JumpRelu { threshold, gradient_to_input: true, sparsity: Sparsity::L0, ..jumprelu() };
        let config = sae(12, 64, Objective::Jumprelu(objective));
        let p = map(&params(&config, 3), |_, t| t.copy().set_requires_grad(true));
        let rows = Rows::new(&config, 32, 4);
        let got = loss(&config, &p, rows.batch(), &moment(1.0, 64, &[])).unwrap();
        let theta = threshold_of(&config, &p).unwrap().detach();
        let pi = p.b_enc.addmm(&(&rows.x - &p.b_dec), &p.w_enc.tr()).detach();
        let on = pi.gt_tensor(&theta);
        assert!(got.features.equal(&(&pi * &on)), "features are not π H(π − θ)");
        let active = on.sum(Kind::Int64).int64_value(&[]) as f64;
        assert!(active > 32.0, "the test has hardly a latent on");
        assert_eq!(got.parts[1].1.double_value(&[]), active / 32.0, "mean L0");
    }
}
