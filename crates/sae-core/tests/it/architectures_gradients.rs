//! Gradients of every architecture against central differences of its formula in float64.

use sae_core::{Sae, SaeExt as _, SparseAutoencoder as _};
use tch::{Device, Kind, Tensor};
use testkit::{assert_close, normal};

use crate::reference::{Reference, Rule, all, rows, table};

const D_IN: i64 = 6;
const D_SAE: i64 = 20;
const ROWS: i64 = 3;

/// In float64 a difference over this step is off by 1e-9 or so; no latent of these tests switches within it.
const STEP: f64 = 1e-6;

/// The gradients are float32's: sums of some hundred products.
const GRADIENT: f64 = 2e-5;

fn leaf(t: &Tensor) -> Tensor {
    t.detach().copy().set_requires_grad(true)
}

/// The gradient of `Σ g ⊙ out` at `leaf`.
fn grad(out: &Tensor, g: &Tensor, leaf: &Tensor) -> Tensor {
    let grads = Tensor::run_backward(&[(out * g).sum(Kind::Float)], &[leaf], true, false);
    grads.into_iter().next().unwrap()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `∂/∂x Σ g ⊙ f(x)`, row by row, `[n, width]`.
fn differences(x: &Tensor, g: &Tensor, f: impl Fn(&[f64]) -> Vec<f64>) -> Tensor {
    let mut found = Vec::new();
    for (x, g) in rows(x).into_iter().zip(rows(g)) {
        let slope = |i: usize| {
            let at = |step: f64| {
                let mut moved = x.clone();
                moved[i] += step;
                dot(&f(&moved), &g)
            };
            (at(STEP) - at(-STEP)) / (2.0 * STEP)
        };
        found.push((0..x.len()).map(slope).collect::<Vec<_>>());
    }
    table(&found, x.size()[1] as usize)
}

/// Latents that switch, or begin to, within a step would make the difference quotient another number.
fn assert_smooth(name: &str, reference: &Reference, x: &Tensor) {
    for x in rows(x) {
        let pattern = |x: &[f64]| reference.encode(x).values.iter().map(|v| *v > 0.0).collect::<Vec<_>>();
        for i in 0..x.len() {
            for step in [-10.0 * STEP, 10.0 * STEP] {
                let mut moved = x.clone();
                moved[i] += step;
                assert_eq!(pattern(&moved), pattern(&x), "{name}: a latent switches, choose another seed");
            }
        }
    }
}

#[test]
fn with_respect_to_the_input() {
    for (name, parts) in all(D_IN, D_SAE, 40) {
        let reference = Reference::of(&parts);
        let sae = Sae::new(parts).unwrap();
        let point = normal(&[ROWS, D_IN], 41) * 1.7;
        assert_smooth(&name, &reference, &point);
        let (g_latents, g_out) = (normal(&[ROWS, D_SAE], 42), normal(&[ROWS, sae.d_out()], 43));

        let want = differences(&point, &g_latents, |x| reference.encode(x).values);
        let x = leaf(&point);
        let dense = grad(&sae.encode(&x).unwrap(), &g_latents, &x);
        assert_close(&format!("{name}: encode"), &dense, &want, GRADIENT);
        let sparse = sae.encode_sparse(&x).unwrap();
        let through = grad(&sparse.to_dense().unwrap(), &g_latents, &x);
        assert_close(&format!("{name}: encode_sparse"), &through, &want, GRADIENT);

        let want = differences(&point, &g_out, |x| reference.decode(&reference.encode(x).values));
        let decoded = grad(&sae.decode_sparse(&sparse).unwrap(), &g_out, &x);
        assert_close(&format!("{name}: decode_sparse"), &decoded, &want, GRADIENT);

        let want = differences(&point, &g_out, |x| reference.output(x));
        let whole = grad(&sae.reconstruct(&x).unwrap(), &g_out, &x);
        assert_close(&format!("{name}: reconstruct"), &whole, &want, GRADIENT);

        let latents = leaf(&sae.encode(&point).unwrap());
        let want = differences(&latents, &g_out, |latents| reference.decode(latents));
        let back = grad(&sae.decode(&latents).unwrap(), &g_out, &latents);
        assert_close(&format!("{name}: decode"), &back, &want, GRADIENT);
    }
}

/// The entries of a parameter in the formula.
fn entries<'r>(reference: &'r mut Reference, name: &str) -> &'r mut Vec<f64> {
    match (name, &mut reference.rule) {
        ("W_enc", _) => &mut reference.w_enc,
        ("b_enc" | "b_gate", _) => &mut reference.b_enc,
        ("W_dec", _) => &mut reference.w_dec,
        ("b_dec", _) => &mut reference.b_dec,
        ("W_skip", _) => reference.w_skip.as_mut().unwrap(),
        ("threshold", Rule::JumpRelu { threshold }) => threshold,
        ("r_mag", Rule::Gated { r_mag, .. }) => r_mag,
        ("b_mag", Rule::Gated { b_mag, .. }) => b_mag,
        (other, _) => panic!("no formula has {other}"),
    }
}

fn of_parameter(reference: &Reference, name: &str, x: &Tensor, g: &Tensor) -> Tensor {
    let (x, g) = (rows(x), rows(g));
    let mut moved = reference.clone();
    let mut slopes = Vec::new();
    for entry in 0..entries(&mut moved, name).len() {
        let before = entries(&mut moved, name)[entry];
        let mut at = |step: f64| {
            entries(&mut moved, name)[entry] = before + step;
            x.iter().zip(&g).map(|(x, g)| dot(&moved.output(x), g)).sum::<f64>()
        };
        slopes.push((at(STEP) - at(-STEP)) / (2.0 * STEP));
        entries(&mut moved, name)[entry] = before;
    }
    Tensor::from_slice(&slopes)
}

/// Each alone, so that no other's gradient opens its way.
#[test]
fn with_respect_to_each_parameter() {
    for (name, parts) in all(5, 12, 50) {
        let reference = Reference::of(&parts);
        let sae = Sae::new(parts).unwrap();
        let x = normal(&[ROWS, 5], 51) * 1.7;
        let g = normal(&[ROWS, sae.d_out()], 52);
        for (parameter, tensor) in sae.parameters().unwrap() {
            let want = of_parameter(&reference, parameter, &x, &g);
            let tensor = tensor.set_requires_grad(true);
            let out = sae.reconstruct(&x).unwrap();
            let what = format!("{name}: {parameter}");
            if ["threshold", "b_gate"].contains(&parameter) {
                // A step has the slope 0 wherever it has one; nothing else depends on θ or the gate's bias.
                assert_eq!(want.abs().max().double_value(&[]), 0.0, "{what}");
                assert!(!out.requires_grad() || zero(&grad_or_none(&out, &g, &tensor)), "{what}");
            } else {
                assert!(out.requires_grad(), "{what}: the gradient is lost");
                let got = grad(&out, &g, &tensor).reshape([-1]);
                assert_close(&what, &got, &want, GRADIENT);
            }
            let _ = tensor.set_requires_grad(false);
        }
    }
}

/// The gradient, where there may be none.
fn grad_or_none(out: &Tensor, g: &Tensor, leaf: &Tensor) -> Option<Tensor> {
    (out * g).sum(Kind::Float).backward();
    let found = leaf.grad();
    found.defined().then_some(found)
}

fn zero(gradient: &Option<Tensor>) -> bool {
    gradient.as_ref().is_none_or(|g| g.abs().max().double_value(&[]) == 0.0)
}

/// No latent is on: the output is a constant, and its gradient zero, not missing.
#[test]
fn where_nothing_is_on() {
    for (name, parts) in all(D_IN, D_SAE, 60) {
        let b_enc = Tensor::full([D_SAE], -1e3, (Kind::Float, Device::Cpu));
        let parts = sae_core::SaeParts { b_enc, ..parts };
        let (normalised, skip) = (parts.normalize != sae_core::Normalize::None, parts.w_skip.is_some());
        let transcoder = parts.transcoder;
        let sae = Sae::new(parts).unwrap();
        let x = leaf(&normal(&[ROWS, D_IN], 61));
        let latents = sae.encode_sparse(&x).unwrap();
        assert_eq!(latents.nnz(), 0, "{name}");
        let out = sae.reconstruct(&x).unwrap();
        let g = grad(&out, &normal(&[ROWS, sae.d_out()], 62), &x);
        assert_eq!(g.isfinite().all().int64_value(&[]), 1, "{name}");
        let constant = !skip && (transcoder || !normalised);
        assert_eq!(g.abs().max().double_value(&[]) == 0.0, constant, "{name}");
    }
}
