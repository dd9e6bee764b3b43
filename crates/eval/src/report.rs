use std::{collections::BTreeMap, fmt, ops::Index};

use hooks::HookPoint;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    EvalError, METRICS, Result, Sums,
    metric::definitions,
    reconstruction::mean,
    sums::{Part, SaeSums},
};

/// What an evaluation found about one SAE: values with their definitions, and where they come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The SAE.
    pub id: String,
    /// Positions that counted.
    pub tokens: u64,
    /// Losses that counted: positions whose next counted as well.
    pub scored: u64,
    /// Values by name.
    pub metrics: Metrics,
    /// Definition, unit and source of each metric by name.
    pub definitions: BTreeMap<String, String>,
    /// How many positions had how many active latents.
    pub l0_histogram: L0Histogram,
    /// How many latents are how often active.
    pub density_histogram: DensityHistogram,
    /// Quality by position in the sequence (Gemma Scope, appendix D.2): the first entry is the first position, BOS as a rule.
    pub by_position: Vec<Quality>,
    /// Quality by subset of the data (Gemma Scope, appendix D.3), where the texts name some.
    pub by_subset: BTreeMap<String, Quality>,
    /// Numbers for each latent.
    pub latents: Latents,
    /// What was evaluated, on what, and how.
    pub provenance: Provenance,
}

/// Values by name. A metric that is not defined on the data (a variance of zero), or was not asked for, is absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// The scalars.
    #[serde(flatten)]
    pub values: BTreeMap<String, f64>,
    /// Share of positions that count which activate each latent.
    pub frequency: Vec<f64>,
    /// Positions that counted.
    pub tokens: u64,
}

impl Metrics {
    /// A scalar by name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.get(name).copied()
    }
}

impl Index<&str> for Metrics {
    type Output = f64;

    /// A scalar that is known to be there; panics where it is not. [`get`](Metrics::get) does not.
    fn index(&self, name: &str) -> &f64 {
        &self.values[name]
    }
}

/// How many positions had how many active latents: entry i of both lists belongs together, numbers of latents ascend, and
/// numbers that no position had are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct L0Histogram {
    /// Active latents.
    pub l0: Vec<u64>,
    /// Positions that had as many.
    pub tokens: Vec<u64>,
}

/// Latents by the logarithm of their frequency, as Gemma Scope's frequency histograms show them: bin i holds
/// those with `edges[i] ≤ log10(frequency) < edges[i + 1]`, the last one its upper edge as well.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct DensityHistogram {
    /// Edges of the bins, one more than bins, ascending from the lowest frequency that the data can show.
    pub log10_edges: Vec<f64>,
    /// Latents in each bin.
    pub latents: Vec<u64>,
    /// Latents that were never active, which no bin holds.
    pub dead: u64,
}

/// Quality on a part of the data: at one position of every sequence, or in one subset. What is not defined there is absent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Quality {
    /// Positions that counted.
    pub tokens: u64,
    /// Losses that counted.
    pub scored: u64,
    /// As the metric of this name.
    pub ce_clean: Option<f64>,
    /// As the metric of this name.
    pub ce_spliced: Option<f64>,
    /// As the metric of this name.
    pub delta_loss: Option<f64>,
    /// As the metric of this name.
    pub kl: Option<f64>,
    /// As the metric of this name.
    pub mse: Option<f64>,
    /// `Σ |x − x̂|² / Σ |x − mean(x)|²` of this part, with the mean over all of the data.
    pub fvu: Option<f64>,
    /// As the metric of this name.
    pub l0: Option<f64>,
}

/// Numbers for each latent, in the order of the latents.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Latents {
    /// Positions that activate it per sequence in which any does; absent where none does.
    pub consistent_activation_heuristic: Vec<Option<f64>>,
    /// Metrics of the weights by name: `encoder_norm`, `decoder_norm`, `encoder_decoder_cosine`, `encoder_bias`,
    /// `max_encoder_cosine`, `max_decoder_cosine`, as far as they were asked for and the SAE has them.
    #[serde(flatten)]
    pub weights: BTreeMap<String, Vec<f64>>,
}

/// What was evaluated, on what, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The site that the SAE reads.
    pub hook: HookPoint,
    /// The site at which its output was put: another one for transcoders alone.
    pub hook_out: HookPoint,
    /// The architecture, as SAELens writes it.
    pub architecture: String,
    /// Width of the input.
    pub d_in: i64,
    /// Width of the output.
    pub d_out: i64,
    /// Number of latents.
    pub d_sae: i64,
    /// The positions that counted: `counted`, `all` or `i:j`.
    pub positions: String,
    /// What the caller adds: the model, its dtype, the texts.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} at {}, {} tokens", self.id, self.provenance.hook, self.tokens)?;
        for metric in METRICS {
            if let Some(value) = self.metrics.get(metric.name) {
                let shown = if value.abs() < 1e6 { format!("{value:.5}") } else { format!("{value:.5e}") };
                writeln!(f, "  {:<32} {shown:>12}  {}", metric.name, metric.unit)?;
            }
        }
        Ok(())
    }
}

/// What the sums say of one of their SAEs.
pub(crate) fn report(sums: &Sums, sae: &SaeSums) -> Result<Report> {
    let mut values = BTreeMap::new();
    let mut say = |name: &str, value: Option<f64>| {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            values.insert(name.to_owned(), value);
        }
    };
    let loss = |sum| mean(sum, sums.scored).ok_or(EvalError::Empty);
    let (ce_clean, ce_spliced, kl) = (loss(&sums.ce_clean)?, loss(&sae.spliced.ce)?, loss(&sae.spliced.kl)?);
    say("ce_clean", Some(ce_clean));
    say("ce_spliced", Some(ce_spliced));
    say("delta_loss", Some(ce_spliced - ce_clean));
    say("kl", Some(kl));
    if let Some(baselines) = sums.baselines.get(&sae.about.hook_out) {
        for (name, of) in [("zero", &baselines.zero), ("mean", &baselines.mean)] {
            let (ce, kl_of) = (loss(&of.ce)?, loss(&of.kl)?);
            say(&format!("ce_{name}"), Some(ce));
            say(&format!("loss_recovered_{name}"), Some((ce - ce_spliced) / (ce - ce_clean)));
            say(&format!("kl_{name}"), Some(kl_of));
            say(&format!("kl_score_{name}"), Some((kl_of - kl) / kl_of));
        }
    }
    let sparsity = &sae.sparsity;
    say("l0", sparsity.l0());
    say("l0_std", sparsity.l0_std());
    say("l0_median", sparsity.l0_quantile(0.5).map(|l0| l0 as f64));
    say("l0_max", sparsity.l0_quantile(1.0).map(|l0| l0 as f64));
    say("l1", sparsity.l1());
    say("dead_fraction", sparsity.dead_fraction());
    for (percent, limit) in [("1", 0.01), ("10", 0.1)] {
        let above = sparsity.above(limit);
        say(&format!("frac_over_{percent}_percent"), above.map(|(share, _)| share));
        say(&format!("mass_over_{percent}_percent"), above.and_then(|(_, mass)| mass));
    }
    say("consistent_activation_heuristic", sparsity.mean_consistent_activation());
    let reconstruction = &sae.reconstruction;
    say("fvu", reconstruction.fvu());
    say("explained_variance", reconstruction.fvu().map(|fvu| 1.0 - fvu));
    say("explained_variance_legacy", reconstruction.explained_variance_legacy());
    say("frac_variance_explained", reconstruction.frac_variance_explained());
    say("mse", reconstruction.mse());
    say("normalized_mse", reconstruction.normalized_mse());
    say("l2_loss", reconstruction.l2_loss());
    say("cosine", reconstruction.cosine());
    say("l2_ratio", reconstruction.l2_ratio());
    say("l2_norm_in", reconstruction.l2_norm_in());
    say("l2_norm_out", reconstruction.l2_norm_out());
    say("relative_reconstruction_bias", reconstruction.relative_reconstruction_bias());
    say("uniformity", mean(&sae.uniformity.1, sae.uniformity.0));
    let frequency = sparsity.frequency().ok_or(EvalError::Empty)?;
    Ok(Report {
        id: sae.id.clone(),
        tokens: sums.tokens,
        scored: sums.scored,
        metrics: Metrics { values, frequency, tokens: sums.tokens },
        definitions: definitions(),
        l0_histogram: sparsity.l0_histogram(),
        density_histogram: sparsity.density_histogram(),
        by_position: sae.by_position.iter().map(Part::quality).collect(),
        by_subset: sae.by_subset.iter().map(|(name, part)| (name.clone(), part.quality())).collect(),
        latents: Latents {
            consistent_activation_heuristic: sparsity.consistent_activation(),
            weights: BTreeMap::new(),
        },
        provenance: sae.about.clone(),
    })
}

impl Report {
    /// Adds what the weights alone tell: [`weight_metrics`](crate::weight_metrics) of the same SAE, each latent's and the
    /// mean over latents.
    #[must_use]
    pub fn with_weights(mut self, weights: BTreeMap<String, Vec<f64>>) -> Self {
        for (name, values) in &weights {
            if !values.is_empty() {
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                self.metrics.values.insert(name.clone(), mean);
            }
        }
        self.latents.weights = weights;
        self
    }
}
