use std::collections::BTreeMap;

use sae_core::SparseFeatures;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{DensityHistogram, EvalError, Exact, L0Histogram, Result, reconstruction::mean};

/// Bins of a density histogram for each factor of ten.
const BINS_PER_DECADE: f64 = 4.0;

/// How sparse the latents are: L0 and its distribution, L1, the frequency of each latent, which are dead, and how latents keep to
/// sequences. Counts are whole numbers and sums exact: order and division of the data change nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sparsity {
    /// Positions by the number of latents that were active.
    l0: BTreeMap<u64, u64>,
    /// Σ f.
    l1: Exact,
    /// Positions on which each latent was active: `[d_sae]`.
    counts: Vec<u64>,
    /// Sequences on which each latent was active: `[d_sae]`.
    sequences: Vec<u64>,
}

impl Sparsity {
    /// For an SAE with `d_sae` latents.
    pub fn new(d_sae: i64) -> Self {
        let zeros = vec![0; d_sae.max(0) as usize];
        Self { l0: BTreeMap::new(), l1: Exact::default(), counts: zeros.clone(), sequences: zeros }
    }

    /// Adds positions, one a row. `sequence` says which sequence each belongs to, in ascending order; the sequences of two
    /// calls are different ones. Where it is `None`, each row is a sequence.
    ///
    /// # Errors
    /// [`EvalError::Merge`] for features of another width, or sequences of another number; [`EvalError::NotFinite`]; then
    /// nothing was added.
    pub fn add(&mut self, features: &SparseFeatures, sequence: Option<&[u32]>) -> Result<()> {
        self.expect_width(features.d_sae() as usize)?;
        let rows = features.n_rows() as usize;
        if sequence.is_some_and(|of| of.len() != rows) {
            return Err(EvalError::Merge(format!("sequences of another number than the {rows} rows")));
        }
        let l1 = features.values().f_sum(Kind::Double)?.f_double_value(&[])?;
        if !l1.is_finite() {
            return Err(EvalError::NotFinite("a latent"));
        }
        let to_host = |t: &Tensor| Vec::<i64>::try_from(t.f_to_device(Device::Cpu)?);
        let (starts, latents) = (to_host(features.indptr())?, to_host(features.indices())?);
        // The last sequence in which a latent was seen, counted from 1.
        let mut seen = vec![0u32; self.counts.len()];
        for (row, bounds) in starts.windows(2).enumerate() {
            let here = sequence.map_or(row as u32, |of| of[row]) + 1;
            let active = &latents[bounds[0] as usize..bounds[1] as usize];
            *self.l0.entry(active.len() as u64).or_default() += 1;
            for &latent in active {
                let latent = latent as usize;
                self.counts[latent] += 1;
                if seen[latent] != here {
                    seen[latent] = here;
                    self.sequences[latent] += 1;
                }
            }
        }
        self.l1.add(l1);
        Ok(())
    }

    /// Joins what another has counted, of other sequences.
    ///
    /// # Errors
    /// [`EvalError::Merge`] for another width.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        self.expect_width(other.counts.len())?;
        other.l0.iter().for_each(|(l0, n)| *self.l0.entry(*l0).or_default() += n);
        self.l1.merge(&other.l1);
        self.counts.iter_mut().zip(&other.counts).for_each(|(own, n)| *own += n);
        self.sequences.iter_mut().zip(&other.sequences).for_each(|(own, n)| *own += n);
        Ok(())
    }

    fn expect_width(&self, d_sae: usize) -> Result<()> {
        let own = self.counts.len();
        if own == d_sae {
            Ok(())
        } else {
            Err(EvalError::Merge(format!("counts over {own} and {d_sae} latents")))
        }
    }

    /// Positions seen.
    pub fn tokens(&self) -> u64 {
        self.l0.values().sum()
    }

    /// Mean number of active latents a position; `None` before the first.
    pub fn l0(&self) -> Option<f64> {
        let n = self.tokens();
        (n > 0).then(|| self.counts.iter().sum::<u64>() as f64 / n as f64)
    }

    /// Standard deviation of that number, over all positions.
    pub fn l0_std(&self) -> Option<f64> {
        let (mean, n) = (self.l0()?, self.tokens() as f64);
        let square = self.l0.iter().map(|(l0, times)| (*l0 as f64 - mean).powi(2) * *times as f64);
        Some((square.sum::<f64>() / n).sqrt())
    }

    /// The least number of active latents that at least a share `q` of all positions do not exceed: `q = 0.5` is the median.
    pub fn l0_quantile(&self, q: f64) -> Option<u64> {
        let n = self.tokens();
        let mut below = 0;
        let found = self.l0.iter().find(|(_, times)| {
            below += **times;
            below as f64 >= q * n as f64
        });
        found.map(|(l0, _)| *l0)
    }

    /// How many positions had how many active latents.
    pub fn l0_histogram(&self) -> L0Histogram {
        let (l0, tokens) = self.l0.iter().unzip();
        L0Histogram { l0, tokens }
    }

    /// Mean of `Σ_j f_j`.
    pub fn l1(&self) -> Option<f64> {
        mean(&self.l1, self.tokens())
    }

    /// Share of positions that activate each latent; `None` before the first position.
    pub fn frequency(&self) -> Option<Vec<f64>> {
        let n = self.tokens();
        (n > 0).then(|| self.counts.iter().map(|&count| count as f64 / n as f64).collect())
    }

    /// Latents that no position activated.
    pub fn dead(&self) -> u64 {
        self.counts.iter().filter(|count| **count == 0).count() as u64
    }

    /// Share of latents that no position activated; `None` before the first position.
    pub fn dead_fraction(&self) -> Option<f64> {
        (self.tokens() > 0 && !self.counts.is_empty()).then(|| self.dead() as f64 / self.counts.len() as f64)
    }

    /// Share of latents with a frequency above a limit, and the share of all activity that is theirs (SAEBench's
    /// `freq_over_…` and `normalized_freq_over_…`); the second is `None` where nothing was active.
    pub fn above(&self, limit: f64) -> Option<(f64, Option<f64>)> {
        let n = self.tokens();
        if n == 0 || self.counts.is_empty() {
            return None;
        }
        let over = || self.counts.iter().filter(|count| **count as f64 / n as f64 > limit);
        let (all, theirs) = (self.counts.iter().sum::<u64>(), over().sum::<u64>());
        let mass = (all > 0).then(|| theirs as f64 / all as f64);
        Some((over().count() as f64 / self.counts.len() as f64, mass))
    }

    /// Positions that activate each latent per sequence in which any does (SAELens' consistent activation heuristic); `None`
    /// where none does.
    pub fn consistent_activation(&self) -> Vec<Option<f64>> {
        let pairs = self.counts.iter().zip(&self.sequences);
        pairs.map(|(&count, &of)| (of > 0).then(|| count as f64 / of as f64)).collect()
    }

    /// Its mean over latents that are active at all.
    pub fn mean_consistent_activation(&self) -> Option<f64> {
        let alive: Vec<f64> = self.consistent_activation().into_iter().flatten().collect();
        (!alive.is_empty()).then(|| alive.iter().sum::<f64>() / alive.len() as f64)
    }

    /// Latents by the logarithm of their frequency, from the lowest that these data can show, one position, to 1.
    pub fn density_histogram(&self) -> DensityHistogram {
        let n = self.tokens();
        let dead = self.dead();
        if n == 0 {
            return DensityHistogram { dead, ..DensityHistogram::default() };
        }
        let bins = ((n as f64).log10() * BINS_PER_DECADE).ceil().max(1.0) as usize;
        let log10_edges = (0..=bins).rev().map(|i| -(i as f64) / BINS_PER_DECADE).collect();
        let mut latents = vec![0; bins];
        for &count in self.counts.iter().filter(|count| **count > 0) {
            let from_top = -(count as f64 / n as f64).log10() * BINS_PER_DECADE;
            // An edge belongs to the bin above it, 1 to the last.
            let bin = (bins as f64 - from_top).floor().clamp(0.0, (bins - 1) as f64) as usize;
            latents[bin] += 1;
        }
        DensityHistogram { log10_edges, latents, dead }
    }
}
