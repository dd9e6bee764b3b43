use std::collections::BTreeSet;

use hooks::{
    ActivationCache, Axis, HookPoint, HookSet, HookedModel, HookedModelExt as _, LayerIdx, TokenBatch, edit,
};
use tch::Tensor;

use crate::{EvalError, Result};

/// The clean run of a batch, with what other runs need to branch off from it: they agree with it up to their site.
pub(crate) struct Trunk<'m> {
    model: &'m dyn HookedModel,
    tokens: &'m TokenBatch,
    acts: ActivationCache,
    /// The residual stream that leaves the last block: `[batch, pos, d_model]`.
    pub(crate) last: Tensor,
}

impl<'m> Trunk<'m> {
    /// Runs a batch and keeps the activations at some sites.
    pub(crate) fn run(
        model: &'m dyn HookedModel,
        tokens: &'m TokenBatch,
        sites: &BTreeSet<HookPoint>,
    ) -> Result<Self> {
        let needed: BTreeSet<HookPoint> = sites.iter().flat_map(|site| [*site, enters(*site)]).collect();
        let mut acts = ActivationCache::default();
        let mut hooks = HookSet::new();
        hooks.on_each(needed, &mut acts);
        let last = model.residual(tokens, model.dims().n_layers, &mut hooks)?;
        hooks.finish()?;
        Ok(Self { model, tokens, acts, last })
    }

    /// The activation at a site.
    pub(crate) fn act(&self, site: HookPoint) -> Result<&Tensor> {
        Ok(self.acts.get(site)?)
    }

    /// The last residual stream of a run with another activation at a site: `[batch, pos, d_model]`.
    pub(crate) fn branch(&self, site: HookPoint, act: &Tensor) -> Result<Tensor> {
        branch(self.model, self.tokens, site, act, self.acts.get(enters(site))?)
    }

    /// The residual stream that a run resumed at a site needs.
    pub(crate) fn stream(&self, site: HookPoint) -> Result<&Tensor> {
        Ok(self.acts.get(enters(site))?)
    }
}

/// The residual stream that a run with another activation at a site begins with, besides that activation. Where no run can begin
/// behind the site, it is the one that enters the block.
fn enters(site: HookPoint) -> HookPoint {
    site.stream().unwrap_or(HookPoint::ResidPre(site.layer().unwrap_or(LayerIdx(0))))
}

/// As [`Trunk::branch`], of any tokens and any stream.
pub(crate) fn branch(
    model: &dyn HookedModel,
    tokens: &TokenBatch,
    site: HookPoint,
    act: &Tensor,
    stream: &Tensor,
) -> Result<Tensor> {
    let (mut hooks, end) = (HookSet::new(), model.dims().n_layers);
    let before = match site {
        HookPoint::Embed => Some(0),
        HookPoint::ResidPre(LayerIdx(l)) => Some(l),
        HookPoint::ResidPost(LayerIdx(l)) => Some(l + 1),
        _ => None,
    };
    let last = match (before, site.stream()) {
        // The activation is the whole stream.
        (Some(block), _) => model.blocks(act, tokens, block..end, &mut hooks)?,
        (None, Some(_)) => model.resume(site, act, stream, tokens, end, &mut hooks)?,
        (None, None) => {
            hooks.on(site, edit::set(act.shallow_clone()));
            let block = site.layer().map_or(0, |LayerIdx(l)| l);
            model.blocks(stream, tokens, block..end, &mut hooks)?
        }
    };
    hooks.finish()?;
    Ok(last)
}

/// Whether a run meets a site before another, of those that do not lie behind the blocks. The order of `HookPoint` itself puts
/// the kind of a site before its block.
pub(crate) fn is_met_before(site: HookPoint, other: HookPoint) -> bool {
    let place = |site: HookPoint| (site.layer(), site);
    place(site) < place(other)
}

/// Refuses a site that the model does not have, that lies behind the blocks, or that has no row of numbers for each position; the
/// width of such a row otherwise, all heads side by side.
pub(crate) fn width_of(model: &dyn HookedModel, site: HookPoint) -> Result<i64> {
    let mut probe = HookSet::new();
    probe.on(site, edit::zero()).check(model.dims())?;
    if site.is_final() || !site.axes().starts_with(&[Axis::Batch, Axis::Pos]) {
        return Err(EvalError::Site(site));
    }
    Ok(site.shape(model.dims(), 1, 1).iter().skip(2).product())
}
