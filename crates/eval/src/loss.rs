use hooks::{HookSet, HookedModel, TokenBatch};
use tch::{Kind, Tensor};
use tch_ext::TensorError;

use crate::{
    EvalError, Result,
    head::{losses, slices},
    log_sum_exp::LogSumExp,
};

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
    let rows = (tokens.batch() * scored) as usize;
    for slice in slices(model, rows) {
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
    let (_, log_z) = log_z.sum_and_value()?;
    Ok(log_z.f_to_kind(Kind::Float)?.f_sub(&of_next)?)
}

/// `D_KL(P ‖ Q) = Σ_v P(v) (log P(v) − log Q(v))` of the next-token distributions at each position, in nats: P from the last
/// residual stream `clean` and Q from `other`, both `[batch, pos, d_model]`, to `[batch, pos]`.
///
/// Slice by slice of the vocabulary, as [`loss_per_token`]; no gradient flows.
///
/// # Errors
/// The model's; streams of different shapes.
pub fn kl_per_token(model: &dyn HookedModel, clean: &Tensor, other: &Tensor) -> Result<Tensor> {
    let (size, axes) = (clean.size(), clean.dim());
    if other.size() != size || axes != 3 {
        return Err(wrong_shape("other", &format!("{size:?}"), other));
    }
    let _no_grad = tch::no_grad_guard();
    let (p, q) = (clean.f_flatten(0, 1)?, other.f_flatten(0, 1)?);
    let next = Tensor::f_zeros([p.size2()?.0], (Kind::Int64, clean.device()))?;
    let found = losses(model, &[&p, &q], &next)?;
    let kl = found.last().ok_or(EvalError::Empty)?;
    let kl = Tensor::f_from_slice(&kl.kl)?.f_reshape([size[0], size[1]])?;
    Ok(kl.f_to_kind(Kind::Float)?.f_to_device(clean.device())?)
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

fn wrong_shape(what: &str, expected: &str, got: &Tensor) -> EvalError {
    TensorError::Shape { what: what.to_owned(), expected: expected.to_owned(), got: got.size() }.into()
}
