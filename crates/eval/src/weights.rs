use std::{collections::BTreeMap, ops::Range};

use sae_core::SparseAutoencoder;
use tch::{Kind, Tensor};

use crate::Result;

/// Latents looked at side by side.
const LATENTS_AT_A_TIME: usize = 2048;

/// What the weights alone tell of each latent, by name, in the order of the latents (SAELens `evals.py`,
/// `get_featurewise_weight_based_metrics`): `encoder_norm`, `decoder_norm`, `encoder_bias`, and `encoder_decoder_cosine` where
/// both sides are of one width. An SAE whose encoder is not one matrix has the decoder's alone.
///
/// With `neighbours` also `max_encoder_cosine` and `max_decoder_cosine`, the largest cosine with another latent's column or row,
/// which costs `2 d_sae² d` operations each.
///
/// # Errors
/// The SAE's.
pub fn weight_metrics(sae: &dyn SparseAutoencoder, neighbours: bool) -> Result<BTreeMap<String, Vec<f64>>> {
    let _no_grad = tch::no_grad_guard();
    let mut found: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    let mut say = |name: &str, values: &Tensor| -> Result<()> {
        let values = Vec::<f64>::try_from(values.f_to_kind(Kind::Double)?)?;
        found.entry(name.to_owned()).or_default().extend(values);
        Ok(())
    };
    for latents in tiles(sae.d_sae()) {
        let w_dec = sae.w_dec(latents.clone())?; // [len, d_out]
        say("decoder_norm", &norms(&w_dec)?)?;
        if let Some(b_enc) = sae.b_enc(latents.clone())? {
            say("encoder_bias", &b_enc)?;
        }
        let Some(w_enc) = sae.w_enc(latents.clone())? else { continue };
        let w_enc = w_enc.f_tr()?; // [len, d_in]
        say("encoder_norm", &norms(&w_enc)?)?;
        if sae.d_in() == sae.d_out() {
            let cosine = unit(&w_enc)?.f_mul(&unit(&w_dec)?)?;
            say("encoder_decoder_cosine", &cosine.f_sum_dim_intlist(-1, false, Kind::Double)?)?;
        }
    }
    if neighbours && sae.d_sae() > 1 {
        let decoder = |latents: Range<i64>| Ok(Some(sae.w_dec(latents)?));
        let encoder = |latents: Range<i64>| Ok(sae.w_enc(latents)?.map(|w| w.f_tr()).transpose()?);
        for (name, rows) in [
            ("max_decoder_cosine", &decoder as &dyn Fn(Range<i64>) -> Result<Option<Tensor>>),
            ("max_encoder_cosine", &encoder),
        ] {
            for latents in tiles(sae.d_sae()) {
                let Some(own) = rows(latents.clone())? else { break };
                say(name, &nearest(&unit(&own)?, &latents, sae.d_sae(), rows)?)?;
            }
        }
    }
    Ok(found)
}

/// The largest cosine of each of some unit rows, `[len, d]`, with any row but itself: `[len]`.
fn nearest(
    own: &Tensor,
    latents: &Range<i64>,
    d_sae: i64,
    rows: &dyn Fn(Range<i64>) -> Result<Option<Tensor>>,
) -> Result<Tensor> {
    let mut largest: Option<Tensor> = None;
    for others in tiles(d_sae) {
        let Some(theirs) = rows(others.clone())? else { break };
        let mut cosines = own.f_matmul(&unit(&theirs)?.f_tr()?)?; // [len, others]
        if others == *latents {
            cosines = cosines.f_fill_diagonal_(f64::NEG_INFINITY, false)?;
        }
        let here = cosines.f_amax(-1, false)?;
        largest = Some(match largest {
            None => here,
            Some(before) => before.f_maximum(&here)?,
        });
    }
    Ok(largest.unwrap_or(own.f_narrow(1, 0, 1)?.f_squeeze_dim(1)?))
}

fn tiles(d_sae: i64) -> impl Iterator<Item = Range<i64>> {
    (0..d_sae)
        .step_by(LATENTS_AT_A_TIME)
        .map(move |first| first..(first + LATENTS_AT_A_TIME as i64).min(d_sae))
}

fn norms(rows: &Tensor) -> Result<Tensor> {
    Ok(rows.f_to_kind(Kind::Double)?.f_square()?.f_sum_dim_intlist(-1, false, Kind::Double)?.f_sqrt()?)
}

/// Rows of length 1; a row of zeros stays one.
fn unit(rows: &Tensor) -> Result<Tensor> {
    let norms = norms(rows)?.f_clamp_min(f64::MIN_POSITIVE)?.f_unsqueeze(-1)?;
    Ok(rows.f_to_kind(Kind::Double)?.f_div(&norms)?.f_to_kind(Kind::Float)?)
}
