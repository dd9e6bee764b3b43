use hooks::{HookPoint, HookSet, HookedModel, TokenBatch};
use sae_core::{SaeExt as _, SparseAutoencoder, SparseFeatures, as_input};
use tch::{Kind, Tensor};

use crate::{
    Exact, Result,
    trunk::{Trunk, branch},
};

/// Positions whose gradients are taken in one backward pass, each in a copy of its sequence.
const AT_A_TIME: usize = 8;

/// A position whose latents' importance is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pick {
    /// Its sequence and column.
    pub(crate) at: (usize, usize),
    /// Its row among the positions that count.
    pub(crate) row: usize,
    /// The token that follows it.
    pub(crate) next: i64,
}

/// `∂L/∂x` at each pick, `[picks, d]`, where x is the clean run's activation there and L the logit of the next token less the
/// mean logit, both at that very position (Gemma Scope, appendix D.5).
pub(crate) fn gradients(
    model: &dyn HookedModel,
    trunk: &Trunk<'_>,
    tokens: &TokenBatch,
    site: HookPoint,
    picks: &[Pick],
) -> Result<Tensor> {
    let mut found = Vec::new();
    for some in picks.chunks(AT_A_TIME) {
        let sequences: Vec<usize> = some.iter().map(|pick| pick.at.0).collect();
        let copies = tokens.select(&sequences)?;
        let index = Tensor::f_from_slice(&sequences.iter().map(|s| *s as i64).collect::<Vec<_>>())?;
        let index = index.f_to_device(trunk.last.device())?;
        let act = trunk.act(site)?.f_index_select(0, &index)?.f_detach()?.f_set_requires_grad(true)?;
        let stream = trunk.stream(site)?.f_index_select(0, &index)?;
        let own = |t: &Tensor| -> Result<Tensor> {
            let rows: Vec<Tensor> = some
                .iter()
                .enumerate()
                .map(|(i, pick)| t.f_get(i as i64)?.f_get(pick.at.1 as i64))
                .collect::<Result<_, _>>()?;
            Ok(Tensor::f_stack(&rows, 0)?)
        };
        let total = tch::with_grad(|| -> Result<Tensor> {
            let last = own(&branch(model, &copies, site, &act, &stream)?)?.f_unsqueeze(0)?;
            let normed = model.final_norm(&last, &mut HookSet::new())?;
            let logits = model.readout(&normed, 0..model.dims().d_vocab)?.f_squeeze_dim(0)?; // [some, d_vocab]
            let next = Tensor::f_from_slice(&some.iter().map(|pick| pick.next).collect::<Vec<_>>())?;
            let next = next.f_to_device(logits.device())?.f_unsqueeze(-1)?;
            let of_next = logits.f_gather(-1, &next, false)?.f_squeeze_dim(-1)?;
            let centred = of_next.f_sub(&logits.f_mean_dim(Some([-1].as_slice()), false, Kind::Float)?)?;
            Ok(centred.f_sum(Kind::Float)?)
        })?;
        let gradient = Tensor::f_run_backward(&[total], &[&act], false, false)?;
        let gradient = as_input(site, gradient.first().unwrap_or(&act))?;
        found.push(own(&gradient)?);
    }
    Ok(Tensor::f_cat(&found, 0)?)
}

/// `r_L0 = exp(S(p)) / ‖y‖₀` of each pick with an active latent that matters, where `y = f ⊙ (W_dec g)` and `p = |y| / Σ|y|`:
/// the share of active latents that are, in effect, in use (Gemma Scope, appendix D.5). How many there were, and the sum.
pub(crate) fn uniformity(
    sae: &dyn SparseAutoencoder,
    features: &SparseFeatures,
    picks: &[Pick],
    gradients: &Tensor,
) -> Result<(u64, Exact)> {
    let rows = features.by_row()?;
    let (mut n, mut sum) = (0, Exact::default());
    for (i, pick) in picks.iter().enumerate() {
        let gradient = gradients.f_get(i as i64)?.f_to_kind(Kind::Double)?;
        let mut importance = Vec::new();
        for (feature, activation) in rows.row(pick.row as i64)? {
            let along = sae.direction(feature)?.f_to_kind(Kind::Double)?.f_dot(&gradient)?;
            importance.push((f64::from(activation) * along.f_double_value(&[])?).abs());
        }
        importance.retain(|y| *y > 0.0);
        let total: f64 = importance.iter().sum();
        if total > 0.0 {
            let entropy: f64 = importance.iter().map(|y| y / total).map(|p| -p * p.ln()).sum();
            n += 1;
            sum.add(entropy.exp() / importance.len() as f64);
        }
    }
    Ok((n, sum))
}

/// Picks at most `most` of each sequence's positions, evenly spaced.
pub(crate) fn picks(all: &[Pick], most: usize) -> Vec<Pick> {
    let by_sequence = all.chunk_by(|a, b| a.at.0 == b.at.0);
    let evenly = |of: &[Pick]| -> Vec<Pick> {
        let n = most.min(of.len());
        (0..n).map(|i| of[(2 * i + 1) * of.len() / (2 * n)]).collect()
    };
    by_sequence.flat_map(evenly).collect()
}
