//! Weights moved some latents at a time, from gradients that are made for these latents, used and dropped.

use tch::{Kind, Tensor};

use super::{Collected, Update};
use crate::{Params, Result, init::unit_rows};

/// Gradients of W_enc and W_dec that are made on demand.
pub(super) trait Tiled {
    /// Those of the latents `first` to `first + len - 1`: `[len, d_in]` and `[len, d_out]`.
    fn gradients(&self, first: i64, len: i64) -> Result<[Tensor; 2]>;

    /// How many latents are best done at a time.
    fn len(&self) -> i64;

    /// What else they left behind when all of them had been made once, where it was not known before.
    fn collected(&self) -> Result<Option<Collected>> {
        Ok(None)
    }
}

/// How W_enc and W_dec are moved.
pub(super) struct Motion<'m> {
    /// Their first and second moments.
    pub(super) moments: [(Option<&'m Tensor>, &'m Tensor); 2],
    pub(super) update: &'m Update,
    /// By which gradients are multiplied first.
    pub(super) scale: f64,
}

/// The sum of the squares of both gradients.
pub(super) fn square_sum(of: &dyn Tiled, p: &Params, project: bool) -> Result<f64> {
    let mut sum = 0.0;
    for (first, len) in tiles(of, p) {
        for grad in projected(of, p, project, first, len)? {
            sum += grad.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
        }
    }
    Ok(sum)
}

/// Moves both matrices.
pub(super) fn move_rows(of: &dyn Tiled, p: &Params, by: &Motion<'_>) -> Result<()> {
    for (first, len) in tiles(of, p) {
        let grads = projected(of, p, by.update.decoder.project_gradient, first, len)?;
        for ((weights, (m, v)), grad) in [&p.w_enc, &p.w_dec].into_iter().zip(by.moments).zip(grads) {
            let rows = |t: &Tensor| t.f_detach()?.f_narrow(0, first, len);
            let m = m.map(rows).transpose()?;
            adam(&rows(weights)?, m.as_ref(), &rows(v)?, grad, by)?;
        }
        if by.update.decoder.unit_norm {
            let mut rows = p.w_dec.f_detach()?.f_narrow(0, first, len)?;
            rows.f_copy_(&unit_rows(&rows)?)?;
        }
    }
    Ok(())
}

fn tiles<'t>(of: &'t dyn Tiled, p: &Params) -> impl Iterator<Item = (i64, i64)> + use<'t> {
    let (d_sae, len) = (p.b_enc.numel() as i64, of.len().max(1));
    (0..d_sae).step_by(len as usize).map(move |first| (first, len.min(d_sae - first)))
}

/// Both gradients, without the part of the decoder's along its rows if that is to be taken out.
fn projected(of: &dyn Tiled, p: &Params, project: bool, first: i64, len: i64) -> Result<[Tensor; 2]> {
    let [enc, mut dec] = of.gradients(first, len)?;
    if !project {
        return Ok([enc, dec]);
    }
    let w_dec = p.w_dec.f_narrow(0, first, len)?;
    let sum = |t: Tensor| t.f_sum_dim_intlist(1, true, Kind::Float);
    let along = sum(dec.f_mul(&w_dec)?)?.f_div(&sum(w_dec.f_square()?)?.f_clamp_min(1e-24)?)?;
    let across = dec.f_addcmul_(&w_dec, &along.f_neg()?)?;
    Ok([enc, across])
}

/// As [`Adam::step`](crate::Adam::step), of some rows; `grad` is used up.
fn adam(weights: &Tensor, m: Option<&Tensor>, v: &Tensor, grad: Tensor, by: &Motion<'_>) -> Result<()> {
    let (update, options, steps) = (by.update, by.update.adam, by.update.step as f64);
    let mut grad = if by.scale == 1.0 { grad } else { grad.f_mul_scalar(by.scale)? };
    let (mut weights, mut v) = (weights.shallow_clone(), v.shallow_clone());
    let _ = v.f_mul_scalar_(options.beta2)?.f_addcmul_(&grad.f_mul_scalar(1.0 - options.beta2)?, &grad)?;
    let over =
        v.f_sqrt()?.f_div_scalar_((1.0 - options.beta2.powf(steps)).sqrt())?.f_add_scalar_(options.eps)?;
    let step = match m {
        Some(m) => {
            let mut m = m.shallow_clone();
            let _ = m.f_mul_scalar_(options.beta1)?.f_add_(&grad.f_mul_scalar_(1.0 - options.beta1)?)?;
            m.f_div(&over)?.f_div_scalar_(1.0 - options.beta1.powf(steps))?
        }
        None => grad.f_div_(&over)?,
    };
    if options.weight_decay != 0.0 {
        let _ = weights.f_mul_scalar_(1.0 - update.lr * options.weight_decay)?;
    }
    let _ = weights.f_sub_(&step.f_mul_scalar(update.lr)?)?;
    Ok(())
}
