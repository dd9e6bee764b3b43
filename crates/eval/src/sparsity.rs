use sae_core::SparseFeatures;
use tch::{Kind, Tensor};

use crate::{EvalError, Result};

/// L0, the frequency of each latent, and which are dead: all from one count per latent.
///
/// * L0: mean number of active latents a token.
/// * frequency of latent i: share of tokens on which it is active.
/// * dead fraction: share of latents that no token of the evaluation activates.
#[derive(Debug)]
pub struct Sparsity {
    n: i64,
    /// Tokens on which each latent was active: `[d_sae]`, int64.
    counts: Tensor,
}

impl Sparsity {
    /// For an SAE with `d_sae` latents.
    ///
    /// # Errors
    /// libtorch's, as when there is no memory.
    pub fn new(d_sae: i64) -> Result<Self> {
        Ok(Self { n: 0, counts: Tensor::f_zeros([d_sae], (Kind::Int64, tch::Device::Cpu))? })
    }

    /// Adds the tokens of some rows.
    ///
    /// # Errors
    /// [`EvalError::Merge`] for features of another width.
    pub fn add(&mut self, features: &SparseFeatures) -> Result<()> {
        self.expect_width(features.d_sae())?;
        let d_sae = self.counts.numel() as i64;
        let seen = features.indices().f_to_device(tch::Device::Cpu)?.f_bincount(None::<Tensor>, d_sae)?;
        let _ = self.counts.f_add_(&seen)?;
        self.n += features.n_rows();
        Ok(())
    }

    /// Joins what another has counted.
    ///
    /// # Errors
    /// [`EvalError::Merge`] for another width.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        self.expect_width(other.counts.numel() as i64)?;
        let _ = self.counts.f_add_(&other.counts)?;
        self.n += other.n;
        Ok(())
    }

    fn expect_width(&self, d_sae: i64) -> Result<()> {
        let own = self.counts.numel() as i64;
        if own == d_sae {
            Ok(())
        } else {
            Err(EvalError::Merge(format!("counts over {own} and {d_sae} latents")))
        }
    }

    /// Tokens seen.
    pub fn tokens(&self) -> i64 {
        self.n
    }

    /// Mean number of active latents a token; `None` before the first.
    ///
    /// # Errors
    /// libtorch's.
    pub fn l0(&self) -> Result<Option<f64>> {
        let total = self.counts.f_sum(Kind::Int64)?.f_int64_value(&[])?;
        Ok((self.n > 0).then(|| total as f64 / self.n as f64))
    }

    /// Share of tokens that activate each latent; `None` before the first token.
    ///
    /// # Errors
    /// libtorch's.
    pub fn frequency(&self) -> Result<Option<Vec<f64>>> {
        let counts = Vec::<i64>::try_from(&self.counts)?;
        Ok((self.n > 0).then(|| counts.iter().map(|&c| c as f64 / self.n as f64).collect()))
    }

    /// Latents that no token activated.
    ///
    /// # Errors
    /// libtorch's.
    pub fn dead(&self) -> Result<i64> {
        Ok(self.counts.f_eq(0)?.f_sum(Kind::Int64)?.f_int64_value(&[])?)
    }

    /// Share of latents that no token activated; `None` before the first token.
    ///
    /// # Errors
    /// libtorch's.
    pub fn dead_fraction(&self) -> Result<Option<f64>> {
        let dead = self.dead()?;
        Ok((self.n > 0 && self.counts.numel() > 0).then(|| dead as f64 / self.counts.numel() as f64))
    }
}
