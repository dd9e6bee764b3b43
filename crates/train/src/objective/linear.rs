use tch::Tensor;

use crate::{Params, Result, config::Config};

/// Below any norm that a trained decoder has: keeps a division by a row of zeros finite.
const TINY: f64 = 1e-12;

/// What the encoder multiplies: x, or `x − b_dec` with a pre-encoder bias. `[B, d_in]`.
pub(super) fn centred(config: &Config, p: &Params, x: &Tensor) -> Result<Tensor> {
    if config.pre_encoder_bias { Ok(x.f_sub(&p.b_dec)?) } else { Ok(x.shallow_clone()) }
}

/// `π = W_enc x + b_enc`: `[B, d_sae]`.
pub(super) fn pre_acts(config: &Config, p: &Params, x: &Tensor) -> Result<Tensor> {
    Ok(p.b_enc.f_addmm(&centred(config, p, x)?, &p.w_enc.f_tr()?)?)
}

/// What a decoder adds to its latents' part: `b_dec`, and `x W_skipᵀ` of a skip transcoder. `[d_out]` or `[B, d_out]`.
pub(super) fn offset(p: &Params, x: &Tensor) -> Result<Tensor> {
    match &p.w_skip {
        Some(w_skip) => Ok(p.b_dec.f_addmm(x, &w_skip.f_tr()?)?),
        None => Ok(p.b_dec.shallow_clone()),
    }
}

/// ‖d_i‖, the norm of every latent's decoder row: `[d_sae]`. Its gradient at a row of zeros is 0.
pub(super) fn decoder_norms(p: &Params) -> Result<Tensor> {
    Ok(p.w_dec.f_norm_scalaropt_dim(2, [1i64], false)?)
}

/// `acts / ‖d‖`, which decode by unit rows.
pub(super) fn over_norms(acts: &Tensor, norms: &Tensor) -> Result<Tensor> {
    Ok(acts.f_div(&norms.f_clamp_min(TINY)?)?)
}

/// `mean_rows Σ t` of `[B, n]`.
pub(super) fn mean_of_sums(t: &Tensor) -> Result<Tensor> {
    let kind = t.f_kind()?;
    Ok(t.f_sum_dim_intlist(1, false, kind)?.f_mean(kind)?)
}

/// `mean_rows ‖a − b‖²`.
pub(super) fn squared_error(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    mean_of_sums(&a.f_sub(b)?.f_square()?)
}
