use tch::{Kind, Tensor};

use super::{
    Backward, Collected, Outcome, Route, WeightGradients, Work, encode, entries::to_counts, kernels,
    libtorch, penalty::Penalty,
};
use crate::{
    Result,
    config::{JumpRelu, Threshold},
    objective::threshold_of,
};

/// The backward pass over the entries that are on or in the window of the kernel, both sides of θ. `None` where they are more than
/// `most`.
///
/// ```text
/// dπ = df H(π − θ),   dθ_i = −(1/ε) Σ_b K((π_bi − θ_i)/ε) (θ_i df_bi + ∂penalty/∂H_bi)
/// ```
pub(super) fn backward<'w>(
    work: &'w Work<'w>,
    o: &JumpRelu,
    route: Route,
    most: Option<usize>,
) -> Result<Option<Backward<'w>>> {
    let d_sae = work.config.d_sae;
    let theta = threshold_of(work.config, work.p)?.f_detach()?;
    // A little more than the window, so that rounding leaves none of it out.
    let slack = theta.f_abs()?.f_add_scalar(o.bandwidth)?.f_mul_scalar(1e-6)?;
    let bound = theta.f_sub(&slack)?.f_sub_scalar(o.bandwidth / 2.0)?;
    let Some(entries) = encode::above(work, route, &bound, most)? else { return Ok(None) };

    let theta_here = theta.f_index_select(0, &entries.latents)?;
    let over = entries.pre.f_sub(&theta_here)?;
    // NaN is on, so that it shows.
    let on = over.f_le(0.0)?.f_logical_not()?;
    let values = entries.pre.f_mul(&on)?;
    let decoded = entries.decode(work, route, &values)?;
    let l0 = entries.rows.f_masked_select(&on)?.f_bincount(None::<Tensor>, work.rows)?;
    let counts = entries.counts(Some(&on), d_sae)?;
    let penalty = Penalty::new(work, o, &l0, &counts)?;

    let d_f = decoded.products.f_mul_scalar(work.plan.slope)?;
    let d_pre = d_f.f_mul(&on)?;
    let near = over.f_abs()?.f_lt(o.bandwidth / 2.0)?;
    let mut towards = d_f.f_mul(&theta_here)?.f_add_(&penalty.by_row.f_index_select(0, &entries.rows)?)?;
    if let Some(by_latent) = &penalty.by_latent {
        towards = towards.f_add_(&by_latent.f_index_select(0, &entries.latents)?)?;
    }
    let d_theta = entries.by_latent(&towards.f_mul_(&near)?, d_sae)?.f_mul_scalar(-1.0 / o.bandwidth)?;

    let d_b_enc = entries.by_latent(&d_pre, d_sae)?;
    let collected = Collected::new(work, d_b_enc, Some(of_parameter(o, d_theta, &theta)?))?;
    let last = work.plan.ends.len() - 1;
    let squared_error = decoded.squared[last];
    let mut parts = work.plan.parts(&decoded.squared);
    parts.extend(penalty.parts);
    let (d_b_dec, d_w_skip) = work.of_the_output(&decoded.errors.f_select(1, 0)?)?;
    let active = to_counts(&counts)?;
    let values = values.f_mul_scalar(work.plan.slope)?;
    let weights = match route {
        Route::Kernels => WeightGradients::Kernels(kernels::Sums {
            entries,
            d_pre,
            values,
            errors: decoded.errors,
            extra: None,
            work,
        }),
        _ => WeightGradients::Tiles(Box::new(libtorch::Bags::new(
            work,
            &entries,
            &d_pre,
            &values,
            &decoded.errors,
            None,
        )?)),
    };
    let outcome = Outcome { parts, squared_error, active, grad_norm: None, smallest_active: None };
    Ok(Some(Backward { weights, d_b_dec, d_w_skip, collected: Some(collected), outcome }))
}

/// The gradient of what is trained in θ's place.
pub(super) fn of_parameter(o: &JumpRelu, d_theta: Tensor, theta: &Tensor) -> Result<Tensor> {
    match o.threshold {
        Threshold::Log => Ok(d_theta.f_mul(theta)?.f_to_kind(Kind::Float)?),
        Threshold::Direct => Ok(d_theta),
    }
}
