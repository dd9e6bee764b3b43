use std::{fmt, ops::Range};

use tch::Tensor;

use crate::{ActivationCache, HookPoint, HookSet, Result, TokenBatch};

/// The sizes of a model, in the field's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelDims {
    /// Blocks.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads.
    pub n_heads: usize,
    /// Key and value heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub d_head: usize,
    /// Hidden width of the MLP.
    pub d_mlp: usize,
    /// Tokens in the vocabulary.
    pub d_vocab: usize,
    /// The longest sequence.
    pub n_ctx: usize,
}

/// A model that shows its activations. Implementors write this; users call [`HookedModelExt`].
///
/// Plain functions instead of one `forward` with options: stopping early is a shorter range of blocks, a run that starts at a
/// saved residual is a later range, one that starts inside a block is `resume`, the logit lens is `unembed` of any layer,
/// and a loss within bounded memory is `readout` of slices of the vocabulary. At every site the implementor calls [`HookSet::at`]; gradients flow
/// wherever the caller has them on.
pub trait HookedModel: fmt::Debug + Send {
    /// The model's sizes.
    fn dims(&self) -> &ModelDims;

    /// Tokens to the residual stream that enters block 0: `[batch, pos, d_model]`.
    ///
    /// # Errors
    /// Tokens that the model does not take, or a hook's error.
    fn embed(&self, tokens: &TokenBatch, hooks: &mut HookSet<'_>) -> Result<Tensor>;

    /// Runs some blocks: `[batch, pos, d_model]`, which enters block `range.start`, to the same, which leaves block
    /// `range.end - 1`. The tokens are the ones that the residual came from: they say what attention may see.
    ///
    /// # Errors
    /// A range or shape that the model does not have, or a hook's error.
    fn blocks(
        &self,
        resid: &Tensor,
        tokens: &TokenBatch,
        range: Range<usize>,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor>;

    /// Begins again behind a site, with another activation there: the blocks from there up to `end`, `[batch, pos, d_model]`.
    ///
    /// `stream` is the activation at [`site.stream()`](HookPoint::stream) of the run that is resumed: what the site's
    /// branch is added to. Hooks at the site itself do not fire, the ones behind it do.
    ///
    /// # Errors
    /// [`HookError::NoResume`](crate::HookError::NoResume) for a site where no run can begin; shapes that the model does not
    /// have; a hook's error.
    fn resume(
        &self,
        site: HookPoint,
        act: &Tensor,
        stream: &Tensor,
        tokens: &TokenBatch,
        end: usize,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor>;

    /// The norm behind the last block: `[batch, pos, d_model]` to the same.
    ///
    /// # Errors
    /// A shape that the model does not have, or a hook's error.
    fn final_norm(&self, resid: &Tensor, hooks: &mut HookSet<'_>) -> Result<Tensor>;

    /// The logits of some of the vocabulary: what [`final_norm`](Self::final_norm) returned, `[batch, pos, d_model]`, to
    /// `[batch, pos, vocab.len()]`, soft cap included. Slice by slice, a loss over a large vocabulary needs little memory.
    ///
    /// # Errors
    /// A shape that the model does not have, or tokens beyond its vocabulary.
    fn readout(&self, normed: &Tensor, vocab: Range<usize>) -> Result<Tensor>;
}

/// What users call on a model. Gradients are off in all of these but [`forward`](Self::forward),
/// [`residual`](Self::residual) and [`unembed`](Self::unembed), which leave the mode as it is.
pub trait HookedModelExt: HookedModel {
    /// Embeds and runs the first `n_blocks` blocks: `[batch, pos, d_model]`.
    ///
    /// # Errors
    /// The model's or a hook's.
    fn residual(&self, tokens: &TokenBatch, n_blocks: usize, hooks: &mut HookSet<'_>) -> Result<Tensor> {
        let resid = self.embed(tokens, hooks)?;
        self.blocks(&resid, tokens, 0..n_blocks, hooks)
    }

    /// Final norm, unembedding and soft cap: `[batch, pos, d_model]` to logits, `[batch, pos, d_vocab]`.
    ///
    /// # Errors
    /// The model's or a hook's.
    fn unembed(&self, resid: &Tensor, hooks: &mut HookSet<'_>) -> Result<Tensor> {
        let normed = self.final_norm(resid, hooks)?;
        self.readout(&normed, 0..self.dims().d_vocab)
    }

    /// The whole model: logits, `[batch, pos, d_vocab]`. The set may be used again: call [`HookSet::finish`] in the end.
    ///
    /// # Errors
    /// The model's or a hook's; a site that the model does not have.
    fn forward(&self, tokens: &TokenBatch, hooks: &mut HookSet<'_>) -> Result<Tensor> {
        hooks.check(self.dims())?;
        let resid = self.residual(tokens, self.dims().n_layers, hooks)?;
        self.unembed(&resid, hooks)
    }

    /// Logits without hooks: `[batch, pos, d_vocab]`.
    ///
    /// # Errors
    /// The model's.
    fn logits(&self, tokens: &TokenBatch) -> Result<Tensor> {
        self.run(tokens, HookSet::new())
    }

    /// One run with hooks: logits, `[batch, pos, d_vocab]`.
    ///
    /// # Errors
    /// The model's or a hook's; a site that the model does not have; a hook that did not fire.
    fn run(&self, tokens: &TokenBatch, mut hooks: HookSet<'_>) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        let logits = self.forward(tokens, &mut hooks)?;
        hooks.finish()?;
        Ok(logits)
    }

    /// Logits, and the activations at some sites.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    fn run_with_cache(&self, tokens: &TokenBatch, sites: &[HookPoint]) -> Result<(Tensor, ActivationCache)> {
        let mut cache = ActivationCache::default();
        let mut hooks = HookSet::new();
        hooks.on_each(sites.iter().copied(), &mut cache);
        let logits = self.run(tokens, hooks)?;
        Ok((logits, cache))
    }

    /// The activations at some sites. Runs no deeper than the deepest of them.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    fn harvest(&self, tokens: &TokenBatch, sites: &[HookPoint]) -> Result<ActivationCache> {
        let mut cache = ActivationCache::default();
        let mut hooks = HookSet::new();
        hooks.on_each(sites.iter().copied(), &mut cache);
        self.run_to(tokens, hooks)?;
        Ok(cache)
    }

    /// One run with hooks that goes no deeper than the deepest site, for what the hooks see; nothing else is returned.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    fn run_to(&self, tokens: &TokenBatch, mut hooks: HookSet<'_>) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        hooks.check(self.dims())?;
        let n_layers = self.dims().n_layers;
        let n_blocks = hooks.sites().map(|site| site.blocks_needed(n_layers)).max().unwrap_or(0);
        let resid = self.residual(tokens, n_blocks, &mut hooks)?;
        if hooks.sites().any(HookPoint::is_final) {
            let _normed = self.final_norm(&resid, &mut hooks)?;
        }
        hooks.finish()
    }
}

impl<M: HookedModel + ?Sized> HookedModelExt for M {}
