//! Laws of every loss, and the places where a formula alone does not say what happens: ties, nothing active, nothing dead,
//! nothing left to rebuild.

use proptest::prelude::*;
use tch::{Kind, Tensor};
use testkit::{assert_close, normal, relative_error, uniform};
use train::{
    Params, TrainError,
    config::{Aux, AuxForm, Config, Objective, Over, PrefixLoss, Sparsity, TopK},
    objective::{Batch, gradients, loss, threshold_of},
};

use crate::objectives_common::{
    Rows, every_architecture, gated, jumprelu, map, moment, params, relu, sae, topk, transcoder,
};

const D_IN: i64 = 9;
const D_SAE: i64 = 24;
/// Two float64 sums in another order. In float32 a latent at its threshold now and then goes the other way.
const TOLERANCE: f64 = 1e-11;

fn finite(t: &Tensor) -> bool {
    t.isfinite().all().int64_value(&[]) == 1
}

fn configs() -> Vec<(String, Config)> {
    let each = |(name, o): (&str, Objective)| {
        [
            (format!("{name}: SAE"), sae(D_IN, D_SAE, o.clone())),
            (format!("{name}: skip transcoder"), transcoder(D_IN, 6, D_SAE, true, o)),
        ]
    };
    every_architecture().into_iter().flat_map(each).collect()
}

fn double(p: &Params) -> Params {
    map(p, |_, t| t.to_kind(Kind::Double))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_part_is_negative(which in 0..10_usize, rows in 1..20_i64, seed in 0..1000_u64) {
        let (name, config) = &configs()[which];
        let rows = Rows::new(config, rows, seed);
        let loss = loss(config, &params(config, seed), rows.batch(), &moment(0.1, D_SAE, &[])).unwrap();
        for (part, value) in &loss.parts {
            prop_assert!(value.double_value(&[]) >= 0.0, "{name}: {part}");
        }
        prop_assert!(loss.features.min().double_value(&[]) >= 0.0);
    }

    /// The loss of a batch is the mean of its halves', and so is its gradient, where no choice is made over the whole batch.
    #[test]
    fn a_batch_is_the_mean_of_its_halves(which in 0..10_usize, half in 1..12_i64, seed in 0..1000_u64) {
        let (name, config) = &configs()[which];
        prop_assume!(!name.starts_with("batchtopk"));
        let p = double(&params(config, seed));
        let rows = Rows::new(config, 2 * half, seed).in_kind(Kind::Double);
        let at = moment(0.1, D_SAE, &[]);
        let of = |rows: &Rows| gradients(config, &p, rows.batch(), &at).unwrap();
        let (whole, first, second) = (of(&rows), of(&rows.part(0, half)), of(&rows.part(half, 2 * half)));
        let mean = (first.0.total().unwrap() + second.0.total().unwrap()) / 2.0;
        prop_assert!(relative_error(&whole.0.total().unwrap(), &mean) < TOLERANCE, "{name}");
        for ((param, whole), (first, second)) in whole.1.iter().zip(first.1.iter().zip(&second.1)) {
            let halves = (&first.1 + &second.1) / 2.0;
            let size = (first.1.abs() + second.1.abs()).max().double_value(&[]);
            let off = (whole - halves).abs().max().double_value(&[]);
            prop_assert!(off <= TOLERANCE * size.max(1e-3), "{name}: gradient of {param} off by {off}");
        }
    }

    /// Latents have no order: permuted ones give the same loss and permuted gradients.
    #[test]
    fn latents_have_no_order(which in 0..10_usize, seed in 0..1000_u64) {
        let (name, config) = &configs()[which];
        let p = double(&params(config, seed));
        let order = uniform(&[D_SAE], 0.0, 1.0, seed).argsort(0, false);
        let permute = |param: &str, t: &Tensor| match param {
            "b_dec" | "W_skip" => t.shallow_clone(),
            _ => t.index_select(0, &order),
        };
        let rows = Rows::new(config, 8, seed).in_kind(Kind::Double);
        let at = moment(0.1, D_SAE, &[]);
        let (loss, grads) = gradients(config, &p, rows.batch(), &at).unwrap();
        let (permuted, permuted_grads) = gradients(config, &map(&p, permute), rows.batch(), &at).unwrap();
        prop_assert!(relative_error(&permuted.total().unwrap(), &loss.total().unwrap()) < TOLERANCE, "{name}");
        for ((param, grad), (_, permuted)) in grads.iter().zip(&permuted_grads) {
            let want = permute(param, grad);
            let off = (permuted - &want).abs().max().double_value(&[]);
            let size = want.abs().max().double_value(&[]);
            prop_assert!(off <= TOLERANCE * size.max(1e-3), "{name}: gradient of {param} off by {off}");
        }
    }
}

#[test]
fn nothing_active_and_rows_of_zeros_give_finite_gradients() {
    let rescaled = TopK {
        rescale_by_decoder_norm: true,
        aux: Some(Aux { coefficient: 1.0, k: None, form: AuxForm::Scaled }),
        ..topk(3.0, Over::Row)
    };
    let mut tanh = jumprelu();
    tanh.sparsity = Sparsity::Tanh { scale: 4.0 };
    let more = [
        ("rescaled".to_owned(), sae(D_IN, D_SAE, Objective::Topk(rescaled))),
        ("tanh".to_owned(), sae(D_IN, D_SAE, Objective::Jumprelu(tanh))),
    ];
    for (name, config) in configs().into_iter().chain(more) {
        let off = map(&params(&config, 1), |param, t| match param {
            "b_enc" | "b_mag" => t - 1000.0,
            "W_dec" => t * Tensor::from_slice(&[0_f32, 1.0]).repeat([D_SAE / 2]).view([-1, 1]),
            _ => t.shallow_clone(),
        });
        let rows = Rows::new(&config, 5, 2);
        let (loss, grads) = gradients(&config, &off, rows.batch(), &moment(0.1, D_SAE, &[0, 1, 2])).unwrap();
        assert_eq!(loss.features.abs().max().double_value(&[]), 0.0, "{name}: nothing is active");
        assert!(finite(&loss.total().unwrap()), "{name}: loss");
        for (param, grad) in grads {
            assert!(finite(&grad), "{name}: gradient of {param}");
        }
        let on = map(
            &off,
            |param, t| if matches!(param, "b_enc" | "b_mag") { t + 1001.0 } else { t.shallow_clone() },
        );
        let (loss, grads) = gradients(&config, &on, rows.batch(), &moment(0.1, D_SAE, &[0, 1, 2])).unwrap();
        assert!(loss.features.max().double_value(&[]) > 0.0, "{name}: something is active");
        for (param, grad) in grads {
            assert!(finite(&grad), "{name}: gradient of {param} with latents that write nothing");
        }
    }
}

#[test]
fn equal_pre_activations_keep_the_lower_latent() {
    for (k, over, want) in [
        (2.0, Over::Row, [[1.0, 1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0, 0.0, 0.0]]),
        (1.5, Over::Batch, [[0.0; 6], [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]]),
        (2.5, Over::Batch, [[1.0, 1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]]),
    ] {
        let mut config = sae(2, 6, Objective::Topk(topk(k, over)));
        config.pre_encoder_bias = false;
        let mut p = params(&config, 1);
        // π of x = (1, 0) is 1 everywhere, of x = (0, 1) 2 at odd latents and 0 at even ones.
        p.w_enc = Tensor::from_slice(&[1_f32, 0.0, 1.0, 2.0]).repeat([3]).view([6, 2]);
        p.b_enc = p.b_enc.zeros_like();
        let x = Tensor::eye(2, (Kind::Float, tch::Device::Cpu));
        let got = loss(&config, &p, Batch { x: &x, target: &x }, &moment(0.0, 6, &[])).unwrap();
        let want = Tensor::from_slice(&want.concat()).view([2, 6]).to_kind(Kind::Bool);
        assert!(
            got.features.gt(0.0).equal(&want),
            "k = {k} over {over:?}: {:?}",
            Vec::<Vec<f64>>::try_from(&got.features)
        );
    }
}

#[test]
fn no_auxiliary_loss_without_dead_latents_or_error() {
    for form in [AuxForm::Ratio, AuxForm::Scaled, AuxForm::Mean] {
        let aux = Some(Aux { coefficient: 1.0, k: Some(4), form });
        let config = sae(D_IN, D_SAE, Objective::Topk(TopK { aux, ..topk(3.0, Over::Row) }));
        let (p, rows) = (params(&config, 1), Rows::new(&config, 6, 2));
        let aux_of = |p: &Params, rows: &Rows, dead: &[i64]| {
            let (loss, grads) = gradients(&config, p, rows.batch(), &moment(0.0, D_SAE, dead)).unwrap();
            assert!(grads.iter().all(|(_, grad)| finite(grad)), "{form:?}: gradients");
            loss.parts.iter().find(|(part, _)| part == "aux").unwrap().1.double_value(&[])
        };
        assert!(aux_of(&p, &rows, &[3, 5]) > 0.0);
        assert_eq!(aux_of(&p, &rows, &[]), 0.0, "{form:?}: nothing is dead");
        let nothing =
            map(&p, |param, t| if param == "W_dec" || param == "b_dec" { t.zeros_like() } else { t.copy() });
        let zeros = Rows { target: rows.x.zeros_like(), x: rows.x.shallow_clone() };
        assert_eq!(aux_of(&nothing, &zeros, &[3, 5]), 0.0, "{form:?}: nothing is left to rebuild");
    }
}

/// The dead latents' gradient reaches the dead latents alone.
#[test]
fn the_auxiliary_loss_moves_dead_latents() {
    let aux = Some(Aux { coefficient: 1.0, k: Some(4), form: AuxForm::Ratio });
    let with = sae(D_IN, D_SAE, Objective::Topk(TopK { aux, ..topk(3.0, Over::Row) }));
    let without = sae(D_IN, D_SAE, Objective::Topk(topk(3.0, Over::Row)));
    let (p, rows, at) = (params(&with, 1), Rows::new(&with, 6, 2), moment(0.0, D_SAE, &[3, 5]));
    let grads = |config: &Config| gradients(config, &p, rows.batch(), &at).unwrap().1;
    for ((param, a), (_, b)) in grads(&with).iter().zip(&grads(&without)).take(3) {
        let moved = (a - b).abs().view([D_SAE, -1]).amax([1], false).gt(0.0);
        let moved: Vec<bool> = Vec::try_from(moved).unwrap();
        let moved: Vec<usize> = (0..moved.len()).filter(|i| moved[*i]).collect();
        assert_eq!(moved, [3, 5], "{param}");
    }
}

#[test]
fn the_callers_gradients_and_mode_stay() {
    for (name, config) in configs() {
        let p = map(&params(&config, 1), |_, t| t.set_requires_grad(true));
        let rows = Rows::new(&config, 4, 2);
        let at = moment(0.1, D_SAE, &[]);
        let recorded = gradients(&config, &p, rows.batch(), &at).unwrap();
        let guard = tch::no_grad_guard();
        let unrecorded = gradients(&config, &p, rows.batch(), &at).unwrap();
        assert!(!(&p.w_enc * 2.0).requires_grad(), "{name}: the mode was left on");
        drop(guard);
        assert!((&p.w_enc * 2.0).requires_grad(), "{name}: the mode was left off");
        for ((param, a), (_, b)) in recorded.1.iter().zip(&unrecorded.1) {
            assert_close(&format!("{name}: {param}"), b, a, 0.0);
            assert!(!a.requires_grad());
        }
        assert!(
            p.named().iter().all(|(_, t)| !t.grad().defined()),
            "{name}: a caller's gradient was touched"
        );
        assert!(!recorded.0.total().unwrap().requires_grad(), "{name}: the loss kept its graph");

        // The caller's own backward pass gives the same.
        loss(&config, &p, rows.batch(), &at).unwrap().total().unwrap().backward();
        for ((param, grad), (_, t)) in recorded.1.iter().zip(p.named()) {
            assert_close(&format!("{name}: {param}"), &t.grad(), grad, 0.0);
        }
    }
}

#[test]
fn prefixes_are_named_by_their_width() {
    for (join, names) in [
        (PrefixLoss::Mean, &["reconstruction_0", "reconstruction_5", "reconstruction"][..]),
        (PrefixLoss::Sum, &["reconstruction_5", "reconstruction"][..]),
    ] {
        let o = TopK { prefixes: vec![5, D_SAE], prefix_loss: join, ..topk(3.0, Over::Batch) };
        let config = sae(D_IN, D_SAE, Objective::Topk(o));
        let rows = Rows::new(&config, 4, 2);
        let loss = loss(&config, &params(&config, 1), rows.batch(), &moment(0.0, D_SAE, &[])).unwrap();
        assert_eq!(loss.parts.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), names);
    }
}

/// A NaN among the weights shows in the loss, and is not hidden by a mask.
#[test]
fn a_broken_weight_shows() {
    for (name, config) in configs() {
        let p = map(
            &params(&config, 1),
            |param, t| if param == "W_enc" { t * f64::NAN } else { t.shallow_clone() },
        );
        let rows = Rows::new(&config, 4, 2);
        let loss = loss(&config, &p, rows.batch(), &moment(0.1, D_SAE, &[])).unwrap();
        assert!(loss.total().unwrap().double_value(&[]).is_nan(), "{name}");
    }
}

#[test]
fn bad_input_is_named() {
    let at = moment(0.1, D_SAE, &[]);
    let error = |config: &Config, p: &Params, x: &Tensor, target: &Tensor| -> String {
        let error: TrainError = loss(config, p, Batch { x, target }, &at).unwrap_err();
        error.to_string()
    };
    let config = transcoder(D_IN, 6, D_SAE, false, Objective::Relu(relu()));
    let p = params(&config, 1);
    let (x, target) = (normal(&[4, D_IN], 1), normal(&[4, 6], 2));
    assert!(error(&config, &p, &normal(&[4, D_IN + 1], 1), &target).contains("d_in=9"));
    assert!(error(&config, &p, &x, &x).contains("d_out=6"));
    assert!(error(&config, &p, &x, &normal(&[3, 6], 1)).contains("targets"));
    assert!(error(&config, &p, &normal(&[0, D_IN], 1), &normal(&[0, 6], 1)).contains("no rows"));
    for (o, name) in
        [(Objective::Jumprelu(jumprelu()), "`threshold`"), (Objective::Gated(gated()), "`r_mag`")]
    {
        let config = transcoder(D_IN, 6, D_SAE, false, o);
        assert!(error(&config, &p, &x, &target).contains(name));
    }
    assert!(threshold_of(&config, &p).unwrap_err().to_string().contains("JumpReLU"));
}
