use tch::Tensor;

use crate::{
    Params, Result,
    config::{Config, Over, ReconstructionLoss, TopK},
};

use super::{
    Batch, Loss, Moment,
    aux_k::aux_k,
    linear::{decoder_norms, over_norms, pre_acts, squared_error},
    prefixes::reconstruct,
    strongest::strongest,
};

/// `f = ReLU(π)` where π is among the strongest, 0 elsewhere; see [`TopK`]. With `rescale_by_decoder_norm` latents are
/// `π_i ‖d_i‖`, and `f_i / ‖d_i‖` is decoded.
pub(super) fn loss(config: &Config, o: &TopK, p: &Params, batch: Batch<'_>, at: &Moment) -> Result<Loss> {
    let norms = if o.rescale_by_decoder_norm { Some(decoder_norms(p)?) } else { None };
    let mut pre_acts = pre_acts(config, p, batch.x)?;
    if let Some(norms) = &norms {
        pre_acts = pre_acts.f_mul(norms)?;
    }
    let features = pre_acts.f_relu()?.f_mul(&kept(o, &pre_acts)?)?;
    let decoded = |acts: &Tensor| match &norms {
        Some(norms) => over_norms(acts, norms),
        None => Ok(acts.shallow_clone()),
    };
    let rebuilt = reconstruct(p, batch.x, &decoded(&features)?, &o.prefixes, o.prefix_loss, |recon| {
        let error = squared_error(recon, batch.target)?;
        match o.reconstruction {
            ReconstructionLoss::Sum => Ok(error),
            ReconstructionLoss::Mean => Ok(error.f_div_scalar(config.d_out())?),
            ReconstructionLoss::Normalized => Ok(error.f_div_scalar(at.variance)?),
        }
    })?;
    let mut parts = rebuilt.parts;
    if let Some(aux) = &o.aux {
        let error = batch.target.f_sub(&rebuilt.recon)?.f_detach()?;
        parts.push(("aux".to_owned(), aux_k(config, aux, p, &pre_acts, &error, at, decoded)?));
    }
    Ok(Loss { parts, features, recon: rebuilt.recon })
}

/// Which latents are kept, as 0 and 1: `[B, d_sae]`.
fn kept(o: &TopK, pre_acts: &Tensor) -> Result<Tensor> {
    match o.over {
        Over::Row => strongest(pre_acts, o.k as i64),
        Over::Batch => {
            let rows = pre_acts.size().first().copied().unwrap_or(0);
            let flat = strongest(&pre_acts.f_reshape([1, -1])?, (o.k * rows as f64).floor() as i64)?;
            Ok(flat.f_view_as(pre_acts)?)
        }
    }
}
