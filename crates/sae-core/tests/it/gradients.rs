//! Gradients against the written formulas, which are exact between the thresholds.

use sae_core::{SaeExt as _, SparseAutoencoder as _, SparseFeatures};
use tch::{Kind, Tensor};
use testkit::{assert_close, normal};

use crate::common::{ROUNDING, parameter, random_sae};

fn leaf(t: &Tensor) -> Tensor {
    t.detach().copy().set_requires_grad(true)
}

/// The gradient of `Σ g ⊙ out` at `leaf`.
fn grad(out: &Tensor, g: &Tensor, leaf: &Tensor) -> Tensor {
    let grads = Tensor::run_backward(&[(out * g).sum(Kind::Float)], &[leaf], false, false);
    grads.into_iter().next().unwrap()
}

#[test]
fn of_encode() {
    let sae = random_sae(12, 40, 12, 1);
    let x = leaf(&(normal(&[9, 12], 2) * 1.7));
    let g = normal(&[9, 40], 3);
    let features = sae.encode(&x).unwrap();
    // ∂/∂x Σ g ⊙ f = (g ⊙ H(π − θ)) W_encᵀ
    let active = features.ne(0.0).to_kind(Kind::Float);
    let want = (&g * active).matmul(&parameter(&sae, "W_enc").transpose(0, 1));
    assert_close("dense", &grad(&features, &g, &x), &want, ROUNDING);
    let x = leaf(&x);
    let sparse = sae.encode_sparse(&x).unwrap().to_dense().unwrap();
    assert_close("sparse", &grad(&sparse, &g, &x), &want, ROUNDING);
}

#[test]
fn of_decode() {
    let sae = random_sae(12, 40, 12, 4);
    let features = leaf(&sae.encode(&(normal(&[9, 12], 5) * 1.7)).unwrap());
    let g = normal(&[9, 12], 6);
    // ∂/∂f Σ g ⊙ x̂ = g W_decᵀ
    let want = g.matmul(&sae.w_dec(0..sae.d_sae()).unwrap().transpose(0, 1));
    assert_close("decode", &grad(&sae.decode(&features).unwrap(), &g, &features), &want, ROUNDING);
}

#[test]
fn of_decode_sparse_with_respect_to_the_values() {
    let sae = random_sae(12, 40, 12, 7);
    let dense = sae.encode(&(normal(&[9, 12], 8) * 1.7)).unwrap();
    let found = SparseFeatures::from_dense(&dense).unwrap();
    let values = leaf(found.values());
    let (indptr, indices) = (found.indptr().shallow_clone(), found.indices().shallow_clone());
    let sparse = SparseFeatures::new(indptr, indices, values.shallow_clone(), 40).unwrap();
    let g = normal(&[9, 12], 9);
    // For an entry of row n and latent f: gₙ · W_dec[f].
    let want = g.matmul(&sae.w_dec(0..sae.d_sae()).unwrap().transpose(0, 1)).masked_select(&dense.ne(0.0));
    assert_close("values", &grad(&sae.decode_sparse(&sparse).unwrap(), &g, &values), &want, ROUNDING);
}

#[test]
fn of_reconstruct() {
    let sae = random_sae(12, 40, 7, 10);
    let x = leaf(&(normal(&[2, 5, 12], 11) * 1.7));
    let g = normal(&[2, 5, 7], 12);
    let active = sae.encode(&x).unwrap().ne(0.0).to_kind(Kind::Float);
    let back = g.matmul(&sae.w_dec(0..sae.d_sae()).unwrap().transpose(0, 1)) * active;
    let want = back.matmul(&parameter(&sae, "W_enc").transpose(0, 1));
    assert_close("reconstruct", &grad(&sae.reconstruct(&x).unwrap(), &g, &x), &want, ROUNDING);
}

/// A step that crosses no threshold: x̂ is linear there, so a difference quotient is the derivative but for rounding.
#[test]
fn a_difference_quotient_agrees() {
    /// Smaller steps drown in float32's rounding, larger ones cross thresholds.
    const STEP: f64 = 1e-3;
    /// Rounding of the sums, 1e-6, over twice the step.
    const QUOTIENT: f64 = 5e-3;
    let sae = random_sae(12, 40, 12, 13);
    let (x, along, g) = (normal(&[1, 12], 14) * 1.7, normal(&[1, 12], 15), normal(&[1, 12], 16));
    let at = |step: f64| sae.encode(&(&x + &along * step)).unwrap();
    assert_eq!(at(STEP).ne(0.0), at(-STEP).ne(0.0), "the step crosses a threshold: choose another seed");
    let value = |step: f64| (sae.decode(&at(step)).unwrap() * &g).sum(Kind::Double).double_value(&[]);
    let quotient = (value(STEP) - value(-STEP)) / (2.0 * STEP);
    let point = leaf(&x);
    let slope =
        (grad(&sae.reconstruct(&point).unwrap(), &g, &point) * &along).sum(Kind::Double).double_value(&[]);
    assert!((quotient - slope).abs() <= QUOTIENT * slope.abs().max(1.0), "{quotient} and {slope}");
}
