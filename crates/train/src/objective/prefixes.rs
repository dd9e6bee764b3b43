use tch::Tensor;

use crate::{Params, Result, config::PrefixLoss};

use super::linear::offset;

/// x̂ from all latents, and the losses of x̂ from each prefix of them.
pub(super) struct Reconstruction {
    /// `[B, d_out]`.
    pub(super) recon: Tensor,
    /// The terms, weights included, by name.
    pub(super) parts: Vec<(String, Tensor)>,
}

/// Decodes `acts`, `[B, d_sae]`, and counts the `error` of x̂ and of the reconstructions by the first W latents alone, for
/// every inner width W of `widths`, whose last is `d_sae`; an empty `widths` has no inner ones.
///
/// [`PrefixLoss::Mean`] divides by the number of terms, one of which is the error without any latent.
pub(super) fn reconstruct(
    p: &Params,
    x: &Tensor,
    acts: &Tensor,
    widths: &[i64],
    join: PrefixLoss,
    error: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Reconstruction> {
    let d_sae = acts.size().last().copied().unwrap_or(0);
    let (inner, weight) = match (widths, join) {
        ([], _) => (vec![], 1.0),
        ([inner @ .., _], PrefixLoss::Sum) => (inner.to_vec(), 1.0),
        ([inner @ .., _], PrefixLoss::Mean) => ([&[0], inner].concat(), 1.0 / (widths.len() as f64 + 1.0)),
    };
    let mut recon = offset(p, x)?;
    let mut parts = Vec::with_capacity(inner.len() + 1);
    let mut from = 0;
    for to in inner.into_iter().chain([d_sae]) {
        if to > from {
            let (acts, rows) = (acts.f_narrow(1, from, to - from)?, p.w_dec.f_narrow(0, from, to - from)?);
            recon = recon.f_addmm(&acts, &rows)?;
        }
        let name = if to == d_sae { "reconstruction".to_owned() } else { format!("reconstruction_{to}") };
        parts.push((name, error(&recon)?.f_mul_scalar(weight)?));
        from = to;
    }
    Ok(Reconstruction { recon, parts })
}
