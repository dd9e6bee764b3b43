//! The laws that every [`SparseAutoencoder`] keeps, for the tests of new architectures: call [`check`] on yours, and once
//! through `Box<dyn SparseAutoencoder>`.

use tch::{Kind, Tensor};

use crate::{Result, SaeError, SaeExt as _, SparseAutoencoder, SparseFeatures};

/// Two ways to sum the same float32 products may differ by this much of the largest value.
const ROUNDING: f64 = 1e-5;

/// Checks every law on `x`, `[n, d_in]` with n even and at least 2.
///
/// # Errors
/// [`SaeError::Law`] names the first law that is broken.
pub fn check(sae: &dyn SparseAutoencoder, x: &Tensor) -> Result<()> {
    let (n, d_in, d_sae, d_out) = (x.size().first().copied().unwrap_or(0), sae.d_in(), sae.d_sae(), sae.d_out());
    if n < 2 || n % 2 != 0 {
        return Err(SaeError::Law("give an even number of rows".to_owned()));
    }
    let features = sae.encode(x)?;
    let out = sae.decode(&features)?;
    law("encode gives [n, d_sae]", features.size() == [n, d_sae])?;
    law("decode gives [n, d_out]", out.size() == [n, d_out])?;
    law("W_dec is [d_sae, d_out]", sae.w_dec().size() == [d_sae, d_out])?;
    law("features are never negative", features.f_lt(0.0)?.f_any()?.f_int64_value(&[])? == 0)?;

    let cube = x.f_reshape([2, n / 2, d_in])?;
    let same_features = close(&sae.encode(&cube)?, &features.f_reshape([2, n / 2, d_sae])?)?;
    law("[batch, pos, d_in] is encoded as [batch·pos, d_in] is", same_features)?;
    let same_out = close(&sae.decode(&features.f_reshape([2, n / 2, d_sae])?)?, &out.f_reshape([2, n / 2, d_out])?)?;
    law("[batch, pos, d_sae] is decoded as [batch·pos, d_sae] is", same_out)?;
    let alone = sae.encode(&x.f_narrow(0, 0, 1)?)?;
    law("a row does not depend on the others", close(&alone, &features.f_narrow(0, 0, 1)?)?)?;

    let sparse = sae.encode_sparse(x)?;
    law("encode_sparse is encode's non-zeros", close(&sparse.to_dense()?, &features)?)?;
    let again = SparseFeatures::from_dense(&features)?;
    law("encode_sparse finds the same latents", sparse.indices().f_equal(again.indices())?)?;
    law("decode_sparse is decode", close(&sae.decode_sparse(&sparse)?, &out)?)?;
    law("reconstruct is decode after encode", close(&sae.reconstruct(&cube)?.f_reshape([n, d_out])?, &out)?)?;
    let none = x.f_narrow(0, 0, 0)?;
    law("no rows give no features", sae.encode_sparse(&none)?.n_rows() == 0 && sae.encode(&none)?.size() == [0, d_sae])?;

    let wrong = Tensor::f_zeros([2, d_in + 1], (Kind::Float, x.device()))?;
    law("an input of another width is an error", sae.encode(&wrong).is_err() && sae.encode_sparse(&wrong).is_err())?;
    let wrong = Tensor::f_zeros([2, d_sae + 1], (Kind::Float, x.device()))?;
    law("features of another width are an error", sae.decode(&wrong).is_err())?;
    gradients_flow(sae, x)
}

fn gradients_flow(sae: &dyn SparseAutoencoder, x: &Tensor) -> Result<()> {
    let grads = tch::with_grad(|| {
        let leaf = x.f_detach()?.f_add_scalar(0.0)?.f_set_requires_grad(true)?;
        let loss = sae.decode(&sae.encode(&leaf)?)?.f_square()?.f_sum(Kind::Float)?;
        Ok::<_, SaeError>(Tensor::f_run_backward(&[&loss], &[&leaf], false, false)?)
    })?;
    let sum = grads.first().map(|g| g.f_abs()?.f_sum(Kind::Double)?.f_double_value(&[])).transpose()?;
    law("gradients reach the input", sum.is_some_and(|s| s.is_finite() && s > 0.0))
}

fn close(a: &Tensor, b: &Tensor) -> Result<bool> {
    if a.size() != b.size() {
        return Ok(false);
    }
    if a.numel() == 0 {
        return Ok(true);
    }
    let largest = b.f_abs()?.f_max()?.f_double_value(&[])?.max(1e-30);
    Ok(a.f_sub(b)?.f_abs()?.f_max()?.f_double_value(&[])? <= ROUNDING * largest)
}

fn law(what: &str, holds: bool) -> Result<()> {
    if holds { Ok(()) } else { Err(SaeError::Law(what.to_owned())) }
}
