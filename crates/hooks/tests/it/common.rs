//! What several files of these tests use.

use std::fmt::Display;

use hooks::{ActivationCache, HookPoint, HookSet, HookedModelExt as _, TokenBatch};
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm},
};
use tch::{Kind, Tensor};
use testkit::ToyModel;

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
        rng_seed: proptest::test_runner::RngSeed::Fixed(20),
        ..Config::default()
    }
}

pub(crate) const N_LAYERS: usize = 3;
pub(crate) const D_MODEL: usize = 6;
pub(crate) const D_VOCAB: usize = 20;

/// The model that most of these tests run.
pub(crate) fn toy() -> ToyModel {
    ToyModel::new(N_LAYERS, D_MODEL, D_VOCAB, 5)
}

/// Two sequences of five tokens, which begin with BOS (2).
pub(crate) fn tokens() -> TokenBatch {
    TokenBatch::new(&[vec![2, 7, 19, 4, 7], vec![2, 3, 11, 0, 5]], &[0, 1, 2]).unwrap()
}

pub(crate) fn site(name: &str) -> HookPoint {
    name.parse().unwrap()
}

/// The values of a bool tensor, `[batch, pos]`.
pub(crate) fn bools(tensor: &Tensor) -> Vec<Vec<bool>> {
    assert_eq!(tensor.kind(), Kind::Bool);
    ints(&tensor.to_kind(Kind::Int64)).iter().map(|row| row.iter().map(|v| *v != 0).collect()).collect()
}

/// The values of an int64 tensor, `[batch, pos]`.
pub(crate) fn ints(tensor: &Tensor) -> Vec<Vec<i64>> {
    assert_eq!(tensor.kind(), Kind::Int64);
    Vec::<Vec<i64>>::try_from(tensor).unwrap()
}

/// A run with one hook at one site, and what stands there afterwards.
pub(crate) fn after(hook: impl hooks::Hook, at: HookPoint) -> hooks::Result<Tensor> {
    let mut cache = ActivationCache::default();
    let mut hooks = HookSet::new();
    hooks.on(at, hook).on(at, &mut cache);
    let _logits = toy().run(&tokens(), hooks)?;
    cache.take(at)
}

/// Any hook point at all.
pub(crate) fn any_point() -> impl Strategy<Value = HookPoint> {
    let layers = prop_oneof![0usize..100, any::<usize>()];
    (any::<prop::sample::Index>(), layers).prop_map(|(index, layer)| {
        // All the sites of one block, moved to another.
        let sites: Vec<String> = HookPoint::all(1).map(|p| p.to_string()).collect();
        site(&index.get(&sites).replacen("blocks.0.", &format!("blocks.{layer}."), 1))
    })
}
