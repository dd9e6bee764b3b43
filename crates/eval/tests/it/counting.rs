//! A model that counts what is run.

use std::{
    ops::Range,
    sync::{Mutex, MutexGuard},
};

use hooks::{HookError, HookPoint, HookSet, HookedModel, ModelDims, Result, TokenBatch};
use tch::Tensor;

/// How often each part of a model ran.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Runs {
    /// Of any part but `readout`.
    pub(crate) calls: usize,
    pub(crate) embed: usize,
    /// By block.
    pub(crate) blocks: Vec<usize>,
    /// Positions of each call of the final norm.
    pub(crate) norms: Vec<i64>,
    /// How much of the vocabulary each call of `readout` asked for.
    pub(crate) slices: Vec<usize>,
}

#[derive(Debug)]
pub(crate) struct Counting<M> {
    inner: M,
    dims: ModelDims,
    runs: Mutex<Runs>,
    /// How many calls succeed.
    lasts: usize,
}

impl<M: HookedModel> Counting<M> {
    pub(crate) fn new(inner: M) -> Self {
        let dims = inner.dims().clone();
        Self { inner, dims, runs: Mutex::default(), lasts: usize::MAX }
    }

    /// One that fails after so many calls (between two calls of [`take`](Self::take)).
    pub(crate) fn breaking(inner: M, lasts: usize) -> Self {
        Self { lasts, ..Self::new(inner) }
    }

    fn called(&self) -> Result<MutexGuard<'_, Runs>> {
        let mut runs = self.runs.lock().unwrap();
        if runs.calls >= self.lasts {
            return Err(HookError::Model("out of order".into()));
        }
        runs.calls += 1;
        runs.blocks.resize(self.dims.n_layers, 0);
        Ok(runs)
    }

    /// What ran since the last call.
    pub(crate) fn take(&self) -> Runs {
        std::mem::take(&mut self.runs.lock().unwrap())
    }
}

impl<M: HookedModel> HookedModel for Counting<M> {
    fn dims(&self) -> &ModelDims {
        &self.dims
    }

    fn embed(&self, tokens: &TokenBatch, hooks: &mut HookSet<'_>) -> Result<Tensor> {
        self.called()?.embed += 1;
        self.inner.embed(tokens, hooks)
    }

    fn blocks(
        &self,
        resid: &Tensor,
        tokens: &TokenBatch,
        range: Range<usize>,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        let mut runs = self.called()?;
        range.clone().for_each(|l| runs.blocks[l] += 1);
        drop(runs);
        self.inner.blocks(resid, tokens, range, hooks)
    }

    fn resume(
        &self,
        site: HookPoint,
        act: &Tensor,
        stream: &Tensor,
        tokens: &TokenBatch,
        end: usize,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        let mut runs = self.called()?;
        (site.layer().unwrap().0..end).for_each(|l| runs.blocks[l] += 1);
        drop(runs);
        self.inner.resume(site, act, stream, tokens, end, hooks)
    }

    fn final_norm(&self, resid: &Tensor, hooks: &mut HookSet<'_>) -> Result<Tensor> {
        self.called()?.norms.push(resid.size()[1]);
        self.inner.final_norm(resid, hooks)
    }

    fn readout(&self, normed: &Tensor, vocab: Range<usize>) -> Result<Tensor> {
        self.runs.lock().unwrap().slices.push(vocab.len());
        self.inner.readout(normed, vocab)
    }
}
