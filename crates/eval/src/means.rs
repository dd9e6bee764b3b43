use std::collections::{BTreeMap, BTreeSet};

use hooks::{HookPoint, HookedModel, HookedModelExt as _, Positions, TokenBatch};
use sae_core::as_input;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{EvalError, Exact, Result, trunk::width_of};

/// The mean activation at some sites over all positions that count: what mean ablation puts there, and what FVU's sums are taken
/// about. It must be known before the first batch is judged, so it takes a pass of its own, which runs no deeper than the deepest
/// site and makes no logits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Means {
    n: u64,
    /// Sums of each entry, all heads side by side.
    sums: BTreeMap<HookPoint, Vec<Exact>>,
}

impl Means {
    /// Begins the means of some sites.
    ///
    /// # Errors
    /// A site that the model does not have, that lies behind the blocks or has no positions.
    pub fn new(model: &dyn HookedModel, sites: impl IntoIterator<Item = HookPoint>) -> Result<Self> {
        let sums = sites.into_iter().map(|site| {
            let width = width_of(model, site)?;
            Ok((site, vec![Exact::default(); width as usize]))
        });
        Ok(Self { n: 0, sums: sums.collect::<Result<_>>()? })
    }

    /// Adds a batch.
    ///
    /// # Errors
    /// The model's; [`EvalError::NotFinite`]; then nothing was added.
    pub fn add(&mut self, model: &dyn HookedModel, tokens: &TokenBatch, positions: Positions) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let kept = indices(&mask(positions, tokens)?)?;
        let sites: Vec<HookPoint> = self.sums.keys().copied().collect();
        let acts = model.harvest(tokens, &sites)?;
        let mut found = Vec::new();
        for site in &sites {
            let rows = rows(*site, acts.get(*site)?, &kept)?;
            let sum = rows.f_to_kind(Kind::Double)?.f_sum_dim_intlist(0, false, Kind::Double)?;
            let sum = Vec::<f64>::try_from(sum.f_to_device(Device::Cpu)?)?;
            if !sum.iter().all(|s| s.is_finite()) {
                return Err(EvalError::NotFinite("an activation"));
            }
            found.push(sum);
        }
        self.n += kept.size1()? as u64;
        for (sums, terms) in self.sums.values_mut().zip(found) {
            sums.iter_mut().zip(terms).for_each(|(sum, term)| sum.add(term));
        }
        Ok(())
    }

    /// Joins the sums of other data.
    ///
    /// # Errors
    /// [`EvalError::Merge`] for other sites; then nothing was joined.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        let widths =
            |means: &Self| means.sums.iter().map(|(site, sums)| (*site, sums.len())).collect::<Vec<_>>();
        if widths(self) != widths(other) {
            return Err(EvalError::Merge("means at different sites".to_owned()));
        }
        self.n += other.n;
        for (own, theirs) in self.sums.values_mut().zip(other.sums.values()) {
            own.iter_mut().zip(theirs).for_each(|(sum, theirs)| sum.merge(theirs));
        }
        Ok(())
    }

    /// The mean at a site: `[d]`, all heads side by side.
    ///
    /// # Errors
    /// [`EvalError::Empty`] where nothing counted; [`EvalError::NoMean`] for a site that was not asked for.
    pub fn of(&self, site: HookPoint) -> Result<Vec<f64>> {
        let sums = self.sums.get(&site).ok_or(EvalError::NoMean(site))?;
        if self.n == 0 {
            return Err(EvalError::Empty);
        }
        Ok(sums.iter().map(|sum| sum.value() / self.n as f64).collect())
    }

    /// Positions that counted.
    pub fn tokens(&self) -> u64 {
        self.n
    }

    /// The sites.
    pub fn sites(&self) -> BTreeSet<HookPoint> {
        self.sums.keys().copied().collect()
    }
}

/// Where a set of positions holds in a batch: `[batch, pos]`, bool. A range may reach beyond it, since the last rows of a text are
/// shorter than the others.
pub(crate) fn mask(positions: Positions, tokens: &TokenBatch) -> Result<Tensor> {
    Ok(positions.over(tokens)?.columns(0, tokens.pos())?)
}

/// Where a mask is true, as indices into its elements in a row: `[n]`, int64.
pub(crate) fn indices(mask: &Tensor) -> Result<Tensor> {
    Ok(mask.f_reshape([-1])?.f_nonzero()?.f_squeeze_dim(1)?)
}

/// The rows of an activation at some of its positions, as an SAE reads them: `[n, d_in]`, float32.
pub(crate) fn rows(site: HookPoint, act: &Tensor, kept: &Tensor) -> Result<Tensor> {
    let x = as_input(site, act)?;
    Ok(x.f_flatten(0, 1)?.f_index_select(0, &kept.f_to_device(x.device())?)?)
}
