//! What hooks cost: no hook, a cache at every residual site, a cache at every site. `cargo bench --bench hooks_overhead`.
//!
//! The model is the embedded one, whose blocks are so small that any overhead shows at its largest.
#![allow(missing_docs, clippy::unwrap_used, reason = "a bench; criterion's macros make undocumented items")]

use criterion::{Criterion, criterion_group, criterion_main};
use gemma_scope::{
    hooks::{ActivationCache, HookPoint, HookSet, HookedModelExt as _, TokenBatch},
    model::LoadOptions,
    tch, tiny,
};

fn forward(c: &mut Criterion) {
    let _no_grad = tch::no_grad_guard();
    let model = tiny::model(&LoadOptions::default()).unwrap();
    let n_layers = model.config().dims.n_layers;
    let ids: Vec<i64> = (0..256).map(|i| 300 + 7 * i).collect();
    let tokens = TokenBatch::new(&[ids], &[]).unwrap();
    let mut group = c.benchmark_group("forward f32 cpu [1, 256]");
    group.bench_function("empty hook set", |b| {
        b.iter(|| model.forward(&tokens, &mut HookSet::new()).unwrap())
    });
    let mut with_cache = |name: &str, sites: Vec<HookPoint>| {
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut cache = ActivationCache::default();
                let mut hooks = HookSet::new();
                hooks.on_each(sites.iter().copied(), &mut cache);
                let logits = model.forward(&tokens, &mut hooks).unwrap();
                drop(hooks);
                (logits, cache)
            });
        });
    };
    with_cache("cache every resid_post", HookPoint::resid_posts(n_layers).collect());
    with_cache("cache every site", HookPoint::all(n_layers).collect());
    group.finish();
}

/// What one site costs when nobody looks: `HookSet::at` on an empty set. A forward pass of this model calls it 153 times.
fn at(c: &mut Criterion) {
    let act = tch::Tensor::from(1.0);
    let site = HookPoint::Embed;
    let mut act = Some(act);
    c.bench_function("HookSet::at, empty set", |b| {
        let mut hooks = HookSet::new();
        b.iter(|| act = Some(hooks.at(site, act.take().unwrap()).unwrap()));
    });
}

criterion_group!(benches, forward, at);
criterion_main!(benches);
