use std::collections::BTreeMap;

use hooks::HookPoint;
use serde::{Deserialize, Serialize};

use crate::{
    EvalError, Exact, Provenance, Quality, Reconstruction, Report, Result, Sparsity, reconstruction::mean,
    report::report,
};

/// All sums of an evaluation of several SAEs. They are exact, so batches may come in any order and on any machine: what is
/// [merged](Self::merge) in the end is the same to the last digit. They can be written with serde and read again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sums {
    /// Positions that counted.
    pub(crate) tokens: u64,
    /// Losses that counted.
    pub(crate) scored: u64,
    pub(crate) ce_clean: Exact,
    /// By the site whose activation was replaced.
    pub(crate) baselines: BTreeMap<HookPoint, Baselines>,
    pub(crate) saes: Vec<SaeSums>,
}

/// What ablations cost at a site.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Baselines {
    pub(crate) zero: LossSums,
    pub(crate) mean: LossSums,
}

/// Losses of runs with something in place of an activation.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct LossSums {
    pub(crate) ce: Exact,
    pub(crate) kl: Exact,
}

/// The sums of one SAE.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SaeSums {
    pub(crate) id: String,
    /// What is judged, and where.
    pub(crate) about: Provenance,
    pub(crate) spliced: LossSums,
    pub(crate) reconstruction: Reconstruction,
    pub(crate) sparsity: Sparsity,
    pub(crate) by_position: Vec<Part>,
    pub(crate) by_subset: BTreeMap<String, Part>,
    /// Positions whose latents' importance was looked at, and the sum of their r_L0.
    pub(crate) uniformity: (u64, Exact),
}

/// Sums over a part of the data: one position of every sequence, or one subset.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) tokens: u64,
    pub(crate) scored: u64,
    /// Active latents.
    pub(crate) active: u64,
    pub(crate) ce_clean: Exact,
    pub(crate) ce_spliced: Exact,
    pub(crate) kl: Exact,
    /// Σ‖x − x̂‖².
    pub(crate) error: Exact,
    /// Σ‖x − c‖² about the mean of all of the data.
    pub(crate) spread: Exact,
}

impl Sums {
    /// Positions that counted so far.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// The SAEs, in order.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.saes.iter().map(|sae| sae.id.as_str())
    }

    /// A report for each SAE, in their order.
    ///
    /// # Errors
    /// [`EvalError::Empty`] where nothing counted.
    pub fn reports(&self) -> Result<Vec<Report>> {
        self.saes.iter().map(|sae| report(self, sae)).collect()
    }

    /// Joins the sums of other data.
    ///
    /// # Errors
    /// [`EvalError::Merge`] for other SAEs, sites, positions or mean activations; then nothing was joined.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if !self.ids().eq(other.ids()) {
            return Err(EvalError::Merge("evaluations of different SAEs".to_owned()));
        }
        if let Some((own, _)) =
            self.saes.iter().zip(&other.saes).find(|(own, theirs)| own.about != theirs.about)
        {
            return Err(EvalError::Merge(format!("evaluations of `{}` at other sites or positions", own.id)));
        }
        if !self.baselines.keys().eq(other.baselines.keys()) {
            return Err(EvalError::Merge("evaluations at different sites".to_owned()));
        }
        let of_another_mean = |(own, theirs): &(&SaeSums, &SaeSums)| {
            !own.reconstruction.is_about_the_centre_of(&theirs.reconstruction)
        };
        if let Some((own, _)) = self.saes.iter().zip(&other.saes).find(of_another_mean) {
            return Err(EvalError::Merge(format!("evaluations of `{}` with other mean activations", own.id)));
        }
        let mut saes = self.saes.clone();
        for (sae, theirs) in saes.iter_mut().zip(&other.saes) {
            sae.merge(theirs)?;
        }
        self.saes = saes;
        self.tokens += other.tokens;
        self.scored += other.scored;
        self.ce_clean.merge(&other.ce_clean);
        for (own, theirs) in self.baselines.values_mut().zip(other.baselines.values()) {
            own.zero.merge(&theirs.zero);
            own.mean.merge(&theirs.mean);
        }
        Ok(())
    }
}

impl LossSums {
    pub(crate) fn merge(&mut self, other: &Self) {
        self.ce.merge(&other.ce);
        self.kl.merge(&other.kl);
    }
}

impl SaeSums {
    fn merge(&mut self, other: &Self) -> Result<()> {
        self.reconstruction.merge(&other.reconstruction)?;
        self.sparsity.merge(&other.sparsity)?;
        self.spliced.merge(&other.spliced);
        if self.by_position.len() < other.by_position.len() {
            self.by_position.resize_with(other.by_position.len(), Part::default);
        }
        self.by_position.iter_mut().zip(&other.by_position).for_each(|(own, theirs)| own.merge(theirs));
        for (name, theirs) in &other.by_subset {
            self.by_subset.entry(name.clone()).or_default().merge(theirs);
        }
        self.uniformity.0 += other.uniformity.0;
        self.uniformity.1.merge(&other.uniformity.1);
        Ok(())
    }
}

impl Part {
    fn merge(&mut self, other: &Self) {
        self.tokens += other.tokens;
        self.scored += other.scored;
        self.active += other.active;
        self.ce_clean.merge(&other.ce_clean);
        self.ce_spliced.merge(&other.ce_spliced);
        self.kl.merge(&other.kl);
        self.error.merge(&other.error);
        self.spread.merge(&other.spread);
    }

    pub(crate) fn quality(&self) -> Quality {
        let (ce_clean, ce_spliced) = (mean(&self.ce_clean, self.scored), mean(&self.ce_spliced, self.scored));
        let spread = self.spread.value();
        Quality {
            tokens: self.tokens,
            scored: self.scored,
            ce_clean,
            ce_spliced,
            delta_loss: ce_clean.zip(ce_spliced).map(|(clean, spliced)| spliced - clean),
            kl: mean(&self.kl, self.scored),
            mse: mean(&self.error, self.tokens),
            fvu: (spread > 0.0).then(|| self.error.value() / spread),
            l0: (self.tokens > 0).then(|| self.active as f64 / self.tokens as f64),
        }
    }
}
