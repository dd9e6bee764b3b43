//! The losses, by the formulas of their papers, for libtorch's automatic differentiation: the readable reference.

use tch::Tensor;

use crate::{Params, Result, config::Config};

/// One batch of activations, divided by their scales.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'b> {
    /// What is read: `[B, d_in]`.
    pub x: &'b Tensor,
    /// What is to be rebuilt: `[B, d_out]`; `x` itself but for transcoders.
    pub target: &'b Tensor,
}

/// What a loss depends on besides parameters and batch.
#[derive(Debug)]
pub struct Moment {
    /// λ at this step.
    pub lambda: f64,
    /// The latents that count as dead: `[d_sae]`, bool.
    pub dead: Tensor,
    /// How many they are.
    pub n_dead: i64,
    /// σ² of [`ReconstructionLoss::Normalized`](crate::config::ReconstructionLoss::Normalized); 1 elsewhere.
    pub variance: f64,
}

/// The loss of one batch.
#[derive(Debug)]
pub struct Loss {
    /// Its terms, weights included, which sum to the loss: scalars, with a graph where gradients are recorded. Names:
    /// `reconstruction`, `sparsity`, `aux`, `pre_act`, `frequency`, and `reconstruction_W` of an inner prefix of width W.
    pub parts: Vec<(String, Tensor)>,
    /// Latents: `[B, d_sae]`.
    pub features: Tensor,
    /// x̂: `[B, d_out]`.
    pub recon: Tensor,
}

impl Loss {
    /// The sum of all terms.
    ///
    /// # Errors
    /// libtorch's.
    pub fn total(&self) -> Result<Tensor> {
        let mut sum = Tensor::f_zeros_like(&self.recon)?.f_sum(self.recon.kind())?;
        for (_, part) in &self.parts {
            sum = sum.f_add(part)?;
        }
        Ok(sum)
    }
}

/// The loss of `batch` under `config`.
///
/// # Errors
/// libtorch's, as for other shapes.
pub fn loss(config: &Config, p: &Params, batch: Batch<'_>, at: &Moment) -> Result<Loss> {
    let _ = (config, p, batch, at);
    Err(crate::TrainError::Config("being written".to_owned()))
}
