use std::ops::Range;

use tch::{Kind, Tensor};
use tch_ext::TensorError;

use super::SparseFeatures;
use crate::{FeatureId, Result, SaeError};

/// The entries of [`SparseFeatures`] row by row, in memory that can be looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct RowView {
    /// `[n + 1]`, as in [`SparseFeatures`].
    pointers: Vec<i64>,
    latents: Vec<i64>,
    values: Vec<f32>,
}

impl RowView {
    /// Number of rows.
    pub fn n_rows(&self) -> i64 {
        self.pointers.len() as i64 - 1
    }

    /// The active latents of a row, ascending, and their activations.
    ///
    /// # Errors
    /// [`SaeError::Range`].
    pub fn row(&self, row: i64) -> Result<impl ExactSizeIterator<Item = (FeatureId, f32)> + '_> {
        let size = self.n_rows();
        let out = || SaeError::Range { start: row, end: row.saturating_add(1), size };
        let row = usize::try_from(row).map_err(|_| out())?;
        let entries = entries(&self.pointers, row, &self.latents, &self.values).ok_or_else(out)?;
        Ok(entries.map(|(latent, value)| (FeatureId(latent as usize), value)))
    }
}

/// The entries of [`SparseFeatures`] latent by latent (compressed sparse columns), in memory that can be looked at.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentView {
    /// `[d_sae + 1]`: latent f holds entries `pointers[f]` to `pointers[f + 1] - 1`.
    pointers: Vec<i64>,
    rows: Vec<i64>,
    values: Vec<f32>,
}

impl LatentView {
    /// Number of latents.
    pub fn d_sae(&self) -> i64 {
        self.pointers.len() as i64 - 1
    }

    /// The rows in which a latent is active, ascending, and its activations.
    ///
    /// # Errors
    /// [`SaeError::Feature`].
    pub fn latent(&self, feature: FeatureId) -> Result<impl ExactSizeIterator<Item = (i64, f32)> + '_> {
        entries(&self.pointers, feature.0, &self.rows, &self.values)
            .ok_or_else(|| SaeError::Feature { feature: feature.0, d_sae: self.d_sae() })
    }

    /// The latents that are active in any row, ascending.
    pub fn firing(&self) -> impl Iterator<Item = FeatureId> + '_ {
        let fires = |(f, span): (usize, &[i64])| matches!(span, [a, b] if a < b).then_some(FeatureId(f));
        self.pointers.windows(2).enumerate().filter_map(fires)
    }

    /// The `k` rows in which a latent is strongest, strongest first; ties go to the lower row.
    ///
    /// # Errors
    /// [`SaeError::Feature`].
    pub fn top(&self, feature: FeatureId, k: usize) -> Result<Vec<(i64, f32)>> {
        let mut rows: Vec<_> = self.latent(feature)?.collect();
        strongest_first(&mut rows, k);
        Ok(rows)
    }
}

/// A latent and the rows in which it is strongest.
#[derive(Debug, Clone, PartialEq)]
pub struct TopRows {
    /// The latent.
    pub feature: FeatureId,
    /// Rows and activations, strongest first.
    pub rows: Vec<(i64, f32)>,
}

/// Keeps the `k` largest values, largest first; ties go to the lower index.
pub(crate) fn strongest_first(entries: &mut Vec<(i64, f32)>, k: usize) {
    let strongest = |a: &(i64, f32), b: &(i64, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if k < entries.len() {
        // Many need not be sorted for the sake of the first ten.
        let _ = entries.select_nth_unstable_by(k, strongest);
        entries.truncate(k);
    }
    entries.sort_unstable_by(strongest);
}

/// The entries of one row, or column.
fn entries<'v>(
    pointers: &[i64],
    at: usize,
    indices: &'v [i64],
    values: &'v [f32],
) -> Option<impl ExactSizeIterator<Item = (i64, f32)> + 'v> {
    let span = *pointers.get(at)? as usize..*pointers.get(at.checked_add(1)?)? as usize;
    Some(indices.get(span.clone())?.iter().copied().zip(values.get(span)?.iter().copied()))
}

impl SparseFeatures {
    /// The entries row by row: a copy on the CPU, of float32, without gradients.
    ///
    /// # Errors
    /// libtorch's.
    pub fn by_row(&self) -> Result<RowView> {
        let values = self.values.f_detach()?.f_to_kind(Kind::Float)?;
        Ok(RowView {
            pointers: Vec::try_from(&self.indptr)?,
            latents: Vec::try_from(&self.indices)?,
            values: Vec::try_from(&values)?,
        })
    }

    /// The entries latent by latent: the transpose, by counting, in time and memory of `nnz + d_sae`.
    ///
    /// # Errors
    /// libtorch's; [`TensorError::Memory`] where there is none for `d_sae` counts.
    pub fn by_latent(&self) -> Result<LatentView> {
        let by_row = self.by_row()?;
        let d_sae = usize::try_from(self.d_sae).unwrap_or(0);
        let mut pointers: Vec<i64> = Vec::new();
        if pointers.try_reserve_exact(d_sae.saturating_add(2)).is_err() {
            let bytes = (d_sae as u64).saturating_mul(8);
            return Err(TensorError::Memory { what: "features by latent".to_owned(), bytes }.into());
        }
        // One place further on than they belong, so that filling moves each to where it belongs.
        pointers.resize(d_sae + 2, 0);
        for &latent in &by_row.latents {
            if let Some(count) = pointers.get_mut(latent as usize + 2) {
                *count += 1;
            }
        }
        let mut sum = 0;
        for pointer in &mut pointers {
            sum += *pointer;
            *pointer = sum;
        }
        let (mut rows, mut values) = (vec![0; by_row.latents.len()], vec![0.0; by_row.latents.len()]);
        for row in 0..by_row.n_rows() {
            for (latent, value) in by_row.row(row)? {
                let Some(next) = pointers.get_mut(latent.0 + 1) else { continue };
                let at = *next as usize;
                if let (Some(r), Some(v)) = (rows.get_mut(at), values.get_mut(at)) {
                    (*r, *v) = (row, value);
                }
                *next += 1;
            }
        }
        pointers.truncate(d_sae + 1);
        Ok(LatentView { pointers, rows, values })
    }

    /// The `k` rows in which each latent is strongest, strongest first (ties: the lower row first): latent by latent, those
    /// that fire alone.
    ///
    /// # Errors
    /// As [`by_latent`](Self::by_latent).
    pub fn top_rows(&self, k: usize) -> Result<Vec<TopRows>> {
        let view = self.by_latent()?;
        view.firing().map(|feature| Ok(TopRows { feature, rows: view.top(feature, k)? })).collect()
    }

    /// Some rows. Gradients flow through the values.
    ///
    /// # Errors
    /// [`SaeError::Range`].
    pub fn rows(&self, rows: Range<i64>) -> Result<Self> {
        let len = within(&rows, self.n_rows())?;
        let first = self.indptr.f_int64_value(&[rows.start])?;
        let entries = self.indptr.f_int64_value(&[rows.end])? - first;
        Ok(Self {
            indptr: self.indptr.f_narrow(0, rows.start, len + 1)?.f_sub_scalar(first)?,
            indices: self.indices.f_narrow(0, first, entries)?,
            values: self.values.f_narrow(0, first, entries)?,
            d_sae: self.d_sae,
        })
    }

    /// Some latents of every row, renumbered: latent `start` becomes latent 0 and `d_sae` the length of the range, as if the
    /// SAE had no others. [`beside`](Self::beside) puts such tiles together again. Gradients flow through the values.
    ///
    /// # Errors
    /// [`SaeError::Range`].
    pub fn latents(&self, latents: Range<i64>) -> Result<Self> {
        let d_sae = within(&latents, self.d_sae)?;
        let kept = self.indices.f_ge(latents.start)?.f_logical_and(&self.indices.f_lt(latents.end)?)?;
        let before = kept.f_cumsum(0, Kind::Int64)?;
        let before = Tensor::f_cat(&[before.f_new_zeros([1], (Kind::Int64, before.device()))?, before], 0)?;
        Ok(Self {
            indptr: before.f_index_select(0, &self.indptr)?,
            indices: self.indices.f_masked_select(&kept)?.f_sub_scalar(latents.start)?,
            values: self.values.f_masked_select(&kept)?,
            d_sae,
        })
    }

    /// Puts the latents of several, of the same rows, side by side: those of the second follow those of the first. Gradients
    /// flow through the values.
    ///
    /// # Errors
    /// [`SaeError::Sparse`] for none, or different numbers of rows.
    pub fn beside(parts: &[Self]) -> Result<Self> {
        let bad = |problem: &str| SaeError::Sparse(problem.to_owned());
        let first = parts.first().ok_or_else(|| bad("nothing to put together"))?;
        if parts.iter().any(|p| p.n_rows() != first.n_rows()) {
            return Err(bad("parts of different numbers of rows"));
        }
        let (mut d_sae, mut indices, mut rows) = (0i64, Vec::new(), Vec::new());
        for part in parts {
            indices.push(part.indices.f_add_scalar(d_sae)?);
            rows.push(part.row_of_each_entry()?);
            d_sae = d_sae.checked_add(part.d_sae).ok_or_else(|| bad("too many latents"))?;
        }
        // Within a row the parts stand in order already: a stable sort by rows leaves them so.
        let order = Tensor::f_cat(&rows, 0)?.f_argsort_stable(true, 0, false)?;
        let values = Tensor::f_cat(&parts.iter().map(Self::values).collect::<Vec<_>>(), 0)?;
        let mut indptr = first.indptr.shallow_clone();
        for part in parts.iter().skip(1) {
            indptr = indptr.f_add(&part.indptr)?;
        }
        Ok(Self {
            indptr,
            indices: Tensor::f_cat(&indices, 0)?.f_index_select(0, &order)?,
            values: values.f_index_select(0, &order)?,
            d_sae,
        })
    }
}

/// The length of a range of `size` things.
fn within(range: &Range<i64>, size: i64) -> Result<i64> {
    if range.start < 0 || range.end < range.start || range.end > size {
        return Err(SaeError::Range { start: range.start, end: range.end, size });
    }
    Ok(range.end - range.start)
}
