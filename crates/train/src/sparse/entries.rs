use native::Csr;
use tch::{Device, Kind, Tensor};

use super::{Route, Work, kernels, libtorch};
use crate::Result;

/// The entries that were kept of a batch's pre-activations, by row, latents ascending.
pub(super) struct Entries {
    /// `[B + 1]`, int64: row b holds entries `indptr[b]` to `indptr[b + 1] - 1`.
    pub(super) indptr: Tensor,
    /// `[nnz]`, int64.
    pub(super) rows: Tensor,
    /// `[nnz]`, int64.
    pub(super) latents: Tensor,
    /// π: `[nnz]`.
    pub(super) pre: Tensor,
}

/// What [`Entries::decode`] makes; see [`native::Residuals`].
pub(super) struct Decoded {
    /// `[B, G, d_out]`.
    pub(super) errors: Tensor,
    /// `S_b · W_dec[i]` of each entry: `[nnz]`.
    pub(super) products: Tensor,
    /// `[G]`.
    pub(super) squared: Vec<f64>,
}

impl Entries {
    pub(super) fn from_csr(csr: &Csr) -> Result<Self> {
        let mut rows = Vec::with_capacity(csr.indices.len());
        for (row, span) in csr.indptr.windows(2).enumerate() {
            rows.extend((span[0]..span[1]).map(|_| row as i64));
        }
        Ok(Self {
            indptr: Tensor::f_from_slice(&csr.indptr)?,
            rows: Tensor::f_from_slice(&rows)?,
            latents: Tensor::f_from_slice(&csr.indices)?,
            pre: Tensor::f_from_slice(&csr.values)?,
        })
    }

    /// From entries in any order but of ascending latents within a row.
    pub(super) fn sorted(rows: &Tensor, latents: &Tensor, pre: &Tensor, n_rows: i64) -> Result<Self> {
        let (rows, order) = rows.f_sort_stable(true, 0, false)?;
        let indptr = pointers(&rows, n_rows)?;
        Ok(Self {
            indptr,
            rows,
            latents: latents.f_index_select(0, &order)?,
            pre: pre.f_index_select(0, &order)?,
        })
    }

    /// Reconstructs by `values`, `[nnz]`, and says what is left.
    pub(super) fn decode(&self, work: &Work<'_>, route: Route, values: &Tensor) -> Result<Decoded> {
        match route {
            Route::Kernels => kernels::decode(work, self, values),
            Route::Libtorch | Route::Dense => libtorch::decode(work, self, values),
        }
    }

    /// `Σ values` of the entries of each latent: `[d_sae]`.
    pub(super) fn by_latent(&self, values: &Tensor, d_sae: i64) -> Result<Tensor> {
        let zeros = values.f_new_zeros([d_sae], (values.f_kind()?, values.device()))?;
        Ok(zeros.f_index_add(0, &self.latents, values)?)
    }

    /// On how many rows each latent was on, of entries that are `on` (bool, `[nnz]`): `[d_sae]`, int64.
    pub(super) fn counts(&self, on: Option<&Tensor>, d_sae: i64) -> Result<Tensor> {
        Ok(match on {
            Some(on) => self.latents.f_masked_select(on)?.f_bincount(None::<Tensor>, d_sae)?,
            None => self.latents.f_bincount(None::<Tensor>, d_sae)?,
        })
    }
}

/// Where the entries of each of n begin, of ascending numbers below n: `[n + 1]`, int64.
pub(super) fn pointers(ascending: &Tensor, n: i64) -> Result<Tensor> {
    let counts = ascending.f_bincount(None::<Tensor>, n)?;
    let zero = counts.f_new_zeros([1], (Kind::Int64, counts.device()))?;
    Ok(Tensor::f_cat(&[zero, counts.f_cumsum(0, Kind::Int64)?], 0)?)
}

/// `Σ_r weights[r] m[r]`, weights of 1 if there are none: `[n, d]` to `[d]`. On the CPU in the order of the rows, however many
/// threads there are.
pub(super) fn sum_of_rows(m: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
    if let Some(sum) = native::sum_of_rows(m, weights)? {
        return Ok(sum);
    }
    Ok(match weights {
        Some(weights) => m.f_tr()?.f_mv(weights)?,
        None => m.f_sum_dim_intlist(0, false, Kind::Float)?,
    })
}

/// A tensor of counts on the CPU.
pub(super) fn to_counts(t: &Tensor) -> Result<Vec<u32>> {
    let counts = Vec::<i64>::try_from(t.f_to_device(Device::Cpu)?)?;
    Ok(counts.into_iter().map(|n| n as u32).collect())
}
