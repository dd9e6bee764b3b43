use hooks::{HookSet, HookedModel, TokenBatch};
use tch::{Kind, Tensor};
use tch_ext::TensorError;

use crate::{EvalError, Result};

/// The logits that exist at one time: with a vocabulary of 256,000, 131 positions in 128 MiB of float32.
const LOGITS_AT_A_TIME: i64 = 1 << 25;

/// Cross-entropy of each next token, in nats: the last residual stream, `[batch, pos, d_model]`, to `[batch, pos - 1]`.
///
/// `loss[b, p] = −log softmax(logits[b, p])[tokens[b, p + 1]]`. The logits are made for a few positions at a time and never
/// all at once.
///
/// # Errors
/// The model's or a hook's (hooks at the final norm fire once for each slice of positions).
pub fn loss_per_token(
    model: &dyn HookedModel,
    resid: &Tensor,
    tokens: &TokenBatch,
    hooks: &mut HookSet<'_>,
) -> Result<Tensor> {
    let scored = tokens.pos() - 1;
    let at_a_time =
        (LOGITS_AT_A_TIME / (tokens.batch() * model.dims().d_vocab as i64)).clamp(1, scored.max(1));
    let ids = tokens.ids().f_to_device(resid.device())?;
    let mut parts = Vec::new();
    let mut start = 0;
    while start < scored {
        let length = at_a_time.min(scored - start);
        let logits = model.unembed(&resid.f_narrow(1, start, length)?, hooks)?;
        let next = ids.f_narrow(1, start + 1, length)?.f_unsqueeze(-1)?;
        let logits = logits.f_to_kind(Kind::Float)?;
        let log_z = logits.f_logsumexp(-1, false)?;
        parts.push(log_z.f_sub(&logits.f_gather(-1, &next, false)?.f_squeeze_dim(-1)?)?);
        start += length;
    }
    if parts.is_empty() {
        return Ok(Tensor::f_zeros([tokens.batch(), 0], (Kind::Float, resid.device()))?);
    }
    Ok(Tensor::f_cat(&parts, 1)?)
}

/// Which of the next-token losses count: `[batch, pos]`, bool, to `[batch, pos - 1]`, where a position and its next do both.
///
/// # Errors
/// A tensor of other axes.
pub fn scored(kept: &Tensor) -> Result<Tensor> {
    let Ok((_, pos)) = kept.size2() else { return Err(wrong_shape("kept", "[batch, pos]", kept)) };
    Ok(kept.f_narrow(1, 0, pos - 1)?.f_logical_and(&kept.f_narrow(1, 1, pos - 1)?)?)
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
