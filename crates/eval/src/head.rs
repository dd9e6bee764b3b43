use std::ops::Range;

use hooks::{HookSet, HookedModel};
use tch::{Device, Kind, Tensor};

use crate::{EvalError, Result, log_sum_exp::LogSumExp};

/// Rows whose logits are made at a time, those of all runs together.
const ROWS_AT_A_TIME: usize = 2048;

/// The logits that exist at one time: 16 MiB of float32, whatever the vocabulary.
const LOGITS_AT_A_TIME: usize = 1 << 22;

/// What one of several runs says of the next tokens, a number for each row, on the CPU.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Losses {
    /// `−log Q(next)`, in nats.
    pub(crate) ce: Vec<f64>,
    /// `D_KL(P ‖ Q) = Σ_v P(v) (log P(v) − log Q(v))`, in nats, where P is the first run's distribution.
    pub(crate) kl: Vec<f64>,
}

/// The losses of several runs over the same positions: `runs` are their last residual streams, `[n, d_model]` each, the clean
/// one first, and `next` the tokens that followed, `[n]`.
///
/// The logits of all runs are made side by side, block of rows by block of rows and slice of the vocabulary by slice, and never
/// all at once: each slice of the unembedding is read once for all of them, and the clean run's are there to be compared with.
pub(crate) fn losses(model: &dyn HookedModel, runs: &[&Tensor], next: &Tensor) -> Result<Vec<Losses>> {
    let (n, device) = (next.size1()?, runs.first().map_or(next.device(), |run| run.device()));
    let next = next.f_to_device(device)?;
    let mut found = vec![Losses { ce: Vec::new(), kl: Vec::new() }; runs.len()];
    let rows = (ROWS_AT_A_TIME / runs.len().max(1)).max(1) as i64;
    for first in (0..n).step_by(rows as usize) {
        let len = rows.min(n - first);
        let block: Vec<Tensor> =
            runs.iter().map(|run| run.f_narrow(0, first, len)).collect::<Result<_, _>>()?;
        let (ce, kl) = block_losses(model, &block, &next.f_narrow(0, first, len)?)?;
        let to_host =
            |t: &Tensor, run: usize| Vec::<f64>::try_from(t.f_get(run as i64)?.f_to_device(Device::Cpu)?);
        for (run, losses) in found.iter_mut().enumerate() {
            losses.ce.extend(to_host(&ce, run)?);
            losses.kl.extend(to_host(&kl, run)?);
        }
    }
    Ok(found)
}

/// Cross-entropies and divergences of some rows: `[runs, rows]` each, float64.
fn block_losses(model: &dyn HookedModel, runs: &[Tensor], next: &Tensor) -> Result<(Tensor, Tensor)> {
    let (k, n) = (runs.len() as i64, next.size1()?);
    let side_by_side = Tensor::f_cat(runs, 0)?.f_unsqueeze(0)?; // [1, runs · rows, d_model]
    let normed = model.final_norm(&side_by_side, &mut HookSet::new())?;
    let mut log_z = LogSumExp::default();
    let mut of_next = Sum::default();
    // Σ exp(p − shift) (p − q), with the shift of the clean run.
    let mut gap = Sum::default();
    for slice in slices(model, (k * n) as usize) {
        let len = slice.len() as i64;
        let logits = model.readout(&normed, slice.clone())?.f_to_kind(Kind::Float)?.f_view([k, n, len])?;
        of_next.add(picked(&logits, next, &slice)?)?;
        let clean = logits.f_get(0)?;
        let gaps = if k > 1 { Some(clean.f_sub(&logits.f_narrow(0, 1, k - 1)?)?) } else { None };
        let before = log_z.shift();
        let exp = log_z.add(logits)?;
        let Some(gaps) = gaps else { continue };
        // What was summed so far had another shift.
        if let (Some(before), Some(shift)) = (before, log_z.shift()) {
            gap.scale(&before.f_get(0)?.f_sub(&shift.f_get(0)?)?.f_exp()?)?;
        }
        // [rows, runs, len] × [rows, len, 1]
        let here = gaps.f_transpose(0, 1)?.f_matmul(&exp.f_get(0)?.f_unsqueeze(-1)?)?;
        gap.add(here.f_squeeze_dim(-1)?.f_tr()?.f_to_kind(Kind::Double)?)?;
    }
    let (sums, log_z) = log_z.sum_and_value()?;
    let ce = log_z.f_sub(&of_next.value()?)?;
    let own = Tensor::f_zeros([1, n], (Kind::Double, ce.device()))?;
    if k == 1 {
        return Ok((ce, own));
    }
    let others = log_z.f_narrow(0, 1, k - 1)?.f_sub(&log_z.f_get(0)?)?;
    let kl = gap.value()?.f_div(&sums.f_get(0)?)?.f_add(&others)?;
    // What rounding leaves below zero is zero.
    Ok((ce, Tensor::f_cat(&[own, kl.f_clamp_min(0.0)?], 0)?))
}

/// The logits of the next tokens, where they lie in a slice of the vocabulary, and zero elsewhere: `[runs, rows]`, float64.
fn picked(logits: &Tensor, next: &Tensor, slice: &Range<usize>) -> Result<Tensor> {
    let index = next.f_sub_scalar(slice.start as i64)?;
    let inside = index.f_ge(0)?.f_logical_and(&index.f_lt(slice.len() as i64)?)?;
    let index = index.f_clamp(0, slice.len() as i64 - 1)?.f_view([1, -1, 1])?;
    let k = logits.size3()?.0;
    let picked = logits.f_gather(-1, &index.f_expand([k, -1, -1], false)?, false)?.f_squeeze_dim(-1)?;
    Ok(picked.f_to_kind(Kind::Double)?.f_masked_fill(&inside.f_logical_not()?, 0.0)?)
}

/// The longest slice of the vocabulary: sums over one are in float32, the slices' are added in float64.
const LONGEST_SLICE: usize = 8192;

/// Slices of the vocabulary, as large as the rows allow.
pub(crate) fn slices(model: &dyn HookedModel, rows: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    let d_vocab = model.dims().d_vocab;
    let at_a_time = (LOGITS_AT_A_TIME / rows.max(1)).clamp(256, LONGEST_SLICE);
    (0..d_vocab).step_by(at_a_time).map(move |start| start..(start + at_a_time).min(d_vocab))
}

/// A sum of tensors.
#[derive(Default)]
struct Sum(Option<Tensor>);

impl Sum {
    fn add(&mut self, term: Tensor) -> Result<()> {
        self.0 = Some(match self.0.take() {
            None => term,
            Some(sum) => sum.f_add(&term)?,
        });
        Ok(())
    }

    fn scale(&mut self, by: &Tensor) -> Result<()> {
        self.0 = self.0.take().map(|sum| sum.f_mul(by)).transpose()?;
        Ok(())
    }

    fn value(self) -> Result<Tensor> {
        self.0.ok_or(EvalError::Empty)
    }
}
