//! The two ends of a sparse autoencoder without a dense matrix of features: which entries of a tile of pre-activations are
//! active, and the sum of the decoder rows that they choose.

use rayon::prelude::*;
use tch::{Device, Kind, TchError, Tensor};

use crate::few_rows::slice;

/// How a pre-activation `g = x · W_enc[:, j]` becomes a latent; every slice has one entry for each column of the tile.
#[derive(Debug, Clone, Copy)]
pub enum Rule<'r> {
    /// `π = g + bias`, on where `π > threshold`; the latent is π. ReLU is the threshold 0.
    Above {
        /// Added to g.
        bias: &'r [f32],
        /// What π must exceed; not negative.
        threshold: &'r [f32],
    },
    /// On where `g + gate_bias > 0`; the latent is `ReLU(g · scale + bias)` (Gated SAEs with tied weights).
    Gated {
        /// Decides with g.
        gate_bias: &'r [f32],
        /// `exp(r_mag)`.
        scale: &'r [f32],
        /// `b_mag`.
        bias: &'r [f32],
    },
}

impl Rule<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Above { bias, threshold } => bias.len().min(threshold.len()),
            Self::Gated { gate_bias, scale, bias } => gate_bias.len().min(scale.len()).min(bias.len()),
        }
    }
}

/// Active latents in compressed sparse rows: row i holds entries `indptr[i]` to `indptr[i + 1] - 1`, latents ascending.
#[derive(Debug, Default)]
pub struct Csr {
    /// `[n + 1]`.
    pub indptr: Vec<i64>,
    /// `[nnz]`.
    pub indices: Vec<i64>,
    /// `[nnz]`.
    pub values: Vec<f32>,
}

/// Collects the active entries of n rows, tile after tile of ascending latents.
#[derive(Debug)]
pub struct Selection {
    rows: usize,
    /// The entries of one band of rows in one tile.
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    first_row: usize,
    counts: Vec<u32>,
    latents: Vec<u32>,
    values: Vec<f32>,
}

impl Selection {
    /// Of `rows` rows, nothing yet.
    pub fn new(rows: usize) -> Self {
        Self { rows, parts: Vec::new() }
    }

    /// Adds what is active in `tile`, `[rows, len]`, whose first column is latent `first`. NaN counts as active, so that it
    /// shows. False, and nothing added, where the tile is not contiguous float32 on the CPU or does not fit the rule.
    pub fn add(&mut self, tile: &Tensor, first: u32, rule: Rule<'_>) -> bool {
        let Some(len) = tile_width(tile, self.rows).filter(|len| *len == rule.len()) else { return false };
        if self.rows == 0 || len == 0 {
            return true;
        }
        // SAFETY: `tile` is a contiguous float32 tensor of rows · len elements on the CPU (checked by `tile_width`), alive for
        // this call, and nothing here writes to it.
        let tile = unsafe { slice::<f32>(tile, self.rows * len) };
        let band = band(self.rows);
        self.parts.par_extend(tile.par_chunks(band * len).enumerate().map(|(i, tile)| {
            let mut part =
                Part { first_row: i * band, counts: Vec::new(), latents: Vec::new(), values: Vec::new() };
            for row in tile.chunks_exact(len) {
                let before = part.latents.len();
                scan(row, rule, |j, value| {
                    part.latents.push(first + j);
                    part.values.push(value);
                });
                part.counts.push((part.latents.len() - before) as u32);
            }
            part
        }));
        true
    }

    /// How many entries were active so far.
    pub fn entries(&self) -> usize {
        self.parts.iter().map(|part| part.values.len()).sum()
    }

    /// Puts the tiles side by side.
    pub fn finish(self) -> Csr {
        let mut indptr = vec![0i64; self.rows + 1];
        for part in &self.parts {
            for (row, count) in (part.first_row..).zip(&part.counts) {
                indptr[row + 1] += i64::from(*count);
            }
        }
        for row in 0..self.rows {
            indptr[row + 1] += indptr[row];
        }
        let nnz = indptr[self.rows] as usize;
        let (mut indices, mut values) = (vec![0i64; nnz], vec![0f32; nnz]);
        let mut at: Vec<usize> = indptr.iter().map(|p| *p as usize).collect();
        for part in &self.parts {
            let mut from = 0;
            for (row, count) in (part.first_row..).zip(&part.counts) {
                for _ in 0..*count {
                    indices[at[row]] = i64::from(part.latents[from]);
                    values[at[row]] = part.values[from];
                    at[row] += 1;
                    from += 1;
                }
            }
        }
        Csr { indptr, indices, values }
    }
}

/// Keeps the k largest positive entries of each of n rows, tile after tile of ascending latents; of equal ones the first.
#[derive(Debug)]
pub struct TopK {
    k: usize,
    rows: Vec<Candidates>,
}

/// A row's best so far: at least k of them once `bound` is above 0, and none that is not above the bound of its time.
#[derive(Debug, Default, Clone)]
struct Candidates {
    bound: f32,
    entries: Vec<(f32, u32)>,
}

impl TopK {
    /// Of `rows` rows, nothing yet.
    pub fn new(rows: usize, k: usize) -> Self {
        Self { k, rows: vec![Candidates::default(); rows] }
    }

    /// Adds `tile + bias`, `[rows, len]`, whose first column is latent `first`. NaN counts as larger than any number, so that
    /// it shows. False, and nothing added, where the tile is not contiguous float32 on the CPU or not as wide as `bias`.
    pub fn add(&mut self, tile: &Tensor, first: u32, bias: &[f32]) -> bool {
        let Some(len) = tile_width(tile, self.rows.len()).filter(|len| *len == bias.len()) else {
            return false;
        };
        if self.rows.is_empty() || len == 0 || self.k == 0 {
            return true;
        }
        // SAFETY: as in `Selection::add`.
        let tile = unsafe { slice::<f32>(tile, self.rows.len() * len) };
        let (k, room) = (self.k, (4 * self.k).max(64));
        let band = band(self.rows.len());
        self.rows.par_chunks_mut(band).zip(tile.par_chunks(band * len)).for_each(|(rows, tile)| {
            // The bound rises as a row is read, so it is read in strips.
            const STRIP: usize = 256;
            let mut bounds = [0f32; STRIP];
            for (row, tile) in rows.iter_mut().zip(tile.chunks_exact(len)) {
                for (start, (tile, bias)) in
                    (0u32..).step_by(STRIP).zip(tile.chunks(STRIP).zip(bias.chunks(STRIP)))
                {
                    bounds.fill(row.bound);
                    let rule = Rule::Above { bias, threshold: &bounds[..tile.len()] };
                    scan(tile, rule, |j, value| row.entries.push((value, first + start + j)));
                    if row.entries.len() > room {
                        row.shrink(k);
                    }
                }
            }
        });
        true
    }

    /// The entries by row, latents ascending.
    pub fn finish(mut self) -> Csr {
        let k = self.k;
        self.rows.par_iter_mut().for_each(|row| {
            row.shrink(k);
            row.entries.sort_unstable_by_key(|(_, latent)| *latent);
        });
        let mut csr = Csr { indptr: vec![0], ..Csr::default() };
        for row in &self.rows {
            csr.indices.extend(row.entries.iter().map(|(_, latent)| i64::from(*latent)));
            csr.values.extend(row.entries.iter().map(|(value, _)| *value));
            csr.indptr.push(csr.indices.len() as i64);
        }
        csr
    }
}

impl Candidates {
    /// Drops all but the k best, by a partial selection.
    fn shrink(&mut self, k: usize) {
        if self.entries.len() > k {
            let key = |value: f32| if value.is_nan() { f32::INFINITY } else { value };
            self.entries
                .select_nth_unstable_by(k - 1, |a, b| key(b.0).total_cmp(&key(a.0)).then(a.1.cmp(&b.1)));
            self.entries.truncate(k);
            self.bound = self.entries[k - 1].0;
        }
    }
}

/// Keeps the largest entry of each group of consecutive latents where it is positive, for each of n rows; of equal ones the
/// first.
#[derive(Debug)]
pub struct GroupMax {
    groups: usize,
    /// Latents in a group.
    size: usize,
    /// Of each row and group the best so far, `[rows · groups]`; 0 where none is positive.
    best: Vec<(f32, u32)>,
}

impl GroupMax {
    /// Of `rows` rows, nothing yet.
    pub fn new(rows: usize, groups: usize, size: usize) -> Self {
        Self { groups, size, best: vec![(0.0, 0); rows * groups] }
    }

    /// As [`TopK::add`].
    pub fn add(&mut self, tile: &Tensor, first: u32, bias: &[f32]) -> bool {
        let rows = self.best.len().checked_div(self.groups).unwrap_or(0);
        let Some(len) = tile_width(tile, rows).filter(|len| *len == bias.len()) else { return false };
        if rows == 0 || len == 0 {
            return true;
        }
        if first as usize + len > self.groups * self.size {
            return false;
        }
        // SAFETY: as in `Selection::add`.
        let tile = unsafe { slice::<f32>(tile, rows * len) };
        let (groups, size, band) = (self.groups, self.size, band(rows));
        self.best.par_chunks_mut(band * groups).zip(tile.par_chunks(band * len)).for_each(|(best, tile)| {
            for (best, tile) in best.chunks_exact_mut(groups).zip(tile.chunks_exact(len)) {
                for (latent, (g, bias)) in (first..).zip(tile.iter().zip(bias)) {
                    let (value, best) = (g + bias, &mut best[latent as usize / size]);
                    // Of several NaN the first stays.
                    if above(value, best.0) && !best.0.is_nan() {
                        *best = (value, latent);
                    }
                }
            }
        });
        true
    }

    /// The entries by row, latents ascending.
    pub fn finish(self) -> Csr {
        let mut csr = Csr { indptr: vec![0], ..Csr::default() };
        for row in self.best.chunks(self.groups.max(1)) {
            for (value, latent) in row.iter().filter(|(value, _)| *value != 0.0) {
                csr.indices.push(i64::from(*latent));
                csr.values.push(*value);
            }
            csr.indptr.push(csr.indices.len() as i64);
        }
        csr
    }
}

/// `out[i] = bias + Σ values[e] · rows[indices[e]]` over the entries e of row i: `indptr` `[n + 1]`, `indices` and `values`
/// `[nnz]`, `rows` `[d_sae, d_out]`, `bias` `[d_out]`, to `[n, d_out]`. Each chosen row is read once for each entry.
///
/// `None` where this kernel does not apply: another dtype or device, operands that are not contiguous, contradict each other,
/// or that a gradient is to flow through.
///
/// # Errors
/// libtorch's, as when there is no memory.
pub fn gather_sum(
    [indptr, indices]: [&Tensor; 2],
    values: &Tensor,
    rows: &Tensor,
    bias: &Tensor,
) -> Result<Option<Tensor>, TchError> {
    let (&[pointers], &[nnz], &[d_sae, d_out]) = (&indptr.size()[..], &indices.size()[..], &rows.size()[..])
    else {
        return Ok(None);
    };
    let plain = |t: &Tensor, kind: Kind| {
        t.device() == Device::Cpu
            && t.f_kind().is_ok_and(|k| k == kind)
            && t.is_contiguous()
            && !t.requires_grad()
    };
    let fits = plain(indptr, Kind::Int64)
        && plain(indices, Kind::Int64)
        && [values, rows, bias].iter().all(|t| plain(t, Kind::Float))
        && values.size() == [nnz]
        && bias.size() == [d_out]
        && pointers > 0;
    if !fits {
        return Ok(None);
    }
    let n = pointers - 1;
    let out = Tensor::f_empty([n, d_out], (Kind::Float, Device::Cpu))?;
    let (n, nnz, d_sae, d_out) = (n as usize, nnz as usize, d_sae as usize, d_out as usize);
    if n == 0 || d_out == 0 {
        return Ok(Some(out));
    }
    // SAFETY: all are contiguous CPU tensors of these dtypes and numbers of elements (checked above), alive for this call;
    // nothing here writes to them but to `out`, which is new and which nobody else refers to.
    let (indptr, indices, values, rows, bias, sums) = unsafe {
        (
            slice::<i64>(indptr, n + 1),
            slice::<i64>(indices, nnz),
            slice::<f32>(values, nnz),
            slice::<f32>(rows, d_sae * d_out),
            slice::<f32>(bias, d_out),
            crate::few_rows::slice_mut::<f32>(&out, n * d_out),
        )
    };
    let band = band(n);
    let sound = sums.par_chunks_mut(band * d_out).zip(indptr[..n].par_chunks(band)).enumerate().all(
        |(i, (sums, starts))| {
            let mut chosen = Vec::new();
            sums.chunks_exact_mut(d_out).zip(0..starts.len()).all(|(sum, at)| {
                let row = i * band + at;
                let entries = usize::try_from(indptr[row]).ok().zip(usize::try_from(indptr[row + 1]).ok());
                let entries = entries.and_then(|(a, b)| Some((indices.get(a..b)?, values.get(a..b)?)));
                let Some((latents, weights)) = entries else { return false };
                chosen.clear();
                for (latent, weight) in latents.iter().zip(weights) {
                    let start = usize::try_from(*latent).unwrap_or(usize::MAX).saturating_mul(d_out);
                    let Some(row) = rows.get(start..).and_then(|r| r.get(..d_out)) else { return false };
                    chosen.push((*weight, row));
                }
                sum.copy_from_slice(bias);
                add_weighted(sum, &chosen);
                true
            })
        },
    );
    Ok(sound.then_some(out))
}

/// The width of a tile that the kernels take: `[rows, len]`, contiguous float32 on the CPU, without a gradient.
pub(crate) fn tile_width(tile: &Tensor, rows: usize) -> Option<usize> {
    let &[n, len] = &tile.size()[..] else { return None };
    let plain = tile.device() == Device::Cpu
        && tile.f_kind().is_ok_and(|k| k == Kind::Float)
        && tile.is_contiguous()
        && !tile.requires_grad();
    (plain && usize::try_from(n).is_ok_and(|n| n == rows)).then(|| usize::try_from(len).ok()).flatten()
}

/// How many rows make one piece of work: several a thread, as many threads as libtorch uses at most.
fn band(rows: usize) -> usize {
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1);
    rows.div_ceil(if threads >= rayon::current_num_threads() { threads * 4 } else { threads }).max(1)
}

pub(crate) fn scan(row: &[f32], rule: Rule<'_>, found: impl FnMut(u32, f32)) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        fn wide(row: &[f32], rule: Rule<'_>, found: impl FnMut(u32, f32)) {
            scan_as_written(row, rule, found);
        }
        // SAFETY: the processor has what the function is compiled for: it was asked a line above.
        return unsafe { wide(row, rule, found) };
    }
    scan_as_written(row, rule, found);
}

/// Calls `found` for each active entry of a row. Few are, so many at a time are asked whether there is any.
#[inline(always)]
fn scan_as_written(row: &[f32], rule: Rule<'_>, mut found: impl FnMut(u32, f32)) {
    const LANES: usize = 32;
    match rule {
        Rule::Above { bias, threshold } => {
            let (rows, row_rest) = row.as_chunks::<LANES>();
            let (biases, bias_rest) = bias.as_chunks::<LANES>();
            let (thresholds, threshold_rest) = threshold.as_chunks::<LANES>();
            for (group, ((row, bias), threshold)) in rows.iter().zip(biases).zip(thresholds).enumerate() {
                let mut any = 0u32;
                for i in 0..LANES {
                    any |= u32::from(above(row[i] + bias[i], threshold[i]));
                }
                if any != 0 {
                    for i in 0..LANES {
                        let value = row[i] + bias[i];
                        if above(value, threshold[i]) {
                            found((group * LANES + i) as u32, value);
                        }
                    }
                }
            }
            for (i, ((g, bias), threshold)) in row_rest.iter().zip(bias_rest).zip(threshold_rest).enumerate()
            {
                if above(g + bias, *threshold) {
                    found((rows.len() * LANES + i) as u32, g + bias);
                }
            }
        }
        Rule::Gated { gate_bias, scale, bias } => {
            for (i, (g, ((gate_bias, scale), bias))) in
                row.iter().zip(gate_bias.iter().zip(scale).zip(bias)).enumerate()
            {
                let value = g * scale + bias;
                if above(g + gate_bias, 0.0) && above(value, 0.0) {
                    found(i as u32, value);
                }
            }
        }
    }
}

/// NaN is above everything, so that it shows.
#[inline(always)]
fn above(value: f32, bound: f32) -> bool {
    let at_or_below = value <= bound;
    !at_or_below
}

fn add_weighted(sum: &mut [f32], chosen: &[(f32, &[f32])]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        #[target_feature(enable = "avx2")]
        fn wide(sum: &mut [f32], chosen: &[(f32, &[f32])]) {
            add_weighted_as_written(sum, chosen);
        }
        // SAFETY: the processor has what the function is compiled for: it was asked a line above.
        return unsafe { wide(sum, chosen) };
    }
    add_weighted_as_written(sum, chosen);
}

/// Four rows at a time, so that the memory has several to fetch and the sum is written once for them.
#[inline(always)]
fn add_weighted_as_written(sum: &mut [f32], chosen: &[(f32, &[f32])]) {
    let (fours, rest) = chosen.as_chunks::<4>();
    for [(a, row_a), (b, row_b), (c, row_c), (d, row_d)] in fours {
        let n = sum.len();
        let (row_a, row_b, row_c, row_d) = (&row_a[..n], &row_b[..n], &row_c[..n], &row_d[..n]);
        for i in 0..n {
            sum[i] += (a * row_a[i] + b * row_b[i]) + (c * row_c[i] + d * row_d[i]);
        }
    }
    for (weight, row) in rest {
        for (sum, row) in sum.iter_mut().zip(*row) {
            *sum += weight * row;
        }
    }
}
