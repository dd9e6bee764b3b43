use std::{collections::BTreeMap, fmt};

use hooks::HookPoint;
use serde::Serialize;

use crate::{EvalError, Fvu, Result, Sparsity};

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name in JSON.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What it measures, exactly.
    pub definition: &'static str,
}

/// The metrics of a [`Report`], in the order in which it shows them. Definitions are those of Gemma Scope, section 4, and
/// loss recovered that of Gated SAEs (arXiv 2404.16014), with zero ablation.
pub const METRICS: [Metric; 9] = [
    Metric {
        name: "ce_clean",
        unit: "nats per token",
        definition: "mean cross-entropy of the next token, over positions that count and whose next counts",
    },
    Metric {
        name: "ce_spliced",
        unit: "nats per token",
        definition: "the same with the SAE's reconstruction in place of the activation at the positions that count",
    },
    Metric {
        name: "ce_zero",
        unit: "nats per token",
        definition: "the same with zero in place of the activation at the positions that count",
    },
    Metric { name: "delta_loss", unit: "nats per token", definition: "ce_spliced - ce_clean" },
    Metric {
        name: "loss_recovered_zero",
        unit: "fraction",
        definition: "(ce_zero - ce_spliced) / (ce_zero - ce_clean)",
    },
    Metric {
        name: "l0",
        unit: "latents per token",
        definition: "mean number of active latents, over positions that count",
    },
    Metric {
        name: "fvu",
        unit: "fraction",
        definition: "sum |x - x_hat|^2 / sum |x - mean(x)|^2, over positions that count, pooled over all of them",
    },
    Metric { name: "explained_variance", unit: "fraction", definition: "1 - fvu" },
    Metric {
        name: "dead_fraction",
        unit: "fraction",
        definition: "share of latents that no position that counts activates",
    },
];

/// What an evaluation found: values with their definitions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Where the SAE was spliced in.
    pub hook: HookPoint,
    /// Positions that counted.
    pub tokens: i64,
    /// Values by name; a metric that is not defined on the data (a variance of zero) is absent.
    pub metrics: BTreeMap<&'static str, f64>,
    /// Definitions by name.
    pub definitions: BTreeMap<&'static str, String>,
    /// Share of positions that activate each latent.
    pub frequency: Vec<f64>,
}

impl Report {
    pub(crate) fn new(
        hook: HookPoint,
        tokens: i64,
        ce_clean: f64,
        ce_spliced: f64,
        ce_zero: f64,
        fvu: &Fvu,
        sparsity: &Sparsity,
    ) -> Result<Self> {
        let mut metrics = BTreeMap::from([
            ("ce_clean", ce_clean),
            ("ce_spliced", ce_spliced),
            ("ce_zero", ce_zero),
            ("delta_loss", ce_spliced - ce_clean),
        ]);
        if ce_zero != ce_clean {
            metrics.insert("loss_recovered_zero", (ce_zero - ce_spliced) / (ce_zero - ce_clean));
        }
        if let Some(fvu) = fvu.value() {
            metrics.extend([("fvu", fvu), ("explained_variance", 1.0 - fvu)]);
        }
        metrics.insert("l0", sparsity.l0()?.ok_or(EvalError::Empty)?);
        metrics.insert("dead_fraction", sparsity.dead_fraction()?.ok_or(EvalError::Empty)?);
        let definitions =
            METRICS.iter().map(|m| (m.name, format!("{} ({})", m.definition, m.unit))).collect();
        let frequency = sparsity.frequency()?.ok_or(EvalError::Empty)?;
        Ok(Self { hook, tokens, metrics, definitions, frequency })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} over {} tokens", self.hook, self.tokens)?;
        for metric in METRICS {
            match self.metrics.get(metric.name) {
                Some(value) => writeln!(f, "{:<20} {value:>10.5} {}", metric.name, metric.unit)?,
                None => writeln!(f, "{:<20} {:>10} on these data", metric.name, "undefined")?,
            }
        }
        Ok(())
    }
}
