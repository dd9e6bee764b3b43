//! A step by dense products of some latents at a time, for batches with many latents on: nothing as large as `[B, d_sae]` or as the
//! weights is made here either.

use std::cell::RefCell;

use tch::{Kind, Tensor};
use tch_ext::linear;

use super::{
    Backward, Collected, Outcome, WeightGradients, Work,
    by_tiles::Tiled,
    entries::{sum_of_rows, to_counts},
    jumprelu::of_parameter,
    penalty::Penalty,
};
use crate::{Result, config::JumpRelu, objective::threshold_of};

/// Pre-activations that exist at a time, in elements.
const TILE: i64 = 1 << 22;

/// As [`jumprelu::backward`](super::jumprelu::backward). Pre-activations are made twice: for the reconstruction, and for gradients.
pub(super) fn backward<'w>(work: &'w Work<'w>, o: &JumpRelu) -> Result<Backward<'w>> {
    let theta = threshold_of(work.config, work.p)?.f_detach()?;
    let d_out = work.config.d_out();
    let mut recon = work.p.b_dec.f_expand([work.rows, d_out], false)?.f_contiguous()?;
    if let Some(skip) = &work.skip {
        recon = recon.f_add_(skip)?;
    }
    let (mut errors, mut squared, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    let mut l0 = Tensor::f_zeros([work.rows], (Kind::Int64, work.x.device()))?;
    let mut from = 0;
    for to in &work.plan.ends {
        for (first, len) in tiles(work, from, *to) {
            let tile = Tile::new(work, &theta, first, len)?;
            recon = recon.f_addmm_(&tile.pre.f_mul(&tile.on)?, &work.p.w_dec.f_narrow(0, first, len)?)?;
            l0 = l0.f_add(&tile.on.f_sum_dim_intlist(1, false, Kind::Int64)?)?;
            counts.push(tile.on.f_sum_dim_intlist(0, false, Kind::Int64)?);
        }
        let error = recon.f_sub(work.batch.target)?;
        let by_row = error.f_square()?.f_sum_dim_intlist(1, false, Kind::Float)?;
        squared.push(by_row.f_sum(Kind::Double)?.f_double_value(&[])?);
        errors.push(error);
        from = *to;
    }
    for g in (1..errors.len()).rev() {
        errors[g - 1] = errors[g - 1].f_add(&errors[g])?;
    }
    let counts = Tensor::f_cat(&counts, 0)?;
    let penalty = Penalty::new(work, o, &l0, &counts)?;
    let mut parts = work.plan.parts(&squared);
    parts.extend(penalty.parts.iter().cloned());
    let squared_error = squared.last().copied().unwrap_or(f64::NAN);
    let (d_b_dec, d_w_skip) = work.of_the_output(&errors[0])?;
    let zeros = theta.f_zeros_like()?;
    let found = Found { d_b_enc: zeros.f_zeros_like()?, d_threshold: zeros, through: None };
    let products = Products { work, o: o.clone(), theta, errors, penalty, found: RefCell::new(found) };
    let active = to_counts(&counts)?;
    let outcome = Outcome { parts, squared_error, active, grad_norm: None, smallest_active: None };
    let weights = WeightGradients::Tiles(Box::new(products));
    Ok(Backward { weights, d_b_dec, d_w_skip, collected: None, outcome })
}

/// The tiles of the latents `from..to`.
fn tiles(work: &Work<'_>, from: i64, to: i64) -> impl Iterator<Item = (i64, i64)> + use<> {
    let len = (TILE / work.rows).max(64);
    (from..to).step_by(len as usize).map(move |first| (first, len.min(to - first)))
}

/// π and where it is above θ: `[B, len]`.
struct Tile {
    pre: Tensor,
    over: Tensor,
    on: Tensor,
}

impl Tile {
    fn new(work: &Work<'_>, theta: &Tensor, first: i64, len: i64) -> Result<Self> {
        let rows = |t: &Tensor| t.f_narrow(0, first, len);
        let pre = linear(&work.x, &rows(&work.p.w_enc)?)?.f_add_(&rows(&work.p.b_enc)?)?;
        let over = pre.f_sub(&rows(theta)?)?;
        // NaN is on, so that it shows.
        let on = over.f_le(0.0)?.f_logical_not()?;
        Ok(Self { pre, over, on })
    }
}

/// What the tiles' gradients leave behind.
struct Found {
    /// `[d_sae]`.
    d_b_enc: Tensor,
    /// `[d_sae]`.
    d_threshold: Tensor,
    /// `(Σ dπ) W_enc`, `[d_in]`, of the weights as they were.
    through: Option<Tensor>,
}

struct Products<'w> {
    work: &'w Work<'w>,
    o: JumpRelu,
    theta: Tensor,
    /// S of each dictionary: `[B, d_out]`.
    errors: Vec<Tensor>,
    penalty: Penalty,
    found: RefCell<Found>,
}

impl Tiled for Products<'_> {
    fn gradients(&self, first: i64, len: i64) -> Result<[Tensor; 2]> {
        let (work, p) = (self.work, self.work.p);
        let (mut enc, mut dec) = (Vec::new(), Vec::new());
        // A dictionary's end may lie inside.
        let mut from = first;
        while from < first + len {
            let group = work.plan.ends.partition_point(|end| *end <= from);
            let n = (first + len).min(work.plan.ends[group]) - from;
            let [d_enc, d_dec] = self.of_one_dictionary(&self.errors[group], from, n)?;
            enc.push(d_enc);
            dec.push(d_dec);
            from += n;
        }
        if work.config.pre_encoder_bias {
            let mut found = self.found.borrow_mut();
            let through = sum_of_rows(
                &p.w_enc.f_narrow(0, first, len)?,
                Some(&found.d_b_enc.f_narrow(0, first, len)?),
            )?;
            found.through = Some(match found.through.take() {
                Some(sum) if first > 0 => sum.f_add(&through)?,
                _ => through,
            });
        }
        Ok([Tensor::f_cat(&enc, 0)?, Tensor::f_cat(&dec, 0)?])
    }

    fn len(&self) -> i64 {
        (TILE / self.work.rows).max(64)
    }

    fn collected(&self) -> Result<Option<Collected>> {
        let found = self.found.borrow();
        Ok(Some(Collected {
            d_b_enc: found.d_b_enc.shallow_clone(),
            d_threshold: Some(found.d_threshold.shallow_clone()),
            through: found.through.as_ref().map(Tensor::shallow_clone),
        }))
    }
}

impl Products<'_> {
    fn of_one_dictionary(&self, errors: &Tensor, first: i64, len: i64) -> Result<[Tensor; 2]> {
        let (work, o) = (self.work, &self.o);
        let rows = |t: &Tensor| t.f_narrow(0, first, len);
        let Tile { pre, over, on } = Tile::new(work, &self.theta, first, len)?;
        let d_f = linear(errors, &rows(&work.p.w_dec)?)?.f_mul_scalar_(work.plan.slope)?;
        let d_pre = d_f.f_mul(&on)?;
        let d_enc = d_pre.f_tr()?.f_matmul(&work.x)?;
        let d_dec = { pre }.f_mul_(&on)?.f_tr()?.f_matmul(errors)?.f_mul_scalar_(work.plan.slope)?;
        let theta = rows(&self.theta)?;
        let near = { over }.f_abs_()?.f_lt(o.bandwidth / 2.0)?;
        let mut towards = { d_f }.f_mul_(&theta)?.f_add_(&self.penalty.by_row.f_unsqueeze(1)?)?;
        if let Some(by_latent) = &self.penalty.by_latent {
            towards = towards.f_add_(&rows(by_latent)?)?;
        }
        let d_theta = sum_of_rows(&towards.f_mul_(&near)?, None)?.f_mul_scalar(-1.0 / o.bandwidth)?;
        let found = self.found.borrow();
        rows(&found.d_b_enc)?.f_copy_(&sum_of_rows(&d_pre, None)?)?;
        rows(&found.d_threshold)?.f_copy_(&of_parameter(o, d_theta, &theta)?)?;
        Ok([d_enc, d_dec])
    }
}
