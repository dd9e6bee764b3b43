use super::{
    Backward, Collected, Outcome, Route, WeightGradients, Work,
    aux_k::{self, Asleep},
    encode,
    entries::to_counts,
    kernels, libtorch,
};
use crate::{Result, config::TopK};

/// Below any norm that a trained decoder has.
const TINY: f64 = 1e-12;

/// The backward pass over the entries that are kept and positive: `dπ = df`. With `rescale_by_decoder_norm` they are chosen by
/// `π ‖d‖`, and the norms cancel in what is decoded.
pub(super) fn backward<'w>(work: &'w Work<'w>, o: &TopK, route: Route) -> Result<Backward<'w>> {
    let d_sae = work.config.d_sae;
    let norms = match o.rescale_by_decoder_norm {
        true => Some(work.p.w_dec.f_norm_scalaropt_dim(2, [1i64], false)?),
        false => None,
    };
    let dead = match &o.aux {
        Some(_) if work.at.n_dead > 0 => {
            Some(work.at.dead.f_to_device(work.x.device())?.f_nonzero()?.f_select(1, 0)?.f_contiguous()?)
        }
        _ => None,
    };
    let (entries, scores) = encode::strongest(work, route, o, norms.as_ref(), dead.as_ref())?;
    let smallest_active = match entries.pre.numel() {
        0 => None,
        _ => Some(entries.pre.f_min()?.f_double_value(&[])?),
    };
    let values = match &norms {
        Some(norms) => entries.pre.f_div(&norms.f_clamp_min(TINY)?.f_index_select(0, &entries.latents)?)?,
        None => entries.pre.shallow_clone(),
    };
    let decoded = entries.decode(work, route, &values)?;
    let d_pre = decoded.products.f_mul_scalar(work.plan.slope)?;
    let mut d_b_enc = entries.by_latent(&d_pre, d_sae)?;

    let last = work.plan.ends.len() - 1;
    let mut parts = work.plan.parts(&decoded.squared);
    let squared_error = decoded.squared[last];
    let mut extra = None;
    if let Some(aux) = &o.aux {
        let mut loss = 0.0;
        if let (Some(dead), Some(scores)) = (dead, scores) {
            let norms =
                norms.as_ref().map(|norms| norms.f_index_select(0, &dead)?.f_clamp_min(TINY)).transpose()?;
            let error = decoded.errors.f_select(1, last as i64)?;
            let asleep = Asleep { latents: dead, scores, norms };
            let made = aux_k::backward(work, aux, asleep, &error, squared_error, route)?;
            d_b_enc = d_b_enc.f_index_add(0, &made.extra.latents, &made.d_b_enc)?;
            loss = made.loss;
            extra = Some(made.extra);
        }
        parts.push(("aux".to_owned(), loss));
    }
    let collected = Collected::new(work, d_b_enc, None)?;
    let (d_b_dec, d_w_skip) = work.of_the_output(&decoded.errors.f_select(1, 0)?)?;
    let active = to_counts(&entries.counts(None, d_sae)?)?;
    let values = values.f_mul_scalar(work.plan.slope)?;
    let errors = decoded.errors;
    let weights = match route {
        Route::Kernels => {
            WeightGradients::Kernels(kernels::Sums { entries, d_pre, values, errors, extra, work })
        }
        _ => {
            let bags = libtorch::Bags::new(work, &entries, &d_pre, &values, &errors, extra)?;
            WeightGradients::Tiles(Box::new(bags))
        }
    };
    let outcome = Outcome { parts, squared_error, active, grad_norm: None, smallest_active };
    Ok(Backward { weights, d_b_dec, d_w_skip, collected: Some(collected), outcome })
}
