use hooks::{HookSet, HookedModelExt as _, TokenBatch};
use rand::{SeedableRng as _, rngs::StdRng};
use tch::{Device, Kind, Tensor};

use crate::{Gemma2, KvCache, ModelError, Result, Sampling};

/// How far to generate, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// The most tokens that a row gets.
    pub max_new_tokens: usize,
    /// How each is chosen.
    pub sampling: Sampling,
    /// Tokens that end a row; they are given out too. By default the model's end of text, and of a turn for -it models.
    pub stop: Option<Vec<i64>>,
}

impl GenerateOptions {
    /// The likeliest token each time, up to `max_new_tokens`.
    pub fn greedy(max_new_tokens: usize) -> Self {
        Self { max_new_tokens, sampling: Sampling::default(), stop: None }
    }
}

/// A generation under way, a token a row at each step.
///
/// Hooks belong to the caller and are given to each step, so that one may be added or taken away in between.
#[derive(Debug)]
pub struct Generation<'m> {
    model: &'m Gemma2,
    cache: KvCache,
    options: GenerateOptions,
    stop: Vec<i64>,
    /// What goes into the model next.
    next: TokenBatch,
    prompt: TokenBatch,
    rngs: Vec<StdRng>,
    done: Vec<bool>,
    steps: usize,
}

impl<'m> Generation<'m> {
    /// Begins. Prompts are token ids, BOS included, of any lengths.
    ///
    /// # Errors
    /// [`ModelError::Generate`] for settings that mean nothing; an empty prompt or none; a context too short for the
    /// longest prompt and what is to follow.
    pub fn new(model: &'m Gemma2, prompts: &[Vec<i64>], options: GenerateOptions) -> Result<Self> {
        options.sampling.check()?;
        let config = model.config();
        let prompt = TokenBatch::left_padded(prompts, config.pad, &config.special())?;
        prompt.check(&config.dims)?;
        let n_ctx = config.dims.n_ctx;
        let longest = prompt.pos() as usize;
        if longest.saturating_add(options.max_new_tokens) > n_ctx {
            return Err(ModelError::Generate(format!(
                "a prompt of {longest} tokens and {} new ones exceed the model's context of {n_ctx}",
                options.max_new_tokens
            )));
        }
        let stop = options.stop.clone().unwrap_or_else(|| config.eos.clone());
        let seed = |row: u64| StdRng::seed_from_u64(options.sampling.seed.wrapping_add(row));
        let rngs = (0..prompts.len() as u64).map(seed).collect();
        let next = TokenBatch::left_padded(prompts, config.pad, &config.special())?;
        let done = vec![false; prompts.len()];
        let cache = model.cache(prompts.len());
        Ok(Self { model, cache, options, stop, next, prompt, rngs, done, steps: 0 })
    }

    /// The prompts as the model sees them, padded on the left: what [`Positions::over`](hooks::Positions::over) asks for.
    pub fn prompt(&self) -> &TokenBatch {
        &self.prompt
    }

    /// One more token a row, `None` for rows that have ended; `None` in all when every row has.
    ///
    /// After an error the generation stands where it stood, and the step may be tried again.
    ///
    /// # Errors
    /// The model's, a hook's, or logits that nothing can be drawn from.
    pub fn step(&mut self, hooks: &mut HookSet<'_>) -> Result<Option<Vec<Option<i64>>>> {
        if self.steps >= self.options.max_new_tokens || self.done.iter().all(|done| *done) {
            return Ok(None);
        }
        let before = self.cache.len();
        let (chosen, next, rngs) = match self.choose(hooks) {
            Ok(chosen) => chosen,
            Err(error) => {
                // What was run leads nowhere: the next try runs it again.
                self.cache.forget_from(before);
                return Err(error);
            }
        };
        self.next = next;
        self.rngs = rngs;
        for (done, id) in self.done.iter_mut().zip(&chosen) {
            *done |= id.is_none_or(|id| self.stop.contains(&id));
        }
        self.steps += 1;
        Ok(Some(chosen))
    }

    /// Each row's token, the batch of them that the model sees next, and the generators as drawing left them.
    fn choose(&mut self, hooks: &mut HookSet<'_>) -> Result<(Vec<Option<i64>>, TokenBatch, Vec<StdRng>)> {
        let logits = self.next_logits(hooks)?;
        let mut chosen = Vec::with_capacity(logits.len());
        let mut rngs = self.rngs.clone();
        for ((row, rng), done) in logits.iter().zip(&mut rngs).zip(&self.done) {
            chosen.push(if *done { None } else { Some(self.options.sampling.draw(row, rng)?) });
        }
        let config = self.model.config();
        let rows: Vec<Vec<i64>> = chosen.iter().map(|id| vec![id.unwrap_or(config.pad)]).collect();
        Ok((chosen, TokenBatch::new(&rows, &config.special())?, rngs))
    }

    /// The logits behind the last position of each row.
    fn next_logits(&mut self, hooks: &mut HookSet<'_>) -> Result<Vec<Vec<f32>>> {
        let _no_grad = tch::no_grad_guard();
        let resid = self.model.extend(&mut self.cache, &self.next, hooks)?;
        let last = resid.f_narrow(1, self.next.pos() - 1, 1)?;
        hooks.begin_at(self.cache.len() - 1);
        let logits = self.model.unembed(&last, hooks);
        hooks.begin_at(0);
        let logits = logits?.f_squeeze_dim(1)?.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?;
        (0..self.next.batch()).map(|row| rows_of(&logits, row)).collect()
    }
}

fn rows_of(logits: &Tensor, row: i64) -> Result<Vec<f32>> {
    let row = logits.f_get(row)?.f_contiguous()?;
    let mut values = vec![0.0; row.numel()];
    row.f_copy_data(&mut values, row.numel())?;
    Ok(values)
}

/// Generates until every row has ended, and returns each row's new tokens. `on_tokens` is called after each step.
///
/// The set of hooks lives through all steps. A hook that never fired is an error in the end, as in any run.
///
/// # Errors
/// As [`Generation::new`] and [`Generation::step`]; hooks that did not fire.
pub fn generate(
    model: &Gemma2,
    prompts: &[Vec<i64>],
    options: GenerateOptions,
    mut hooks: HookSet<'_>,
    mut on_tokens: impl FnMut(&[Option<i64>]),
) -> Result<Vec<Vec<i64>>> {
    hooks.check(&model.config().dims)?;
    let mut generation = Generation::new(model, prompts, options)?;
    let mut rows = vec![Vec::new(); prompts.len()];
    while let Some(tokens) = generation.step(&mut hooks)? {
        for (row, id) in rows.iter_mut().zip(&tokens) {
            row.extend(*id);
        }
        on_tokens(&tokens);
    }
    hooks.finish()?;
    Ok(rows)
}
