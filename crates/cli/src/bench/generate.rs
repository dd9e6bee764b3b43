//! Greedy generation from a prompt of 16 tokens, cache and all.

use anyhow::Result;
use gemma_scope::{
    hooks::HookSet,
    model::{GenerateOptions, generate},
};

use crate::{
    timing::Clock,
    work::{On, model, tokens},
};

pub(crate) fn run(layers: usize, n_tokens: usize, batch: usize, on: On) -> Result<()> {
    let model = model(layers, on)?;
    let prompts = (0..batch).map(|_| Ok(tokens(16)?.rows().concat())).collect::<Result<Vec<_>>>()?;
    let options = || GenerateOptions { stop: Some(Vec::new()), ..GenerateOptions::greedy(n_tokens) };
    Clock::new(3, (n_tokens * batch) as f64)
        .time("ours.generate", || Ok(generate(&model, &prompts, options(), HookSet::new(), |_| ())?))
}
