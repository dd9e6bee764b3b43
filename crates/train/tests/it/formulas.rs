//! Every objective and option against formulas in float64, and where a loss is smooth against differences of its values.

use tch::{Kind, Tensor};
use testkit::{assert_close, normal};
use train::{
    Params,
    config::{
        Aux, AuxForm, Config, FrequencyPenalty, Gated, JumpRelu, Objective, Over, PreAct, PreActLatents,
        PrefixLoss, ReconstructionLoss, Relu, Sparsity, Threshold, TopK,
    },
    objective::{Moment, gradients, loss},
};

use crate::{
    formulas_reference::{Mat, Reference, reference},
    objectives_common::{Rows, gated, jumprelu, map, moment, params, relu, sae, topk, transcoder},
};

const D_IN: i64 = 10;
const D_OUT: i64 = 7;
const D_SAE: i64 = 28;
const ROWS: i64 = 16;
const DEAD: [i64; 6] = [1, 4, 9, 10, 20, 27];

/// Rounding of float32 in the loss, and in sums of products that partly cancel.
const FLOAT: (f64, f64) = (1e-6, 1e-5);
/// Rounding of float64.
const DOUBLE: (f64, f64) = (1e-12, 1e-11);

fn jumprelus() -> Vec<(&'static str, JumpRelu)> {
    let base = jumprelu;
    let pre_act = |latents| Some(PreAct { coefficient: 0.02, latents });
    let frequency_penalty = Some(FrequencyPenalty { coefficient: 0.01, scale: 0.1 });
    vec![
        ("L0", base()),
        ("direct", JumpRelu { threshold: Threshold::Direct, ..base() }),
        ("to the input", JumpRelu { gradient_to_input: true, ..base() }),
        ("quadratic", JumpRelu { sparsity: Sparsity::Quadratic { target_l0: 5.0 }, ..base() }),
        ("relative", JumpRelu { sparsity: Sparsity::Relative { target_l0: 5.0 }, ..base() }),
        ("tanh", JumpRelu { sparsity: Sparsity::Tanh { scale: 4.0 }, ..base() }),
        (
            "tanh to the input",
            JumpRelu { sparsity: Sparsity::Tanh { scale: 4.0 }, gradient_to_input: true, ..base() },
        ),
        ("pre-act of all", JumpRelu { pre_act: pre_act(PreActLatents::All), ..base() }),
        ("pre-act of dead", JumpRelu { pre_act: pre_act(PreActLatents::Dead), ..base() }),
        ("frequencies", JumpRelu { frequency_penalty, ..base() }),
        (
            "prefixes, mean",
            JumpRelu { prefixes: vec![5, 12, D_SAE], prefix_loss: PrefixLoss::Mean, ..base() },
        ),
        ("prefixes, sum", JumpRelu { prefixes: vec![5, 12, D_SAE], prefix_loss: PrefixLoss::Sum, ..base() }),
        (
            "all at once",
            JumpRelu {
                sparsity: Sparsity::Quadratic { target_l0: 5.0 },
                threshold: Threshold::Direct,
                gradient_to_input: true,
                pre_act: pre_act(PreActLatents::All),
                frequency_penalty,
                prefixes: vec![3, D_SAE],
                ..base()
            },
        ),
    ]
}

fn topks() -> Vec<(&'static str, TopK)> {
    let row = || topk(4.0, Over::Row);
    let aux = |form, k| Some(Aux { coefficient: 0.25, k, form });
    vec![
        ("row", row()),
        ("batch of a broken k", topk(3.3, Over::Batch)),
        ("mean", TopK { reconstruction: ReconstructionLoss::Mean, ..row() }),
        ("normalised", TopK { reconstruction: ReconstructionLoss::Normalized, ..row() }),
        ("rescaled", TopK { rescale_by_decoder_norm: true, ..row() }),
        ("aux, ratio", TopK { aux: aux(AuxForm::Ratio, Some(3)), ..row() }),
        ("aux, scaled, half the width", TopK { aux: aux(AuxForm::Scaled, None), ..row() }),
        ("aux, scaled, fewer dead than k", TopK { aux: aux(AuxForm::Scaled, Some(9)), ..row() }),
        ("aux, ratio, fewer dead than k", TopK { aux: aux(AuxForm::Ratio, Some(9)), ..row() }),
        ("aux, mean", TopK { aux: aux(AuxForm::Mean, Some(3)), ..topk(3.3, Over::Batch) }),
        (
            "aux, rescaled",
            TopK { aux: aux(AuxForm::Scaled, Some(3)), rescale_by_decoder_norm: true, ..row() },
        ),
        ("prefixes, mean", TopK { prefixes: vec![4, 9, D_SAE], ..topk(3.3, Over::Batch) }),
        (
            "prefixes, sum, rescaled, aux",
            TopK {
                prefixes: vec![4, 9, D_SAE],
                prefix_loss: PrefixLoss::Sum,
                rescale_by_decoder_norm: true,
                aux: aux(AuxForm::Scaled, Some(4)),
                ..topk(3.3, Over::Batch)
            },
        ),
        (
            "Matryoshka's own code",
            TopK {
                prefixes: vec![4, 9, D_SAE],
                reconstruction: ReconstructionLoss::Mean,
                aux: aux(AuxForm::Mean, Some(4)),
                ..topk(3.3, Over::Batch)
            },
        ),
    ]
}

/// Every option of every architecture, by a name for messages.
fn objectives() -> Vec<(String, Objective)> {
    let mut all = vec![];
    all.extend(jumprelus().into_iter().map(|(n, o)| (format!("jumprelu, {n}"), Objective::Jumprelu(o))));
    all.extend(topks().into_iter().map(|(n, o)| (format!("topk, {n}"), Objective::Topk(o))));
    for (n, l1_by_decoder_norm) in [("plain", false), ("by norm", true)] {
        all.push((format!("relu, {n}"), Objective::Relu(Relu { l1_by_decoder_norm, ..relu() })));
        for (m, frozen_decoder) in [("frozen", true), ("trained", false)] {
            let o = Gated { frozen_decoder, l1_by_decoder_norm, ..gated() };
            all.push((format!("gated, {n}, {m} decoder"), Objective::Gated(o)));
        }
    }
    all
}

/// Each objective as an SAE with and without pre-encoder bias, a transcoder, a skip transcoder.
fn configs() -> Vec<(String, Config)> {
    let mut all = vec![];
    for (name, o) in objectives() {
        let mut no_bias = sae(D_IN, D_SAE, o.clone());
        no_bias.pre_encoder_bias = false;
        all.push((format!("{name}: SAE"), sae(D_IN, D_SAE, o.clone())));
        all.push((format!("{name}: SAE without pre-encoder bias"), no_bias));
        all.push((format!("{name}: transcoder"), transcoder(D_IN, D_OUT, D_SAE, false, o.clone())));
        all.push((format!("{name}: skip transcoder"), transcoder(D_IN, D_OUT, D_SAE, true, o)));
    }
    all
}

fn at() -> Moment {
    Moment { variance: 3.7, ..moment(0.07, D_SAE, &DEAD) }
}

fn tensor(m: &Mat) -> Tensor {
    Tensor::from_slice(&m.concat()).view([m.len() as i64, -1])
}

fn compare(name: &str, config: &Config, p: &Params, rows: &Rows, want: &Reference, within: (f64, f64)) {
    let (loss, grads) = gradients(config, p, rows.batch(), &at()).unwrap();
    let total: f64 = want.parts.values().sum();
    let close = |part: &str, got: &Tensor, want: f64| {
        let got = got.double_value(&[]);
        assert!((got - want).abs() <= within.0 * want.abs(), "{name}: {part} is {got}, not {want}");
    };
    close("the loss", &loss.total().unwrap(), total);
    let names: Vec<_> = loss.parts.iter().map(|(part, _)| part.clone()).collect();
    assert_eq!(names.len(), want.parts.len(), "{name}: parts {names:?}");
    for (part, value) in &loss.parts {
        close(part, value, want.parts[part]);
    }
    assert_close(&format!("{name}: features"), &loss.features, &tensor(&want.features), within.1);
    assert_close(&format!("{name}: recon"), &loss.recon, &tensor(&want.recon), within.1);
    assert_eq!(grads.len(), want.grads.len(), "{name}: gradients");
    for (param, grad) in grads {
        let want = Tensor::from_slice(&want.grads[param]).view_as(&grad);
        assert!(want.abs().max().double_value(&[]) > 0.0, "{name}: the gradient of {param} tests nothing");
        assert_close(&format!("{name}: gradient of {param}"), &grad, &want, within.1);
    }
}

#[test]
fn every_option_is_its_formula() {
    for (n, (name, config)) in configs().iter().enumerate() {
        let (p, rows) = (params(config, n as u64), Rows::new(config, ROWS, n as u64));
        let want = reference(config, &p, rows.batch(), &at());
        compare(name, config, &p, &rows, &want, FLOAT);
        // log θ in float32 is the raw parameter of both, so that float64 is the same problem.
        let p = map(&p, |_, t| t.to_kind(Kind::Double));
        compare(&format!("{name}, float64"), config, &p, &rows.in_kind(Kind::Double), &want, DOUBLE);
    }
}

/// Whether the gradient towards `param` is the derivative of the loss almost everywhere: no pseudo-derivative, nothing held
/// fixed.
fn is_derivative(o: &Objective, param: &str) -> bool {
    match o {
        Objective::Jumprelu(j) => !j.gradient_to_input && param != "threshold",
        Objective::Gated(g) => !g.frozen_decoder,
        Objective::Topk(t) => t.aux.is_none(),
        Objective::Relu(_) => true,
    }
}

/// `(L(p + h v) − L(p − h v)) / 2h` for a random direction v of each parameter.
#[test]
fn gradients_are_slopes_where_losses_are_smooth() {
    const H: f64 = 1e-6;
    let mut checked = 0;
    for (n, (name, config)) in configs().iter().enumerate() {
        let rows = Rows::new(config, ROWS, n as u64).in_kind(Kind::Double);
        let p = map(&params(config, n as u64), |_, t| t.to_kind(Kind::Double));
        let (_, grads) = gradients(config, &p, rows.batch(), &at()).unwrap();
        for (seed, (param, grad)) in grads.iter().enumerate() {
            if !is_derivative(&config.objective, param) {
                continue;
            }
            let v = normal(&grad.size(), 7 * seed as u64 + 1).to_kind(Kind::Double);
            let value = |h: f64| {
                let moved = map(&p, |own, t| if own == *param { t + &v * h } else { t.shallow_clone() });
                loss(config, &moved, rows.batch(), &at()).unwrap().total().unwrap().double_value(&[])
            };
            let slope = (value(H) - value(-H)) / (2.0 * H);
            let want = (grad * &v).sum(Kind::Double).double_value(&[]);
            let size = (grad * &v).abs().sum(Kind::Double).double_value(&[]);
            assert!((slope - want).abs() < 1e-6 * size.max(1e-3), "{name}: {param}: {slope} is not {want}");
            checked += 1;
        }
    }
    assert!(checked > 300, "only {checked} slopes were compared");
}
