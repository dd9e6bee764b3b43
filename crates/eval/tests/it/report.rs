//! What a report says, for people and as JSON.

use std::collections::BTreeSet;

use eval::{EvalOptions, Judged, METRICS, Metric, Report, weight_metrics};
use hooks::{HookPoint, LayerIdx, Positions};
use testkit::ToyModel;

use crate::common::{at, batch, judge, random_sae, report, tokens};

/// With every metric.
fn toy_report(site: HookPoint, rows: &[Vec<i64>]) -> Report {
    let (model, sae) = (ToyModel::new(2, 6, 320, 1), random_sae(6, 16, 6, 1));
    let options = EvalOptions { uniformity: 3, ..at(Positions::Counted) };
    let mut got = judge(&model, &[Judged::new("toy", site, &sae)], &[batch(rows)], options);
    got.pop().unwrap().with_weights(weight_metrics(&sae, true).unwrap())
}

#[test]
fn every_metric_has_one_name_and_a_definition() {
    let names: BTreeSet<&str> = METRICS.iter().map(|m| m.name).collect();
    assert_eq!(names.len(), METRICS.len());
    assert!(METRICS.iter().all(|m| !m.unit.is_empty() && !m.definition.is_empty() && !m.source.is_empty()));
    let got = toy_report(HookPoint::ResidPost(LayerIdx(0)), tokens().rows());
    assert_eq!(got.definitions.keys().map(String::as_str).collect::<BTreeSet<_>>(), names);
    assert_eq!(got.metrics.values.keys().map(String::as_str).collect::<BTreeSet<_>>(), names);
    for metric in METRICS {
        assert_eq!(Metric::named(metric.name), Some(metric));
        let text = &got.definitions[metric.name];
        assert_eq!(*text, metric.describe());
        assert!(
            [metric.definition, metric.unit, metric.source].iter().all(|part| text.contains(part)),
            "{text}"
        );
    }
    assert_eq!(Metric::named("no such metric"), None);
}

#[test]
fn the_text_shows_every_metric_with_its_unit() {
    let got = toy_report(HookPoint::ResidPost(LayerIdx(0)), tokens().rows());
    let text = got.to_string();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "toy at blocks.0.hook_resid_post, 221 tokens");
    assert_eq!(lines.len(), 1 + METRICS.len());
    for (line, metric) in lines[1..].iter().zip(METRICS) {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[..2], [metric.name, &format!("{:.5}", got.metrics[metric.name])], "{line}");
        assert!(line.ends_with(metric.unit), "{line}");
    }
}

/// The embedding of one token, over and over, does not vary.
#[test]
fn a_metric_that_is_not_defined_is_absent() {
    let got = toy_report(HookPoint::Embed, &[vec![2, 7, 7, 7], vec![2, 7, 7, 7]]);
    let absent = ["fvu", "explained_variance", "frac_variance_explained"];
    for name in absent {
        assert_eq!(got.metrics.get(name), None, "{name}");
        assert!(!got.to_string().contains(&format!("  {name} ")), "{name}");
    }
    assert!(got.by_position.iter().all(|quality| quality.fvu.is_none()));
    // The mean is what is there: putting it there costs nothing (or rounding), and of nothing no share is recovered.
    let missing: Vec<&str> = METRICS
        .iter()
        .map(|m| m.name)
        .filter(|name| got.metrics.get(name).is_none() && *name != "kl_score_mean")
        .collect();
    let undefined = [
        "loss_recovered_mean",
        "fvu",
        "explained_variance",
        "explained_variance_legacy",
        "frac_variance_explained",
    ];
    assert_eq!(missing, undefined);
}

#[test]
fn a_metric_that_was_not_asked_for_is_absent() {
    let (model, sae) = (ToyModel::new(2, 6, 320, 1), random_sae(6, 16, 6, 1));
    let got = report(&model, HookPoint::ResidPost(LayerIdx(0)), &sae, vec![tokens()], Positions::Counted);
    let missing: Vec<&str> =
        METRICS.iter().map(|m| m.name).filter(|name| got.metrics.get(name).is_none()).collect();
    let not_asked_for = [
        "uniformity",
        "encoder_norm",
        "decoder_norm",
        "encoder_decoder_cosine",
        "encoder_bias",
        "max_encoder_cosine",
        "max_decoder_cosine",
    ];
    assert_eq!(missing, not_asked_for);
    assert!(got.latents.weights.is_empty());
}

#[test]
fn json_holds_values_definitions_and_provenance() {
    let mut got = toy_report(HookPoint::MlpOut(LayerIdx(1)), tokens().rows());
    got.provenance.more.insert("dtype".to_owned(), "f32".into());
    let json = serde_json::to_value(&got).unwrap();
    for (key, value) in [
        ("hook", "blocks.1.hook_mlp_out"),
        ("positions", "counted"),
        ("architecture", "jumprelu"),
        ("dtype", "f32"),
    ] {
        assert_eq!(json["provenance"][key], value);
    }
    assert_eq!((json["id"].as_str(), json["tokens"].as_u64()), (Some("toy"), Some(221)));
    assert_eq!(json["metrics"]["frequency"].as_array().unwrap().len(), 16);
    assert_eq!(json["latents"]["decoder_norm"].as_array().unwrap().len(), 16);
    for metric in METRICS {
        assert_eq!(json["metrics"][metric.name].as_f64().unwrap(), got.metrics[metric.name]);
        assert!(json["definitions"][metric.name].as_str().unwrap().contains(metric.unit));
    }
    let read: Report = serde_json::from_str(&serde_json::to_string(&got).unwrap()).unwrap();
    assert_eq!(read, got);
}
