use tch::{Kind, Tensor};

use crate::{EvalError, Result};

/// `log Σ exp` over the last axis, slice by slice: `shift + log sum`, where `sum` is of `exp(logit − shift)`.
#[derive(Default)]
pub(crate) struct LogSumExp {
    /// The largest so far; no gradient flows through it, since its value does not matter.
    shift: Option<Tensor>,
    /// float64.
    sum: Option<Tensor>,
}

impl LogSumExp {
    /// Adds a slice and returns `exp(logits − shift)`, in the same memory where no gradient needs that.
    pub(crate) fn add(&mut self, mut logits: Tensor) -> Result<Tensor> {
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

    /// What is subtracted from logits now.
    pub(crate) fn shift(&self) -> Option<Tensor> {
        self.shift.as_ref().map(Tensor::shallow_clone)
    }

    /// `Σ exp(logit − shift)` and `log Σ exp(logit)`, float64.
    pub(crate) fn sum_and_value(self) -> Result<(Tensor, Tensor)> {
        let (Some(shift), Some(sum)) = (self.shift, self.sum) else { return Err(EvalError::Empty) };
        let value = sum.f_log()?.f_add(&shift)?;
        Ok((sum, value))
    }
}
