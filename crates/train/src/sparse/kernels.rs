//! The sparse step's heavy work on the CPU; see crate `native`.

use native::{AdamStep, Decoding, Moved, SparseGradient};
use tch::Tensor;

use super::{
    Work,
    aux_k::Extra,
    by_tiles::Motion,
    entries::{Decoded, Entries},
};
use crate::{Params, Result, TrainError};

pub(super) fn decode(work: &Work<'_>, entries: &Entries, values: &Tensor) -> Result<Decoded> {
    let target = work.batch.target.f_contiguous()?;
    let of = Decoding {
        indptr: &entries.indptr,
        latents: &entries.latents,
        values,
        w_dec: &work.p.w_dec,
        b_dec: &work.p.b_dec,
        skip: work.skip.as_ref(),
        target: &target,
        ends: &work.plan.ends,
    };
    let made = native::residuals(&of)?.ok_or_else(refused)?;
    Ok(Decoded { errors: made.errors, products: made.products, squared: made.squared })
}

/// The gradients of W_enc and W_dec as sums over entries.
pub(super) struct Sums<'w> {
    pub(super) entries: Entries,
    /// dπ: `[nnz]`.
    pub(super) d_pre: Tensor,
    /// c f: `[nnz]`.
    pub(super) values: Tensor,
    /// `[B, G, d_out]`.
    pub(super) errors: Tensor,
    pub(super) extra: Option<Extra>,
    pub(super) work: &'w Work<'w>,
}

impl Sums<'_> {
    fn gradient(&self, project: bool) -> SparseGradient<'_> {
        SparseGradient {
            rows: &self.entries.rows,
            latents: &self.entries.latents,
            d_pre: &self.d_pre,
            values: &self.values,
            x: &self.work.x,
            errors: &self.errors,
            ends: &self.work.plan.ends,
            extra: self.extra.as_ref().map(|extra| [&extra.latents, &extra.d_enc, &extra.d_dec]),
            project,
        }
    }

    /// The sum of the squares of both.
    pub(super) fn square_sum(&self, p: &Params, project: bool) -> Result<f64> {
        native::gradient_square_sum(&self.gradient(project), &p.w_enc, &p.w_dec).ok_or_else(refused)
    }

    /// Moves both matrices.
    pub(super) fn move_rows(&self, p: &Params, by: &Motion<'_>) -> Result<()> {
        let [(m_enc, v_enc), (m_dec, v_dec)] = by.moments;
        let (enc, dec) = (
            Moved { weights: &p.w_enc, m: m_enc, v: v_enc },
            Moved { weights: &p.w_dec, m: m_dec, v: v_dec },
        );
        let (update, adam, steps) = (by.update, by.update.adam, by.update.step as f64);
        let step = AdamStep {
            beta1: adam.beta1,
            beta2: adam.beta2,
            eps: adam.eps,
            rate: update.lr / (1.0 - adam.beta1.powf(steps)),
            root: (1.0 - adam.beta2.powf(steps)).sqrt(),
            decay: update.lr * adam.weight_decay,
            scale: by.scale,
            unit_norm: update.decoder.unit_norm,
        };
        let gradient = self.gradient(update.decoder.project_gradient);
        if native::move_rows(&gradient, enc, dec, step) { Ok(()) } else { Err(refused()) }
    }
}

fn refused() -> TrainError {
    TrainError::Config(
        "the sparse step takes contiguous float32 tensors without gradients on the CPU".to_owned(),
    )
}
