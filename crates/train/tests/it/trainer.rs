//! What a trainer keeps, whatever it is trained on.

use eval::Reconstruction;
use sae_core::{SaeExt as _, SparseAutoencoder as _};
use tch::{Kind, Tensor};
use testkit::{assert_close, assert_same, normal, uniform};
use train::{JumpReluConfig, JumpReluTrainer};

const D_IN: i64 = 16;
const D_SAE: i64 = 32;

fn config(steps: usize) -> JumpReluConfig {
    JumpReluConfig {
        lr: 1e-2,
        lr_warmup: 20,
        lambda_warmup: steps / 5,
        lr_decay: steps / 5,
        bandwidth: 0.2,
        initial_threshold: 0.1,
        ..JumpReluConfig::gemma_scope(D_IN, D_SAE, steps, 0.1)
    }
}

/// Rows made of two of 24 hidden directions each, of unit mean square norm.
fn planted(rows: i64, seed: u64) -> (Tensor, Tensor) {
    let directions = normal(&[24, D_IN], 7);
    let directions = &directions / directions.square().sum_dim_intlist(1, true, Kind::Float).sqrt();
    let strength = uniform(&[rows, 24], 0.5, 1.0, seed);
    let chosen = uniform(&[rows, 24], 0.0, 1.0, seed + 1).argsort(1, false).argsort(1, false).lt(2);
    let x = (strength * chosen).matmul(&directions);
    let scale = x.square().sum_dim_intlist(1, false, Kind::Float).mean(Kind::Float).sqrt();
    (x / scale, directions)
}

#[test]
fn a_planted_dictionary_is_found() {
    let mut trainer = JumpReluTrainer::new(config(1500), 3).unwrap();
    let mut last = None;
    for step in 0..1500 {
        last = Some(trainer.step(&planted(512, 100 + 2 * step).0).unwrap());
    }
    let (x, directions) = planted(2048, 5);
    let sae = trainer.to_sae(1.0).unwrap();
    let cosine = directions.matmul(&sae.w_dec(0..sae.d_sae()).unwrap().tr()); // rows of both have unit norm
    let found = cosine.amax([1], false).gt(0.95).sum(Kind::Int64).int64_value(&[]);
    let mut quality = Reconstruction::new(D_IN);
    quality.add(&x, &sae.reconstruct(&x).unwrap()).unwrap();
    assert!(found >= 22, "{found} of 24 directions were found; the last step: {last:?}");
    assert!(quality.fvu().unwrap() < 0.1, "FVU {:?}", quality.fvu());
    assert!(last.unwrap().l0 < 2.5, "two latents would do: {last:?}");
}

#[test]
fn resumed_is_uninterrupted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("checkpoint.safetensors");
    let batch = |step: u64| planted(64, 1000 + 2 * step).0;
    let mut whole = JumpReluTrainer::new(config(40), 1).unwrap();
    for step in 0..20 {
        whole.step(&batch(step)).unwrap();
    }
    whole.save(&path).unwrap();
    let mut second = JumpReluTrainer::resume(config(40), &path).unwrap();
    for step in 20..40 {
        assert_eq!(whole.step(&batch(step)).unwrap(), second.step(&batch(step)).unwrap(), "step {step}");
    }
    let (a, b) = (whole.to_sae(2.0).unwrap(), second.to_sae(2.0).unwrap());
    for ((name, a), (_, b)) in a.parameters().unwrap().into_iter().zip(b.parameters().unwrap()) {
        assert_same(name, &a, &b);
    }
}

#[test]
fn decoder_rows_keep_unit_norm() {
    let mut trainer = JumpReluTrainer::new(config(30), 1).unwrap();
    for step in 0..30 {
        trainer.step(&planted(64, step).0).unwrap();
    }
    let norms = trainer
        .to_sae(1.0)
        .unwrap()
        .w_dec(0..D_SAE)
        .unwrap()
        .square()
        .sum_dim_intlist(1, false, Kind::Float)
        .sqrt();
    assert_close("norms", &norms, &norms.ones_like(), 1e-6);
}

#[test]
fn folding_the_scale_changes_no_function() {
    let mut trainer = JumpReluTrainer::new(config(50), 1).unwrap();
    for step in 0..50 {
        trainer.step(&planted(64, step).0).unwrap();
    }
    let x = planted(256, 9).0;
    let scale = 37.5;
    let (unit, folded) = (trainer.to_sae(1.0).unwrap(), trainer.to_sae(scale).unwrap());
    let want = unit.reconstruct(&x).unwrap() * scale;
    assert_close("x_hat", &folded.reconstruct(&(&x * scale)).unwrap(), &want, 1e-4);
    assert_close(
        "features",
        &folded.encode(&(&x * scale)).unwrap(),
        &(unit.encode(&x).unwrap() * scale),
        1e-4,
    );
}

#[test]
fn bad_input_is_refused() {
    let bad = JumpReluConfig { bandwidth: 0.0, ..config(10) };
    assert!(JumpReluTrainer::new(bad, 1).unwrap_err().to_string().contains("`bandwidth`"));
    let mut trainer = JumpReluTrainer::new(config(10), 1).unwrap();
    let error = trainer.step(&normal(&[8, D_IN + 1], 1)).unwrap_err();
    assert!(error.to_string().contains("d_in=16"), "{error}");
    let error = trainer.step(&(normal(&[8, D_IN], 1) * f64::NAN)).unwrap_err();
    assert!(error.to_string().contains("step 0"), "{error}");
    assert!(trainer.to_sae(0.0).unwrap_err().to_string().contains("scale"));
}
