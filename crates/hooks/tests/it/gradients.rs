//! Gradient mode is the caller's: runs switch it off for themselves and put it back, whatever happens.

use hooks::{HookError, HookSet, HookedModelExt as _, observe, replace};
use tch::{Kind, Tensor};

use crate::common::{refused, site, tokens, toy};

/// Whether what is computed now remembers how.
fn on() -> bool {
    let leaf = Tensor::from(1.0f32).set_requires_grad(true);
    (&leaf * 2.0).requires_grad()
}

#[test]
fn a_run_restores_the_mode() {
    assert!(on());
    let mut inside = true;
    let mut hooks = HookSet::new();
    hooks.on(
        site("hook_embed"),
        observe(|_, _| {
            inside = on();
            Ok(())
        }),
    );
    let _logits = toy().run(&tokens(), hooks).unwrap();
    assert!(!inside, "gradients are off during a run");
    assert!(on(), "and on again after it");

    let _guard = tch::no_grad_guard();
    let _logits = toy().logits(&tokens()).unwrap();
    assert!(!on(), "off stays off");
}

#[test]
fn a_run_that_errs_restores_the_mode() {
    let failing = || {
        let mut hooks = HookSet::new();
        hooks.on(site("blocks.1.hook_mlp_out"), observe(|_, _| Err("no".into())));
        hooks
    };
    refused(toy().run(&tokens(), failing()), &["blocks.1.hook_mlp_out"]);
    assert!(on());
    refused(toy().run_to(&tokens(), failing()), &["blocks.1.hook_mlp_out"]);
    assert!(on());
    refused(toy().harvest(&tokens(), &[site("blocks.9.hook_mlp_out")]), &["blocks.9"]);
    assert!(on());
    refused(toy().run_with_cache(&tokens(), &[site("blocks.0.attn.hook_z")]), &["did not fire"]);
    assert!(on());
}

#[test]
fn a_hook_that_panics_restores_the_mode() {
    let unwound = std::panic::catch_unwind(|| {
        let mut hooks = HookSet::new();
        hooks.on(site("hook_embed"), observe(|_, _| panic!("a bug in a hook")));
        let _logits = toy().run(&tokens(), hooks);
    });
    assert!(unwound.is_err());
    assert!(on());
}

#[test]
fn forward_and_residual_leave_the_mode_as_it_is() -> Result<(), HookError> {
    let at = site("blocks.1.hook_resid_pre");
    let delta = Tensor::zeros([6], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
    let mut hooks = HookSet::new();
    hooks.on(at, replace(|_, act| Ok(act + &delta)));
    let logits = toy().forward(&tokens(), &mut hooks)?;
    hooks.finish()?;
    logits.sum(Kind::Float).backward();
    let gradient = delta.grad();
    assert!(gradient.abs().max().double_value(&[]) > 0.0);

    // The gradient is the slope of a small step, in either direction.
    const STEP: f64 = 1e-2;
    // A step of 1e-2 errs by its square, and float32 rounds a sum of about 10 at 1e-6, divided by the step.
    const TOLERANCE: f64 = 1e-2;
    let sum = |step: f64| {
        let v = Tensor::from_slice(&[1.0f32, -1.0, 0.5, 0.0, 2.0, -0.5]);
        let mut hooks = HookSet::new();
        hooks.on(at, hooks::edit::add(v, step));
        toy().run(&tokens(), hooks).map(|logits| logits.sum(Kind::Double).double_value(&[]))
    };
    let slope = (sum(STEP)? - sum(-STEP)?) / (2.0 * STEP);
    let v = Tensor::from_slice(&[1.0f32, -1.0, 0.5, 0.0, 2.0, -0.5]);
    let predicted = (gradient * v).sum(Kind::Double).double_value(&[]);
    assert!((slope - predicted).abs() <= TOLERANCE * predicted.abs().max(1.0), "{slope} and {predicted}");

    let mut hooks = HookSet::new();
    hooks.on(at, replace(|_, act| Ok(act + &delta)));
    assert!(toy().residual(&tokens(), 2, &mut hooks)?.requires_grad());
    let _guard = tch::no_grad_guard();
    assert!(!toy().residual(&tokens(), 2, &mut hooks)?.requires_grad());
    Ok(())
}

#[test]
fn what_a_run_captures_holds_no_graph() {
    let delta = Tensor::zeros([6], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
    let at = site("hook_embed");
    let mut cache = hooks::ActivationCache::default();
    let mut hooks = HookSet::new();
    hooks.on(at, replace(|_, act| Ok(act + &delta))).on(at, &mut cache);
    let logits = toy().run(&tokens(), hooks).unwrap();
    assert!(!logits.requires_grad() && !cache.get(at).unwrap().requires_grad());
}
