//! How parameters begin.

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tch::{Device, Kind, Tensor};

use crate::{
    Params, Result,
    config::{BiasInit, Config, EncoderInit, Objective, Threshold},
};

/// Parameters before the first batch. The same seed gives the same numbers everywhere.
///
/// Decoder rows are uniform in a cube (He-uniform but for its factor) and scaled to `init.decoder_norm`; Gemma Scope, section 3.1.
pub(crate) fn params(config: &Config, seed: u64, device: Device) -> Result<Params> {
    let (d_in, d_out, d_sae) = (config.d_in, config.d_out(), config.d_sae);
    let mut rng = StdRng::seed_from_u64(seed);
    let w_dec = directions(&mut rng, d_sae, d_out)?.f_mul_scalar(config.init.decoder_norm)?;
    let w_enc = match config.init.encoder {
        EncoderInit::Transpose => w_dec.f_mul_scalar(1.0)?,
        EncoderInit::Random => directions(&mut rng, d_sae, d_in)?.f_mul_scalar(config.init.decoder_norm)?,
    };
    let zeros = |size: &[i64]| Tensor::f_zeros(size, (Kind::Float, device));
    let is_gated = matches!(config.objective, Objective::Gated(_));
    let threshold = match &config.objective {
        Objective::Jumprelu(j) => {
            let begin = match j.threshold {
                Threshold::Log => j.initial_threshold.ln(),
                Threshold::Direct => j.initial_threshold,
            };
            Some(Tensor::f_full([d_sae], begin, (Kind::Float, device))?)
        }
        _ => None,
    };
    Ok(Params {
        w_enc: w_enc.f_to_device(device)?,
        b_enc: zeros(&[d_sae])?,
        w_dec: w_dec.f_to_device(device)?,
        b_dec: zeros(&[d_out])?,
        threshold,
        r_mag: is_gated.then(|| zeros(&[d_sae])).transpose()?,
        b_mag: is_gated.then(|| zeros(&[d_sae])).transpose()?,
        w_skip: config.skip.then(|| zeros(&[d_out, d_in])).transpose()?,
    })
}

/// What `b_dec` begins as, `[d_out]`, for the first batch's targets `[B, d_out]`.
pub(crate) fn b_dec(how: BiasInit, target: &Tensor) -> Result<Tensor> {
    let mean = target.f_mean_dim(0, false, Kind::Double)?;
    Ok(match how {
        BiasInit::Zero => mean.f_zeros_like()?,
        BiasInit::Mean => mean,
        BiasInit::GeometricMedian => geometric_median(target, mean)?,
    }
    .f_to_kind(Kind::Float)?)
}

/// The point with the least sum of distances to the rows, by Weiszfeld's iteration from their mean: each round takes the mean weighed
/// by one over the distance. It ends when a round moves the point by less than 1e-6 of its distance from the rows, or after 100.
fn geometric_median(rows: &Tensor, mean: Tensor) -> Result<Tensor> {
    let rows = rows.f_to_kind(Kind::Double)?;
    let mut median = mean;
    for _ in 0..100 {
        let distance = rows.f_sub(&median)?.f_square()?.f_sum_dim_intlist(1, true, Kind::Double)?.f_sqrt()?;
        let weight = distance.f_clamp_min(1e-12)?.f_reciprocal()?;
        let total = weight.f_sum(Kind::Double)?;
        let next = rows.f_mul(&weight)?.f_sum_dim_intlist(0, false, Kind::Double)?.f_div(&total)?;
        let moved = next.f_sub(&median)?.f_norm()?.f_double_value(&[])?;
        median = next;
        if moved <= 1e-6 * distance.f_mean(Kind::Double)?.f_double_value(&[])? {
            break;
        }
    }
    Ok(median)
}

/// `[n, d]`: rows uniform in a cube, of norm 1.
fn directions(rng: &mut StdRng, n: i64, d: i64) -> Result<Tensor> {
    let values: Vec<f32> = (0..n * d).map(|_| rng.random_range(-1.0_f32..1.0)).collect();
    unit_rows(&Tensor::f_from_slice(&values)?.f_reshape([n, d])?)
}

/// Each row divided by its norm.
pub(crate) fn unit_rows(w: &Tensor) -> Result<Tensor> {
    let norm = w.f_square()?.f_sum_dim_intlist(1, true, Kind::Float)?.f_sqrt()?;
    Ok(w.f_div(&norm.f_clamp_min(1e-12)?)?)
}
