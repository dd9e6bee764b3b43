//! Folds: other parameters, the same function.

use sae_core::{Activation, Normalize, Sae, SaeExt as _, SaeParts, SparseAutoencoder as _};
use tch::{Device, Kind, Tensor};
use testkit::{assert_close, assert_same, normal};

use crate::{
    common::{ROUNDING, parameter, refused},
    reference::{Reference, all, assert_latents, plain, rows, table},
};

/// A product with a norm and a quotient by it: a rounding or two more than the sums have.
const FOLDED: f64 = 2.0 * ROUNDING;

const D_IN: i64 = 8;
const D_SAE: i64 = 24;

fn input() -> Tensor {
    normal(&[16, D_IN], 90) * 1.7 + 0.2
}

/// Asserts that latents are those of the formula times something, and outputs those of the formula.
#[track_caller]
fn assert_function(name: &str, sae: &Sae, reference: &Reference, factors: &[f64]) {
    let x = input();
    let mut want: Vec<_> = rows(&x).iter().map(|x| reference.encode(x)).collect();
    for row in &mut want {
        row.values.iter_mut().zip(factors).for_each(|(v, factor)| *v *= factor);
    }
    assert_latents(name, &sae.encode(&x).unwrap(), &want, FOLDED);
    let out: Vec<_> = rows(&x).iter().map(|x| reference.output(x)).collect();
    assert_close(name, &sae.reconstruct(&x).unwrap(), &table(&out, reference.d_out), FOLDED);
}

fn ones() -> Vec<f64> {
    vec![1.0; D_SAE as usize]
}

fn threshold_is_by_token(parts: &SaeParts) -> bool {
    matches!(parts.activation, Activation::TopK { .. } | Activation::GroupMax { .. })
}

#[test]
fn decoder_norms() {
    for (name, parts) in all(D_IN, D_SAE, 1) {
        let reference = Reference::of(&parts);
        let refusable = threshold_is_by_token(&parts);
        let folded = Sae::new(parts).unwrap().fold_decoder_norms();
        if refusable {
            refused(folded, &["decoder norms can't be folded"]);
            continue;
        }
        let norm = |row: &[f64]| row.iter().map(|w| w * w).sum::<f64>().sqrt();
        let norms: Vec<f64> = reference.w_dec.chunks(reference.d_out).map(norm).collect();
        let folded = folded.unwrap();
        assert_function(&name, &folded, &reference, &norms);
        for row in rows(&parameter(&folded, "W_dec")) {
            assert!((norm(&row) - 1.0).abs() <= FOLDED, "{name}: a norm is {}", norm(&row));
        }
    }
}

/// A latent that writes nothing goes on writing nothing.
#[test]
fn a_decoder_row_of_zeros() {
    for rule in ["relu", "jumprelu", "gated"] {
        let parts = plain(rule, [D_IN, D_SAE, D_IN], 2);
        let _ = parts.w_dec.held().unwrap().get(3).zero_();
        let reference = Reference::of(&parts);
        let folded = Sae::new(parts).unwrap().fold_decoder_norms().unwrap();
        let out: Vec<_> = rows(&input()).iter().map(|x| reference.output(x)).collect();
        assert_close(rule, &folded.reconstruct(&input()).unwrap(), &table(&out, reference.d_out), FOLDED);
        assert_eq!(folded.w_dec(3..4).unwrap().abs().max().double_value(&[]), 0.0);
    }
}

#[test]
fn the_pre_encoder_bias() {
    for (name, parts) in all(D_IN, D_SAE, 3) {
        let reference = Reference::of(&parts);
        let subtracted = parts.subtract_b_dec;
        let sae = Sae::new(parts).unwrap();
        let before = parameters(&sae);
        let folded = sae.fold_pre_encoder_bias().unwrap();
        assert!(!folded.subtracts_b_dec(), "{name}");
        assert_function(&name, &folded, &reference, &ones());
        for ((parameter, before), after) in before.iter().zip(parameters(&folded)) {
            let may_change = subtracted && ["b_enc", "b_gate", "b_mag"].contains(parameter);
            assert!(may_change || before.equal(&after.1), "{name}: {parameter} was changed");
        }
    }
}

fn parameters(sae: &Sae) -> Vec<(&'static str, Tensor)> {
    sae.parameters().unwrap().into_iter().map(|(name, t)| (name, t.copy())).collect()
}

/// What was made for `s x` and is given x: `f'(x) = f(s x)`, `x̂'(x) = x̂(s x) / s`.
#[test]
fn an_inputs_scale() {
    for scale in [0.02, 1.0, 37.5] {
        for (name, parts) in all(D_IN, D_SAE, 4) {
            let name = format!("{name}, scale {scale}");
            let normalised = parts.normalize != Normalize::None;
            let reference = Reference::of(&parts);
            let folded = Sae::new(parts).unwrap().fold_input_scale(scale);
            if normalised {
                refused(folded, &["no scale of its input"]);
                continue;
            }
            let folded = folded.unwrap();
            let x = input() / scale;
            let scaled: Vec<Vec<f64>> =
                rows(&x).iter().map(|x| x.iter().map(|x| x * scale).collect()).collect();
            let want: Vec<_> = scaled.iter().map(|x| reference.encode(x)).collect();
            assert_latents(&name, &folded.encode(&x).unwrap(), &want, FOLDED);
            let out: Vec<_> = scaled.iter().map(|x| reference.output(x)).collect();
            let out = table(&out, reference.d_out) / scale;
            assert_close(&name, &folded.reconstruct(&x).unwrap(), &out, FOLDED);
        }
    }
}

#[test]
fn scales_that_are_none() {
    for scale in [0.0, -0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let sae = Sae::new(plain("relu", [D_IN, D_SAE, D_IN], 5)).unwrap();
        refused(sae.fold_input_scale(scale), &["scale must be positive", &scale.to_string()]);
    }
    // So small a scale that a parameter becomes infinite in float32.
    let sae = Sae::new(plain("relu", [D_IN, D_SAE, D_IN], 5)).unwrap();
    refused(sae.fold_input_scale(1e-40), &["W_dec", "infinite"]);
}

#[test]
fn normalisations_that_have_no_scale_are_named() {
    for normalize in [Normalize::LayerNorm, Normalize::ConstantNorm] {
        let parts = plain("relu", [D_IN, D_SAE, D_IN], 6);
        let sae = Sae::new(SaeParts { normalize, ..parts }).unwrap();
        refused(sae.fold_input_scale(2.0), &[normalize.name()]);
    }
}

#[test]
fn to_jumprelu() {
    for (name, parts) in all(D_IN, D_SAE, 7) {
        let reference = Reference::of(&parts);
        let refusable = threshold_is_by_token(&parts);
        let made = Sae::new(parts).unwrap().to_jumprelu();
        if refusable {
            refused(made, &["its threshold depends on the token"]);
            continue;
        }
        let made = made.unwrap();
        assert!(matches!(made.activation(), Activation::JumpRelu { .. }), "{name}");
        assert_function(&name, &made, &reference, &ones());
    }
}

/// The gate may be open where the magnitude is negative, and closed where it is positive.
#[test]
fn gates_that_never_agree_with_magnitudes() {
    let on = (Kind::Float, Device::Cpu);
    for (gate, magnitude) in [(5.0, -5.0), (-5.0, 5.0), (5.0, 5.0), (-5.0, -5.0), (0.0, 0.0)] {
        let parts = plain("gated", [D_IN, D_SAE, D_IN], 8);
        let r_mag = normal(&[D_SAE], 9);
        let activation = Activation::Gated { r_mag, b_mag: Tensor::full([D_SAE], magnitude, on) };
        let b_enc = Tensor::full([D_SAE], gate, on);
        let parts = SaeParts { b_enc, activation, ..parts };
        let reference = Reference::of(&parts);
        let made = Sae::new(parts).unwrap().to_jumprelu().unwrap();
        assert_function(&format!("gate {gate}, magnitude {magnitude}"), &made, &reference, &ones());
    }
}

/// All folds, one after the other, in both orders of those that may be exchanged.
#[test]
fn one_after_the_other() {
    let parts = || SaeParts { subtract_b_dec: true, ..plain("gated", [D_IN, D_SAE, D_IN], 10) };
    let reference = Reference::of(&parts());
    let norm = |row: &[f64]| row.iter().map(|w| w * w).sum::<f64>().sqrt();
    let norms: Vec<f64> = reference.w_dec.chunks(reference.d_out).map(norm).collect();
    let sae = || Sae::new(parts()).unwrap();
    let one = sae().fold_pre_encoder_bias().unwrap().to_jumprelu().unwrap().fold_decoder_norms().unwrap();
    let other = sae().fold_decoder_norms().unwrap().to_jumprelu().unwrap().fold_pre_encoder_bias().unwrap();
    for (name, folded) in [("one order", one), ("the other", other)] {
        assert_eq!(folded.architecture(), "jumprelu");
        assert_function(name, &folded, &reference, &norms);
    }
}

/// What has been folded is a fixed point.
#[test]
fn a_second_time() {
    let sae = Sae::new(plain("jumprelu", [D_IN, D_SAE, D_IN], 11)).unwrap();
    let once = sae.fold_decoder_norms().unwrap();
    let before = parameters(&once);
    let twice = once.fold_decoder_norms().unwrap();
    for ((name, before), (_, after)) in before.iter().zip(parameters(&twice)) {
        assert_close(name, &after, before, FOLDED);
    }
    let before = parameters(&twice);
    let again = twice.to_jumprelu().unwrap().fold_pre_encoder_bias().unwrap();
    for ((name, before), (_, after)) in before.iter().zip(parameters(&again)) {
        assert_same(name, &after, before);
    }
}
