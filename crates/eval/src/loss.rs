use std::ops::Range;

use hooks::{HookSet, HookedModel, TokenBatch};
use tch::{Kind, Tensor};
use tch_ext::TensorError;

use crate::{EvalError, Result};

/// The logits that exist at one time: 16 MiB of float32, whatever the vocabulary.
const LOGITS_AT_A_TIME: i64 = 1 << 22;

/// Cross-entropy of each next token, in nats: the last residual stream, `[batch, pos, d_model]`, to `[batch, pos - 1]`.
///
/// `loss[b, p] = −log softmax(logits[b, p])[tokens[b, p + 1]]`, in float32. The logits are made slice by slice of the
/// vocabulary and never all at once (unless a gradient is to flow, which needs them all); the hooks at the final norm fire
/// once.
///
/// # Errors
/// The model's or a hook's.
pub fn loss_per_token(
    model: &dyn HookedModel,
    resid: &Tensor,
    tokens: &TokenBatch,
    hooks: &mut HookSet<'_>,
) -> Result<Tensor> {
    let scored = tokens.pos() - 1;
    if scored == 0 {
        return Ok(Tensor::f_zeros([tokens.batch(), 0], (Kind::Float, resid.device()))?);
    }
    let normed = model.final_norm(&resid.f_narrow(1, 0, scored)?, hooks)?;
    let next = tokens.ids().f_to_device(resid.device())?.f_narrow(1, 1, scored)?;
    let mut log_z = LogSumExp::default();
    let mut of_next: Option<Tensor> = None;
    for slice in slices(model, &normed) {
        let logits = model.readout(&normed, slice.clone())?.f_to_kind(Kind::Float)?;
        // The logit of the next token, where it lies in this slice.
        let index = next.f_sub_scalar(slice.start as i64)?;
        let inside = index.f_ge(0)?.f_logical_and(&index.f_lt(slice.len() as i64)?)?;
        let index = index.f_clamp(0, slice.len() as i64 - 1)?.f_unsqueeze(-1)?;
        let picked = logits.f_gather(-1, &index, false)?.f_squeeze_dim(-1)?;
        let picked = picked.f_masked_fill(&inside.f_logical_not()?, 0.0)?;
        of_next = Some(match of_next {
            None => picked,
            Some(sum) => sum.f_add(&picked)?,
        });
        let _exp = log_z.add(logits)?;
    }
    let of_next = of_next.ok_or(EvalError::Empty)?;
    Ok(log_z.value()?.f_sub(&of_next)?)
}

/// `D_KL(P ‖ Q) = Σ_v P(v) (log P(v) − log Q(v))` of the next-token distributions at each position, in nats: P from the last
/// residual stream `clean` and Q from `other`, both `[batch, pos, d_model]`, to `[batch, pos]`.
///
/// Slice by slice of the vocabulary, as [`loss_per_token`].
///
/// # Errors
/// The model's; streams of different shapes.
pub fn kl_per_token(model: &dyn HookedModel, clean: &Tensor, other: &Tensor) -> Result<Tensor> {
    if clean.size() != other.size() {
        return Err(wrong_shape("other", &format!("{:?}", clean.size()), other));
    }
    let p = model.final_norm(clean, &mut HookSet::new())?;
    let q = model.final_norm(other, &mut HookSet::new())?;
    let (mut log_z_p, mut log_z_q) = (LogSumExp::default(), LogSumExp::default());
    // Σ exp(p − shift) (p − q), with the shift of `log_z_p`.
    let mut weighted: Option<Tensor> = None;
    for slice in slices(model, &p) {
        let p = model.readout(&p, slice.clone())?.f_to_kind(Kind::Float)?;
        let q = model.readout(&q, slice)?.f_to_kind(Kind::Float)?;
        let before = log_z_p.shift.as_ref().map(Tensor::shallow_clone);
        let gap = p.f_sub(&q)?;
        let _exp = log_z_q.add(q)?;
        let here = log_z_p.add(p)?.f_mul(&gap)?.f_sum_dim_intlist(-1, false, Kind::Double)?;
        weighted = Some(match (weighted, before, &log_z_p.shift) {
            (Some(sum), Some(before), Some(shift)) => {
                sum.f_mul(&before.f_sub(shift)?.f_exp()?)?.f_add(&here)?
            }
            _ => here,
        });
    }
    let (Some(weighted), Some(sum)) = (weighted, &log_z_p.sum) else { return Err(EvalError::Empty) };
    let mean_gap = weighted.f_div(sum)?;
    let kl = mean_gap.f_sub(&log_z_p.value()?)?.f_add(&log_z_q.value()?)?;
    // What rounding leaves below zero is zero.
    Ok(kl.f_clamp_min(0.0)?.f_to_kind(Kind::Float)?)
}

/// Slices of the vocabulary, as large as the positions allow.
fn slices(model: &dyn HookedModel, normed: &Tensor) -> impl Iterator<Item = Range<usize>> + use<> {
    let d_vocab = model.dims().d_vocab;
    let rows: i64 = normed.size().iter().take(2).product();
    let at_a_time = usize::try_from(LOGITS_AT_A_TIME / rows.max(1)).unwrap_or(0).clamp(256, d_vocab.max(256));
    (0..d_vocab).step_by(at_a_time).map(move |start| start..(start + at_a_time).min(d_vocab))
}

/// `log Σ exp` over the last axis, slice by slice: `shift + log sum`, where `sum` is of `exp(logit − shift)`.
#[derive(Default)]
struct LogSumExp {
    /// The largest so far; no gradient flows through it, since its value does not matter.
    shift: Option<Tensor>,
    sum: Option<Tensor>,
}

impl LogSumExp {
    /// Adds a slice and returns `exp(logits − shift)`, in the same memory where no gradient needs that.
    fn add(&mut self, mut logits: Tensor) -> Result<Tensor> {
        let largest = logits.f_detach()?.f_amax(-1, false)?;
        let shift = match &self.shift {
            None => largest,
            Some(before) => before.f_maximum(&largest)?,
        };
        let by = shift.f_unsqueeze(-1)?;
        let exp = if logits.requires_grad() {
            logits.f_sub(&by)?.f_exp()?
        } else {
            logits.f_sub_(&by)?.f_exp_()?
        };
        let here = exp.f_sum_dim_intlist(-1, false, Kind::Float)?.f_to_kind(Kind::Double)?;
        self.sum = Some(match (&self.sum, &self.shift) {
            (Some(sum), Some(before)) => sum.f_mul(&before.f_sub(&shift)?.f_exp()?)?.f_add(&here)?,
            _ => here,
        });
        self.shift = Some(shift);
        Ok(exp)
    }

    /// float32.
    fn value(&self) -> Result<Tensor> {
        let (Some(shift), Some(sum)) = (&self.shift, &self.sum) else { return Err(EvalError::Empty) };
        Ok(sum.f_log()?.f_add(shift)?.f_to_kind(Kind::Float)?)
    }
}

/// Which of the next-token losses count: `[batch, pos]`, bool, to `[batch, pos - 1]`, where a position and its next do both,
/// and belong to one document.
///
/// # Errors
/// A tensor of other axes.
pub fn scored(kept: &Tensor, tokens: &TokenBatch) -> Result<Tensor> {
    let pos = match kept.size()[..] {
        [batch, pos] if batch == tokens.batch() && pos == tokens.pos() => pos,
        _ => return Err(wrong_shape("kept", &format!("[{}, {}]", tokens.batch(), tokens.pos()), kept)),
    };
    let both = kept.f_narrow(1, 0, pos - 1)?.f_logical_and(&kept.f_narrow(1, 1, pos - 1)?)?;
    let Some(documents) = tokens.documents() else { return Ok(both) };
    let documents = documents.f_to_device(kept.device())?;
    let same = documents.f_narrow(1, 0, pos - 1)?.f_eq_tensor(&documents.f_narrow(1, 1, pos - 1)?)?;
    Ok(both.f_logical_and(&same)?)
}

/// A sum of losses in nats, and over how many tokens.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LossSum {
    sum: f64,
    n: f64,
}

impl LossSum {
    /// Adds the losses, `[batch, pos - 1]`, where `mask`, of the same shape, is true.
    ///
    /// # Errors
    /// A mask of another shape.
    pub fn add(&mut self, losses: &Tensor, mask: &Tensor) -> Result<()> {
        if mask.size() != losses.size() {
            return Err(wrong_shape("mask", &format!("{:?}", losses.size()), mask));
        }
        let losses = losses.f_detach()?.f_masked_select(mask)?;
        self.n += losses.numel() as f64;
        self.sum += losses.f_sum(Kind::Double)?.f_double_value(&[])?;
        Ok(())
    }

    /// Joins another sum.
    pub fn merge(&mut self, other: &Self) {
        self.sum += other.sum;
        self.n += other.n;
    }

    /// Tokens summed over.
    pub fn tokens(&self) -> i64 {
        self.n as i64
    }

    /// Nats per token; `None` before the first.
    pub fn mean(&self) -> Option<f64> {
        (self.n > 0.0).then(|| self.sum / self.n)
    }
}

fn wrong_shape(what: &str, expected: &str, got: &Tensor) -> EvalError {
    TensorError::Shape { what: what.to_owned(), expected: expected.to_owned(), got: got.size() }.into()
}
