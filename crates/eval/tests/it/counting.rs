//! A model that counts what is run.

use std::{ops::Range, sync::Mutex};

use hooks::{HookError, HookSet, HookedModel, ModelDims, Result, TokenBatch};
use tch::Tensor;

/// How often each part of a model ran.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Runs {
    pub(crate) embed: usize,
    /// By block.
    pub(crate) blocks: Vec<usize>,
    /// Positions of each call.
    pub(crate) unembed: Vec<i64>,
}

#[derive(Debug)]
pub(crate) struct Counting<M> {
    inner: M,
    dims: ModelDims,
    runs: Mutex<Runs>,
    /// How many calls of `unembed` succeed.
    lasts: usize,
}

impl<M: HookedModel> Counting<M> {
    pub(crate) fn new(inner: M) -> Self {
        let dims = inner.dims().clone();
        Self { inner, dims, runs: Mutex::default(), lasts: usize::MAX }
    }

    /// One that says that its vocabulary is larger than it is.
    pub(crate) fn boasting(inner: M, d_vocab: usize) -> Self {
        let dims = ModelDims { d_vocab, ..inner.dims().clone() };
        Self { dims, ..Self::new(inner) }
    }

    /// One whose `unembed` fails after so many calls (between two calls of [`take`](Self::take)).
    pub(crate) fn breaking(inner: M, lasts: usize) -> Self {
        Self { lasts, ..Self::new(inner) }
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
        self.runs.lock().unwrap().embed += 1;
        self.inner.embed(tokens, hooks)
    }

    fn blocks(
        &self,
        resid: &Tensor,
        tokens: &TokenBatch,
        range: Range<usize>,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        let mut runs = self.runs.lock().unwrap();
        runs.blocks.resize(self.dims.n_layers, 0);
        range.clone().for_each(|l| runs.blocks[l] += 1);
        drop(runs);
        self.inner.blocks(resid, tokens, range, hooks)
    }

    fn unembed(&self, resid: &Tensor, hooks: &mut HookSet<'_>) -> Result<Tensor> {
        let mut runs = self.runs.lock().unwrap();
        if runs.unembed.len() >= self.lasts {
            return Err(HookError::Model("out of order".into()));
        }
        runs.unembed.push(resid.size()[1]);
        self.inner.unembed(resid, hooks)
    }
}
