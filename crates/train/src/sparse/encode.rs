//! Which entries of the pre-activations are kept, tile by tile of latents.

use native::{BatchTop, Rule, Selection, TopK};
use tch::{Device, Kind, Tensor};
use tch_ext::linear;

use super::{Route, Work, entries::Entries};
use crate::{
    Result, TrainError,
    config::{self, Over},
};

/// Pre-activations that exist at a time, in elements.
fn tile(device: Device) -> i64 {
    if device == Device::Cpu { 1 << 23 } else { 1 << 27 }
}

/// Calls `take` with `x W_encᵀ` of some latents, `[B, len]`, and the first of them, until it says false.
fn each_tile(work: &Work<'_>, mut take: impl FnMut(Tensor, i64) -> Result<bool>) -> Result<()> {
    let d_sae = work.config.d_sae;
    let len = (tile(work.x.device()) / work.rows).clamp(64, d_sae.max(64));
    for first in (0..d_sae).step_by(len as usize) {
        let w_enc = work.p.w_enc.f_narrow(0, first, len.min(d_sae - first))?;
        if !take(linear(&work.x, &w_enc)?.f_contiguous()?, first)? {
            break;
        }
    }
    Ok(())
}

/// The entries above `bound`, `[d_sae]`. `None` where they are more than `most`.
pub(super) fn above(
    work: &Work<'_>,
    route: Route,
    bound: &Tensor,
    most: Option<usize>,
) -> Result<Option<Entries>> {
    let most = most.unwrap_or(usize::MAX);
    let b_enc = &work.p.b_enc;
    let mut fits = true;
    if route == Route::Kernels {
        let (bias, bound) = (floats(b_enc)?, floats(bound)?);
        let mut selection = Selection::new(work.rows as usize);
        each_tile(work, |tile, first| {
            let at = span(&tile, first)?;
            let rule = Rule::Above { bias: &bias[at.clone()], threshold: &bound[at] };
            taken(selection.add(&tile, first as u32, rule))?;
            fits = selection.entries() <= most;
            Ok(fits)
        })?;
        return Ok(if fits { Some(Entries::from_csr(&selection.finish())?) } else { None });
    }
    let (mut found, mut n) = (Vec::new(), 0);
    each_tile(work, |tile, first| {
        let len = tile.size2()?.1;
        let pre = tile.f_add(&b_enc.f_narrow(0, first, len)?)?;
        let kept = pre.f_le_tensor(&bound.f_narrow(0, first, len)?)?.f_logical_not()?;
        found.push(places(&pre, &kept, first)?);
        n += found.last().map_or(0, |[rows, ..]| rows.numel());
        fits = n <= most;
        Ok(fits)
    })?;
    if fits { joined(&found, work.rows).map(Some) } else { Ok(None) }
}

/// The entries that a TopK objective keeps where they are positive, and the scores by which they were chosen (π, or π ‖d‖); and of
/// all `dead` latents (`[n]`, int64) π of every row, `[B, n]`.
pub(super) fn strongest(
    work: &Work<'_>,
    route: Route,
    objective: &config::TopK,
    norms: Option<&Tensor>,
    dead: Option<&Tensor>,
) -> Result<(Entries, Option<Tensor>)> {
    let score_bias = match norms {
        Some(norms) => work.p.b_enc.f_mul(norms)?,
        None => work.p.b_enc.shallow_clone(),
    };
    let bias = floats(&score_bias)?;
    let mut strongest = Strongest::new(work, route, objective);
    let mut asleep = Asleep::new(work, dead)?;
    each_tile(work, |mut tile, first| {
        let len = tile.size2()?.1;
        if let Some(norms) = norms {
            let _ = tile.f_mul_(&norms.f_narrow(0, first, len)?)?;
        }
        asleep.add(&tile, first, &score_bias)?;
        match &mut strongest {
            Strongest::Row(top) => taken(top.add(&tile, first as u32, &bias[span(&tile, first)?]))?,
            Strongest::Batch(top) => taken(top.add(&tile, first as u32, &bias[span(&tile, first)?]))?,
            Strongest::Libtorch(top) => {
                top.add(&tile.f_add_(&score_bias.f_narrow(0, first, len)?)?, first)?;
            }
        }
        Ok(true)
    })?;
    Ok((strongest.finish()?, asleep.scores))
}

enum Strongest {
    Row(TopK),
    Batch(BatchTop),
    Libtorch(Candidates),
}

impl Strongest {
    fn new(work: &Work<'_>, route: Route, o: &config::TopK) -> Self {
        let rows = work.rows as usize;
        let of_batch = (o.k * rows as f64).floor() as usize;
        match (route, o.over) {
            (Route::Kernels, Over::Row) => Self::Row(TopK::new(rows, o.k as usize)),
            (Route::Kernels, Over::Batch) => Self::Batch(BatchTop::new(rows, of_batch)),
            (_, Over::Row) => {
                Self::Libtorch(Candidates { rows: work.rows, k: o.k as i64, by_row: true, best: None })
            }
            (_, Over::Batch) => {
                Self::Libtorch(Candidates { rows: work.rows, k: of_batch as i64, by_row: false, best: None })
            }
        }
    }

    fn finish(self) -> Result<Entries> {
        match self {
            Self::Row(top) => Entries::from_csr(&top.finish()),
            Self::Batch(top) => Entries::from_csr(&top.finish()),
            Self::Libtorch(candidates) => candidates.finish(),
        }
    }
}

/// The k strongest so far, of each row or of the batch, by libtorch's `topk`.
struct Candidates {
    rows: i64,
    k: i64,
    by_row: bool,
    /// Scores, rows and latents: `[n, ≤ k]`, with n the number of rows, or 1 for the batch.
    best: Option<[Tensor; 3]>,
}

impl Candidates {
    fn add(&mut self, scores: &Tensor, first: i64) -> Result<()> {
        let size = scores.size();
        let on = (Kind::Int64, scores.device());
        let rows = Tensor::f_arange(self.rows, on)?.f_unsqueeze(1)?.f_expand(&size, false)?;
        let latents = Tensor::f_arange_start(first, first + size[1], on)?.f_expand(&size, false)?;
        let n = if self.by_row { self.rows } else { 1 };
        let mut all = [scores.shallow_clone(), rows, latents];
        for t in &mut all {
            *t = t.f_reshape([n, -1])?;
        }
        // What is new first: of what is left of it, only that is compared with the best so far.
        let some = self.cut(all)?;
        let together = match self.best.take() {
            Some(best) => {
                let mut together = Vec::with_capacity(3);
                for (best, some) in best.iter().zip(&some) {
                    together.push(Tensor::f_cat(&[best, some], 1)?);
                }
                let [a, b, c] = <[Tensor; 3]>::try_from(together).unwrap_or(some);
                self.cut([a, b, c])?
            }
            None => some,
        };
        self.best = Some(together);
        Ok(())
    }

    fn cut(&self, [scores, rows, latents]: [Tensor; 3]) -> Result<[Tensor; 3]> {
        let k = self.k.min(scores.size2()?.1);
        let (scores, at) = scores.f_topk(k, 1, true, false)?;
        Ok([scores, rows.f_gather(1, &at, false)?, latents.f_gather(1, &at, false)?])
    }

    fn finish(self) -> Result<Entries> {
        let Some([scores, rows, latents]) = self.best else {
            return Err(TrainError::Config("an SAE without latents can't be trained".to_owned()));
        };
        // NaN is kept, so that it shows.
        let positive = scores.f_le(0.0)?.f_logical_not()?;
        let [scores, rows, latents] = [scores, rows, latents].map(|t| t.f_masked_select(&positive));
        let (latents, order) = latents?.f_sort_stable(true, 0, false)?;
        let (rows, scores) = (rows?.f_index_select(0, &order)?, scores?.f_index_select(0, &order)?);
        Entries::sorted(&rows, &latents, &scores, self.rows)
    }
}

/// The scores of dead latents, collected while tiles go by.
struct Asleep {
    /// Ascending.
    latents: Vec<i64>,
    /// `[B, n]`.
    scores: Option<Tensor>,
    done: i64,
}

impl Asleep {
    fn new(work: &Work<'_>, dead: Option<&Tensor>) -> Result<Self> {
        let Some(dead) = dead else { return Ok(Self { latents: Vec::new(), scores: None, done: 0 }) };
        let latents = Vec::<i64>::try_from(dead.f_to_device(Device::Cpu)?)?;
        let scores = Tensor::f_empty([work.rows, latents.len() as i64], (Kind::Float, work.x.device()))?;
        Ok(Self { latents, scores: Some(scores), done: 0 })
    }

    fn add(&mut self, tile: &Tensor, first: i64, bias: &Tensor) -> Result<()> {
        let Some(scores) = &self.scores else { return Ok(()) };
        let end = first + tile.size2()?.1;
        let here: Vec<i64> = self.latents.iter().copied().filter(|i| (first..end).contains(i)).collect();
        if !here.is_empty() {
            let here = Tensor::f_from_slice(&here)?.f_to_device(tile.device())?;
            let some =
                tile.f_index_select(1, &here.f_sub_scalar(first)?)?.f_add(&bias.f_index_select(0, &here)?)?;
            let n = here.numel() as i64;
            scores.f_narrow(1, self.done, n)?.f_copy_(&some)?;
            self.done += n;
        }
        Ok(())
    }
}

/// Rows, latents and values of `kept` entries of a tile.
fn places(pre: &Tensor, kept: &Tensor, first: i64) -> Result<[Tensor; 3]> {
    let at = kept.f_nonzero()?;
    let (rows, columns) = (at.f_select(1, 0)?.f_contiguous()?, at.f_select(1, 1)?);
    Ok([rows, columns.f_add_scalar(first)?, pre.f_masked_select(kept)?])
}

/// Tiles of ascending latents, each by row.
fn joined(found: &[[Tensor; 3]], rows: i64) -> Result<Entries> {
    let all = |i: usize| Tensor::f_cat(&found.iter().map(|some| &some[i]).collect::<Vec<_>>(), 0);
    Entries::sorted(&all(0)?, &all(1)?, &all(2)?, rows)
}

fn floats(t: &Tensor) -> Result<Vec<f32>> {
    Ok(Vec::<f32>::try_from(t.f_to_device(Device::Cpu)?)?)
}

/// The latents of a tile.
fn span(tile: &Tensor, first: i64) -> Result<std::ops::Range<usize>> {
    Ok(first as usize..(first + tile.size2()?.1) as usize)
}

fn taken(taken: bool) -> Result<()> {
    if taken { Ok(()) } else { Err(TrainError::Config("activations must be float32 on the CPU".to_owned())) }
}
