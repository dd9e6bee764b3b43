use crate::{
    Params, Result,
    config::{Config, PrefixLoss, Relu},
};

use super::{
    Batch, Loss, Moment,
    linear::{decoder_norms, mean_of_sums, pre_acts, squared_error},
    prefixes::reconstruct,
};

/// `f = ReLU(π)`; see [`Relu`].
pub(super) fn loss(config: &Config, o: &Relu, p: &Params, batch: Batch<'_>, at: &Moment) -> Result<Loss> {
    let features = pre_acts(config, p, batch.x)?.f_relu()?;
    let rebuilt =
        reconstruct(p, batch.x, &features, &[], PrefixLoss::Sum, |recon| squared_error(recon, batch.target))?;
    let l1 = if o.l1_by_decoder_norm {
        mean_of_sums(&features.f_mul(&decoder_norms(p)?)?)?
    } else {
        mean_of_sums(&features)?
    };
    let mut parts = rebuilt.parts;
    parts.push(("sparsity".to_owned(), l1.f_mul_scalar(at.lambda)?));
    Ok(Loss { parts, features, recon: rebuilt.recon })
}
