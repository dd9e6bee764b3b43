//! The sparse step: gradients and optimiser together, without dense features and without a gradient as large as the weights.
//!
//! Only the encoder's product is dense, and exists one tile of latents at a time. Of a row's pre-activations those are kept that
//! are on or, for JumpReLU, inside the window of the straight-through kernel. With `E_g = x̂_g − target` of each nested
//! dictionary g (one, but for prefixes) and `c` twice the weight of their squared norms,
//!
//! ```text
//! df_bi = c S_b · W_dec[i],   S_b = Σ E_g[b] over the dictionaries that have latent i
//! dW_dec[i] = Σ_b c f_bi S_b,   dW_enc[i] = Σ_b dπ_bi x_b,   db_enc[i] = Σ_b dπ_bi
//! ```
//!
//! are sums over the entries that were kept: the decoder's rows are gathered once a row of the batch, then the entries are put in
//! the order of latents, and each latent's two gradient rows are summed, projected, given to Adam and forgotten.
//!
//! Where a batch has too many entries for that to be quicker (a JumpReLU SAE begins with half of its latents on), the same is
//! done by dense products of some latents at a time.

mod aux_k;
mod by_tiles;
mod dense;
mod encode;
mod entries;
mod jumprelu;
mod kernels;
mod libtorch;
mod penalty;
mod plan;
mod topk;

use tch::{Device, Kind, Tensor};
use tch_ext::expect_shape;

use self::{by_tiles::Tiled, plan::Plan};
use crate::{
    Adam, AdamOptions, Params, Result, TrainError,
    config::{Config, Decoder, Objective, Sparsity},
    objective::{Batch, Moment},
    update::keep_thresholds,
};

/// Whether there is a sparse step for this configuration and these parameters.
///
/// There is for JumpReLU but with `gradient_to_input`, `pre_act` and the tanh sparsity, whose gradients are dense, and for the
/// TopK family; both in float32.
pub fn supports(config: &Config, p: &Params) -> bool {
    let objective = match &config.objective {
        Objective::Jumprelu(o) => {
            !o.gradient_to_input && o.pre_act.is_none() && !matches!(o.sparsity, Sparsity::Tanh { .. })
        }
        Objective::Topk(_) => true,
        Objective::Gated(_) | Objective::Relu(_) => false,
    };
    objective
        && p.named()
            .iter()
            .all(|(_, t)| t.f_kind().is_ok_and(|kind| kind == Kind::Float) && t.is_contiguous())
}

/// How a step moves parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Update {
    /// The rate at this step.
    pub lr: f64,
    /// Adam's constants.
    pub adam: AdamOptions,
    /// The number of this step, from 1.
    pub step: u64,
    /// What the decoder keeps.
    pub decoder: Decoder,
    /// The norm, over all parameters together, above which gradients are scaled down to it.
    pub clip: Option<f64>,
    /// The most that `Σ ‖target − x̂‖²` of a batch may be for the step to be taken.
    pub most_error: f64,
}

/// What a step was like before it was taken.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The terms of the loss, weights included, by the names of [`Loss::parts`](crate::objective::Loss::parts).
    pub parts: Vec<(String, f64)>,
    /// The sum over rows of `‖target − x̂‖²`.
    pub squared_error: f64,
    /// On how many rows each latent was on: `[d_sae]`.
    pub active: Vec<u32>,
    /// The norm of all gradients before clipping, where they are clipped.
    pub grad_norm: Option<f64>,
    /// The smallest latent that was on, for TopK.
    pub smallest_active: Option<f64>,
}

impl Outcome {
    /// The sum of the terms.
    pub fn loss(&self) -> f64 {
        self.parts.iter().map(|(_, value)| value).sum()
    }
}

/// By what the sparse step is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Kernels over sparse entries: the CPU.
    Kernels,
    /// libtorch's operations over sparse entries: any device.
    Libtorch,
    /// Dense products of some latents at a time: any device, for JumpReLU with many latents on.
    Dense,
}

/// One step in place: gradients, projection, clipping, Adam, unit norm. `adams` are by the names of [`Params::named`].
///
/// Where the loss or the norm of the gradients is not finite, or the error more than [`Update::most_error`], nothing is changed; the
/// outcome tells. On the CPU the same numbers give the same step, however
/// many threads there are.
///
/// # Errors
/// A configuration without a sparse step; a batch of other widths; libtorch's, as when there is no memory.
pub fn step(
    config: &Config,
    p: &mut Params,
    adams: &mut [(&'static str, Adam)],
    batch: Batch<'_>,
    at: &Moment,
    update: &Update,
) -> Result<Outcome> {
    let route = if p.w_enc.device() == Device::Cpu { Route::Kernels } else { Route::Libtorch };
    match attempt(route, Some(DENSE_FROM), config, p, adams, batch, at, update)? {
        Some(outcome) => Ok(outcome),
        None => step_by(Route::Dense, config, p, adams, batch, at, update),
    }
}

/// The share of entries from which dense products are quicker: an entry costs the sparse step some 25 times what it costs them.
const DENSE_FROM: f64 = 0.04;

/// [`step`] by a route of the caller's choice.
///
/// # Errors
/// As [`step`]; [`Route::Dense`] for another objective than JumpReLU.
pub fn step_by(
    route: Route,
    config: &Config,
    p: &mut Params,
    adams: &mut [(&'static str, Adam)],
    batch: Batch<'_>,
    at: &Moment,
    update: &Update,
) -> Result<Outcome> {
    let unsupported = || TrainError::Config("there is no sparse step for this objective".to_owned());
    attempt(route, None, config, p, adams, batch, at, update)?.ok_or_else(unsupported)
}

/// What every part of a step looks at.
struct Work<'w> {
    config: &'w Config,
    p: &'w Params,
    batch: Batch<'w>,
    at: &'w Moment,
    plan: Plan,
    /// What the encoder multiplies: `[B, d_in]`, contiguous.
    x: Tensor,
    /// `x W_skipᵀ`: `[B, d_out]`.
    skip: Option<Tensor>,
    rows: i64,
}

/// Everything that the backward pass found but the gradients of W_enc and W_dec themselves.
struct Backward<'w> {
    weights: WeightGradients<'w>,
    /// Through the output alone: `[d_out]`.
    d_b_dec: Tensor,
    d_w_skip: Option<Tensor>,
    /// Where `weights` does not collect it.
    collected: Option<Collected>,
    outcome: Outcome,
}

/// Gradients as long as the latents.
struct Collected {
    /// `Σ_b dπ`: `[d_sae]`.
    d_b_enc: Tensor,
    /// Of what is trained in θ's place: `[d_sae]`.
    d_threshold: Option<Tensor>,
    /// `(Σ_b dπ) W_enc`, `[d_in]`, with a pre-encoder bias.
    through: Option<Tensor>,
}

impl Collected {
    fn new(work: &Work<'_>, d_b_enc: Tensor, d_threshold: Option<Tensor>) -> Result<Self> {
        let through = match work.config.pre_encoder_bias {
            true => Some(entries::sum_of_rows(&work.p.w_enc, Some(&d_b_enc))?),
            false => None,
        };
        Ok(Self { d_b_enc, d_threshold, through })
    }
}

/// The gradients of W_enc and W_dec, not yet summed.
enum WeightGradients<'w> {
    Kernels(kernels::Sums<'w>),
    Tiles(Box<dyn Tiled + 'w>),
}

/// `None`, and nothing changed, where the objective has no such route, or more than this share of the latents is to be kept.
#[allow(clippy::too_many_arguments, reason = "the arguments of `step`, twice as many as it decides on")]
fn attempt(
    route: Route,
    most: Option<f64>,
    config: &Config,
    p: &mut Params,
    adams: &mut [(&'static str, Adam)],
    batch: Batch<'_>,
    at: &Moment,
    update: &Update,
) -> Result<Option<Outcome>> {
    let _no_grad = tch::no_grad_guard();
    if !supports(config, p) {
        return Ok(None);
    }
    let work = Work::new(config, p, batch, at)?;
    let most = most.map(|share| (share * work.rows as f64 * config.d_sae as f64) as usize);
    let backward = match (&config.objective, route) {
        (Objective::Jumprelu(o), Route::Dense) => Some(dense::backward(&work, o)?),
        (Objective::Jumprelu(o), _) => jumprelu::backward(&work, o, route, most)?,
        (Objective::Topk(o), Route::Kernels | Route::Libtorch) => Some(topk::backward(&work, o, route)?),
        _ => None,
    };
    let Some(mut backward) = backward else { return Ok(None) };
    let error = backward.outcome.squared_error;
    if !backward.outcome.loss().is_finite() || error.is_nan() || error > update.most_error {
        return Ok(Some(backward.outcome));
    }
    backward.take(config, p, adams, update)?;
    Ok(Some(backward.outcome))
}

impl<'w> Work<'w> {
    fn new(config: &'w Config, p: &'w Params, batch: Batch<'w>, at: &'w Moment) -> Result<Self> {
        let rows = batch.x.size().first().copied().unwrap_or(0);
        if rows == 0 {
            return Err(TrainError::Config("the batch has no rows".to_owned()));
        }
        expect_shape("activations", batch.x, &[("rows", rows), ("d_in", config.d_in)])?;
        expect_shape("targets", batch.target, &[("rows", rows), ("d_out", config.d_out())])?;
        let x = if config.pre_encoder_bias { batch.x.f_sub(&p.b_dec)? } else { batch.x.f_contiguous()? };
        let skip = match &p.w_skip {
            Some(w_skip) => Some(tch_ext::linear(&batch.x.f_contiguous()?, w_skip)?),
            None => None,
        };
        Ok(Self { config, p, batch, at, plan: Plan::new(config, at, rows), x, skip, rows })
    }

    /// The gradients of `b_dec` through the output, and of `W_skip`, from `S`, `[B, d_out]`, of the narrowest dictionary.
    fn of_the_output(&self, widest_sum: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        let d_b_dec = entries::sum_of_rows(widest_sum, None)?.f_mul_scalar(self.plan.slope)?;
        let d_w_skip = match &self.skip {
            Some(_) => Some(widest_sum.f_tr()?.f_matmul(self.batch.x)?.f_mul_scalar(self.plan.slope)?),
            None => None,
        };
        Ok((d_b_dec, d_w_skip))
    }
}

impl Backward<'_> {
    /// Clips and moves every parameter.
    fn take(
        &mut self,
        config: &Config,
        p: &Params,
        adams: &mut [(&'static str, Adam)],
        update: &Update,
    ) -> Result<()> {
        let project = update.decoder.project_gradient;
        let mut scale = 1.0;
        if let Some(clip) = update.clip {
            let mut sum = match &self.weights {
                WeightGradients::Kernels(sums) => sums.square_sum(p, project)?,
                WeightGradients::Tiles(tiled) => by_tiles::square_sum(tiled.as_ref(), p, project)?,
            };
            for (_, grad) in self.vectors()? {
                sum += grad.f_to_kind(Kind::Double)?.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
            }
            let norm = sum.sqrt();
            self.outcome.grad_norm = Some(norm);
            if !norm.is_finite() {
                return Ok(());
            }
            scale = if norm > clip { clip / norm } else { 1.0 };
        }
        let moments = |name: &str| {
            let adam = adams.iter().find(|(own, _)| *own == name);
            let missing = || TrainError::Config(format!("there is no optimiser state for {name}"));
            adam.map(|(_, adam)| adam.moments()).ok_or_else(missing)
        };
        let by = by_tiles::Motion { moments: [moments("W_enc")?, moments("W_dec")?], update, scale };
        match &self.weights {
            WeightGradients::Kernels(sums) => sums.move_rows(p, &by)?,
            WeightGradients::Tiles(tiled) => by_tiles::move_rows(tiled.as_ref(), p, &by)?,
        }
        let vectors = self.vectors()?;
        for ((name, tensor), (_, adam)) in p.named().into_iter().zip(adams) {
            match vectors.iter().find(|(own, _)| *own == name) {
                Some((_, grad)) if scale != 1.0 => {
                    adam.step(tensor, &grad.f_mul_scalar(scale)?, update.lr)?
                }
                Some((_, grad)) => adam.step(tensor, grad, update.lr)?,
                None => adam.count_step(),
            }
        }
        keep_thresholds(config, p)
    }
    /// The gradients of all parameters but W_enc and W_dec.
    fn vectors(&self) -> Result<Vec<(&'static str, Tensor)>> {
        let by_tiles = match &self.weights {
            WeightGradients::Tiles(tiled) => tiled.collected()?,
            WeightGradients::Kernels(_) => None,
        };
        let Some(Collected { d_b_enc, d_threshold, through }) = by_tiles.as_ref().or(self.collected.as_ref())
        else {
            return Err(TrainError::Config("the gradients were not collected".to_owned()));
        };
        let d_b_dec = match through {
            Some(through) => self.d_b_dec.f_sub(through)?,
            None => self.d_b_dec.shallow_clone(),
        };
        let mut all = vec![("b_enc", d_b_enc.shallow_clone()), ("b_dec", d_b_dec)];
        all.extend(d_threshold.as_ref().map(|t| ("threshold", t.shallow_clone())));
        all.extend(self.d_w_skip.as_ref().map(|t| ("W_skip", t.shallow_clone())));
        Ok(all)
    }
}
