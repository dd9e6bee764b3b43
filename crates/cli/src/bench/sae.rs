//! A JumpReLU SAE of 2B's width with random weights and a threshold for the L0 that is asked.

use anyhow::Result;
use gemma_scope::{
    sae::{JumpRelu, SaeExt as _, SparseAutoencoder as _},
    tch::{self, Device, Kind, Tensor},
};
use serde_json::json;

use crate::timing::Clock;

const D_IN: i64 = 2304;

pub(crate) fn run(batch: i64, width: i64, l0: f64) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let on = (Kind::Float, Device::Cpu);
    let x = Tensor::f_randn([batch, D_IN], on)?;
    let w_enc = Tensor::f_randn([D_IN, width], on)?.f_mul_scalar_((D_IN as f64).sqrt().recip())?;
    let norms = w_enc.f_square()?.f_sum_dim_intlist(0, true, Kind::Float)?.f_sqrt()?;
    let w_dec = w_enc.f_div(&norms)?.f_tr()?.f_contiguous()?;
    let zeros = |n: i64| Tensor::f_zeros([n], on);
    // Pre-activations are standard normal; θ is where the share l0 / width lies above. ndtri is the normal's quantile.
    let quantile =
        Tensor::f_from_slice(&[1.0 - l0 / width as f64])?.f_special_ndtri()?.f_double_value(&[0])?;
    let threshold = zeros(width)?.f_add_scalar(quantile)?;
    let sae = JumpRelu::new(w_enc.shallow_clone(), zeros(width)?, w_dec, zeros(D_IN)?, threshold)?;
    let features = sae.encode(&x)?;
    let mean = features.f_gt(0.0)?.f_sum(Kind::Double)?.f_double_value(&[])? / batch as f64;
    println!("{}", json!({"l0": mean}));
    let clock = Clock::new(5, batch as f64);
    clock.time("matmul", || Ok(x.f_matmul(&w_enc)?))?;
    clock.time("ours.encode", || Ok(sae.encode_sparse(&x)?))?;
    let sparse = sae.encode_sparse(&x)?;
    clock.time("ours.decode", || Ok(sae.decode_sparse(&sparse)?))?;
    clock.time("ours.forward", || Ok(sae.reconstruct(&x)?))?;
    Ok(())
}
