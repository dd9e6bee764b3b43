//! From parameters in training to an SAE that reads activations as they come.

use sae_core::{Activation, Sae, SaeParts};
use tch::{Kind, Tensor};

use crate::{
    Params, Result, TrainError,
    config::{Config, Objective, Over, Threshold},
};

/// With C the scale of what is read and D of what is written, latents come out in the units of what is read, `f' = C f`:
///
/// ```text
/// b_enc' = C b_enc,  θ' = C θ,  W_dec' = (D/C) W_dec,  b_dec' = D b_dec,  W_skip' = (D/C) W_skip,  W_enc' = W_enc
/// ```
///
/// and the pre-encoder bias goes into `b_enc`. A decoder row of norm n that is not kept at 1 becomes a unit vector, and the latent n
/// times as large (Anthropic, April 2024; SAELens' `fold_W_dec_norm`); not so for TopK, whose choice would change, unless it chooses
/// by latents times norms already.
pub(crate) fn sae(
    config: &Config,
    p: &Params,
    batch_threshold: Option<f64>,
    (read, written): (f64, f64),
) -> Result<Sae> {
    for scale in [read, written] {
        if !(scale.is_finite() && scale > 0.0) {
            return Err(TrainError::Config(format!("a scale must be positive, but is {scale}")));
        }
    }
    let norms = match &config.objective {
        Objective::Topk(t) if !t.rescale_by_decoder_norm => None,
        _ if config.decoder.unit_norm && config.optimizer.ema.is_none() => None,
        _ => Some(row_norms(&p.w_dec)?),
    };
    let by_norm = |t: Tensor| match &norms {
        Some(n) => t.f_mul(n),
        None => Ok(t),
    };
    let of_latents = |t: &Tensor| by_norm(t.f_detach()?.f_mul_scalar(read)?);
    let of_decoder = |t: &Tensor| t.f_detach()?.f_mul_scalar(written / read);
    let (mut w_enc, mut w_dec) = (p.w_enc.f_detach()?, of_decoder(&p.w_dec)?);
    if let Some(n) = &norms {
        let n = n.f_unsqueeze(1)?;
        (w_enc, w_dec) = (w_enc.f_mul(&n)?, w_dec.f_div(&n)?);
    }
    let activation = match &config.objective {
        Objective::Jumprelu(j) => {
            let Some(trained) = &p.threshold else { return Err(no("threshold")) };
            let threshold = match j.threshold {
                Threshold::Log => trained.f_detach()?.f_exp()?,
                Threshold::Direct => trained.f_detach()?,
            };
            Activation::JumpRelu { threshold: of_latents(&threshold)? }
        }
        Objective::Gated(_) => {
            let (Some(r_mag), Some(b_mag)) = (&p.r_mag, &p.b_mag) else { return Err(no("r_mag")) };
            Activation::Gated { r_mag: r_mag.f_detach()?.f_mul_scalar(1.0)?, b_mag: of_latents(b_mag)? }
        }
        Objective::Topk(t) if t.over == Over::Batch => {
            let Some(threshold) = batch_threshold else {
                return Err(TrainError::Config(
                    "BatchTopK has no threshold before a latent was on".to_owned(),
                ));
            };
            Activation::JumpRelu { threshold: p.b_enc.f_full_like(read * threshold)? }
        }
        Objective::Topk(t) => Activation::TopK { k: t.k as i64 },
        Objective::Relu(_) => Activation::Relu,
    };
    let sae = Sae::new(SaeParts {
        w_enc: w_enc.f_tr()?.f_contiguous()?.into(),
        b_enc: of_latents(&p.b_enc)?,
        w_dec: w_dec.into(),
        b_dec: p.b_dec.f_detach()?.f_mul_scalar(written)?,
        w_skip: p.w_skip.as_ref().map(|w| of_decoder(w)?.f_tr()?.f_contiguous()).transpose()?,
        activation,
        normalize: sae_core::Normalize::None,
        subtract_b_dec: config.pre_encoder_bias,
        transcoder: config.is_transcoder(),
    })?;
    Ok(sae.fold_pre_encoder_bias()?)
}

/// The norm of each row, 1 for a row of zeros.
fn row_norms(w: &Tensor) -> Result<Tensor> {
    let norms = w.f_detach()?.f_square()?.f_sum_dim_intlist(1, false, Kind::Float)?.f_sqrt()?;
    Ok(norms.f_masked_fill(&norms.f_eq(0.0)?, 1.0)?)
}

fn no(name: &str) -> TrainError {
    TrainError::Config(format!("the parameters have no `{name}`"))
}
