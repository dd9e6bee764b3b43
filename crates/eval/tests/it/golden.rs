//! `fixtures/eval`: what Transformers and PyTorch find for the same SAEs on the same tokens (see `eval_golden.py` and
//! `eval_more_golden.py`).

use std::{collections::BTreeMap, fs};

use eval::{EvalOptions, Judged, METRICS, Metric, Quality, Report, weight_metrics};
use hooks::HookPoint;
use sae_core::{OpenOptions, Sae, open};
use serde_json::{Map, Value};
use testkit::fixture;

use crate::common::{FLOAT64, LOSS, METRIC, assert_metrics, assert_within, cut, gemma, judge, tokens};

/// 12 · 20 but 12 + 1 times BOS, one EOS and 5 times PAD.
pub(crate) const KEPT: u64 = 240 - 13 - 1 - 5;
/// Every position, so that what is taken of each sequence is all of it.
const ALL: usize = 20;

/// An SAE of the fixtures, and what it must score.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) site: HookPoint,
    pub(crate) site_out: HookPoint,
    pub(crate) sae: Sae,
    /// By name, of both files.
    metrics: BTreeMap<String, f64>,
    frequency: Vec<f64>,
    /// What `more.json` says.
    more: Value,
}

impl Case {
    pub(crate) fn judged(&self) -> Judged<'_> {
        Judged::new(&self.name, self.site, &self.sae).put_at(self.site_out)
    }
}

fn read(name: &str) -> Map<String, Value> {
    serde_json::from_str(&fs::read_to_string(fixture(name)).unwrap()).unwrap()
}

/// Three SAEs, and a transcoder.
pub(crate) fn all_cases() -> Vec<Case> {
    let (expected, more) = (read("eval/expected.json"), read("eval/more.json"));
    let cases = more.into_iter().map(|(name, more)| {
        let first = expected.get(&name).cloned().unwrap_or_else(|| Value::Object(Map::new()));
        let known = first.as_object().unwrap().iter().chain(more["metrics"].as_object().unwrap());
        let values = known.filter(|(name, _)| Metric::named(name).is_some());
        let frequency = first.get("frequency").unwrap_or(&more["latents"]["frequency"]).clone();
        let hook = |key: &str| more[key].as_str().unwrap().parse().unwrap();
        Case {
            site: hook("hook_in"),
            site_out: hook("hook_out"),
            sae: open(&fixture(&format!("eval/{name}/params.npz")), &OpenOptions::default()).unwrap().sae,
            metrics: values.map(|(name, value)| (name.clone(), value.as_f64().unwrap())).collect(),
            frequency: serde_json::from_value(frequency).unwrap(),
            name,
            more,
        }
    });
    let cases: Vec<Case> = cases.collect();
    assert_eq!(cases.len(), 4);
    assert!(expected.keys().all(|name| cases.iter().any(|case| case.name == *name)));
    cases
}

/// Without the transcoder.
pub(crate) fn golden_cases() -> Vec<Case> {
    all_cases().into_iter().filter(|case| case.site == case.site_out).collect()
}

#[track_caller]
fn assert_golden(what: &str, case: &Case, got: Report) {
    let what = format!("{}, {what}", case.name);
    assert_eq!((got.provenance.hook, got.provenance.hook_out), (case.site, case.site_out), "{what}");
    assert_eq!(got.id, case.name);
    assert_eq!((got.tokens, got.scored), (KEPT, case.more["scored"].as_u64().unwrap()), "{what}");
    let got = got.with_weights(weight_metrics(&case.sae, true).unwrap());

    // The means of the weights' metrics are what is here of each latent.
    let latents = case.more["latents"].as_object().unwrap();
    let mut want = case.metrics.clone();
    for (name, values) in latents.iter().filter(|(name, _)| *name != "frequency") {
        let values: Vec<Option<f64>> = serde_json::from_value(values.clone()).unwrap();
        let ours = match name.as_str() {
            "consistent_activation_heuristic" => got.latents.consistent_activation_heuristic.clone(),
            _ => got.latents.weights[name].iter().copied().map(Some).collect(),
        };
        assert_eq!(ours.len(), values.len(), "{what}: {name}");
        for (j, (ours, value)) in ours.iter().zip(&values).enumerate() {
            assert_eq!(ours.is_some(), value.is_some(), "{what}: {name} of latent {j}");
            let (ours, value) = (ours.unwrap_or(0.0), value.unwrap_or(0.0));
            assert_within(
                &what,
                &format!("{name} of latent {j}"),
                ours,
                value,
                METRIC * value.abs().max(0.1),
            );
        }
        if name != "consistent_activation_heuristic" {
            want.insert(name.clone(), values.iter().flatten().sum::<f64>() / values.len() as f64);
        }
    }
    assert_eq!(want.len(), METRICS.len() - 2, "{what}: a metric without a reference");
    // No reference has these two; the histogram that they follow from is compared below.
    let mut ours = got.metrics.values.clone();
    let (median, max) = (ours.remove("l0_median").unwrap(), ours.remove("l0_max").unwrap());
    assert_metrics(&what, &ours, &want, METRIC);

    // As counts, since a reader of JSON may miss the last bit of a fraction.
    let counts = case.frequency.iter().map(|f| (f * KEPT as f64).round());
    let exact: Vec<f64> = counts.map(|count| count / KEPT as f64).collect();
    assert!(exact.iter().zip(&case.frequency).all(|(a, b)| (a - b).abs() <= FLOAT64), "{what}: no counts");
    assert_eq!(got.metrics.frequency, exact, "{what}: frequency");

    let histogram: Vec<(u64, u64)> = serde_json::from_value(case.more["l0_histogram"].clone()).unwrap();
    let ours: Vec<_> =
        got.l0_histogram.l0.iter().copied().zip(got.l0_histogram.tokens.iter().copied()).collect();
    assert_eq!(ours, histogram, "{what}");
    let every: Vec<u64> =
        histogram.iter().flat_map(|(l0, n)| std::iter::repeat_n(*l0, usize::try_from(*n).unwrap())).collect();
    assert_eq!(every.len() as u64, KEPT);
    assert_eq!((median, max), (every[(every.len() - 1) / 2] as f64, *every.last().unwrap() as f64), "{what}");

    let positions = case.more["by_position"].as_array().unwrap();
    assert_eq!(got.by_position.len(), positions.len(), "{what}");
    for (p, (ours, want)) in got.by_position.iter().zip(positions).enumerate() {
        assert_position(&format!("{what}, position {p}"), ours, want);
    }
}

#[track_caller]
fn assert_position(what: &str, got: &Quality, want: &Value) {
    assert_eq!(
        (Some(got.tokens), Some(got.scored)),
        (want["kept"].as_u64(), want["scored"].as_u64()),
        "{what}"
    );
    let value = |name: &str| want[name].as_f64();
    let delta = value("ce_spliced").zip(value("ce_clean")).map(|(spliced, clean)| spliced - clean);
    for (name, ours, want, allowed) in [
        ("ce_clean", got.ce_clean, value("ce_clean"), LOSS),
        ("ce_spliced", got.ce_spliced, value("ce_spliced"), LOSS),
        ("delta_loss", got.delta_loss, delta, LOSS),
        ("mse", got.mse, value("mse"), METRIC * value("mse").unwrap_or(0.0)),
        ("fvu", got.fvu, value("fvu"), METRIC * value("fvu").unwrap_or(0.0)),
        ("l0", got.l0, value("l0"), METRIC),
    ] {
        assert_eq!(ours.is_some(), want.is_some(), "{what}: {name}");
        assert_within(what, name, ours.unwrap_or(0.0), want.unwrap_or(0.0), allowed);
    }
}

#[test]
fn every_metric_of_each_alone_is_the_references() {
    let (model, tokens) = (gemma(), tokens());
    let options = EvalOptions { uniformity: ALL, ..EvalOptions::default() };
    for case in all_cases() {
        for size in [1, 5, 12] {
            let mut got = judge(&model, &[case.judged()], &cut(tokens.rows(), size), options);
            assert_golden(&format!("alone, by {size}"), &case, got.pop().unwrap());
            assert!(got.is_empty());
        }
    }
}

/// At three sites, and a transcoder to one of them.
#[test]
fn every_metric_of_all_together_is_the_references() {
    let (model, tokens, cases) = (gemma(), tokens(), all_cases());
    let judged: Vec<Judged<'_>> = cases.iter().map(Case::judged).collect();
    let options = EvalOptions { uniformity: ALL, ..EvalOptions::default() };
    for size in [1, 5, 12] {
        let got = judge(&model, &judged, &cut(tokens.rows(), size), options);
        assert_eq!(got.len(), cases.len());
        for (case, got) in cases.iter().zip(got) {
            assert_golden(&format!("together, by {size}"), case, got);
        }
    }
}

/// Evenly spaced among the positions of each sequence whose loss counts.
#[test]
fn the_uniformity_of_some_positions() {
    let (model, tokens, cases) = (gemma(), tokens(), all_cases());
    let judged: Vec<Judged<'_>> = cases.iter().map(Case::judged).collect();
    for most in [1, 2, 7] {
        let options = EvalOptions { uniformity: most, ..EvalOptions::default() };
        let got = judge(&model, &judged, &cut(tokens.rows(), 5), options);
        for (case, got) in cases.iter().zip(got) {
            let every: Vec<(usize, usize, f64)> =
                serde_json::from_value(case.more["uniformity_by_position"].clone()).unwrap();
            let some: Vec<f64> = every
                .chunk_by(|a, b| a.0 == b.0)
                .flat_map(|of| {
                    let n = most.min(of.len());
                    // The middles of n equal stretches.
                    (0..n).map(move |i| of[((i as f64 + 0.5) * of.len() as f64 / n as f64) as usize].2)
                })
                .collect();
            assert!(some.len() >= 12);
            let want = some.iter().sum::<f64>() / some.len() as f64;
            assert_within(&case.name, "uniformity", got.metrics["uniformity"], want, METRIC * want);
        }
    }
}
