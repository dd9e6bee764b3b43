//! What several files of these tests use.

use std::{fmt::Display, ops::ControlFlow};

use activations::{
    ActivationError, Batches, Cursor, HarvestOptions, Live, Manifest, Result, Rows, Site, Source, Store,
    harvest,
};
use hooks::{BoxError, HookPoint, TokenBatch};
use proptest::test_runner::{Config, RngAlgorithm, RngSeed};
use tch::{Kind, Tensor};
use testkit::ToyModel;

pub(crate) const N_LAYERS: usize = 3;
pub(crate) const D_MODEL: usize = 6;
pub(crate) const BOS: i64 = 2;
pub(crate) const PAD: i64 = 0;
pub(crate) const SPECIAL: [i64; 3] = [0, 1, 2];

/// Asserts that something was refused in one sentence that names what is at fault, and returns the sentence.
#[track_caller]
pub(crate) fn refused<T>(result: Result<T, impl Display>, at_fault: &[&str]) -> String {
    let text = match result {
        Ok(_) => panic!("was taken, but should have been refused for {at_fault:?}"),
        Err(error) => error.to_string(),
    };
    let one_sentence = !text.is_empty() && !text.contains(char::is_control) && !text.ends_with('.');
    assert!(one_sentence, "not one sentence: {text:?}");
    for part in at_fault {
        assert!(text.contains(part), "does not say `{part}`: {text}");
    }
    text
}

/// Cases from a fixed seed: a run that fails fails again.
pub(crate) fn cases(cases: u32) -> Config {
    Config {
        cases,
        failure_persistence: None,
        rng_algorithm: RngAlgorithm::ChaCha,
        rng_seed: RngSeed::Fixed(20),
        ..Config::default()
    }
}

pub(crate) fn toy() -> ToyModel {
    ToyModel::new(N_LAYERS, D_MODEL, 20, 5)
}

pub(crate) fn site(name: &str) -> HookPoint {
    name.parse().unwrap()
}

/// Three sites, not in the model's order.
pub(crate) fn sites() -> Vec<HookPoint> {
    ["blocks.1.hook_resid_post", "hook_embed", "blocks.1.hook_mlp_out"].map(site).to_vec()
}

/// Token batches of different sizes, with BOS, EOS and padding among them; in the third nothing counts.
pub(crate) fn batches(count: usize) -> Vec<TokenBatch> {
    let batch = |i: usize| {
        if i % 7 == 2 {
            return TokenBatch::new(&[vec![BOS, 1], vec![BOS, 1]], &SPECIAL).unwrap();
        }
        let row = |r: usize| {
            let length = 3 + (5 * i + 3 * r) % 6;
            let text = (0..length).map(|p| 3 + ((7 * i + 11 * r + 5 * p) % 17) as i64);
            std::iter::once(BOS).chain(text).chain([1]).collect::<Vec<i64>>()
        };
        let rows: Vec<_> = (0..1 + i % 3).map(row).collect();
        TokenBatch::padded(&rows, PAD, &SPECIAL).unwrap()
    };
    (0..count).map(batch).collect()
}

/// How many positions count in each of [`batches`].
pub(crate) fn counted(count: usize) -> Vec<i64> {
    batches(count)
        .iter()
        .map(|b| b.counted().to_kind(Kind::Int64).sum(Kind::Int64).int64_value(&[]))
        .collect()
}

/// An epoch of [`batches`].
pub(crate) fn epoch<'a>(count: usize) -> impl FnMut() -> Result<Batches<'a>, BoxError> {
    move || Ok(Box::new(batches(count).into_iter().map(Ok)) as Batches<'a>)
}

pub(crate) fn live(model: &ToyModel, count: usize, epochs: Option<u64>) -> Live<'_> {
    Live::new(model, &sites(), epoch(count), epochs).unwrap()
}

/// What is left of a source, in one piece a site.
pub(crate) fn all(source: &mut (impl Source + ?Sized)) -> Vec<Tensor> {
    let mut found: Vec<Vec<Tensor>> = source.sites().iter().map(|_| Vec::new()).collect();
    while let Some(rows) = source.next().unwrap() {
        for (found, rows) in found.iter_mut().zip(rows.at) {
            found.push(rows);
        }
    }
    found.iter().map(|pieces| Tensor::cat(pieces, 0)).collect()
}

pub(crate) fn options(shard_rows: u64) -> HarvestOptions {
    HarvestOptions {
        model: "toy".to_owned(),
        model_fingerprint: "5".to_owned(),
        text_fingerprint: "the batches of common.rs".to_owned(),
        shard_rows,
        ..HarvestOptions::default()
    }
}

/// A harvest to its end.
pub(crate) fn harvested(
    source: &mut impl Source,
    store: &Store,
    options: &HarvestOptions,
) -> Result<Manifest> {
    harvest(source, store, options, |_| ControlFlow::Continue(()))
}

/// Chunks of given sizes whose rows are numbered through: the number at the first site, its negative twice at the second.
#[derive(Debug, Clone)]
pub(crate) struct Numbered {
    pub(crate) chunks: Vec<u64>,
    pub(crate) at: Cursor,
    sites: [Site; 2],
    /// Chunks that fail once, when they are read first.
    pub(crate) fails: Vec<u64>,
}

impl Numbered {
    pub(crate) fn new(chunks: &[u64]) -> Self {
        let sites = [
            Site { hook: site("blocks.0.hook_resid_post"), width: 1 },
            Site { hook: site("blocks.1.hook_resid_post"), width: 2 },
        ];
        Self { chunks: chunks.to_vec(), at: Cursor::default(), sites, fails: Vec::new() }
    }
}

impl Source for Numbered {
    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn next(&mut self) -> Result<Option<Rows>> {
        let Some(&rows) = self.chunks.get(self.at.chunk as usize) else { return Ok(None) };
        if let Some(i) = self.fails.iter().position(|chunk| *chunk == self.at.chunk) {
            self.fails.remove(i);
            return Err(ActivationError::Rows(format!("chunk {} failed", self.at.chunk)));
        }
        let before: u64 = self.chunks[..self.at.chunk as usize].iter().sum();
        let numbers: Vec<f32> = (before + self.at.row..before + rows).map(|n| n as f32).collect();
        self.at = Cursor { chunk: self.at.chunk + 1, row: 0 };
        let column = Tensor::from_slice(&numbers).reshape([-1, 1]);
        Rows::new(vec![column.shallow_clone(), Tensor::cat(&[-&column, -&column], 1)]).map(Some)
    }

    fn seek(&mut self, at: Cursor) -> Result<()> {
        self.at = at;
        Ok(())
    }

    fn cursor(&self) -> Cursor {
        self.at
    }
}

/// The numbers of a batch of [`Numbered`] rows, which must be the same at both sites.
pub(crate) fn numbers(rows: &Rows) -> Vec<u64> {
    let of = |t: &Tensor| Vec::<f32>::try_from(t.contiguous().reshape(-1)).unwrap();
    let (first, second) = (of(&rows.at[0]), of(&rows.at[1]));
    let twice: Vec<f32> = first.iter().flat_map(|n| [-n, -n]).collect();
    assert_eq!(second, twice, "rows of different tokens stand side by side");
    first.iter().map(|n| *n as u64).collect()
}
