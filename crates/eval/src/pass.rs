use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use hooks::{HookPoint, HookedModel, TokenBatch};
use sae_core::{SaeExt as _, SparseFeatures};
use tch::{Kind, Tensor};

use crate::{
    EvalError, Judged, Result, Sums, Timings,
    batch::BatchView,
    head::{Losses, losses},
    means::rows,
    sums::LossSums,
    trunk::Trunk,
    uniformity::{gradients, uniformity},
};

/// Runs whose logits are made side by side, the clean one among them.
const RUNS_AT_A_TIME: usize = 8;

/// The mean activation at each site where something is put: exact, and as a tensor.
pub(crate) type MeanAt = BTreeMap<HookPoint, (Vec<f64>, Tensor)>;

/// One batch on its way: the clean run, what branches off from it, and the sums of all of that.
pub(crate) struct Pass<'p> {
    model: &'p dyn HookedModel,
    judged: &'p [Judged<'p>],
    means: &'p MeanAt,
    tokens: &'p TokenBatch,
    view: &'p BatchView<'p>,
    trunk: Trunk<'p>,
    /// The clean run's last residual stream where losses count: `[n, d_model]`.
    clean: Tensor,
    clean_is_summed: bool,
    /// Those of runs whose logits have not been made yet.
    waiting: Vec<(Run, Tensor)>,
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

impl<'p> Pass<'p> {
    /// Makes the clean run of a batch.
    pub(crate) fn new(
        (model, judged, means): (&'p dyn HookedModel, &'p [Judged<'p>], &'p MeanAt),
        tokens: &'p TokenBatch,
        view: &'p BatchView<'p>,
        mut sums: Sums,
    ) -> Result<Self> {
        let sites: BTreeSet<HookPoint> = judged.iter().flat_map(|of| [of.site, of.site_out]).collect();
        let start = Instant::now();
        let trunk = Trunk::run(model, tokens, &sites)?;
        let clean = view.at_scored(&trunk.last)?;
        let timings = Timings { blocks: start.elapsed(), ..Timings::default() };
        (sums.tokens, sums.scored) = (view.kept.len() as u64, view.scored.len() as u64);
        let (clean_is_summed, waiting) = (false, Vec::new());
        Ok(Self { model, judged, means, tokens, view, trunk, clean, clean_is_summed, waiting, sums, timings })
    }

    /// Everything else: the ablations and SAEs of every site, and the losses of all runs.
    pub(crate) fn judge(mut self) -> Result<(Sums, Timings)> {
        for site in self.means.keys().copied() {
            self.ablate(site)?;
            let mut gradients = None;
            for i in (0..self.judged.len()).filter(|i| self.judged[*i].site_out == site) {
                let spliced =
                    self.splice(i, &mut gradients).map_err(|source| judging(&self.judged[i].id, source))?;
                self.branch(site, &spliced, Run::Sae(i))?;
            }
        }
        self.make_logits()?;
        Ok((self.sums, self.timings))
    }

    /// Zero and the mean in place of a site's activation.
    fn ablate(&mut self, site: HookPoint) -> Result<()> {
        let act = self.trunk.act(site)?.shallow_clone();
        let (_, mean) = self.means.get(&site).ok_or(EvalError::NoMean(site))?;
        let mean = mean.f_to_kind(Kind::Float)?.f_to_device(act.device())?;
        for (run, row) in [(Run::Zero(site), mean.f_zeros_like()?), (Run::Mean(site), mean)] {
            let rows = row.f_unsqueeze(0)?.f_expand([self.view.kept.len() as i64, -1], false)?;
            self.branch(site, &self.view.put(site, &act, &rows)?, run)?;
        }
        Ok(())
    }

    /// How good an SAE is, and the activation with its output in the place of what that stands for. `at_picks` keeps the site's
    /// gradients for the next SAE.
    fn splice(&mut self, i: usize, at_picks: &mut Option<Tensor>) -> Result<Tensor> {
        let Judged { site, site_out, sae, .. } = self.judged[i];
        let start = Instant::now();
        let x = rows(site, self.trunk.act(site)?, &self.view.kept_index)?;
        let features = sae.encode_sparse(&x)?;
        let x_hat = sae.reconstruct_from(&features, &x)?;
        self.timings.saes += start.elapsed();

        let start = Instant::now();
        let act = self.trunk.act(site_out)?.shallow_clone();
        let sums = &mut self.sums.saes[i];
        let each = sums.reconstruction.add_rows(&rows(site_out, &act, &self.view.kept_index)?, &x_hat)?;
        sums.sparsity.add(&features, Some(&self.view.sequences()))?;
        self.view.add_rows(sums, &each, &features)?;
        self.importance(i, &features, at_picks)?;
        self.timings.metrics += start.elapsed();

        self.view.put(site_out, &act, &x_hat)
    }

    /// How evenly the latents matter at the picked positions.
    fn importance(
        &mut self,
        i: usize,
        features: &SparseFeatures,
        at_picks: &mut Option<Tensor>,
    ) -> Result<()> {
        if self.view.picks.is_empty() {
            return Ok(());
        }
        let Judged { site_out, sae, .. } = self.judged[i];
        let gradients = match at_picks {
            Some(gradients) => gradients,
            None => {
                at_picks.insert(gradients(self.model, &self.trunk, self.tokens, site_out, &self.view.picks)?)
            }
        };
        self.sums.saes[i].uniformity = uniformity(sae, features, &self.view.picks, gradients)?;
        Ok(())
    }

    /// Runs the model on from a site with another activation there. Logits are made as soon as enough runs wait for theirs.
    fn branch(&mut self, site: HookPoint, act: &Tensor, run: Run) -> Result<()> {
        if self.view.scored.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let last = self.trunk.branch(site, act)?;
        self.waiting.push((run, self.view.at_scored(&last)?));
        self.timings.blocks += start.elapsed();
        if self.waiting.len() + 1 < RUNS_AT_A_TIME { Ok(()) } else { self.make_logits() }
    }

    /// Makes the logits of the runs that wait, side by side with the clean run's, and adds up their losses.
    fn make_logits(&mut self) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let start = Instant::now();
        let waiting = std::mem::take(&mut self.waiting);
        let streams: Vec<&Tensor> =
            std::iter::once(&self.clean).chain(waiting.iter().map(|(_, t)| t)).collect();
        let found = losses(self.model, &streams, &self.view.next)?;
        self.timings.head += start.elapsed();
        let Some((clean, others)) = found.split_first() else { return Ok(()) };
        if !self.clean_is_summed {
            self.clean_is_summed = true;
            expect_finite(clean, "the loss of the clean run")?;
            self.sums.ce_clean.add(clean.ce.iter().sum());
        }
        for ((run, _), losses) in waiting.iter().zip(others) {
            match *run {
                Run::Zero(site) => {
                    expect_finite(losses, "the loss of a zero-ablated run")?;
                    add(losses, &mut self.sums.baselines.entry(site).or_default().zero);
                }
                Run::Mean(site) => {
                    expect_finite(losses, "the loss of a mean-ablated run")?;
                    add(losses, &mut self.sums.baselines.entry(site).or_default().mean);
                }
                Run::Sae(i) => {
                    let finite = expect_finite(losses, "the loss of the spliced run");
                    finite.map_err(|source| judging(&self.judged[i].id, source))?;
                    add(losses, &mut self.sums.saes[i].spliced);
                    self.view.add_losses(&mut self.sums.saes[i], clean, losses);
                }
            }
        }
        Ok(())
    }
}

/// An error with the SAE that it came from.
fn judging(id: &str, source: EvalError) -> EvalError {
    EvalError::Judging { id: id.to_owned(), source: Box::new(source) }
}

fn add(losses: &Losses, to: &mut LossSums) {
    to.ce.add(losses.ce.iter().sum());
    to.kl.add(losses.kl.iter().sum());
}

fn expect_finite(losses: &Losses, what: &'static str) -> Result<()> {
    let finite = losses.ce.iter().chain(&losses.kl).all(|loss| loss.is_finite());
    if finite { Ok(()) } else { Err(EvalError::NotFinite(what)) }
}
