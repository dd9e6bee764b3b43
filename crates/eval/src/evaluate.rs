use std::collections::BTreeSet;

use hooks::{
    ActivationCache, Axis, HookPoint, HookSet, HookedModel, HookedModelExt as _, LayerIdx, Positions,
    TokenBatch, edit,
};
use sae_core::{SaeExt as _, SparseAutoencoder, as_input};
use tch::Tensor;

use crate::{EvalError, Fvu, LossSum, Report, Result, Sparsity, loss_per_token, scored};

/// How an SAE is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EvalOptions {
    /// Which positions are spliced, ablated and counted. At others the activation is left as it is.
    pub positions: Positions,
}

/// Judges an SAE at a site in one pass over the batches.
///
/// # Errors
/// As [`Evaluation::new`], [`Evaluation::add`] and [`Evaluation::report`].
pub fn evaluate<E: Into<EvalError>>(
    model: &dyn HookedModel,
    site: HookPoint,
    sae: &dyn SparseAutoencoder,
    batches: impl IntoIterator<Item = Result<TokenBatch, E>>,
    options: &EvalOptions,
) -> Result<Report> {
    let mut evaluation = Evaluation::new(model, site, sae, *options)?;
    for batch in batches {
        evaluation.add(&batch.map_err(Into::into)?)?;
    }
    evaluation.report()
}

/// The sums of an evaluation, batch by batch.
///
/// The clean, spliced and ablated runs agree up to the site, so the blocks before it run once for all of them.
#[derive(Debug)]
pub struct Evaluation<'a> {
    model: &'a dyn HookedModel,
    site: HookPoint,
    sae: &'a dyn SparseAutoencoder,
    options: EvalOptions,
    clean: LossSum,
    spliced: LossSum,
    zero: LossSum,
    fvu: Fvu,
    sparsity: Sparsity,
}

impl<'a> Evaluation<'a> {
    /// Begins an evaluation.
    ///
    /// # Errors
    /// A site that the model does not have, that lies behind the blocks or has no positions; an SAE that does not fit it.
    pub fn new(
        model: &'a dyn HookedModel,
        site: HookPoint,
        sae: &'a dyn SparseAutoencoder,
        options: EvalOptions,
    ) -> Result<Self> {
        let mut probe = HookSet::new();
        probe.on(site, edit::zero()).check(model.dims())?;
        if site.is_final() || !site.axes().starts_with(&[Axis::Batch, Axis::Pos]) {
            return Err(EvalError::Site(site));
        }
        let width = site.shape(model.dims(), 1, 1).iter().skip(2).product();
        if sae.d_in() != width {
            return Err(EvalError::Misfit { site, d_in: sae.d_in(), width });
        }
        if sae.is_transcoder() {
            return Err(EvalError::Transcoder { d_in: sae.d_in(), d_out: sae.d_out() });
        }
        let (fvu, sparsity) = (Fvu::new(sae.d_in()), Sparsity::new(sae.d_sae())?);
        let (clean, spliced, zero) = Default::default();
        Ok(Self { model, site, sae, options, clean, spliced, zero, fvu, sparsity })
    }

    /// Adds a batch.
    ///
    /// # Errors
    /// The model's, the SAE's or libtorch's; then nothing was added.
    pub fn add(&mut self, tokens: &TokenBatch) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let kept = self.options.positions.mask(tokens)?;
        let branch = Branch::new(self.model, self.site, tokens)?;
        let counts = scored(&kept, tokens)?;

        let x = as_input(self.site, &branch.act)?; // [batch, pos, d_in]
        let mask = kept.f_to_device(x.device())?;
        let rows =
            x.f_flatten(0, 1)?.f_index_select(0, &mask.f_flatten(0, 1)?.f_nonzero()?.f_squeeze_dim(1)?)?;
        let features = self.sae.encode_sparse(&rows)?;
        let x_hat = self.sae.reconstruct_from(&features, &rows)?;
        let spliced = x.f_masked_scatter(&mask.f_unsqueeze(-1)?, &x_hat)?;
        let spliced = spliced.f_reshape(branch.act.size())?.f_to_kind(branch.act.f_kind()?)?;
        let zeroed = edit::only_at(&kept, self.site, &branch.act, &branch.act.f_zeros_like()?)?;
        let clean = branch.losses(tokens, None)?;
        let spliced = branch.losses(tokens, Some(&spliced))?;
        let zero = branch.losses(tokens, Some(&zeroed))?;

        // Everything has run by now: from here on no sum is left behind the others.
        self.fvu.add(&rows, &x_hat)?;
        self.sparsity.add(&features)?;
        self.clean.add(&clean, &counts)?;
        self.spliced.add(&spliced, &counts)?;
        self.zero.add(&zero, &counts)
    }

    /// Ends the evaluation.
    ///
    /// # Errors
    /// [`EvalError::Empty`] where nothing counted.
    pub fn report(&self) -> Result<Report> {
        let empty = || EvalError::Empty;
        Report::new(
            self.site,
            self.sparsity.tokens(),
            self.clean.mean().ok_or_else(empty)?,
            self.spliced.mean().ok_or_else(empty)?,
            self.zero.mean().ok_or_else(empty)?,
            &self.fvu,
            &self.sparsity,
        )
    }

    /// Joins the sums of another evaluation of the same SAE at the same site.
    ///
    /// # Errors
    /// [`EvalError::Merge`] for another site, other positions or another width; then nothing was joined.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if self.site != other.site || self.options != other.options {
            let of = |e: &Self| format!("`{}` over {} positions", e.site, e.options.positions);
            return Err(EvalError::Merge(format!("evaluations at {} and at {}", of(self), of(other))));
        }
        let mut fvu = self.fvu.clone();
        fvu.merge(&other.fvu)?;
        self.sparsity.merge(&other.sparsity)?;
        self.fvu = fvu;
        self.clean.merge(&other.clean);
        self.spliced.merge(&other.spliced);
        self.zero.merge(&other.zero);
        Ok(())
    }
}

/// A batch run up to a site, from where runs with other activations branch off.
struct Branch<'m> {
    model: &'m dyn HookedModel,
    site: HookPoint,
    /// The activation at the site.
    act: Tensor,
    /// The residual stream that a run resumed behind the site needs; where none can be, the one that enters `block`.
    stream: Tensor,
    /// The block in which the site lies, or that it enters as the whole stream.
    block: usize,
    /// The residual stream from which the clean run goes on, and the block that it enters.
    clean: (Tensor, usize),
}

impl<'m> Branch<'m> {
    fn new(model: &'m dyn HookedModel, site: HookPoint, tokens: &TokenBatch) -> Result<Self> {
        let none = &mut HookSet::new();
        if let Some(block) = stream_before(site) {
            let act = model.residual(tokens, block, none)?;
            let (stream, clean) = (act.shallow_clone(), (act.shallow_clone(), block));
            return Ok(Self { model, site, act, stream, block, clean });
        }
        let block = site.layer().map_or(0, |LayerIdx(l)| l);
        let resid = model.residual(tokens, block, none)?;
        let mut cache = ActivationCache::default();
        let mut hooks = HookSet::new();
        hooks.on_each(BTreeSet::from_iter([Some(site), site.stream()]).into_iter().flatten(), &mut cache);
        let after = model.blocks(&resid, tokens, block..block + 1, &mut hooks)?;
        hooks.finish()?;
        let stream = match site.stream() {
            Some(stream) => cache.get(stream)?.shallow_clone(),
            None => resid,
        };
        Ok(Self { model, site, act: cache.take(site)?, stream, block, clean: (after, block + 1) })
    }

    /// Next-token losses, `[batch, pos - 1]`, with another activation at the site, or with its own.
    fn losses(&self, tokens: &TokenBatch, act: Option<&Tensor>) -> Result<Tensor> {
        let end = self.model.dims().n_layers;
        let mut hooks = HookSet::new();
        let resid = match act {
            None => self.model.blocks(&self.clean.0, tokens, self.clean.1..end, &mut hooks)?,
            Some(act) if stream_before(self.site).is_some() => {
                self.model.blocks(act, tokens, self.block..end, &mut hooks)?
            }
            Some(act) if self.site.stream().is_some() => {
                self.model.resume(self.site, act, &self.stream, tokens, end, &mut hooks)?
            }
            Some(act) => {
                hooks.on(self.site, edit::set(act.shallow_clone()));
                self.model.blocks(&self.stream, tokens, self.block..end, &mut hooks)?
            }
        };
        hooks.finish()?;
        loss_per_token(self.model, &resid, tokens, &mut HookSet::new())
    }
}

/// The block that a site's activation enters as its whole residual stream, if it does.
fn stream_before(site: HookPoint) -> Option<usize> {
    match site {
        HookPoint::Embed => Some(0),
        HookPoint::ResidPre(LayerIdx(l)) => Some(l),
        HookPoint::ResidPost(LayerIdx(l)) => Some(l + 1),
        _ => None,
    }
}
