//! What several files of these tests use.

use std::{collections::HashMap, fmt::Display};

use gemma_model::{Gemma2, Gemma2Config, LoadOptions};
use hooks::{ActivationCache, HookPoint, HookedModelExt as _, ModelDims, TokenBatch};
use proptest::test_runner::{Config, RngAlgorithm, RngSeed};
use tch::{Kind, Tensor};
use testkit::{fixture, read_tokens};

/// The small checkpoints, which between them meet every relation of sizes in the released models.
pub(crate) const CASES: [&str; 5] = ["mini-2b", "mini-9b", "mini-27b", "mini-padded", "mini-sharded"];

/// One operation in float32 against the same in float64 on the same input, relative to the largest magnitude: sums of at
/// most 288 terms, each rounded at 6e-8. A wrong formula shows as 1e-2 or more.
pub(crate) const ONE_STEP: f64 = 1e-5;

/// The whole model twice in float32 with its sums in another order: what the reference's float32 differs by from its
/// float64, as in the golden test.
pub(crate) const WHOLE_MODEL: f64 = 3e-5;

pub(crate) fn model(case: &str) -> Gemma2 {
    Gemma2::load(&fixture(&format!("gemma2/{case}")), &LoadOptions::default()).unwrap()
}

pub(crate) fn tokens(case: &str) -> TokenBatch {
    read_tokens(&format!("gemma2/{case}/tokens.json"))
}

pub(crate) fn batch(rows: &[Vec<i64>]) -> TokenBatch {
    TokenBatch::new(rows, &[0, 1, 2]).unwrap()
}

/// The same weights under another configuration.
pub(crate) fn with_config(model: &Gemma2, config: Gemma2Config) -> Gemma2 {
    let weights: HashMap<String, &Tensor> = model.parameters().into_iter().collect();
    Gemma2::from_fn(config, |name, _| Ok(weights[name].shallow_clone())).unwrap()
}

/// A configuration small enough to train in a test.
pub(crate) fn small() -> Gemma2Config {
    let dims = ModelDims {
        n_layers: 2,
        d_model: 16,
        n_heads: 4,
        n_kv_heads: 2,
        d_head: 8,
        d_mlp: 24,
        d_vocab: 40,
        n_ctx: 32,
    };
    Gemma2Config {
        layer_kinds: Gemma2Config::alternating(2),
        dims,
        sliding_window: 4,
        query_pre_attn_scalar: 8.0,
        ..Gemma2Config::gemma_2_2b()
    }
}

/// A checkpoint, its tokens, and every activation of one run.
pub(crate) struct Run {
    pub(crate) model: Gemma2,
    pub(crate) tokens: TokenBatch,
    pub(crate) logits: Tensor,
    cache: ActivationCache,
}

impl Run {
    pub(crate) fn of(case: &str) -> Self {
        let (model, tokens) = (model(case), tokens(case));
        let sites: Vec<_> = HookPoint::all(model.config().dims.n_layers).collect();
        let (logits, cache) = model.run_with_cache(&tokens, &sites).unwrap();
        Self { model, tokens, logits, cache }
    }

    pub(crate) fn config(&self) -> &Gemma2Config {
        self.model.config()
    }

    pub(crate) fn layers(&self) -> std::ops::Range<usize> {
        0..self.config().dims.n_layers
    }

    /// What stood at a site, as it stood there.
    pub(crate) fn raw(&self, site: &str) -> &Tensor {
        self.cache.get(site.parse().unwrap()).unwrap()
    }

    /// What stood at a site, for arithmetic in float64.
    pub(crate) fn at(&self, site: &str) -> Tensor {
        self.raw(site).to_kind(Kind::Double)
    }

    /// A weight by its Hugging Face name, without `.weight`, for arithmetic in float64.
    pub(crate) fn weight(&self, name: &str) -> Tensor {
        let name = format!("{name}.weight");
        let parameters = self.model.parameters();
        parameters.iter().find(|(n, _)| *n == name).unwrap().1.to_kind(Kind::Double)
    }

    /// What a norm hands on: its normalised site times one plus its weight.
    pub(crate) fn normed(&self, site: &str, weight: &str) -> Tensor {
        self.at(site) * (self.weight(weight) + 1.0)
    }
}

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
