//! A fresh model: gradients reach every weight, and are the slopes of the loss.

use gemma_model::{Gemma2, Gemma2Config};
use hooks::{HookPoint, HookSet, HookedModelExt as _, TokenBatch, observe};
use tch::{Kind, Tensor};
use testkit::assert_same;

use crate::common::{batch, refused, small};

fn text() -> TokenBatch {
    batch(&[vec![2, 5, 17, 39, 4, 21, 8, 8], vec![2, 30, 9, 11, 25, 3, 17, 6]])
}

/// Mean cross-entropy of each next token.
fn loss(logits: &Tensor, tokens: &TokenBatch) -> Tensor {
    let n = tokens.pos() - 1;
    let predicted = logits.narrow(1, 0, n).flatten(0, 1);
    predicted.cross_entropy_for_logits(&tokens.ids().narrow(1, 1, n).flatten(0, 1))
}

#[test]
fn gradients_flow_to_every_weight() {
    let model = Gemma2::init(small(), 3).unwrap();
    let logits = model.forward(&text(), &mut HookSet::new()).unwrap();
    loss(&logits, &text()).backward();
    let parameters = model.parameters();
    assert_eq!(parameters.len(), 11 * 2 + 2);
    for (name, w) in parameters {
        let grad = w.grad();
        assert!(grad.defined(), "{name} has no gradient");
        assert_eq!(grad.isfinite().all().int64_value(&[]), 1, "{name}");
        assert!(grad.abs().max().double_value(&[]) > 0.0, "{name}'s gradient is zero");
    }
}

#[test]
fn gradients_are_the_slopes_of_the_loss() {
    /// The step along each weight's own gradient.
    const STEP: f64 = 1e-2;
    /// A step of 1e-2 errs by its square times the third derivative, and float32 rounds a loss of about 4 at 2e-7,
    /// which the step makes 2e-5 of slopes of about 0.05 to 1.
    const TOLERANCE: f64 = 1e-2;
    let model = Gemma2::init(small(), 3).unwrap();
    loss(&model.forward(&text(), &mut HookSet::new()).unwrap(), &text()).backward();
    for (chosen, w) in model.parameters() {
        let grad = w.grad();
        let length = grad.norm().double_value(&[]);
        let direction = &grad / length;
        let at = |step: f64| {
            let _no_grad = tch::no_grad_guard();
            let moved = Gemma2::from_fn(small(), |name, _| {
                let parameters = model.parameters();
                let w = parameters.iter().find(|(n, _)| n == name).unwrap().1;
                Ok(if name == chosen { w + &direction * step } else { w.shallow_clone() })
            });
            loss(&moved.unwrap().logits(&text()).unwrap(), &text()).double_value(&[])
        };
        let slope = (at(STEP) - at(-STEP)) / (2.0 * STEP);
        assert!(
            (slope - length).abs() <= TOLERANCE * length.max(0.05),
            "{chosen}: slope {slope}, gradient {length}"
        );
    }
}

#[test]
fn gradients_reach_an_activation() {
    let model = Gemma2::init(small(), 3).unwrap();
    let mut kept = Vec::new();
    let mut hooks = HookSet::new();
    hooks.on_each(
        HookPoint::all(2),
        observe(|site, act| {
            kept.push((site, act.f_set_requires_grad(true)?.shallow_clone()));
            Ok(())
        }),
    );
    let logits = model.forward(&text(), &mut hooks).unwrap();
    drop(hooks);
    let acts: Vec<&Tensor> = kept.iter().map(|(_, act)| act).collect();
    // `hook_result` is computed beside the output that it is a sum of: only an edit makes it part of the computation.
    let used: Vec<&Tensor> =
        kept.iter().filter(|(s, _)| !matches!(s, HookPoint::AttnResult(_))).map(|(_, a)| a).collect();
    assert_eq!(acts.len(), used.len() + 2);
    let grads = Tensor::run_backward(&[loss(&logits, &text())], &used, false, false);
    for (grad, act) in grads.iter().zip(&used) {
        assert_eq!(grad.size(), act.size());
        assert_eq!(grad.isfinite().all().int64_value(&[]), 1);
    }
}

#[test]
fn the_same_seed_gives_the_same_weights() {
    let (a, b, c) = (
        Gemma2::init(small(), 1).unwrap(),
        Gemma2::init(small(), 1).unwrap(),
        Gemma2::init(small(), 2).unwrap(),
    );
    for (((name, a), (_, b)), (_, c)) in a.parameters().into_iter().zip(b.parameters()).zip(c.parameters()) {
        assert_same(&name, a, b);
        assert!(a.requires_grad() && a.is_leaf(), "{name}");
        // Norms begin at a gain of one whatever the seed.
        assert_eq!(a.equal(c), name.contains("norm"), "{name}");
    }
}

#[test]
fn fresh_matrices_have_the_variance_that_is_promised() {
    /// Over n entries the sample variance of a normal strays by √(2/n) of it: five of these, for the smallest matrix of
    /// 64 · 64 entries.
    const SPREAD: f64 = 0.12;
    let dims = hooks::ModelDims { d_model: 64, d_head: 16, d_mlp: 128, d_vocab: 500, ..small().dims };
    let model = Gemma2::init(Gemma2Config { dims, ..small() }, 7).unwrap();
    for (name, w) in model.parameters() {
        if name.contains("norm") {
            assert_eq!(w.abs().max().double_value(&[]), 0.0, "{name}");
            continue;
        }
        let variance = w.square().mean(Kind::Double).double_value(&[]) * w.size()[1] as f64;
        assert!((variance - 1.0).abs() < SPREAD, "{name}: {variance} / fan-in");
    }
    // What enters block 0 has unit variance.
    let site = "hook_embed".parse().unwrap();
    let embed = model.harvest(&text(), &[site]).unwrap().take(site).unwrap();
    let variance = embed.square().mean(Kind::Double).double_value(&[]);
    assert!((variance - 1.0).abs() < 2.0 * SPREAD, "{variance}");
}

#[test]
fn a_configuration_that_makes_no_model_is_refused() {
    let odd = hooks::ModelDims { d_head: 7, ..small().dims };
    refused(Gemma2::init(Gemma2Config { dims: odd, ..small() }, 1), &["head_dim", "7"]);
    refused(Gemma2::init(Gemma2Config { layer_kinds: vec![], ..small() }, 1), &["layer_types", "0", "2"]);
    refused(Gemma2::init(Gemma2Config { rms_eps: f64::NAN, ..small() }, 1), &["rms_norm_eps", "NaN"]);
}

#[test]
fn from_fn_checks_what_it_is_given() {
    let model = Gemma2::init(small(), 1).unwrap();
    for chosen in ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"] {
        let built = Gemma2::from_fn(small(), |name, axes| {
            let parameters = model.parameters();
            let w = parameters.iter().find(|(n, _)| n == name).unwrap().1;
            assert_eq!(w.size(), axes.iter().map(|(_, n)| *n).collect::<Vec<_>>());
            Ok(if name == chosen { w.unsqueeze(0) } else { w.shallow_clone() })
        });
        refused(built, &[&format!("`{chosen}`"), "d_model=16"]);
    }
}
