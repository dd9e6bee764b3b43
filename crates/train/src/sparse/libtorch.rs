//! The sparse step's heavy work by libtorch's bags of embeddings: weighted sums of rows that indices choose, for any device.

use std::cell::OnceCell;

use tch::{Device, Kind, Tensor};

use super::{
    Work,
    aux_k::Extra,
    by_tiles::Tiled,
    entries::{Decoded, Entries, pointers},
};
use crate::Result;

const SUM: i64 = 0;

pub(super) fn decode(work: &Work<'_>, entries: &Entries, values: &Tensor) -> Result<Decoded> {
    let (w_dec, ends) = (&work.p.w_dec, &work.plan.ends);
    let mut recon = work.p.b_dec.f_expand([work.rows, work.config.d_out()], false)?;
    if let Some(skip) = &work.skip {
        recon = recon.f_add(skip)?;
    }
    let (mut errors, mut squared, mut groups) = (Vec::new(), Vec::new(), Vec::new());
    let mut from = 0;
    for to in ends {
        let here = entries.latents.f_ge(from)?.f_logical_and(&entries.latents.f_lt(*to)?)?;
        if *to > from {
            let weights = if ends.len() == 1 { values.shallow_clone() } else { values.f_mul(&here)? };
            recon = recon.f_add(&bag(w_dec, &entries.latents, &entries.indptr, &weights)?)?;
        }
        let error = recon.f_sub(work.batch.target)?;
        let by_row = error.f_square()?.f_sum_dim_intlist(1, false, Kind::Float)?;
        squared.push(by_row.f_sum(Kind::Double)?.f_double_value(&[])?);
        errors.push(error);
        groups.push(here);
        from = *to;
    }
    for g in (1..errors.len()).rev() {
        errors[g - 1] = errors[g - 1].f_add(&errors[g])?;
    }
    let starts = entries.indptr.f_narrow(0, 0, work.rows)?;
    let mut products = values.f_zeros_like()?;
    for (error, here) in errors.iter().zip(&groups) {
        let some = Tensor::f_internal_embedding_bag_per_sample_weights_backward(
            error,
            w_dec,
            &entries.latents,
            &starts,
            &entries.rows,
            SUM,
            -1,
        )?;
        products = if groups.len() == 1 { some } else { products.f_add(&some.f_mul(here)?)? };
    }
    Ok(Decoded { errors: Tensor::f_stack(&errors, 1)?, products, squared })
}

/// `out[i] = Σ weights[e] · rows[indices[e]]` over entries `pointers[i]` to `pointers[i + 1] - 1`.
fn bag(rows: &Tensor, indices: &Tensor, pointers: &Tensor, weights: &Tensor) -> Result<Tensor> {
    let (sums, ..) = Tensor::f_embedding_bag(
        rows,
        indices,
        pointers,
        false,
        SUM,
        false,
        Some(weights),
        true, // the pointers end with the number of entries
    )?;
    Ok(sums)
}

/// Gradients of W_enc and W_dec as bags of the rows of x and of the errors, entries by latent.
pub(super) struct Bags<'w> {
    work: &'w Work<'w>,
    /// `[d_sae + 1]`.
    pointers: Tensor,
    /// [`pointers`](Self::pointers) on the host.
    on_host: Vec<i64>,
    rows: Tensor,
    /// The place of an entry's errors: `[nnz]`.
    error_rows: Tensor,
    d_pre: Tensor,
    values: Tensor,
    /// `[B · G, d_out]`.
    errors: Tensor,
    extra: Option<Extra>,
    /// The extra latents on the host.
    extra_latents: OnceCell<Vec<i64>>,
}

impl<'w> Bags<'w> {
    pub(super) fn new(
        work: &'w Work<'w>,
        entries: &Entries,
        d_pre: &Tensor,
        values: &Tensor,
        errors: &Tensor,
        extra: Option<Extra>,
    ) -> Result<Self> {
        let (latents, order) = entries.latents.f_sort_stable(true, 0, false)?;
        let pointers = pointers(&latents, work.config.d_sae)?;
        let on_host = Vec::<i64>::try_from(pointers.f_to_device(Device::Cpu)?)?;
        let of = |t: &Tensor| t.f_index_select(0, &order);
        let rows = of(&entries.rows)?;
        let groups = work.plan.ends.len() as i64;
        let mut error_rows = rows.f_mul_scalar(groups)?;
        for end in &work.plan.ends[..work.plan.ends.len() - 1] {
            error_rows = error_rows.f_add(&latents.f_ge(*end)?.f_to_kind(Kind::Int64)?)?;
        }
        Ok(Self {
            work,
            pointers,
            on_host,
            rows,
            error_rows,
            d_pre: of(d_pre)?,
            values: of(values)?,
            errors: errors.f_reshape([-1, work.config.d_out()])?,
            extra,
            extra_latents: OnceCell::new(),
        })
    }

    /// Adds what comes on top to the gradients of the latents from `first` on.
    fn add_extra(&self, extra: &Extra, grads: [Tensor; 2], first: i64, len: i64) -> Result<[Tensor; 2]> {
        let latents = match self.extra_latents.get() {
            Some(latents) => latents,
            None => {
                let latents = Vec::<i64>::try_from(extra.latents.f_to_device(Device::Cpu)?)?;
                self.extra_latents.get_or_init(|| latents)
            }
        };
        let from = latents.partition_point(|latent| *latent < first) as i64;
        let n = latents.partition_point(|latent| *latent < first + len) as i64 - from;
        if n == 0 {
            return Ok(grads);
        }
        let here = extra.latents.f_narrow(0, from, n)?.f_sub_scalar(first)?;
        let [enc, dec] = grads;
        Ok([
            enc.f_index_add(0, &here, &extra.d_enc.f_narrow(0, from, n)?)?,
            dec.f_index_add(0, &here, &extra.d_dec.f_narrow(0, from, n)?)?,
        ])
    }
}

impl Tiled for Bags<'_> {
    fn gradients(&self, first: i64, len: i64) -> Result<[Tensor; 2]> {
        let (from, to) = (self.on_host[first as usize], self.on_host[(first + len) as usize]);
        let some = |t: &Tensor| t.f_narrow(0, from, to - from);
        let pointers = self.pointers.f_narrow(0, first, len + 1)?.f_sub_scalar(from)?;
        let grads = [
            bag(&self.work.x, &some(&self.rows)?, &pointers, &some(&self.d_pre)?)?,
            bag(&self.errors, &some(&self.error_rows)?, &pointers, &some(&self.values)?)?,
        ];
        match &self.extra {
            Some(extra) => self.add_extra(extra, grads, first, len),
            None => Ok(grads),
        }
    }

    fn len(&self) -> i64 {
        let elements = if self.work.x.device() == Device::Cpu { 1 << 22 } else { 1 << 26 };
        elements / self.work.config.d_in.max(self.work.config.d_out())
    }
}
