//! SAEs of 2B's width with random weights, and a threshold for the L0 that is asked.

use std::collections::HashMap;

use anyhow::Result;
use gemma_scope::{
    sae::{Activation, Matrix, OpenOptions, Sae, SaeExt as _, SaeParts, SparseAutoencoder as _},
    tch::{self, Kind, Tensor},
    tensors::{SafetensorsFile, write_safetensors},
};
use serde_json::json;

use crate::{
    timing::{AnonymousMemory, Clock},
    work::{On, finish},
};

pub(crate) struct Shape {
    pub(crate) batch: i64,
    pub(crate) d_in: i64,
    pub(crate) width: i64,
    pub(crate) l0: f64,
    pub(crate) k: i64,
}

pub(crate) struct Weights {
    pub(crate) x: Tensor,
    pub(crate) w_enc: Tensor,
    pub(crate) w_dec: Tensor,
    pub(crate) threshold: Tensor,
}

impl Shape {
    pub(crate) fn weights(&self, on: On) -> Result<Weights> {
        let at = (Kind::Float, on.device);
        let x = Tensor::f_randn([self.batch, self.d_in], at)?;
        let scale = (self.d_in as f64).sqrt().recip();
        let w_enc = Tensor::f_randn([self.d_in, self.width], at)?.f_mul_scalar_(scale)?;
        let norms = w_enc.f_square()?.f_sum_dim_intlist(0, true, Kind::Float)?.f_sqrt()?;
        let w_dec = w_enc.f_div(&norms)?.f_tr()?.f_contiguous()?;
        // Pre-activations are standard normal; θ is where the share l0 / width lies above. ndtri is the normal's quantile.
        let share = Tensor::f_from_slice(&[1.0 - self.l0 / self.width as f64])?;
        let quantile = share.f_special_ndtri()?.f_double_value(&[0])?;
        let threshold = Tensor::f_zeros([self.width], at)?.f_add_scalar(quantile)?;
        Ok(Weights { x, w_enc, w_dec, threshold })
    }
}

impl Shape {
    /// A JumpReLU SAE of this shape.
    pub(crate) fn jumprelu(&self, on: On) -> Result<Sae> {
        let Weights { w_enc, w_dec, threshold, .. } = self.weights(on)?;
        sae(self, w_enc.into(), w_dec.into(), Activation::JumpRelu { threshold }, on)
    }
}

fn sae(shape: &Shape, w_enc: Matrix, w_dec: Matrix, activation: Activation, on: On) -> Result<Sae> {
    let zeros = |n: i64| Tensor::f_zeros([n], (Kind::Float, on.device));
    Ok(Sae::new(SaeParts::plain(w_enc, zeros(shape.width)?, w_dec, zeros(shape.d_in)?, activation))?)
}

/// JumpReLU and TopK, whole and in parts.
pub(crate) fn run(shape: &Shape, on: On) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let Weights { x, w_enc, w_dec, threshold } = shape.weights(on)?;
    let held = |t: &Tensor| Matrix::from(t.shallow_clone());
    let jumprelu = sae(shape, held(&w_enc), held(&w_dec), Activation::JumpRelu { threshold }, on)?;
    let topk = sae(shape, held(&w_enc), held(&w_dec), Activation::TopK { k: shape.k }, on)?;
    let features = jumprelu.encode_sparse(&x)?;
    println!("{}", json!({"l0": features.nnz() as f64 / shape.batch as f64}));
    let clock = Clock::new(5, shape.batch as f64);
    let timed = |what: &str, work: &dyn Fn() -> Result<Tensor>| {
        clock.time(what, || {
            let made = work()?;
            finish(on);
            Ok(made)
        })
    };
    timed("matmul", &|| Ok(x.f_matmul(&w_enc)?))?;
    timed("ours.encode", &|| Ok(jumprelu.encode_sparse(&x)?.values().shallow_clone()))?;
    timed("ours.encode_dense", &|| Ok(jumprelu.encode(&x)?))?;
    timed("ours.decode", &|| Ok(jumprelu.decode_sparse(&features)?))?;
    timed("ours.forward", &|| Ok(jumprelu.reconstruct(&x)?))?;
    timed("ours.topk_encode", &|| Ok(topk.encode_sparse(&x)?.values().shallow_clone()))?;
    timed("ours.topk_forward", &|| Ok(topk.reconstruct(&x)?))
}

/// A wide JumpReLU SAE that stays in its file: the memory is that of a tile.
pub(crate) fn wide(shape: &Shape, on: On) -> Result<()> {
    let _no_grad = tch::no_grad_guard();
    let Weights { x, w_enc, w_dec, threshold } = shape.weights(on)?;
    let path = std::env::temp_dir().join(format!("gemma-scope-bench-{}.safetensors", std::process::id()));
    write_safetensors(&path, [("W_enc", &w_enc), ("W_dec", &w_dec)], HashMap::new())?;
    drop((w_enc, w_dec));
    let measured = (|| {
        let mut file = SafetensorsFile::open(&path)?;
        let whole = file.map("W_enc")?;
        let OpenOptions { device, .. } = OpenOptions::on(on.device);
        let [w_enc, w_dec] =
            ["W_enc", "W_dec"].map(|name| Matrix::open(file.stored(name)?, false, 0, device));
        let wide = sae(shape, w_enc?, w_dec?, Activation::JumpRelu { threshold }, on)?;
        let clock = Clock::new(5, shape.batch as f64);
        clock.time("matmul", || Ok(x.f_matmul(&whole)?))?;
        let memory = AnonymousMemory::watch();
        clock.time("ours.wide_encode", || Ok(wide.encode_sparse(&x)?))?;
        clock.time("ours.wide_forward", || Ok(wide.reconstruct(&x)?))?;
        println!("{}", json!({"peak_over_mapped_weights_mib": memory.rise_mib()}));
        Ok(())
    })();
    std::fs::remove_file(&path)?;
    measured
}
