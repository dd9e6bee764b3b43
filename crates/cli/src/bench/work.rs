//! What all of the model's benches share: 2B's shapes with random weights, where and as what they are asked for.

use anyhow::Result;
use gemma_scope::{
    hooks::TokenBatch,
    model::{Gemma2, Gemma2Config},
    tch::{Device, Kind, Tensor},
};

/// Where to compute, and as what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct On {
    pub(crate) kind: Kind,
    pub(crate) device: Device,
}

/// A 2B with some of its layers.
pub(crate) fn model(layers: usize, on: On) -> Result<Gemma2> {
    let mut config = Gemma2Config::gemma_2_2b();
    config.dims.n_layers = layers;
    config.layer_kinds = Gemma2Config::alternating(layers);
    Ok(Gemma2::from_fn(config, |_, axes| {
        let size: Vec<i64> = axes.iter().map(|(_, n)| *n).collect();
        let weights = Tensor::f_empty(size, (on.kind, on.device))?;
        Ok(weights.shallow_clone().f_normal_(0.0, 0.02)?)
    })?)
}

/// One row of random ids.
pub(crate) fn tokens(seq: usize) -> Result<TokenBatch> {
    let on = (Kind::Int64, Device::Cpu);
    let ids = Vec::<i64>::try_from(Tensor::f_randint_low(5, 256_000, [seq as i64], on)?)?;
    Ok(TokenBatch::new(&[ids], &[])?)
}

/// Waits until the device has done what it was given.
pub(crate) fn finish(on: On) {
    if let Device::Cuda(index) = on.device {
        gemma_scope::tch::Cuda::synchronize(index as i64);
    }
}
