//! Edits that need no autoencoder: add a direction, set, zero, scale, everywhere or at chosen positions.

use tch::Tensor;

use crate::{Axis, BoxError, Hook, HookError, HookPoint};

/// A ready-made replacement hook. Make one with [`add`], [`set`], [`zero`] or [`scale`].
#[derive(Debug)]
pub struct Edit {
    op: Op,
    positions: Option<Tensor>,
}

#[derive(Debug)]
enum Op {
    Add(Tensor, f64),
    Set(Tensor),
    Scale(f64),
}

/// `act + strength · direction`. The direction's shape must broadcast to the activation's: `[d_model]`, or more axes.
pub fn add(direction: Tensor, strength: f64) -> Edit {
    Edit { op: Op::Add(direction, strength), positions: None }
}

/// `value` in the activation's place, broadcast to its shape.
pub fn set(value: Tensor) -> Edit {
    Edit { op: Op::Set(value), positions: None }
}

/// Zero in the activation's place.
pub fn zero() -> Edit {
    scale(0.0)
}

/// `factor · act`.
pub fn scale(factor: f64) -> Edit {
    Edit { op: Op::Scale(factor), positions: None }
}

impl Edit {
    /// Edits only where `mask` (`[batch, pos]`, bool; see [`Positions::mask`](crate::Positions::mask)) is true.
    #[must_use]
    pub fn at(mut self, mask: Tensor) -> Self {
        self.positions = Some(mask);
        self
    }
}

impl Hook for Edit {
    fn visit(&mut self, site: HookPoint, act: &Tensor) -> Result<Option<Tensor>, BoxError> {
        let edited = match &self.op {
            Op::Add(direction, strength) => {
                let step = direction.f_to_kind(act.f_kind()?)?.f_to_device(act.device())?;
                act.f_add(&step.f_mul_scalar(*strength)?)?
            }
            Op::Set(value) => value.f_to_kind(act.f_kind()?)?.f_to_device(act.device())?.f_expand_as(act)?,
            // Zero is written, not multiplied, so that an infinite or NaN activation becomes zero as well.
            Op::Scale(0.0) => act.f_zeros_like()?,
            Op::Scale(factor) => act.f_mul_scalar(*factor)?,
        };
        match &self.positions {
            None => Ok(Some(edited)),
            Some(mask) => Ok(Some(only_at(mask, site, act, &edited)?)),
        }
    }
}

/// `edited` where `mask` (`[batch, pos]`) is true, `act` elsewhere.
///
/// # Errors
/// [`HookError::Positions`] for a site without a position axis (attention scores and patterns) or a mask of another batch.
pub fn only_at(mask: &Tensor, site: HookPoint, act: &Tensor, edited: &Tensor) -> Result<Tensor, HookError> {
    if site.axes().get(..2) != Some(&[Axis::Batch, Axis::Pos]) {
        let problem =
            format!("`{site}` has no position axis: an edit of chosen positions does not apply to it");
        return Err(HookError::Positions(problem));
    }
    let sizes = act.size();
    if Some(mask.size().as_slice()) != sizes.get(..2) {
        let problem = format!("the positions are {:?}, but `{site}` has {sizes:?}", mask.size());
        return Err(HookError::Positions(problem));
    }
    let mut mask = mask.f_to_device(act.device())?;
    while mask.dim() < sizes.len() {
        mask = mask.f_unsqueeze(-1)?;
    }
    Ok(edited.f_where_self(&mask, act)?)
}
