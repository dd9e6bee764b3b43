//! What a trainer keeps, whatever its objective.

use eval::Reconstruction;
use sae_core::{SaeExt as _, SparseAutoencoder as _};
use tch::{Device, Kind, Tensor};
use testkit::{assert_close, assert_same, normal};
use train::{
    Trainer,
    config::{Config, GradientPath},
    recipe,
};

const D_IN: i64 = 12;
const D_SAE: i64 = 40;
const STEPS: u64 = 12;

/// Every recipe at a size for tests, with rates that move something in a few steps.
fn recipes() -> Vec<(&'static str, Config)> {
    // Resampling in the middle of what is resumed.
    let more = |name: &str| {
        if name == "relu-resampled" { "resample = { every = 4, until = 8 }\ndead_after = 64" } else { "" }
    };
    recipe::all().map(|(name, _)| (name, small(name, more(name)))).collect()
}

fn small(name: &str, more: &str) -> Config {
    let mut text =
        format!("recipe = '{name}'\nd_in = {D_IN}\nd_sae = {D_SAE}\ndead_after = 300\noptimizer.lr = 0.01\n");
    text += match name {
        "topk" | "batchtopk" | "matryoshka" => "objective.k = 4\nobjective.aux.k = 6\n",
        "gemma-scope-transcoder" => "d_out = 10\n",
        "gemma-scope-2" => "objective.sparsity.quadratic.target_l0 = 5.0\n",
        _ => "",
    };
    let mut table: toml::Table = text.parse().unwrap();
    over(&mut table, more.parse().unwrap());
    recipe::configure(table).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn over(table: &mut toml::Table, more: toml::Table) {
    for (key, value) in more {
        match (table.get_mut(&key), value) {
            (Some(toml::Value::Table(there)), toml::Value::Table(more)) => over(there, more),
            (_, value) => drop(table.insert(key, value)),
        }
    }
}

fn begin(config: &Config) -> Trainer {
    Trainer::new(config.clone(), STEPS, 5, Device::Cpu).unwrap()
}

/// Batch and target of a step.
fn batch(config: &Config, step: u64) -> (Tensor, Option<Tensor>) {
    let x = normal(&[64, D_IN], 100 + step) * 0.4 + 0.1;
    let target = config.is_transcoder().then(|| normal(&[64, config.d_out()], 900 + step) * 0.3);
    (x, target)
}

fn train(trainer: &mut Trainer, steps: std::ops::Range<u64>) {
    for step in steps {
        let (x, target) = batch(trainer.config(), step);
        trainer.step(&x, target.as_ref()).unwrap();
    }
}

#[test]
fn resumed_is_uninterrupted_for_every_recipe_and_path() {
    let folder = tempfile::tempdir().unwrap();
    for (name, config) in recipes() {
        for gradients in [GradientPath::Sparse, GradientPath::Plain] {
            let config = Config { gradients, ..config.clone() };
            let path = folder.path().join(format!("{name}-{gradients:?}.safetensors"));
            let mut whole = begin(&config);
            train(&mut whole, 0..7);
            whole.save(&path).unwrap();
            let mut second = Trainer::new(config.clone(), STEPS, 5, Device::Cpu).unwrap();
            second.restore(&path).unwrap();
            for step in 7..STEPS {
                let (x, target) = batch(&config, step);
                let (a, b) =
                    (whole.step(&x, target.as_ref()).unwrap(), second.step(&x, target.as_ref()).unwrap());
                assert_eq!(a, b, "{name} at step {step}");
            }
            assert_eq!(whole.take_counts(), second.take_counts(), "{name}");
            let (a, b) = (whole.to_sae(2.0, 3.0).unwrap(), second.to_sae(2.0, 3.0).unwrap());
            for ((what, a), (_, b)) in a.parameters().unwrap().into_iter().zip(b.parameters().unwrap()) {
                assert_same(&format!("{name}: {what}"), &a, &b);
            }
        }
    }
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let config = small("gemma-scope", "");
    begin(&config).save(&path).unwrap();
    let refused = |config: Config, steps: u64, seed: u64| {
        let error = Trainer::new(config, steps, seed, Device::Cpu).unwrap().restore(&path).unwrap_err();
        error.to_string()
    };
    assert!(refused(small("gated", ""), STEPS, 5).contains("another configuration"));
    assert!(refused(config.clone(), 13, 5).contains("number of steps (12)"));
    assert!(refused(config.clone(), STEPS, 6).contains("seed (5)"));
    std::fs::write(&path, b"no safetensors").unwrap();
    assert!(refused(config, STEPS, 5).contains("a.safetensors"));
}

/// The latents and the output of an exported SAE are those of the parameters in training, times the scales.
#[test]
fn export_changes_no_function() {
    for (name, config) in recipes() {
        let config =
            Config { optimizer: train::config::Optimizer { ema: None, ..config.optimizer }, ..config };
        let mut trainer = begin(&config);
        train(&mut trainer, 0..STEPS);
        let (x, _) = batch(&config, 77);
        let (read, written) = if config.is_transcoder() { (7.5, 0.4) } else { (7.5, 7.5) };
        let sae = trainer.to_sae(read, written).unwrap();
        let unit = trainer.to_sae(1.0, 1.0).unwrap();
        let (raw, tolerance) = (&x * read, 1e-4);
        assert_close(name, &sae.encode(&raw).unwrap(), &(unit.encode(&x).unwrap() * read), tolerance);
        assert_close(
            name,
            &sae.reconstruct(&raw).unwrap(),
            &(unit.reconstruct(&x).unwrap() * written),
            tolerance,
        );
        // Against the parameters themselves, where the SAE is no more than they are.
        let p = trainer.params();
        let centred = if config.pre_encoder_bias { &x - &p.b_dec } else { x.shallow_clone() };
        let norms = p.w_dec.square().sum_dim_intlist(1, false, Kind::Float).sqrt();
        if let train::config::Objective::Relu(_) = config.objective {
            let want = (centred.matmul(&p.w_enc.tr()) + &p.b_enc).relu() * &norms;
            assert_close(name, &unit.encode(&x).unwrap(), &want, tolerance);
            let want = (&want / &norms).matmul(&p.w_dec) + &p.b_dec;
            assert_close(name, &unit.reconstruct(&x).unwrap(), &want, tolerance);
        }
        if name.starts_with("gemma-scope") {
            let pre = centred.matmul(&p.w_enc.tr()) + &p.b_enc;
            let want = &pre * pre.gt_tensor(&p.threshold.as_ref().unwrap().exp());
            assert_close(name, &unit.encode(&x).unwrap(), &want, tolerance);
        }
    }
}

#[test]
fn decoders_keep_what_they_are_told() {
    for (name, config) in recipes() {
        let mut trainer = begin(&config);
        train(&mut trainer, 0..STEPS);
        let norms = trainer.params().w_dec.square().sum_dim_intlist(1, false, Kind::Float).sqrt();
        if config.decoder.unit_norm {
            assert_close(name, &norms, &norms.ones_like(), 1e-6);
        } else {
            assert!(
                (norms - config.init.decoder_norm).abs().max().double_value(&[]) > 1e-4,
                "{name}: free rows move"
            );
        }
    }
}

#[test]
fn both_paths_take_the_same_steps() {
    for (name, config) in recipes() {
        let mut sparse = begin(&config);
        let mut plain = begin(&Config { gradients: GradientPath::Plain, ..config.clone() });
        for step in 0..4 {
            let (x, target) = batch(&config, step);
            let (a, b) =
                (sparse.step(&x, target.as_ref()).unwrap(), plain.step(&x, target.as_ref()).unwrap());
            assert!((a.loss - b.loss).abs() < 1e-4 * b.loss.abs(), "{name}: {a:?} {b:?}");
            assert!((a.l0 - b.l0).abs() < 0.1 && (a.fvu - b.fvu).abs() < 1e-3 * b.fvu, "{name}: {a:?} {b:?}");
        }
    }
}

#[test]
fn the_fvu_of_a_step_is_evals() {
    let config = small("gemma-scope", "optimizer.lr = 1e-12");
    let mut trainer = begin(&config);
    train(&mut trainer, 0..2);
    let (x, _) = batch(&config, 5);
    let sae = trainer.to_sae(1.0, 1.0).unwrap();
    let stats = trainer.step(&x, None).unwrap();
    let mut quality = Reconstruction::new(D_IN);
    quality.add(&x, &sae.reconstruct(&x).unwrap()).unwrap();
    let fvu = quality.fvu().unwrap();
    assert!((stats.fvu - fvu).abs() < 1e-5 * fvu, "{} {fvu}", stats.fvu);
    let l0 = sae.encode(&x).unwrap().gt(0.0).sum(Kind::Int64).int64_value(&[]) as f64 / 64.0;
    assert_eq!(stats.l0, l0);
}

#[test]
fn latents_die_after_the_tokens_they_are_given_and_are_revived_by_one() {
    let config = small("topk", "objective.k = 1");
    let mut trainer = begin(&config);
    let (x, _) = batch(&config, 0);
    let dead: Vec<i64> = (0..8).map(|_| trainer.step(&x, None).unwrap().dead).collect();
    // 300 tokens are 4.7 batches of 64: at 320 whoever was never on is dead.
    assert_eq!(dead[..4], [0; 4]);
    assert!(dead[4] > 0, "{dead:?}");
    let counts = trainer.take_counts();
    assert_eq!(counts.tokens, 512);
    assert_eq!(counts.active.iter().sum::<u64>(), 512, "k = 1 for each token");
    assert_eq!(trainer.take_counts().tokens, 0);
}

#[test]
fn resampling_gives_dead_latents_new_weights_and_an_empty_memory() {
    let config = small(
        "relu-resampled",
        "dead_after = 1\nresample = { every = 3, until = 3 }\nobjective.lambda = 0.0",
    );
    let mut trainer = begin(&config);
    // Latents that only look one way are silent on rows that all lie the other way of `b_dec`, which the first batch decides.
    let one_way = |step: u64| normal(&[64, D_IN], step) * 0.3 + if step == 0 { 0.0 } else { 1.0 };
    for step in 0..3 {
        trainer.step(&one_way(step), None).unwrap();
    }
    let before = trainer.params().w_enc.copy();
    let stats = trainer.step(&one_way(3), None).unwrap();
    let moved = (&trainer.params().w_enc - &before).square().sum_dim_intlist(1, false, Kind::Float).sqrt();
    let far = moved.gt(0.05).sum(Kind::Int64).int64_value(&[]);
    assert!(far > 0 && far < D_SAE, "{far} of {D_SAE} latents were given new rows");
    let norms = trainer.params().w_dec.square().sum_dim_intlist(1, false, Kind::Float).sqrt();
    assert_close("norms", &norms, &norms.ones_like(), 1e-6);
    assert!(stats.fvu.is_finite());
}

#[test]
fn b_dec_begins_where_it_is_told() {
    let (x, _) = batch(&small("topk", ""), 0);
    let of = |how: &str| {
        let config = small("topk", &format!("init.b_dec = '{how}'\noptimizer.lr = 1e-12"));
        let mut trainer = begin(&config);
        trainer.step(&x, None).unwrap();
        trainer.params().b_dec.copy()
    };
    assert!(of("zero").abs().max().double_value(&[]) < 1e-9);
    assert_close("mean", &of("mean"), &x.mean_dim(0, false, Kind::Float), 1e-6);
    // The geometric median is where the unit vectors to all rows cancel.
    let away = &x - of("geometric-median");
    let unit = &away / away.square().sum_dim_intlist(1, true, Kind::Float).sqrt();
    let left = unit.mean_dim(0, false, Kind::Float).norm().double_value(&[]);
    assert!(left < 1e-4, "{left}");
}

#[test]
fn the_mean_of_the_weights_is_what_is_exported() {
    let config = small("topk", "optimizer.ema = 0.9\noptimizer.clip = false");
    let mut trainer = begin(&config);
    let mut mean = Tensor::zeros([D_IN], (Kind::Double, Device::Cpu));
    for step in 0..5 {
        trainer.step(&batch(&config, step).0, None).unwrap();
        mean = mean * 0.9 + trainer.params().b_dec.to_kind(Kind::Double) * 0.1;
    }
    let want = (mean / (1.0 - 0.9_f64.powi(5))).to_kind(Kind::Float);
    let sae = trainer.to_sae(1.0, 1.0).unwrap();
    let parameters = sae.parameters().unwrap();
    let (_, b_dec) = parameters.iter().find(|(name, _)| *name == "b_dec").unwrap();
    assert_close("b_dec", b_dec, &want, 1e-6);
}

#[test]
fn bad_input_is_refused_and_moves_nothing() {
    for gradients in [GradientPath::Sparse, GradientPath::Plain] {
        let config = Config { gradients, ..small("gemma-scope", "") };
        let mut trainer = begin(&config);
        train(&mut trainer, 0..2);
        let before = trainer.params().w_enc.copy();
        let refused = |trainer: &mut Trainer, x: Tensor, part: &str| {
            let error = trainer.step(&x, None).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(&mut trainer, normal(&[8, D_IN + 1], 1), "d_in=12");
        refused(&mut trainer, normal(&[0, D_IN], 1), "rows");
        refused(&mut trainer, normal(&[8, D_IN], 1).to_kind(Kind::Double), "F32");
        refused(&mut trainer, normal(&[8, D_IN], 1) * f64::NAN, "step 3 are not finite");
        refused(&mut trainer, normal(&[8, D_IN], 1) * 1e25, "step 3");
        refused(&mut trainer, normal(&[8, D_IN], 1) * 1e5, "diverged at step 3");
        let error = trainer.step(&normal(&[8, D_IN], 1), Some(&normal(&[8, D_IN], 1))).unwrap_err();
        assert!(error.to_string().contains("target"), "{error}");
        assert_same("W_enc", &trainer.params().w_enc, &before);
        assert_eq!(trainer.step_count(), 2);
        assert!(trainer.to_sae(0.0, 1.0).unwrap_err().to_string().contains("scale"));
    }
}

#[test]
fn configurations_that_can_not_be_are_refused_by_key() {
    let refused = |text: &str, part: &str| {
        let text = format!("d_in = 4\nd_sae = 8\n{text}");
        let error = recipe::configure(text.parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains(part), "{text}: {error}");
        assert!(!error.contains('\n'), "{error}");
    };
    refused("recipe = 'nothing'", "gemma-scope-2");
    refused("recipe = 3", "`recipe`");
    refused("recipe = 'gated'\nobjective.bandwidth = 1.0", "bandwidth");
    refused("recipe = 'gemma-scope'\nobjective.bandwidth = 0.0", "`objective.bandwidth`");
    refused("recipe = 'gemma-scope'\nobjective.lambda_warmup = 1.5", "`objective.lambda_warmup`");
    refused("recipe = 'gemma-scope'\nobjective.sparsity = { quadratic = { target_l0 = 9.0 } }", "target_l0");
    refused("recipe = 'gemma-scope'\nskip = true", "`skip`");
    refused("recipe = 'gemma-scope'\nd_out = 4", "`pre_encoder_bias`");
    refused("recipe = 'gemma-scope'\noptimizer.beta2 = 1.0", "`optimizer.beta2`");
    refused("recipe = 'gemma-scope'\nresample = { every = 1, until = 1 }", "`resample`");
    refused("recipe = 'topk'\nobjective.k = 2.5", "`objective.k`");
    refused("recipe = 'topk'\nobjective.k = 2\nobjective.threshold_lr = 0.1", "threshold_lr");
    refused("recipe = 'batchtopk'\nobjective.k = 2\nobjective.threshold_lr = false", "threshold_lr");
    refused("recipe = 'matryoshka'\nobjective.k = 2\nobjective.prefixes = [4, 2, 8]", "must rise");
    refused("recipe = 'matryoshka'\nobjective.k = 2\nobjective.prefixes = [4]", "d_sae = 8");
    refused("recipe = 'matryoshka'\nobjective.k = 2\nobjective.prefixes = [1.5]", "shares");
    refused("", "missing field");
}

#[test]
fn keys_override_recipes() {
    let config = small("topk", "optimizer.clip = false\nobjective.aux = false\noptimizer.ema = 0.5");
    let train::config::Objective::Topk(topk) = &config.objective else { panic!("topk") };
    assert_eq!((config.optimizer.clip, topk.aux, config.optimizer.ema), (None, None, Some(0.5)));
    let config = small("gemma-scope-2", "objective.sparsity = 'l0'\nobjective.frequency_penalty = false");
    let train::config::Objective::Jumprelu(j) = &config.objective else { panic!("jumprelu") };
    assert_eq!((j.sparsity, j.frequency_penalty), (train::config::Sparsity::L0, None));
    assert_eq!(j.prefixes, [3, 5, 10, 20, 40]);
    // What is written out reads back as the same.
    for (name, config) in recipes() {
        let text = toml::to_string(&config).unwrap();
        assert_eq!(recipe::configure(text.parse().unwrap()).unwrap(), config, "{name}");
    }
}

#[test]
fn rates_rise_and_fall_as_the_recipes_say() {
    let scope = small("gemma-scope", "optimizer.lr = 7e-5").optimizer;
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
    close(scope.rate(0, 100_000), 7e-6);
    close(scope.rate(500, 100_000), 7e-5 * 0.55);
    close(scope.rate(1000, 100_000), 7e-5);
    close(scope.rate(99_999, 100_000), 7e-5);
    let april = small("relu", "optimizer.lr = 5e-5").optimizer;
    close(april.rate(799, 1000), 5e-5);
    close(april.rate(900, 1000), 2.5e-5);
    close(april.rate(999, 1000), 5e-5 / 200.0);
    let warmed = |step| train::schedule::warmed(5.0, train::config::Span::Share(0.05), step, 1000);
    assert_eq!((warmed(0), warmed(25), warmed(50), warmed(999)), (0.0, 2.5, 5.0, 5.0));
}
