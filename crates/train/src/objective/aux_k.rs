use tch::Tensor;

use crate::{
    Params, Result,
    config::{Aux, AuxForm, Config},
};

use super::{Moment, linear::squared_error, strongest::strongest};

/// The auxiliary loss of dead latents, weight included: 0 where none is dead, or nothing is left to rebuild. See [`Aux`].
///
/// `pre_acts`, `[B, d_sae]`, choose the dead latents of each row; `error`, `[B, d_out]`, is held fixed; `decoded` turns
/// activations into what multiplies `W_dec`.
pub(super) fn aux_k(
    config: &Config,
    aux: &Aux,
    p: &Params,
    pre_acts: &Tensor,
    error: &Tensor,
    at: &Moment,
    decoded: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let kind = pre_acts.f_kind()?;
    if at.n_dead == 0 {
        return Ok(Tensor::f_zeros([], (kind, pre_acts.device()))?);
    }
    let k = aux.k.unwrap_or(config.d_in / 2).max(1);
    let alive = at.dead.f_logical_not()?;
    let chosen = strongest(&pre_acts.f_masked_fill(&alive, f64::NEG_INFINITY)?, k.min(at.n_dead))?;
    let acts = match aux.form {
        AuxForm::Ratio | AuxForm::Mean => pre_acts.f_relu()?,
        AuxForm::Scaled => pre_acts.shallow_clone(),
    };
    let rebuilt = decoded(&acts.f_mul(&chosen)?)?.f_matmul(&p.w_dec)?; // ê
    let loss = squared_error(&rebuilt, error)?;
    let loss = match aux.form {
        AuxForm::Ratio => {
            let whole = error.f_square()?.f_sum_dim_intlist(1, false, kind)?.f_mean(kind)?;
            let nothing = whole.f_eq(0.0)?;
            loss.f_div(&whole.f_masked_fill(&nothing, 1.0)?)?.f_masked_fill(&nothing, 0.0)?
        }
        AuxForm::Scaled => loss.f_mul_scalar((at.n_dead as f64 / k as f64).min(1.0))?,
        AuxForm::Mean => loss.f_div_scalar(config.d_out())?,
    };
    Ok(loss.f_mul_scalar(aux.coefficient)?)
}
