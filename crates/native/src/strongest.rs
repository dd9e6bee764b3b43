//! The strongest entries of a whole batch, and of each row of a small matrix.

use rayon::prelude::*;
use tch::{Kind, Tensor};

use crate::{
    few_rows::{slice, slice_mut},
    residuals::plain,
    sparse::{Csr, Rule, scan, tile_width},
    vectors::side_by_side,
};

/// Keeps the n largest positive entries of a batch, tile after tile of ascending latents; of equal ones that of the lower row,
/// then of the lower latent.
#[derive(Debug)]
pub struct BatchTop {
    rows: usize,
    n: usize,
    /// No entry that is not above it is among the n.
    bound: f32,
    /// Value, row, latent.
    entries: Vec<(f32, u32, u32)>,
}

impl BatchTop {
    /// Of `rows` rows, nothing yet.
    pub fn new(rows: usize, n: usize) -> Self {
        Self { rows, n, bound: 0.0, entries: Vec::new() }
    }

    /// Adds `tile + bias`, `[rows, len]`, whose first column is latent `first`. NaN counts as larger than any number, so that
    /// it shows. False, and nothing added, where the tile is not contiguous float32 on the CPU or not as wide as `bias`.
    pub fn add(&mut self, tile: &Tensor, first: u32, bias: &[f32]) -> bool {
        let Some(len) = tile_width(tile, self.rows).filter(|len| *len == bias.len()) else { return false };
        if self.rows == 0 || len == 0 || self.n == 0 {
            return true;
        }
        // SAFETY: `tile` is a contiguous float32 tensor of rows · len elements on the CPU (checked by `tile_width`), alive for
        // this call, and nothing here writes to it.
        let tile = unsafe { slice::<f32>(tile, self.rows * len) };
        /// Rows in one piece of work.
        const BAND: usize = 64;
        // Equal to the bound may still win by its place, so it is looked for too.
        let below = self.bound.next_down().max(0.0);
        let bounds = vec![below; len];
        let found: Vec<std::sync::Mutex<Vec<_>>> =
            (0..self.rows.div_ceil(BAND)).map(|_| Vec::new().into()).collect();
        let bands: Vec<_> = tile.chunks(BAND * len).zip(&found).enumerate().collect();
        side_by_side(bands, |(i, (tile, found))| {
            let mut some = Vec::new();
            for (row, tile) in (i * BAND..).zip(tile.chunks_exact(len)) {
                let rule = Rule::Above { bias, threshold: &bounds };
                scan(tile, rule, |j, value| some.push((value, row as u32, first + j)));
            }
            if let Ok(mut found) = found.lock() {
                *found = some;
            }
        });
        for some in found {
            self.entries.extend(some.into_inner().unwrap_or_default());
        }
        if self.entries.len() > 2 * self.n {
            self.shrink();
        }
        true
    }

    /// The entries by row, latents ascending.
    pub fn finish(mut self) -> Csr {
        self.shrink();
        self.entries.par_sort_unstable_by_key(|(_, row, latent)| (*row, *latent));
        let mut csr = Csr { indptr: vec![0i64; self.rows + 1], ..Csr::default() };
        for (value, row, latent) in &self.entries {
            csr.indptr[*row as usize + 1] += 1;
            csr.indices.push(i64::from(*latent));
            csr.values.push(*value);
        }
        for row in 0..self.rows {
            csr.indptr[row + 1] += csr.indptr[row];
        }
        csr
    }

    /// Drops all but the n best, by a partial selection.
    fn shrink(&mut self) {
        if self.entries.len() > self.n && self.n > 0 {
            let key = |value: f32| if value.is_nan() { f32::INFINITY } else { value };
            self.entries.select_nth_unstable_by(self.n - 1, |a, b| {
                key(b.0).total_cmp(&key(a.0)).then((a.1, a.2).cmp(&(b.1, b.2)))
            });
            self.entries.truncate(self.n);
            self.bound = key(self.entries[self.n - 1].0);
        }
    }
}

/// Sets all but the k largest entries of each row of `m`, `[n, len]`, to −∞; of equal ones the first stay. NaN counts as
/// larger than any number. False, and nothing changed, where `m` is not contiguous float32 on the CPU.
pub fn keep_strongest(m: &Tensor, k: usize) -> bool {
    let &[n, len] = &m.size()[..] else { return false };
    if !plain(m, Kind::Float) {
        return false;
    }
    let (n, len) = (n as usize, len as usize);
    if n * len == 0 || k >= len {
        return true;
    }
    // SAFETY: a contiguous float32 CPU tensor of n · len elements (checked above), alive for this call; the caller lends it for
    // being changed, and nobody else reads or writes it meanwhile.
    let m = unsafe { slice_mut::<f32>(m, n * len) };
    /// Rows in one piece of work.
    const BAND: usize = 16;
    side_by_side(m.chunks_mut(BAND * len).collect(), |rows| {
        let mut sorted = vec![0f32; len];
        for row in rows.chunks_exact_mut(len) {
            let key = |value: f32| if value.is_nan() { f32::INFINITY } else { value };
            sorted.iter_mut().zip(&*row).for_each(|(sorted, value)| *sorted = key(*value));
            let (above, bound) = match k {
                0 => (0, f32::INFINITY),
                _ => {
                    let (stronger, bound, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
                    (stronger.iter().filter(|value| **value > *bound).count(), *bound)
                }
            };
            let mut equal = k - above;
            for value in row {
                let this = key(*value);
                if this == bound && equal > 0 {
                    equal -= 1;
                } else if this <= bound {
                    *value = f32::NEG_INFINITY;
                }
            }
        }
    });
    true
}
