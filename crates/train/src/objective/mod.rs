//! The losses, by the formulas of their papers, for libtorch's automatic differentiation: the readable reference.
//!
//! [`loss`] gives the loss of a batch as a graph, [`gradients`] the gradient of every parameter.

mod aux_k;
mod gated;
mod jumprelu;
mod linear;
mod prefixes;
mod relu;
mod straight_through;
mod strongest;
mod topk;

use tch::Tensor;
use tch_ext::expect_shape;

use crate::{
    Params, Result, TrainError,
    config::{Config, Objective},
};

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
    /// `reconstruction`, `sparsity`, `aux`, `pre_act`, `frequency`, and `reconstruction_W` of an inner prefix of width W
    /// (0 for `b_dec` alone).
    pub parts: Vec<(String, Tensor)>,
    /// Latents: `[B, d_sae]`. Never below 0; a latent is on where it is above.
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
        let mut sum = Tensor::f_zeros([], (self.recon.f_kind()?, self.recon.device()))?;
        for (_, part) in &self.parts {
            sum = sum.f_add(part)?;
        }
        Ok(sum)
    }

    /// The same values without their graph.
    fn detached(&self) -> Result<Self> {
        let part = |(name, t): &(String, Tensor)| -> Result<_> { Ok((name.clone(), t.f_detach()?)) };
        Ok(Self {
            parts: self.parts.iter().map(part).collect::<Result<_>>()?,
            features: self.features.f_detach()?,
            recon: self.recon.f_detach()?,
        })
    }
}

/// The loss of `batch` under `config`, in the kind of the parameters. The formulas are those of [`Objective`]'s parts.
///
/// Gradients flow to every parameter that asks for them, as the caller's gradient mode says.
///
/// # Errors
/// A batch without rows or of other widths; a parameter that the architecture needs and `p` has not; libtorch's.
pub fn loss(config: &Config, p: &Params, batch: Batch<'_>, at: &Moment) -> Result<Loss> {
    let rows = batch.x.size().first().copied().unwrap_or(0);
    if rows == 0 {
        return Err(TrainError::Config("the batch has no rows".to_owned()));
    }
    expect_shape("activations", batch.x, &[("rows", rows), ("d_in", config.d_in)])?;
    let d_out = config.d_out();
    expect_shape("targets", batch.target, &[("rows", rows), ("d_out", d_out)])?;
    match &config.objective {
        Objective::Jumprelu(o) => jumprelu::loss(config, o, p, batch, at),
        Objective::Gated(o) => gated::loss(config, o, p, batch, at),
        Objective::Topk(o) => topk::loss(config, o, p, batch, at),
        Objective::Relu(o) => relu::loss(config, o, p, batch, at),
    }
}

/// The loss without its graph, and the gradient of its total towards each parameter, by the names and in the order of
/// [`Params::named`].
///
/// The parameters' own gradients and the caller's gradient mode stay as they are.
///
/// # Errors
/// As [`loss`].
pub fn gradients(
    config: &Config,
    p: &Params,
    batch: Batch<'_>,
    at: &Moment,
) -> Result<(Loss, Vec<(&'static str, Tensor)>)> {
    let leaves = p.leaves()?;
    let named = leaves.named();
    let (loss, grads) = tch::with_grad(|| -> Result<_> {
        let loss = loss(config, &leaves, batch, at)?;
        let inputs: Vec<_> = named.iter().map(|(_, t)| *t).collect();
        let grads = Tensor::f_run_backward(&[loss.total()?], &inputs, false, false)?;
        Ok((loss.detached()?, grads))
    })?;
    let of_each = named.into_iter().zip(grads).map(|((name, t), grad)| -> Result<_> {
        Ok((name, if grad.defined() { grad } else { t.f_detach()?.f_zeros_like()? }))
    });
    Ok((loss, of_each.collect::<Result<_>>()?))
}

/// θ of a JumpReLU SAE: `[d_sae]`, with the graph of the parameter that is trained in its place.
///
/// # Errors
/// Another architecture; no `threshold` among the parameters.
pub fn threshold_of(config: &Config, p: &Params) -> Result<Tensor> {
    match &config.objective {
        Objective::Jumprelu(o) => jumprelu::threshold(o, p),
        _ => Err(TrainError::Config("only a JumpReLU SAE trains thresholds".to_owned())),
    }
}

impl Params {
    /// The same values, each a leaf of its own that records gradients.
    fn leaves(&self) -> Result<Self> {
        let leaf = |t: &Tensor| -> Result<Tensor> { Ok(t.f_detach()?.f_set_requires_grad(true)?) };
        let optional = |t: &Option<Tensor>| t.as_ref().map(leaf).transpose();
        Ok(Self {
            w_enc: leaf(&self.w_enc)?,
            b_enc: leaf(&self.b_enc)?,
            w_dec: leaf(&self.w_dec)?,
            b_dec: leaf(&self.b_dec)?,
            threshold: optional(&self.threshold)?,
            r_mag: optional(&self.r_mag)?,
            b_mag: optional(&self.b_mag)?,
            w_skip: optional(&self.w_skip)?,
        })
    }
}
