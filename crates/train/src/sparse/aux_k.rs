use tch::{Kind, Tensor};
use tch_ext::linear;

use super::{Route, Work, entries::sum_of_rows};
use crate::{
    Result, TrainError,
    config::{Aux, AuxForm},
};

/// The dead latents of a step.
pub(super) struct Asleep {
    /// Ascending: `[n]`, int64.
    pub(super) latents: Tensor,
    /// By which each row's strongest are chosen: `[B, n]`.
    pub(super) scores: Tensor,
    /// ‖d‖, where scores are π ‖d‖: `[n]`.
    pub(super) norms: Option<Tensor>,
}

/// Gradients of some latents that come on top.
pub(super) struct Extra {
    /// Ascending: `[n]`, int64.
    pub(super) latents: Tensor,
    /// `[n, d_in]`.
    pub(super) d_enc: Tensor,
    /// `[n, d_out]`.
    pub(super) d_dec: Tensor,
}

/// The auxiliary loss and what comes of it.
pub(super) struct Made {
    pub(super) loss: f64,
    pub(super) extra: Extra,
    /// `[n]`.
    pub(super) d_b_enc: Tensor,
}

/// The auxiliary loss, see [`Aux`], by dense products of the dead latents alone: each row uses many of them, and they are few.
/// `error` is `x̂ − target`, `[B, d_out]`, whose squares sum to `squared`.
pub(super) fn backward(
    work: &Work<'_>,
    aux: &Aux,
    asleep: Asleep,
    error: &Tensor,
    squared: f64,
    route: Route,
) -> Result<Made> {
    let Asleep { latents, scores, norms } = asleep;
    let (k, rows) = (aux.k.unwrap_or(work.config.d_in / 2).max(1), work.rows as f64);
    let scores = keep_strongest(scores, k, route)?;
    let (mut acts, used) = match aux.form {
        AuxForm::Ratio | AuxForm::Mean => {
            let acts = { scores }.f_relu_()?;
            let used = acts.f_gt(0.0)?;
            (acts, used)
        }
        AuxForm::Scaled => {
            let used = scores.f_ne(f64::NEG_INFINITY)?;
            let acts = { scores }.f_masked_fill_(&used.f_logical_not()?, 0.0)?;
            (acts, used)
        }
    };
    if let Some(norms) = &norms {
        acts = acts.f_div_(norms)?;
    }
    let w_dec = work.p.w_dec.f_index_select(0, &latents)?; // [n, d_out]
    let left = error.f_addmm(&acts, &w_dec)?; // ê − e, with e = −error
    let by_row = left.f_square()?.f_sum_dim_intlist(1, false, Kind::Float)?;
    let sum = by_row.f_sum(Kind::Double)?.f_double_value(&[])?;
    let weight = aux.coefficient
        * match aux.form {
            AuxForm::Ratio if squared == 0.0 => 0.0,
            AuxForm::Ratio => squared.recip(),
            AuxForm::Scaled => (work.at.n_dead as f64 / k as f64).min(1.0) / rows,
            AuxForm::Mean => 1.0 / (rows * work.config.d_out() as f64),
        };
    let slope = { left }.f_mul_scalar_(2.0 * weight)?; // towards ê
    let d_dec = acts.f_tr()?.f_matmul(&slope)?;
    drop(acts);
    let d_pre = linear(&slope, &w_dec)?.f_mul(&used)?;
    let d_b_enc = sum_of_rows(&d_pre, None)?;
    let d_enc = d_pre.f_tr()?.f_matmul(&work.x)?;
    Ok(Made { loss: weight * sum, extra: Extra { latents, d_enc, d_dec }, d_b_enc })
}

/// All but the k largest of each row become −∞; on the CPU the first of equal ones stay.
fn keep_strongest(scores: Tensor, k: i64, route: Route) -> Result<Tensor> {
    let n = scores.size2()?.1;
    if k >= n {
        return Ok(scores);
    }
    if route == Route::Kernels {
        return match native::keep_strongest(&scores, k as usize) {
            true => Ok(scores),
            false => Err(TrainError::Config("activations must be float32 on the CPU".to_owned())),
        };
    }
    let (values, at) = scores.f_topk(k, 1, true, false)?;
    Ok(scores.f_full_like(f64::NEG_INFINITY)?.f_scatter(1, &at, &values)?)
}
