//! Edits that need no autoencoder: add a direction, set, zero, scale, everywhere or at chosen positions.

use tch::Tensor;

use crate::{Axis, BoxError, Hook, HookError, HookPoint, PositionSet, Visit};

/// A ready-made replacement hook. Make one with [`add`], [`set`], [`zero`] or [`scale`].
#[derive(Debug)]
pub struct Edit {
    op: Op,
    positions: Option<PositionSet>,
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
    /// Edits only at these positions: a mask (`[batch, pos]`, bool; see [`Positions::mask`](crate::Positions::mask)), or
    /// what [`Positions::over`](crate::Positions::over) makes for a text that generation goes on with.
    #[must_use]
    pub fn at(mut self, positions: impl Into<PositionSet>) -> Self {
        self.positions = Some(positions.into());
        self
    }
}

impl Hook for Edit {
    fn visit(&mut self, at: Visit, act: &Tensor) -> Result<Option<Tensor>, BoxError> {
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
            Some(positions) => Ok(Some(only_within(positions, at, act, &edited)?)),
        }
    }
}

/// `edited` at the positions of a set, `act` elsewhere, whatever part of the sequence the hook is shown.
///
/// # Errors
/// As [`only_at`], and for a set that ends before the run does.
pub fn only_within(
    positions: &PositionSet,
    at: Visit,
    act: &Tensor,
    edited: &Tensor,
) -> Result<Tensor, HookError> {
    expect_positions(at.site)?;
    let len = act.size().get(1).copied().unwrap_or(0);
    // In a plain run the set must be the run's own, no longer one.
    let mask =
        if at.first_pos == 0 { positions.whole(len)? } else { positions.columns(at.first_pos, len)? };
    only_at(&mask, at.site, act, edited)
}

/// `edited` where `mask` (`[batch, pos]`) is true, `act` elsewhere.
///
/// # Errors
/// [`HookError::Positions`] for a site without a position axis (attention scores and patterns) or a mask of another batch.
pub fn only_at(mask: &Tensor, site: HookPoint, act: &Tensor, edited: &Tensor) -> Result<Tensor, HookError> {
    expect_positions(site)?;
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

fn expect_positions(site: HookPoint) -> Result<(), HookError> {
    if site.axes().get(..2) == Some(&[Axis::Batch, Axis::Pos]) {
        return Ok(());
    }
    let problem = format!("`{site}` has no position axis: an edit of chosen positions does not apply to it");
    Err(HookError::Positions(problem))
}
