use hooks::{HookPoint, HookedModel, TokenBatch};
use sae_core::SparseAutoencoder;

use crate::{EvalError, EvalOptions, Judged, Means, Report, Result, Suite};

/// Judges an SAE at a site: the mean activation in one pass over the batches, everything else in a second one.
///
/// For several SAEs, transcoders, subsets of the data, or an evaluation that goes on another day, use [`Means`] and [`Suite`].
///
/// # Errors
/// As [`Suite::new`], [`Suite::add`] and [`Suite::reports`].
pub fn evaluate<E: Into<EvalError>>(
    model: &dyn HookedModel,
    site: HookPoint,
    sae: &dyn SparseAutoencoder,
    batches: impl IntoIterator<Item = Result<TokenBatch, E>>,
    options: &EvalOptions,
) -> Result<Report> {
    if sae.is_transcoder() {
        return Err(EvalError::Transcoder { d_in: sae.d_in(), d_out: sae.d_out() });
    }
    let batches = batches.into_iter().collect::<Result<Vec<_>, E>>().map_err(Into::into)?;
    let mut means = Means::new(model, [site])?;
    for tokens in &batches {
        means.add(model, tokens, options.positions)?;
    }
    let judged = vec![Judged::new(sae.architecture(), site, sae)];
    let mut suite = Suite::new(model, judged, &means, *options)?;
    for tokens in &batches {
        suite.add(tokens, None)?;
    }
    suite.reports()?.pop().ok_or(EvalError::NoSae)
}
