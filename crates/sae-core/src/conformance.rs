//! The laws that every [`SparseAutoencoder`] keeps, for the tests of new architectures: call [`check`] on yours, and once
//! through `Box<dyn SparseAutoencoder>`.

use tch::{Kind, Tensor};

use crate::{FeatureId, Result, SaeError, SaeExt as _, SparseAutoencoder, SparseFeatures};

/// Two ways to sum the same float32 products may differ by this much of the largest value.
const ROUNDING: f64 = 1e-5;

/// Latents whose decoder rows are looked at, spread over all.
const DIRECTIONS: i64 = 8;

/// Checks every law on `x`, `[n, d_in]` with n even and at least 2.
///
/// # Errors
/// [`SaeError::Law`] names the first law that is broken.
pub fn check(sae: &dyn SparseAutoencoder, x: &Tensor) -> Result<()> {
    let (n, d_in, d_sae, d_out) =
        (x.size().first().copied().unwrap_or(0), sae.d_in(), sae.d_sae(), sae.d_out());
    if n < 2 || n % 2 != 0 {
        return Err(SaeError::Law("give an even number of rows".to_owned()));
    }
    let features = sae.encode(x)?;
    law("encode gives [n, d_sae]", features.size() == [n, d_sae])?;
    law("features are never negative", features.f_lt(0.0)?.f_any()?.f_int64_value(&[])? == 0)?;
    let out = sae.decode(&features)?;
    law("decode gives [n, d_out]", out.size() == [n, d_out])?;
    let whole = sae.w_dec(0..d_sae);
    law("W_dec is [d_sae, d_out]", whole.is_ok_and(|w| w.size() == [d_sae, d_out]))?;

    let cube = x.f_reshape([2, n / 2, d_in])?;
    let same_features = close(&sae.encode(&cube)?, &features.f_reshape([2, n / 2, d_sae])?)?;
    law("[batch, pos, d_in] is encoded as [batch·pos, d_in] is", same_features)?;
    let same_out =
        close(&sae.decode(&features.f_reshape([2, n / 2, d_sae])?)?, &out.f_reshape([2, n / 2, d_out])?)?;
    law("[batch, pos, d_sae] is decoded as [batch·pos, d_sae] is", same_out)?;
    for row in [0, n - 1] {
        let of = |t: &Tensor| t.f_narrow(0, row, 1);
        law("a row is encoded whatever the others are", close(&sae.encode(&of(x)?)?, &of(&features)?)?)?;
        law("a row is decoded whatever the others are", close(&sae.decode(&of(&features)?)?, &of(&out)?)?)?;
    }
    directions(sae, &features)?;

    let sparse = sae.encode_sparse(x)?;
    law("encode_sparse is encode's non-zeros", close(&sparse.to_dense()?, &features)?)?;
    let again = SparseFeatures::from_dense(&features)?;
    law("encode_sparse finds the same latents", sparse.indices().f_equal(again.indices())?)?;
    law("decode_sparse is decode", close(&sae.decode_sparse(&sparse)?, &out)?)?;
    let done = sae.finish(&out, x)?;
    law("finish gives [n, d_out]", done.size() == [n, d_out])?;
    let same = close(&sae.reconstruct(&cube)?.f_reshape([n, d_out])?, &done)?;
    law("reconstruct is finish after decode after encode", same)?;
    no_rows(sae, &x.f_narrow(0, 0, 0)?)?;
    other_widths(sae, x)?;
    gradients_flow(sae, x, sparse.nnz())
}

/// One more of a latent moves the output by its row of `W_dec`.
fn directions(sae: &dyn SparseAutoencoder, features: &Tensor) -> Result<()> {
    let before = features.f_narrow(0, 0, 1)?;
    let out = sae.decode(&before)?;
    let latents = Tensor::f_arange(sae.d_sae(), (Kind::Int64, features.device()))?;
    let step = usize::try_from((sae.d_sae() / DIRECTIONS).max(1)).unwrap_or(1);
    for f in (0..sae.d_sae()).step_by(step) {
        let more = before.f_add(&latents.f_eq(f)?)?;
        let want = out.f_add(&sae.direction(FeatureId(f as usize))?)?;
        law("row f of W_dec is what latent f writes", close(&sae.decode(&more)?, &want)?)?;
    }
    Ok(())
}

fn no_rows(sae: &dyn SparseAutoencoder, none: &Tensor) -> Result<()> {
    let dense = sae.encode(none).and_then(|f| Ok((f.size(), sae.decode(&f)?.size())));
    let sparse = sae.encode_sparse(none).and_then(|f| Ok((f.n_rows(), sae.decode_sparse(&f)?.size())));
    let out = vec![0, sae.d_out()];
    let holds = matches!(&dense, Ok((f, o)) if *f == [0, sae.d_sae()] && *o == out);
    law("no rows give no features", holds && matches!(&sparse, Ok((0, o)) if *o == out))
}

fn other_widths(sae: &dyn SparseAutoencoder, x: &Tensor) -> Result<()> {
    let wide = |width: i64| Tensor::f_ones([2, width + 1], (Kind::Float, x.device()));
    let input = wide(sae.d_in())?;
    law(
        "an input of another width is an error",
        sae.encode(&input).is_err() && sae.encode_sparse(&input).is_err(),
    )?;
    let features = wide(sae.d_sae())?;
    law("features of another width are an error", sae.decode(&features).is_err())?;
    let sparse = SparseFeatures::from_dense(&features)?;
    law("sparse features of another width are an error", sae.decode_sparse(&sparse).is_err())
}

fn gradients_flow(sae: &dyn SparseAutoencoder, x: &Tensor, active: i64) -> Result<()> {
    let size = tch::with_grad(|| {
        let leaf = x.f_detach()?.f_add_scalar(0.0)?.f_set_requires_grad(true)?;
        let loss = sae.decode(&sae.encode(&leaf)?)?.f_square()?.f_sum(Kind::Float)?;
        if !loss.requires_grad() {
            return Ok(None);
        }
        let grads = Tensor::f_run_backward(&[&loss], &[&leaf], false, false)?;
        let sum = |g: &Tensor| g.f_abs()?.f_sum(Kind::Double)?.f_double_value(&[]);
        Ok::<_, SaeError>(grads.first().map(sum).transpose()?)
    })?;
    // Where no latent is on, the output is constant.
    law("gradients reach the input", size.is_some_and(|s| s.is_finite() && (s > 0.0 || active == 0)))
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
