//! `fixtures/eval`: what Transformers and PyTorch find for the same SAEs on the same tokens (see `eval_golden.py`).

use std::fs;

use eval::METRICS;
use hooks::{HookPoint, LayerIdx, Positions};
use sae_core::{OpenOptions, Sae, open};
use serde_json::Value;
use testkit::fixture;

use crate::common::{FLOAT64, assert_metric, gemma, report, tokens};

/// An SAE of the fixtures, and what it must score.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) site: HookPoint,
    pub(crate) sae: Sae,
    pub(crate) expected: Value,
}

pub(crate) fn golden_cases() -> Vec<Case> {
    let text = fs::read_to_string(fixture("eval/expected.json")).unwrap();
    let all: serde_json::Map<String, Value> = serde_json::from_str(&text).unwrap();
    let cases = all.into_iter().map(|(name, expected)| {
        let layer = LayerIdx(expected["layer"].as_u64().unwrap() as usize);
        let site = match expected["site"].as_str().unwrap() {
            "resid_post" => HookPoint::ResidPost(layer),
            "mlp_out" => HookPoint::MlpOut(layer),
            "attn_z" => HookPoint::AttnZ(layer),
            other => panic!("the site {other} is new"),
        };
        let sae = open(&fixture(&format!("eval/{name}/params.npz")), &OpenOptions::default()).unwrap().sae;
        Case { name, site, sae, expected }
    });
    cases.collect()
}

#[test]
fn every_metric_is_the_references() {
    let (model, mut compared) = (gemma(), 0);
    for Case { name, site, sae, expected } in golden_cases() {
        let got = report(&model, site, &sae, vec![tokens()], Positions::Counted);
        assert_eq!(got.hook, site);
        // 12 · 20 but 12 + 1 times BOS, one EOS and 5 times PAD.
        assert_eq!(got.tokens, 240 - 13 - 1 - 5, "{name}");
        for metric in METRICS {
            let want =
                expected[metric.name].as_f64().unwrap_or_else(|| panic!("no reference for {}", metric.name));
            assert_metric(&name, metric.name, got.metrics[metric.name], want);
            compared += 1;
        }
        assert_eq!(got.metrics.len(), METRICS.len(), "{name}");
        // As counts, since a reader of JSON may miss the last bit of a fraction.
        let frequency: Vec<f64> = serde_json::from_value(expected["frequency"].clone()).unwrap();
        let counts = frequency.iter().map(|f| (f * got.tokens as f64).round());
        let exact: Vec<f64> = counts.map(|count| count / got.tokens as f64).collect();
        assert!(
            exact.iter().zip(&frequency).all(|(a, b)| (a - b).abs() <= FLOAT64),
            "{name}: no counts of tokens"
        );
        assert_eq!(got.frequency, exact, "{name}: frequency");
    }
    assert_eq!(compared, 3 * METRICS.len());
}
