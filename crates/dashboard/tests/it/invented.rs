//! Reports that look like those of a real suite, all of it made up.

use std::collections::BTreeMap;

use eval::{DensityHistogram, L0Histogram, Latents, METRICS, Metrics, Provenance, Quality, Report};
use hooks::HookPoint;
use serde_json::{Value, json};

/// What is made up about an SAE.
pub(crate) struct Invented<'a> {
    pub(crate) id: &'a str,
    pub(crate) site: &'a str,
    pub(crate) d_sae: i64,
    pub(crate) l0: f64,
    pub(crate) positions: usize,
    pub(crate) subsets: &'a [&'a str],
    pub(crate) seed: u64,
}

impl Invented<'_> {
    /// The report. Sparser is worse, later is worse, wider is better; position 0 does not count.
    pub(crate) fn report(&self) -> Report {
        let mut n = 1000.0 * self.seed as f64;
        // Between 1 - size and 1 + size, and different each time.
        let mut noise = |size: f64| {
            n += 1.0;
            1.0 + size * (((12.9898 * n).sin() * 43_758.545).fract())
        };
        let hook: HookPoint = self.site.parse().unwrap();
        let layer = hook.layer().map_or(0.0, |layer| layer.0 as f64);
        let hard = (0.6 + layer / 14.0) * (16384.0 / self.d_sae as f64).powf(0.12);
        let (fvu, delta) = (
            (0.9 * hard.powf(0.4) / self.l0.powf(0.32) * noise(0.05)).min(1.0),
            1.4 * hard / self.l0.powf(0.6) * noise(0.1),
        );
        let quality = |factor: f64| Quality {
            tokens: 1000,
            scored: 990,
            ce_clean: Some(2.6),
            ce_spliced: Some(2.6 + delta * factor),
            delta_loss: Some(delta * factor),
            kl: Some(delta * factor),
            mse: Some(fvu * factor * 300.0),
            fvu: Some(fvu * factor),
            l0: Some(self.l0 * (0.8 + 0.2 * factor)),
        };
        let mut at = |i: usize| match i {
            0 => Quality::default(),
            _ => quality((1.0 - 0.6 * (-(i as f64) / 60.0).exp()) * noise(0.15)),
        };
        let by_position = (0..self.positions).map(&mut at).collect();
        let subset = |(i, name): (usize, &&str)| ((*name).to_owned(), quality(0.7 + 0.15 * i as f64));
        let tokens = 100_000;
        Report {
            id: self.id.to_owned(),
            tokens,
            scored: tokens - 100,
            metrics: self.metrics(fvu, delta, tokens),
            definitions: METRICS.iter().map(|metric| (metric.name.to_owned(), metric.describe())).collect(),
            l0_histogram: self.l0_histogram(),
            density_histogram: self.density_histogram(layer),
            by_position,
            by_subset: self.subsets.iter().enumerate().map(subset).collect(),
            latents: Latents {
                consistent_activation_heuristic: vec![Some(1.5), None],
                weights: BTreeMap::from([("decoder_norm".to_owned(), vec![1.0, 1.0])]),
            },
            provenance: Provenance {
                hook,
                hook_out: hook,
                architecture: "jumprelu".to_owned(),
                d_in: 2304,
                d_out: 2304,
                d_sae: self.d_sae,
                positions: "counted".to_owned(),
                more: more(),
            },
        }
    }

    fn metrics(&self, fvu: f64, delta: f64, tokens: u64) -> Metrics {
        let values = [
            ("ce_clean", 2.6),
            ("ce_spliced", 2.6 + delta),
            ("ce_zero", 9.8),
            ("delta_loss", delta),
            ("loss_recovered_zero", 1.0 - delta / 7.2),
            ("kl", delta),
            ("l0", self.l0),
            ("fvu", fvu),
            ("explained_variance", 1.0 - fvu),
            ("cosine", (1.0 - fvu).sqrt()),
            ("l2_ratio", 0.97),
            ("dead_fraction", 0.002),
            ("frac_over_10_percent", 0.0012),
        ];
        Metrics {
            values: values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            frequency: vec![0.123_456_789, 0.0],
            tokens,
        }
    }

    fn l0_histogram(&self) -> L0Histogram {
        let bell = |n: u64| (1000.0 * (-8.0 * (n as f64 / self.l0).ln().powi(2)).exp()) as u64;
        let (l0, tokens) = (1..4 * self.l0 as u64 + 4).map(|n| (n, bell(n))).filter(|(_, n)| *n > 0).unzip();
        L0Histogram { l0, tokens }
    }

    fn density_histogram(&self, layer: f64) -> DensityHistogram {
        let log10_edges: Vec<f64> = (0..=50).rev().map(|i| -f64::from(i) / 10.0).collect();
        let middle = -3.2 - layer / 40.0 + 0.6 * (self.l0 / 100.0).log10();
        let bell = |x: &f64| (0.1 * self.d_sae as f64 * (-(x - middle).powi(2)).exp()) as u64;
        let latents = log10_edges.iter().take(50).map(bell).collect();
        DensityHistogram { log10_edges, latents, dead: self.d_sae as u64 / 500 }
    }
}

fn more() -> serde_json::Map<String, Value> {
    let all = json!({
        "model": "google/gemma-2-2b", "dtype": "f32", "device": "cpu", "ctx": 1024, "rows": "packed", "chat": false, "batch": 8,
        "files": ["heldout.jsonl"], "sae_dtype": "f32", "version": "0.1.0",
        "text": {
            "sha256": "1c9e", "documents": 120, "skipped": 0, "sequences": 100, "tokens": 100_100, "counted": 100_000,
        },
    });
    all.as_object().unwrap().clone()
}

/// Three kinds of sites, five layers, two widths, two or three sparsities each.
pub(crate) fn suite() -> Vec<Report> {
    let mut reports = Vec::new();
    for (short, hook) in [("res", "hook_resid_post"), ("mlp", "hook_mlp_out"), ("att", "attn.hook_z")] {
        for layer in [2, 7, 12, 17, 22] {
            for (width, d_sae) in [("16k", 16384), ("65k", 65536)] {
                for l0 in [21.0, 63.0, 141.0] {
                    if d_sae == 65536 && (short != "res" || l0 == 63.0) {
                        continue;
                    }
                    let seed = reports.len() as u64;
                    let l0 = l0 + (seed * 7 % 11) as f64;
                    reports.push(
                        Invented {
                            id: &format!(
                                "gemma-scope-2b-pt-{short}/layer_{layer}/width_{width}/average_l0_{l0}"
                            ),
                            site: &format!("blocks.{layer}.{hook}"),
                            d_sae,
                            l0,
                            positions: 1024,
                            subsets: &[
                                "ArXiv",
                                "GitHub",
                                "PubMed Abstracts",
                                "StackExchange",
                                "Wikipedia (en)",
                            ],
                            seed,
                        }
                        .report(),
                    );
                }
            }
        }
    }
    reports
}
