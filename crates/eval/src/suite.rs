use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use hooks::{HookPoint, HookedModel, Positions, TokenBatch};
use sae_core::{SaeExt as _, SparseAutoencoder, SparseFeatures};
use serde_json::Map;
use tch::{Kind, Tensor};

use crate::{
    EvalError, Exact, Means, Provenance, Reconstruction, Report, Result, Sparsity, Subsets, Sums,
    batch::BatchView,
    head::{Losses, losses},
    means::rows,
    sums::{Baselines, LossSums, SaeSums},
    trunk::{Trunk, is_met_before, width_of},
    uniformity::{gradients, uniformity},
};

/// Runs whose logits are made side by side, the clean one among them.
const RUNS_AT_A_TIME: usize = 8;

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

/// Where the time of an evaluation went.
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

/// Several SAEs judged in one pass over the data.
///
/// For each batch the clean run is made once. Every SAE at every site branches off from it, since a run with another activation
/// agrees with the clean one up to there; ablations are made once for each site, and logits are made side by side, slice by
/// slice of the vocabulary. Latents are never dense.
#[derive(Debug)]
pub struct Suite<'a> {
    model: &'a dyn HookedModel,
    judged: Vec<Judged<'a>>,
    /// The mean activation at each site where something is put: exact, and as a tensor.
    means: BTreeMap<HookPoint, (Vec<f64>, Tensor)>,
    options: EvalOptions,
    sums: Sums,
    timings: Timings,
}

/// What is put in an activation's place in one of the runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Run {
    Zero(HookPoint),
    Mean(HookPoint),
    Sae(usize),
}

impl<'a> Suite<'a> {
    /// Begins an evaluation. `means` must hold every site at which something is put, over all of the data: [`Means`].
    ///
    /// # Errors
    /// No SAE; one that does not fit the sites it reads and is put at; a site that the model does not have, that lies behind
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
        let sums = self.judge(tokens, subsets)?;
        self.sums.merge(&sums)
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

    /// The sums of one batch.
    fn judge(&mut self, tokens: &TokenBatch, subsets: Option<Subsets<'_>>) -> Result<Sums> {
        let view = BatchView::new(tokens, subsets, self.options)?;
        let sites: BTreeSet<HookPoint> =
            self.judged.iter().flat_map(|judged| [judged.site, judged.site_out]).collect();
        let start = Instant::now();
        let trunk = Trunk::run(self.model, tokens, &sites)?;
        self.timings.blocks += start.elapsed();
        let mut sums = empty(&self.judged, &self.means, self.options);
        (sums.tokens, sums.scored) = (view.kept.len() as u64, view.scored.len() as u64);
        let mut runs = Runs::new(&view, &trunk.last)?;
        for site in self.means.keys().copied().collect::<Vec<_>>() {
            let act = trunk.act(site)?.shallow_clone();
            let mean = self.means[&site].1.f_to_kind(Kind::Float)?.f_to_device(act.device())?;
            let zeros = mean.f_zeros_like()?;
            for (run, row) in [(Run::Zero(site), &zeros), (Run::Mean(site), &mean)] {
                let rows = row.f_unsqueeze(0)?.f_expand([view.kept.len() as i64, -1], false)?;
                self.branch(&trunk, site, &view.put(site, &act, &rows)?, run, &mut runs)?;
                self.make_logits(&mut runs, &mut sums, RUNS_AT_A_TIME)?;
            }
            let mut gradient = None;
            for i in 0..self.judged.len() {
                if self.judged[i].site_out != site {
                    continue;
                }
                let id = self.judged[i].id.clone();
                let judging =
                    |source: EvalError| EvalError::Judging { id: id.clone(), source: Box::new(source) };
                let (features, x_hat) = self.reconstruct(&trunk, &view, i).map_err(judging)?;
                let start = Instant::now();
                let sae = &mut sums.saes[i];
                let target = rows(site, &act, &view.kept_index)?;
                let each = sae.reconstruction.add_rows(&target, &x_hat).map_err(judging)?;
                sae.sparsity.add(&features, Some(&view.sequences())).map_err(judging)?;
                view.add_rows(sae, &each, &features)?;
                self.timings.metrics += start.elapsed();
                if self.options.uniformity > 0 && !view.picks.is_empty() {
                    let start = Instant::now();
                    let gradient = match &gradient {
                        Some(gradient) => gradient,
                        None => gradient.insert(gradients(self.model, &trunk, tokens, site, &view.picks)?),
                    };
                    sae.uniformity =
                        uniformity(self.judged[i].sae, &features, &view.picks, gradient).map_err(judging)?;
                    self.timings.metrics += start.elapsed();
                }
                let spliced = view.put(site, &act, &x_hat)?;
                self.branch(&trunk, site, &spliced, Run::Sae(i), &mut runs)?;
                self.make_logits(&mut runs, &mut sums, RUNS_AT_A_TIME)?;
            }
        }
        self.make_logits(&mut runs, &mut sums, 0)?;
        Ok(sums)
    }

    /// The latents at the positions that count, and what they are decoded to.
    fn reconstruct(
        &mut self,
        trunk: &Trunk<'_>,
        view: &BatchView<'_>,
        i: usize,
    ) -> Result<(SparseFeatures, Tensor)> {
        let start = Instant::now();
        let Judged { site, sae, .. } = &self.judged[i];
        let x = rows(*site, trunk.act(*site)?, &view.kept_index)?;
        let features = sae.encode_sparse(&x)?;
        let x_hat = sae.reconstruct_from(&features, &x)?;
        self.timings.saes += start.elapsed();
        Ok((features, x_hat))
    }

    /// Runs the model on from a site with another activation there.
    fn branch(
        &mut self,
        trunk: &Trunk<'_>,
        site: HookPoint,
        act: &Tensor,
        run: Run,
        runs: &mut Runs<'_>,
    ) -> Result<()> {
        if runs.view.scored.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let last = trunk.branch(site, act)?;
        runs.waiting.push((run, runs.view.at_scored(&last)?));
        self.timings.blocks += start.elapsed();
        Ok(())
    }

    /// Makes the logits of the runs that wait, if there are enough of them to fill `at_a_time`, and adds up their losses.
    fn make_logits(&mut self, runs: &mut Runs<'_>, sums: &mut Sums, at_a_time: usize) -> Result<()> {
        if runs.waiting.is_empty() || runs.waiting.len() + 1 < at_a_time {
            return Ok(());
        }
        let start = Instant::now();
        let waiting = std::mem::take(&mut runs.waiting);
        let streams: Vec<&Tensor> =
            std::iter::once(&runs.clean).chain(waiting.iter().map(|(_, t)| t)).collect();
        let found = losses(self.model, &streams, &runs.view.next)?;
        self.timings.head += start.elapsed();
        let Some((clean, others)) = found.split_first() else { return Ok(()) };
        if !runs.clean_is_summed {
            runs.clean_is_summed = true;
            expect_finite(clean, "the loss of the clean run")?;
            sums.ce_clean.add(clean.ce.iter().sum());
        }
        for ((run, _), losses) in waiting.iter().zip(others) {
            let add = |to: &mut LossSums| {
                to.ce.add(losses.ce.iter().sum());
                to.kl.add(losses.kl.iter().sum());
            };
            match run {
                Run::Zero(site) => {
                    expect_finite(losses, "the loss of a zero-ablated run")?;
                    add(&mut sums.baselines.entry(*site).or_default().zero);
                }
                Run::Mean(site) => {
                    expect_finite(losses, "the loss of a mean-ablated run")?;
                    add(&mut sums.baselines.entry(*site).or_default().mean);
                }
                Run::Sae(i) => {
                    let id = self.judged[*i].id.clone();
                    expect_finite(losses, "the loss of the spliced run")
                        .map_err(|source| EvalError::Judging { id, source: Box::new(source) })?;
                    add(&mut sums.saes[*i].spliced);
                    runs.view.add_losses(&mut sums.saes[*i], clean, losses);
                }
            }
        }
        Ok(())
    }
}

/// Runs of a batch whose logits have not been made yet.
struct Runs<'v> {
    view: &'v BatchView<'v>,
    /// The clean run's last residual stream where losses count: `[n, d_model]`.
    clean: Tensor,
    clean_is_summed: bool,
    /// The others'.
    waiting: Vec<(Run, Tensor)>,
}

impl<'v> Runs<'v> {
    fn new(view: &'v BatchView<'v>, last: &Tensor) -> Result<Self> {
        Ok(Self { view, clean: view.at_scored(last)?, clean_is_summed: false, waiting: Vec::new() })
    }
}

fn expect_finite(losses: &Losses, what: &'static str) -> Result<()> {
    let finite = losses.ce.iter().chain(&losses.kl).all(|loss| loss.is_finite());
    if finite { Ok(()) } else { Err(EvalError::NotFinite(what)) }
}

/// Sums of nothing yet.
fn empty(
    judged: &[Judged<'_>],
    means: &BTreeMap<HookPoint, (Vec<f64>, Tensor)>,
    options: EvalOptions,
) -> Sums {
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
