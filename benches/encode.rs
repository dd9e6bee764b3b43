//! One SAE, dense and sparse, beside the encoder's own matmul. `cargo bench --bench encode`.
#![allow(missing_docs, clippy::unwrap_used, reason = "a bench; criterion's macros make undocumented items")]

use criterion::{Criterion, criterion_group, criterion_main};
use gemma_scope::{
    sae::{SaeExt as _, SparseAutoencoder as _},
    tch::{self, Device, Kind, Tensor},
    tiny,
};

fn encode(c: &mut Criterion) {
    let _no_grad = tch::no_grad_guard();
    let id = tiny::sae_ids().next().unwrap();
    let sae = tiny::sae(id).unwrap().unwrap();
    let x = Tensor::f_randn([1024, sae.d_in()], (Kind::Float, Device::Cpu)).unwrap();
    let x = x.f_mul_scalar(4.0).unwrap();
    let w_enc = sae.encoder().whole().unwrap();
    let features = sae.encode(&x).unwrap();
    let sparse = sae.encode_sparse(&x).unwrap();
    let mut group = c.benchmark_group("JumpReLU f32 cpu [1024, 256] to 2048");
    group.bench_function("encoder matmul", |b| b.iter(|| x.f_matmul(&w_enc).unwrap()));
    group.bench_function("encode", |b| b.iter(|| sae.encode(&x).unwrap()));
    group.bench_function("encode_sparse", |b| b.iter(|| sae.encode_sparse(&x).unwrap()));
    group.bench_function("decode", |b| b.iter(|| sae.decode(&features).unwrap()));
    group.bench_function("decode_sparse", |b| b.iter(|| sae.decode_sparse(&sparse).unwrap()));
    group.bench_function("reconstruct", |b| b.iter(|| sae.reconstruct(&x).unwrap()));
    group.finish();
}

criterion_group!(benches, encode);
criterion_main!(benches);
