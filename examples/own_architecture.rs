//! An architecture of your own: implement `SparseAutoencoder`, hold it to the laws, and everything that takes an SAE takes it.
//!
//! This one keeps of each latent only what exceeds a soft margin: `f = ReLU(|π| − m)`, blind to the sign of π.
#![allow(clippy::print_stdout, reason = "an example shows what it finds")]

use std::ops::Range;

use gemma_scope::{
    eval::{EvalError, EvalOptions, evaluate},
    hub::Hub,
    load::{load_model, load_sae},
    model::LoadOptions,
    sae::{OpenOptions, SaeError, SparseAutoencoder, SparseFeatures, conformance},
    tch::{self, Kind, Tensor},
    tensors::expect_shape,
};

/// The laws that the compiler can't see are checked by `conformance::check`.
#[derive(Debug)]
struct Unsigned {
    w_enc: Tensor, // [d_in, d_sae]
    w_dec: Tensor, // [d_sae, d_in]
    b_dec: Tensor, // [d_in]
    margin: f64,
}

impl SparseAutoencoder for Unsigned {
    fn architecture(&self) -> &'static str {
        "unsigned"
    }

    fn d_in(&self) -> i64 {
        self.w_enc.size()[0]
    }

    fn d_sae(&self) -> i64 {
        self.w_enc.size()[1]
    }

    fn d_out(&self) -> i64 {
        self.w_dec.size()[1]
    }

    fn encode(&self, x: &Tensor) -> Result<Tensor, SaeError> {
        if x.size().last() != Some(&self.d_in()) {
            let expected = format!("d_in = {}", self.d_in());
            return Err(SaeError::Width { what: "the input", expected, got: x.size() });
        }
        let pre_acts = x.f_sub(&self.b_dec)?.f_matmul(&self.w_enc)?;
        Ok(pre_acts.f_abs()?.f_sub_scalar(self.margin)?.f_relu()?)
    }

    // Where there is no faster way, the sparse forms go through the dense ones.
    fn encode_sparse(&self, x: &Tensor) -> Result<SparseFeatures, SaeError> {
        SparseFeatures::from_dense(&self.encode(x)?)
    }

    fn decode(&self, features: &Tensor) -> Result<Tensor, SaeError> {
        if features.size().last() != Some(&self.d_sae()) {
            let expected = format!("d_sae = {}", self.d_sae());
            return Err(SaeError::Width { what: "the features", expected, got: features.size() });
        }
        Ok(features.f_matmul(&self.w_dec)?.f_add(&self.b_dec)?)
    }

    fn decode_sparse(&self, features: &SparseFeatures) -> Result<Tensor, SaeError> {
        self.decode(&features.to_dense()?)
    }

    fn w_dec(&self, latents: Range<i64>) -> Result<Tensor, SaeError> {
        Ok(self.w_dec.f_narrow(0, latents.start, latents.end - latents.start)?)
    }
}

impl Unsigned {
    fn new(w_enc: Tensor, w_dec: Tensor, b_dec: Tensor, margin: f64) -> Result<Self, SaeError> {
        let (d_in, d_sae) = w_enc.size2()?;
        expect_shape("W_dec", &w_dec, &[("d_sae", d_sae), ("d_in", d_in)])?;
        expect_shape("b_dec", &b_dec, &[("d_in", d_in)])?;
        Ok(Self { w_enc, w_dec, b_dec, margin })
    }
}

fn main() -> anyhow::Result<()> {
    // Its weights are borrowed from the embedded SAE; the margin is ours.
    let scope = load_sae("tiny", None, &OpenOptions::default(), Hub::from_env)?;
    let b_dec = Tensor::f_zeros([scope.sae.d_in()], (Kind::Float, tch::Device::Cpu))?;
    let own = Unsigned::new(scope.sae.encoder().whole()?, scope.sae.decoder().whole()?, b_dec, 12.0)?;

    let x = Tensor::f_randn([8, own.d_in()], (Kind::Float, tch::Device::Cpu))?.f_mul_scalar(20.0)?;
    conformance::check(&own, &x)?;
    println!("{} keeps the laws", own.architecture());

    // It needs nothing more to be judged on real text, spliced, or shown.
    let gemma = load_model("tiny", &LoadOptions::default(), Hub::from_env)?;
    let text =
        "It was the best of times, it was the worst of times, and the captain of the ship looked at the sea.";
    let batches = [Ok::<_, EvalError>(gemma.tokenizer()?.batch(&[text])?)];
    println!("{}", evaluate(&gemma.model, scope.site, &own, batches, &EvalOptions::default())?);
    Ok(())
}
