//! What a step does with gradients that are there in full: the plain path.

use tch::{Kind, Tensor};

use crate::{
    Adam, Params, Result,
    config::{Config, Objective, Threshold},
    init::unit_rows,
};

/// Projects, clips, and lets Adam move every parameter; then the decoder's rows are unit vectors again. Returns the gradients' norm
/// before clipping, where they are clipped; if it is not finite, nothing has moved. `grads` are in the order of [`Params::named`], as `adams` are.
pub(crate) fn apply(
    config: &Config,
    p: &Params,
    adams: &mut [(&'static str, Adam)],
    mut grads: Vec<(&'static str, Tensor)>,
    lr: f64,
) -> Result<Option<f64>> {
    let _no_grad = tch::no_grad_guard();
    if config.decoder.project_gradient {
        for (_, grad) in grads.iter_mut().filter(|(name, _)| *name == "W_dec") {
            *grad = across(grad, &p.w_dec)?;
        }
    }
    let norm = config.optimizer.clip.map(|_| global_norm(&grads)).transpose()?;
    if norm.is_some_and(|norm| !norm.is_finite()) {
        return Ok(norm);
    }
    if let Some((clip, norm)) = config.optimizer.clip.zip(norm).filter(|(clip, norm)| norm > clip) {
        for (_, grad) in &mut grads {
            *grad = grad.f_mul_scalar(clip / norm)?;
        }
    }
    for (((_, tensor), (_, adam)), (_, grad)) in p.named().into_iter().zip(adams).zip(&grads) {
        adam.step(tensor, grad, lr)?;
    }
    if config.decoder.unit_norm {
        p.w_dec.f_detach()?.f_copy_(&unit_rows(&p.w_dec)?)?;
    }
    keep_thresholds(config, p).map(|()| norm)
}

/// Thresholds that are trained directly don't fall below 0.
pub(crate) fn keep_thresholds(config: &Config, p: &Params) -> Result<()> {
    if let (Objective::Jumprelu(j), Some(threshold)) = (&config.objective, &p.threshold)
        && j.threshold == Threshold::Direct
    {
        let _ = threshold.f_detach()?.f_clamp_min_(0.0)?;
    }
    Ok(())
}

/// The part of each row of `grad` that is orthogonal to the row of `w`: `[d_sae, d_out]` both.
fn across(grad: &Tensor, w: &Tensor) -> Result<Tensor> {
    let sum = |t: Tensor| t.f_sum_dim_intlist(1, true, Kind::Float);
    let along = sum(grad.f_mul(w)?)?.f_div(&sum(w.f_square()?)?.f_clamp_min(1e-24)?)?;
    Ok(grad.f_sub(&w.f_mul(&along)?)?)
}

/// The norm of all gradients as one vector.
fn global_norm(grads: &[(&'static str, Tensor)]) -> Result<f64> {
    let mut sum = 0.0;
    for (_, grad) in grads {
        sum += grad.f_to_kind(Kind::Double)?.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
    }
    Ok(sum.sqrt())
}
