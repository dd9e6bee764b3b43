mod file;
mod views;

use tch::{Kind, Tensor};

pub(crate) use self::views::strongest_first;
pub use self::views::{LatentView, RowView, TopRows};
use crate::{FeatureId, Result, SaeError};

/// The active latents of n rows, in compressed sparse rows (CSR).
///
/// # Invariants
/// * `indptr` is `[n + 1]`, int64: row i holds entries `indptr[i]` to `indptr[i + 1] - 1`.
/// * `indices` is `[nnz]`, int64: latents, ascending within a row, each less than `d_sae`.
/// * `values` is `[nnz]`: their activations, none of them zero.
///
/// To look at single entries, ask once for [`by_row`](Self::by_row) or [`by_latent`](Self::by_latent).
#[derive(Debug)]
pub struct SparseFeatures {
    indptr: Tensor,
    indices: Tensor,
    values: Tensor,
    d_sae: i64,
}

impl SparseFeatures {
    /// The non-zeros of `[n, d_sae]`. Gradients flow through the values.
    ///
    /// # Errors
    /// [`SaeError::Sparse`] for another number of axes.
    pub fn from_dense(features: &Tensor) -> Result<Self> {
        let Ok((_, d_sae)) = features.size2() else {
            return Err(SaeError::Sparse(format!("expected [n, d_sae], got {:?}", features.size())));
        };
        let active = features.f_ne(0.0)?;
        Self::from_mask(features, &active, d_sae)
    }

    /// The entries of `[n, d_sae]` where `active` is true, none of which may be zero.
    pub(crate) fn from_mask(features: &Tensor, active: &Tensor, d_sae: i64) -> Result<Self> {
        let counts = active.f_sum_dim_intlist(1, false, Kind::Int64)?;
        let zero = counts.f_new_zeros([1], (Kind::Int64, counts.device()))?;
        let indptr = Tensor::f_cat(&[zero, counts.f_cumsum(0, Kind::Int64)?], 0)?;
        let indices = active.f_nonzero()?.f_select(1, 1)?.f_contiguous()?;
        Ok(Self { indptr, indices, values: features.f_masked_select(active)?, d_sae })
    }

    /// From the kernels, which keep the invariants.
    pub(crate) fn from_csr(indptr: &[i64], indices: &[i64], values: &[f32], d_sae: i64) -> Result<Self> {
        Ok(Self {
            indptr: Tensor::f_from_slice(indptr)?,
            indices: Tensor::f_from_slice(indices)?,
            values: Tensor::f_from_slice(values)?,
            d_sae,
        })
    }

    /// The row of each entry: `[nnz]`, int64.
    ///
    /// # Errors
    /// libtorch's.
    pub fn row_of_each_entry(&self) -> Result<Tensor> {
        let rows = Tensor::f_arange(self.n_rows(), (Kind::Int64, self.indices.device()))?;
        Ok(rows.f_repeat_interleave_self_tensor(&self.counts()?, 0, self.nnz())?)
    }

    /// Features made elsewhere.
    ///
    /// # Errors
    /// [`SaeError::Sparse`] names the invariant that does not hold.
    pub fn new(indptr: Tensor, indices: Tensor, values: Tensor, d_sae: i64) -> Result<Self> {
        let bad = |problem: &str| Err(SaeError::Sparse(problem.to_owned()));
        if d_sae < 0 {
            return bad("d_sae must not be negative");
        }
        if indptr.f_kind()? != Kind::Int64 || indices.f_kind()? != Kind::Int64 {
            return bad("indptr and indices must be int64");
        }
        if indptr.dim() != 1 || indices.dim() != 1 || indices.size() != values.size() || indptr.numel() == 0 {
            return bad("indptr, indices and values must have one axis, and the last two be equally long");
        }
        let pointers = Vec::<i64>::try_from(&indptr)?;
        let rising = pointers.windows(2).all(|w| matches!(w, [a, b] if a <= b));
        if pointers.first() != Some(&0) || pointers.last() != Some(&(indices.numel() as i64)) || !rising {
            return bad("indptr must rise from 0 to the number of entries");
        }
        let latents = Vec::<i64>::try_from(&indices)?;
        for row in pointers.windows(2) {
            let entries = latents.get(row[0] as usize..row[1] as usize).unwrap_or_default();
            if entries.iter().any(|i| !(0..d_sae).contains(i)) || entries.windows(2).any(|w| w[0] >= w[1]) {
                return bad("the indices of a row must ascend and be less than d_sae");
            }
        }
        if values.f_eq(0.0)?.f_any()?.f_int64_value(&[])? != 0 {
            return bad("a stored value is zero");
        }
        Ok(Self { indptr, indices, values, d_sae })
    }

    /// Puts the rows of several under each other. Its inverse is [`rows`](Self::rows).
    ///
    /// # Errors
    /// [`SaeError::Sparse`] for none, or different widths.
    pub fn concat(parts: &[Self]) -> Result<Self> {
        let Some(first) = parts.first() else {
            return Err(SaeError::Sparse("nothing to put together".to_owned()));
        };
        if parts.iter().any(|p| p.d_sae != first.d_sae) {
            return Err(SaeError::Sparse("parts of different widths".to_owned()));
        }
        let mut indptr = vec![first.indptr.shallow_clone()];
        let mut offset = first.nnz();
        for part in parts.iter().skip(1) {
            indptr.push(part.indptr.f_slice(0, 1, None, 1)?.f_add_scalar(offset)?);
            offset += part.nnz();
        }
        let of = |get: fn(&Self) -> &Tensor| Tensor::f_cat(&parts.iter().map(get).collect::<Vec<_>>(), 0);
        Ok(Self {
            indptr: Tensor::f_cat(&indptr, 0)?,
            indices: of(|p| &p.indices)?,
            values: of(|p| &p.values)?,
            d_sae: first.d_sae,
        })
    }

    /// Row pointers: `[n + 1]`.
    pub fn indptr(&self) -> &Tensor {
        &self.indptr
    }

    /// Latents: `[nnz]`.
    pub fn indices(&self) -> &Tensor {
        &self.indices
    }

    /// Activations: `[nnz]`.
    pub fn values(&self) -> &Tensor {
        &self.values
    }

    /// Number of rows.
    pub fn n_rows(&self) -> i64 {
        self.indptr.numel() as i64 - 1
    }

    /// Number of entries.
    pub fn nnz(&self) -> i64 {
        self.indices.numel() as i64
    }

    /// Number of latents.
    pub fn d_sae(&self) -> i64 {
        self.d_sae
    }

    /// How many latents each row activates: `[n]`, int64.
    ///
    /// # Errors
    /// libtorch's.
    pub fn counts(&self) -> Result<Tensor> {
        Ok(self.indptr.f_diff(1, 0, None::<Tensor>, None::<Tensor>)?)
    }

    /// How many rows activate each latent: `[d_sae]`, int64.
    ///
    /// # Errors
    /// libtorch's.
    pub fn latent_counts(&self) -> Result<Tensor> {
        Ok(self.indices.f_bincount(None::<Tensor>, self.d_sae)?)
    }

    /// As a dense tensor: `[n, d_sae]`. Gradients flow through the values.
    ///
    /// # Errors
    /// libtorch's; [`SaeError::Sparse`] for more entries than can be counted.
    pub fn to_dense(&self) -> Result<Tensor> {
        let n = self.n_rows();
        if n.checked_mul(self.d_sae).is_none() {
            return Err(SaeError::Sparse(format!("{n} rows of {} latents are too many", self.d_sae)));
        }
        let flat = self.row_of_each_entry()?.f_mul_scalar(self.d_sae)?.f_add(&self.indices)?;
        let zeros =
            self.values.f_new_zeros([n * self.d_sae], (self.values.f_kind()?, self.values.device()))?;
        Ok(zeros.f_index_add(0, &flat, &self.values)?.f_reshape([n, self.d_sae])?)
    }

    /// The `k` strongest latents of each row, strongest first; ties go to the lower index.
    ///
    /// # Errors
    /// libtorch's.
    pub fn top_k(&self, k: usize) -> Result<Vec<Vec<(FeatureId, f64)>>> {
        let pointers = Vec::<i64>::try_from(&self.indptr)?;
        let indices = Vec::<i64>::try_from(&self.indices)?;
        let values = Vec::<f64>::try_from(self.values.f_detach()?.f_to_kind(Kind::Double)?)?;
        let mut rows = Vec::with_capacity(pointers.len().saturating_sub(1));
        for span in pointers.windows(2) {
            let span = span[0] as usize..span[1] as usize;
            let latents =
                indices.get(span.clone()).unwrap_or_default().iter().map(|&i| FeatureId(i as usize));
            let mut row: Vec<_> = latents.zip(values.get(span).unwrap_or_default().iter().copied()).collect();
            row.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            row.truncate(k);
            rows.push(row);
        }
        Ok(rows)
    }
}
