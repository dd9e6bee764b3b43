//! A dictionary that is known: rows are sums of a few of its directions, and every architecture, trained by its recipe with
//! constants for a toy, must find them; and sparsity must answer to its price.

use sae_core::SparseAutoencoder as _;
use tch::{Device, Kind, Tensor};
use testkit::{normal, uniform};
use train::{Trainer, recipe};

const D_IN: i64 = 16;
const D_SAE: i64 = 32;
const DIRECTIONS: i64 = 24;
/// Directions in a row.
const SPARSITY: i64 = 2;
const ROWS: i64 = 256;

/// What hides in the activations: unit rows that are read, and others that a transcoder is to write.
struct Planted {
    read: Tensor,
    written: Tensor,
}

impl Planted {
    fn new() -> Self {
        let unit = |seed: u64| {
            let t = normal(&[DIRECTIONS, D_IN], seed);
            let norm = t.square().sum_dim_intlist(1, true, Kind::Float).sqrt();
            t / norm
        };
        Self { read: unit(7), written: unit(8) }
    }

    /// `[rows, D_IN]` twice, of unit mean square norm.
    fn rows(&self, rows: i64, seed: u64) -> (Tensor, Tensor) {
        let strength = uniform(&[rows, DIRECTIONS], 0.5, 1.0, 2 * seed);
        let rank = uniform(&[rows, DIRECTIONS], 0.0, 1.0, 2 * seed + 1).argsort(1, false).argsort(1, false);
        let sources = strength * rank.lt(SPARSITY);
        let scaled = |t: Tensor| {
            let norm = t.square().sum_dim_intlist(1, false, Kind::Float).mean(Kind::Float).sqrt();
            t / norm
        };
        (scaled(sources.matmul(&self.read)), scaled(sources.matmul(&self.written)))
    }
}

/// What training gave.
struct Trained {
    /// Mean over the planted directions of the largest cosine with any decoder row.
    cosine: f64,
    /// Mean active latents of the exported SAE on fresh rows.
    l0: f64,
}

/// Trains by `recipe` with `keys` over it. Rows have unit mean square norm times `scale²`.
fn train(recipe: &str, keys: &str, steps: u64, scale: f64) -> Trained {
    let table = format!("recipe = \"{recipe}\"\nd_in = {D_IN}\nd_sae = {D_SAE}\n{keys}");
    let config = recipe::configure(table.parse().unwrap()).unwrap();
    let (planted, transcodes) = (Planted::new(), config.is_transcoder());
    let mut trainer = Trainer::new(config, steps, 3, Device::Cpu).unwrap();
    for step in 0..steps {
        let (x, target) = planted.rows(ROWS, 100 + step);
        let (x, target) = (x * scale, target * scale);
        trainer.step(&x, transcodes.then_some(&target)).unwrap();
    }
    let sae = trainer.to_sae(1.0, 1.0).unwrap();
    let w_dec = sae.w_dec(0..sae.d_sae()).unwrap();
    let norm = w_dec.square().sum_dim_intlist(1, true, Kind::Float).sqrt().clamp_min(1e-12);
    let directions = if transcodes { &planted.written } else { &planted.read };
    let cosine =
        directions.matmul(&(w_dec / norm).tr()).amax([1], false).mean(Kind::Double).double_value(&[]);
    let features = sae.encode(&(planted.rows(2048, 5).0 * scale)).unwrap();
    let l0 = features.gt(0.0).sum(Kind::Int64).int64_value(&[]) as f64 / 2048.0;
    Trained { cosine, l0 }
}

/// A rate for a thousand steps, with a decay at the end.
const RATE: &str = "optimizer.lr = 1e-2\noptimizer.lr_warmup = 20\noptimizer.lr_decay = 0.3\n";

#[test]
fn every_architecture_finds_a_planted_dictionary() {
    let jump =
        "objective.bandwidth = 0.2\nobjective.initial_threshold = 0.1\nobjective.lambda_warmup = 0.2\n";
    let unit = 1.0;
    let root = (D_IN as f64).sqrt(); // recipes with E‖x‖ = √d
    let cases = [
        ("gemma-scope", format!("{jump}objective.lambda = 0.1"), unit),
        ("gemma-scope-transcoder", format!("d_out = {D_IN}\n{jump}objective.lambda = 0.05"), unit),
        (
            "gemma-scope-2",
            format!(
                "{jump}objective.lambda = 0.1\nobjective.sparsity = {{ quadratic = {{ target_l0 = 2.0 }} }}\nobjective.prefixes = [0.9375, 1.0]"
            ),
            unit,
        ),
        ("jumprelu-saelens", "objective.lambda = 1.0\nobjective.lambda_warmup = 0.5".to_owned(), root),
        ("jumprelu-anthropic", "objective.lambda = 0.5".to_owned(), root),
        ("gated", "objective.lambda = 0.4".to_owned(), unit),
        ("topk", "objective.k = 2\nobjective.aux.k = 4\ndead_after = 2560".to_owned(), unit),
        ("batchtopk", "objective.k = 2\nobjective.aux.k = 4\ndead_after = 2560".to_owned(), root),
        (
            "matryoshka",
            "objective.k = 2\nobjective.aux.k = 4\ndead_after = 2560\nobjective.prefixes = [0.75, 1.0]"
                .to_owned(),
            root,
        ),
        ("relu", "objective.lambda = 0.3".to_owned(), root),
        (
            "relu-resampled",
            "objective.lambda = 0.3\ndead_after = 25600\nresample.every = 200\nresample.until = 800"
                .to_owned(),
            root,
        ),
    ];
    let mut found = Vec::new();
    for (name, keys, scale) in cases {
        let got = train(name, &format!("{RATE}{keys}"), 1200, scale);
        found.push((got.cosine, format!("{name}: mean max cosine {:.3}, L0 {:.2}", got.cosine, got.l0)));
    }
    assert!(found.iter().all(|(cosine, _)| *cosine > 0.9), "{found:#?}");
}

#[test]
fn sparsity_answers_to_its_price() {
    let jump =
        "objective.bandwidth = 0.2\nobjective.initial_threshold = 0.1\nobjective.lambda_warmup = 0.2\n";
    for (name, keys, scale, lambdas) in [
        ("gemma-scope", jump, 1.0, [0.003, 0.03, 0.3]),
        ("gated", "", 1.0, [0.01, 0.1, 0.5]),
        ("relu", "", (D_IN as f64).sqrt(), [0.03, 0.3, 3.0]),
    ] {
        let l0 = lambdas
            .map(|lambda| train(name, &format!("{RATE}{keys}objective.lambda = {lambda}"), 600, scale).l0);
        assert!(l0[0] > l0[1] && l0[1] > l0[2], "{name}: L0 {l0:?} at λ = {lambdas:?}");
    }
}
