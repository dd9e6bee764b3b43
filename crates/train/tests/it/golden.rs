//! `fixtures/sae/training`: one step's loss, parts, reconstruction and gradients as SAELens computes them, for each of its
//! variants.

use tch::{Kind, Tensor};
use testkit::{Golden, assert_close};
use train::{
    Params,
    config::{
        Aux, AuxForm, Config, Gated, JumpRelu, Objective, Over, PreAct, PreActLatents, PrefixLoss, Relu,
        Sparsity, Threshold, TopK,
    },
    objective::{Batch, Moment, gradients},
};

use crate::objectives_common::{gated, jumprelu, relu, sae, topk};

/// Float32 sums of some thousand products, in another order.
const TOLERANCE: f64 = 2e-5;
const D_IN: i64 = 24;
const D_SAE: i64 = 96;
const L0: f64 = 0.03;
const L1: f64 = 0.05;

/// Our names for SAELens' parts.
const PARTS: [(&str, &str); 7] = [
    ("mse_loss", "reconstruction"),
    ("l0_loss", "sparsity"),
    ("l1_loss", "sparsity"),
    ("pre_act_loss", "pre_act"),
    ("auxiliary_reconstruction_loss", "aux"),
    ("inner_mse_loss_16", "reconstruction_16"),
    ("inner_mse_loss_48", "reconstruction_48"),
];

fn check(case: &str, lambda: f64, objective: Objective) {
    let config: Config = sae(D_IN, D_SAE, objective);
    let mut golden = Golden::open(&format!("sae/training/{case}.safetensors"));
    let names = golden.names();
    let mut param = |name: &str| {
        let name = format!("param.{name}");
        names.contains(&name).then(|| golden.get(&name))
    };
    let p = Params {
        w_enc: param("W_enc").unwrap().tr(),
        b_enc: param("b_enc").or_else(|| param("b_gate")).unwrap(),
        w_dec: param("W_dec").unwrap(),
        b_dec: param("b_dec").unwrap(),
        threshold: param("threshold"),
        r_mag: param("r_mag"),
        b_mag: param("b_mag"),
        w_skip: None,
    };
    let x = golden.get("x");
    let dead = golden.get("dead").to_kind(Kind::Bool);
    let n_dead = dead.sum(Kind::Int64).int64_value(&[]);
    let at = Moment { lambda, dead, n_dead, variance: 1.0 };
    let (loss, grads) = gradients(&config, &p, Batch { x: &x, target: &x }, &at).unwrap();

    let mut parts = 0;
    for (theirs, ours) in PARTS {
        let name = format!("losses.{theirs}");
        if names.contains(&name) {
            let part = loss.parts.iter().find(|(part, _)| part == ours);
            let part = &part.unwrap_or_else(|| panic!("{case}: no part {ours}")).1;
            assert_close(&format!("{case}: {ours}"), part, &golden.get(&name), TOLERANCE);
            parts += 1;
        }
    }
    assert_eq!(parts, loss.parts.len(), "{case}: parts");
    assert_eq!(parts, names.iter().filter(|n| n.starts_with("losses.")).count(), "{case}: SAELens' parts");
    assert_close(&format!("{case}: loss"), &loss.total().unwrap(), &golden.get("loss"), TOLERANCE);
    assert_close(&format!("{case}: recon"), &loss.recon, &golden.get("recon"), TOLERANCE);
    for (name, grad) in &grads {
        let (theirs, grad) = match *name {
            "W_enc" => ("W_enc", grad.tr()),
            "b_enc" if config_is_gated(&config) => ("b_gate", grad.shallow_clone()),
            name => (name, grad.shallow_clone()),
        };
        let want: Tensor = golden.get(&format!("grad.{theirs}"));
        assert_close(&format!("{case}: gradient of {name}"), &grad, &want, TOLERANCE);
    }
    assert_eq!(grads.len(), names.iter().filter(|n| n.starts_with("grad.")).count(), "{case}: gradients");
}

fn config_is_gated(config: &Config) -> bool {
    matches!(config.objective, Objective::Gated(_))
}

fn saelens_jumprelu(sparsity: Sparsity) -> JumpRelu {
    JumpRelu { sparsity, threshold: Threshold::Direct, ..jumprelu() }
}

/// SAELens' TopK always has the auxiliary loss and rescales.
fn saelens_topk(over: Over) -> TopK {
    let aux = Some(Aux { coefficient: 1.0, k: None, form: AuxForm::Scaled });
    TopK { aux, rescale_by_decoder_norm: true, ..topk(7.0, over) }
}

#[test]
fn jumprelu_step() {
    check("jumprelu-step", L0, Objective::Jumprelu(saelens_jumprelu(Sparsity::L0)));
}

#[test]
fn jumprelu_quadratic() {
    let sparsity = Sparsity::Quadratic { target_l0: 8.0 };
    check("jumprelu-quadratic", L0, Objective::Jumprelu(saelens_jumprelu(sparsity)));
}

#[test]
fn jumprelu_tanh_with_gradient_to_the_input() {
    let objective = JumpRelu {
        gradient_to_input: true,
        pre_act: Some(PreAct { coefficient: 3e-3, latents: PreActLatents::Dead }),
        ..saelens_jumprelu(Sparsity::Tanh { scale: 4.0 })
    };
    check("jumprelu-tanh", L0, Objective::Jumprelu(objective));
}

#[test]
fn standard() {
    check("standard", L1, Objective::Relu(Relu { l1_by_decoder_norm: true, ..relu() }));
}

#[test]
fn gated_with_a_trained_decoder() {
    let objective = Gated { frozen_decoder: false, l1_by_decoder_norm: true, ..gated() };
    check("gated", L1, Objective::Gated(objective));
}

#[test]
fn topk_with_auxk() {
    check("topk", 0.0, Objective::Topk(saelens_topk(Over::Row)));
}

#[test]
fn batchtopk() {
    check("batchtopk", 0.0, Objective::Topk(saelens_topk(Over::Batch)));
}

#[test]
fn matryoshka() {
    let objective =
        TopK { prefixes: vec![16, 48, D_SAE], prefix_loss: PrefixLoss::Sum, ..saelens_topk(Over::Batch) };
    check("matryoshka", 0.0, Objective::Topk(objective));
}
