//! What a report says, for people and as JSON.

use std::collections::BTreeSet;

use eval::METRICS;
use hooks::{HookPoint, LayerIdx, Positions};
use sae_core::Sae;
use testkit::ToyModel;

use crate::common::{batch, random_sae, report, tokens};

fn toy_report(site: HookPoint, rows: &[Vec<i64>]) -> eval::Report {
    let (model, sae): (_, Sae) = (ToyModel::new(2, 6, 320, 1), random_sae(6, 16, 6, 1));
    report(&model, site, &sae, vec![batch(rows)], Positions::Counted)
}

#[test]
fn every_metric_has_one_name_and_a_definition() {
    let names: BTreeSet<&str> = METRICS.iter().map(|m| m.name).collect();
    assert_eq!(names.len(), METRICS.len());
    assert!(METRICS.iter().all(|m| !m.unit.is_empty() && !m.definition.is_empty()));
    let got = toy_report(HookPoint::ResidPost(LayerIdx(0)), tokens().rows());
    assert_eq!(got.definitions.keys().copied().collect::<BTreeSet<_>>(), names);
    assert_eq!(got.metrics.keys().copied().collect::<BTreeSet<_>>(), names);
    for metric in METRICS {
        assert_eq!(got.definitions[metric.name], format!("{} ({})", metric.definition, metric.unit));
    }
}

#[test]
fn the_text_shows_every_metric_with_its_unit() {
    let got = toy_report(HookPoint::ResidPost(LayerIdx(0)), tokens().rows());
    let text = got.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "blocks.0.hook_resid_post over 221 tokens");
    assert_eq!(lines.len(), 1 + METRICS.len());
    for (line, metric) in lines[1..].iter().zip(METRICS) {
        let value = format!("{:.5}", got.metrics[metric.name]);
        assert!(
            line.starts_with(metric.name) && line.contains(&value) && line.ends_with(metric.unit),
            "{line}"
        );
    }
}

/// The embedding of one token, over and over, does not vary.
#[test]
fn a_metric_that_is_not_defined_is_absent_and_said_to_be() {
    let got = toy_report(HookPoint::Embed, &[vec![2, 7, 7, 7], vec![2, 7, 7, 7]]);
    for name in ["fvu", "explained_variance"] {
        assert!(!got.metrics.contains_key(name), "{name}");
        let text = got.to_string();
        let line = text.lines().find(|l| l.starts_with(name)).unwrap();
        assert!(line.contains("undefined"), "{line}");
    }
    assert_eq!(got.metrics.len(), METRICS.len() - 2);
}

#[test]
fn json_holds_values_definitions_and_provenance() {
    let got = toy_report(HookPoint::MlpOut(LayerIdx(1)), tokens().rows());
    let json = serde_json::to_value(&got).unwrap();
    assert_eq!(json["hook"], "blocks.1.hook_mlp_out");
    assert_eq!(json["tokens"], 221);
    assert_eq!(json["frequency"].as_array().unwrap().len(), 16);
    for metric in METRICS {
        assert_eq!(json["metrics"][metric.name].as_f64().unwrap(), got.metrics[metric.name]);
        assert!(json["definitions"][metric.name].as_str().unwrap().contains(metric.unit));
    }
}
