use std::{
    collections::{BTreeMap, BTreeSet},
    ops::AddAssign,
    time::Duration,
};

use hooks::{HookPoint, HookedModel, Positions, TokenBatch};
use sae_core::SparseAutoencoder;
use serde_json::Map;
use tch::Tensor;

use crate::{
    EvalError, Exact, Means, Provenance, Reconstruction, Report, Result, Sparsity, Subsets, Sums,
    batch::BatchView,
    pass::{MeanAt, Pass},
    sums::{Baselines, LossSums, SaeSums},
    trunk::{is_met_before, width_of},
};

/// How SAEs are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EvalOptions {
    /// Which positions are spliced, ablated and counted. At others the activation is left as it is.
    pub positions: Positions,
    /// Of how many positions of each sequence the importance of the latents is looked at, for the metric `uniformity`: each
    /// costs a run and a backward pass from the site on. 0 leaves the metric out.
    pub uniformity: usize,
}

/// An SAE and where it is to be judged.
#[derive(Debug, Clone)]
pub struct Judged<'a> {
    /// Its name in reports.
    pub id: String,
    /// The site that it reads.
    pub site: HookPoint,
    /// The site at which its output is put: the same, but for transcoders.
    pub site_out: HookPoint,
    /// The SAE.
    pub sae: &'a dyn SparseAutoencoder,
}

impl<'a> Judged<'a> {
    /// An SAE that is put where it reads.
    pub fn new(id: impl Into<String>, site: HookPoint, sae: &'a dyn SparseAutoencoder) -> Self {
        Self { id: id.into(), site, site_out: site, sae }
    }

    /// A transcoder, whose output is put elsewhere.
    #[must_use]
    pub fn put_at(self, site_out: HookPoint) -> Self {
        Self { site_out, ..self }
    }
}

/// Where the time of an evaluation went. On CUDA, which works on while the program goes on, a part is charged for what those before
/// it began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timings {
    /// The model's blocks: the clean runs, and all that branch off.
    pub blocks: Duration,
    /// The logits and losses of all of them.
    pub head: Duration,
    /// Encoding and decoding.
    pub saes: Duration,
    /// The other metrics.
    pub metrics: Duration,
}

impl AddAssign for Timings {
    fn add_assign(&mut self, other: Self) {
        self.blocks += other.blocks;
        self.head += other.head;
        self.saes += other.saes;
        self.metrics += other.metrics;
    }
}

/// Several SAEs judged in one pass over the data.
///
/// For each batch the clean run is made once. Every SAE at every site branches off from it, since a run with another activation
/// agrees with the clean one up to there; ablations are made once for each site, and logits are made side by side, slice by
/// slice of the vocabulary. Latents are never dense.
#[derive(Debug)]
pub struct Suite<'a> {
    model: &'a dyn HookedModel,
    judged: Vec<Judged<'a>>,
    means: MeanAt,
    options: EvalOptions,
    sums: Sums,
    timings: Timings,
}

impl<'a> Suite<'a> {
    /// Begins an evaluation. `means` must hold every site at which something is put, over all of the data: [`Means`].
    ///
    /// # Errors
    /// No SAE; two of one name; one that does not fit the sites it reads and is put at; a site that the model does not have, that lies behind
    /// the blocks or has no positions; a mean that is not there.
    pub fn new(
        model: &'a dyn HookedModel,
        judged: Vec<Judged<'a>>,
        means: &Means,
        options: EvalOptions,
    ) -> Result<Self> {
        if judged.is_empty() {
            return Err(EvalError::NoSae);
        }
        for Judged { id, site, site_out, sae } in &judged {
            let id = || id.clone();
            if judged.iter().filter(|other| other.id == id()).count() > 1 {
                return Err(EvalError::Twice(id()));
            }
            let (width, width_out) = (width_of(model, *site)?, width_of(model, *site_out)?);
            if sae.d_in() != width {
                return Err(EvalError::Misfit { id: id(), site: *site, d_in: sae.d_in(), width });
            }
            if sae.d_out() != width_out {
                let (site, d_out) = (*site_out, sae.d_out());
                return Err(EvalError::MisfitOut { id: id(), site, d_out, width: width_out });
            }
            if is_met_before(*site_out, *site) {
                return Err(EvalError::Backwards { id: id(), site: *site, site_out: *site_out });
            }
        }
        let sites: BTreeSet<HookPoint> = judged.iter().map(|judged| judged.site_out).collect();
        let mean = |site: HookPoint| {
            let exact = means.of(site)?;
            let tensor = Tensor::f_from_slice(&exact)?;
            Ok((site, (exact, tensor)))
        };
        let means = sites.into_iter().map(mean).collect::<Result<BTreeMap<_, _>>>()?;
        let sums = empty(&judged, &means, options);
        Ok(Self { model, judged, means, options, sums, timings: Timings::default() })
    }

    /// Adds a batch. The data's subsets are told apart in the report where they are given.
    ///
    /// # Errors
    /// The model's, an SAE's or libtorch's; subsets of another shape; numbers that are not finite; then nothing was added.
    pub fn add(&mut self, tokens: &TokenBatch, subsets: Option<Subsets<'_>>) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let view = BatchView::new(tokens, subsets, self.options)?;
        let nothing = empty(&self.judged, &self.means, self.options);
        let of = (self.model, self.judged.as_slice(), &self.means);
        let (sums, timings) = Pass::new(of, tokens, &view, nothing)?.judge()?;
        self.sums.merge(&sums)?;
        self.timings += timings;
        Ok(())
    }

    /// The sums so far.
    pub fn sums(&self) -> &Sums {
        &self.sums
    }

    /// Goes on from sums that an evaluation of the same SAEs came to.
    ///
    /// # Errors
    /// [`EvalError::Merge`] for sums of others; then nothing is changed.
    pub fn resume(&mut self, sums: &Sums) -> Result<()> {
        let mut fresh = empty(&self.judged, &self.means, self.options);
        fresh.merge(sums)?;
        self.sums = fresh;
        Ok(())
    }

    /// Where the time went.
    pub fn timings(&self) -> Timings {
        self.timings
    }

    /// Ends the evaluation: a report for each SAE, in their order.
    ///
    /// # Errors
    /// [`EvalError::Empty`] where nothing counted.
    pub fn reports(&self) -> Result<Vec<Report>> {
        self.sums.reports()
    }
}

/// Sums of nothing yet.
fn empty(judged: &[Judged<'_>], means: &MeanAt, options: EvalOptions) -> Sums {
    let of = |Judged { id, site, site_out, sae }: &Judged<'_>| SaeSums {
        id: id.clone(),
        about: Provenance {
            hook: *site,
            hook_out: *site_out,
            architecture: sae.architecture().to_owned(),
            d_in: sae.d_in(),
            d_out: sae.d_out(),
            d_sae: sae.d_sae(),
            positions: options.positions.to_string(),
            more: Map::new(),
        },
        spliced: LossSums::default(),
        reconstruction: Reconstruction::about(means.get(site_out).map_or(&[], |(mean, _)| mean)),
        sparsity: Sparsity::new(sae.d_sae()),
        by_position: Vec::new(),
        by_subset: BTreeMap::new(),
        uniformity: Default::default(),
    };
    Sums {
        tokens: 0,
        scored: 0,
        ce_clean: Exact::default(),
        baselines: means.keys().map(|site| (*site, Baselines::default())).collect(),
        saes: judged.iter().map(of).collect(),
    }
}
