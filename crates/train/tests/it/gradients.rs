//! `fixtures/sae/training/jumprelu-step`: one step's loss and gradients as SAELens computes them (θ trained directly, step
//! loss, pre-encoder bias), which for this objective agree with the paper.

use testkit::{Golden, assert_close};
use train::{Parameters, gradients};

/// Float32 sums of some thousand products, in another order.
const TOLERANCE: f64 = 2e-5;
const LAMBDA: f64 = 0.03;
const BANDWIDTH: f64 = 0.5;

#[test]
fn one_step_is_saelens() {
    let mut golden = Golden::open("sae/training/jumprelu-step.safetensors");
    let mut param = |name: &str| golden.get(&format!("param.{name}"));
    let parameters = Parameters {
        w_enc: param("W_enc"),
        b_enc: param("b_enc"),
        w_dec: param("W_dec"),
        b_dec: param("b_dec"),
        threshold: param("threshold"),
    };
    let got = gradients(&parameters, &golden.get("x"), LAMBDA, BANDWIDTH).unwrap();
    for (name, grad) in [
        ("W_enc", &got.w_enc),
        ("b_enc", &got.b_enc),
        ("W_dec", &got.w_dec),
        ("b_dec", &got.b_dec),
        ("threshold", &got.threshold),
    ] {
        assert_close(name, grad, &golden.get(&format!("grad.{name}")), TOLERANCE);
    }
    let loss = golden.get("loss").double_value(&[]);
    assert!(
        (got.mse + LAMBDA * got.l0 - loss).abs() < 1e-4 * loss,
        "{} + λ·{} is not {loss}",
        got.mse,
        got.l0
    );
}
