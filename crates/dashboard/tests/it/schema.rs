//! `docs/eval.schema.json` against the reports that it describes.

use std::collections::BTreeSet;

use boon::{Compiler, SchemaIndex, Schemas};
use eval::{EvalError, EvalOptions, METRICS, Report, evaluate};
use serde_json::{Value, json};

use crate::{invented::suite, rows, sae, toy};

const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/eval.schema.json");

fn schema() -> Value {
    serde_json::from_str(&std::fs::read_to_string(SCHEMA).unwrap()).unwrap()
}

/// The schema, which is itself a valid one: it would not compile otherwise.
fn compiled() -> (Schemas, SchemaIndex) {
    let (mut schemas, mut compiler) = (Schemas::new(), Compiler::new());
    let index = compiler.compile(SCHEMA, &mut schemas).unwrap();
    (schemas, index)
}

/// An evaluation of an SAE with random weights.
fn measured() -> Report {
    let (tokens, _) = crate::batch(&rows());
    let sae = sae(64, 1);
    let options = EvalOptions { uniformity: 2, ..EvalOptions::default() };
    let report = evaluate(
        &toy(),
        "blocks.1.hook_resid_post".parse().unwrap(),
        &sae,
        [Ok::<_, EvalError>(tokens)],
        &options,
    )
    .unwrap();
    report.with_weights(eval::weight_metrics(&sae, true).unwrap())
}

#[test]
fn reports_are_as_the_schema_says() {
    let (schemas, index) = compiled();
    let mut reports = suite();
    reports.push(measured());
    let value = serde_json::to_value(&reports).unwrap();
    if let Err(error) = schemas.validate(&value, index) {
        panic!("{error:#}");
    }
    // What is valid can be read, and is what was written.
    assert_eq!(serde_json::from_value::<Vec<Report>>(value).unwrap(), reports);
}

#[test]
fn what_is_no_report_is_refused() {
    let (schemas, index) = compiled();
    let good = serde_json::to_value([measured()]).unwrap();
    for (path, value) in [
        ("/0/metrics/l0", json!("many")),
        ("/0/metrics/fvu", Value::Null),
        ("/0/metrics/unheard_of", json!(1.0)),
        ("/0/metrics/frequency/0", json!(1.5)),
        ("/0/tokens", json!(-1)),
        ("/0/tokens", json!(1.5)),
        ("/0/l0_histogram/tokens", Value::Null),
        ("/0/density_histogram/dead", json!("none")),
        ("/0/by_position/0/fvu", json!("–")),
        ("/0/by_position/0/unheard_of", json!(1)),
        ("/0/latents/unheard_of", json!([1.0])),
        ("/0/provenance/hook", json!(3)),
        ("/0/unheard_of", json!(1)),
        ("/0", json!({})),
        ("", json!({"id": "not a list"})),
    ] {
        let mut bad = good.clone();
        match path.rsplit_once('/').and_then(|(parent, key)| Some((bad.pointer_mut(parent)?, key))) {
            Some((Value::Object(map), key)) => drop(map.insert(key.to_owned(), value)),
            Some((Value::Array(list), key)) => list[key.parse::<usize>().unwrap()] = value,
            _ => bad = value,
        }
        assert!(schemas.validate(&bad, index).is_err(), "{path} passes");
    }
    for key in good[0].as_object().unwrap().keys() {
        let mut bad = good.clone();
        bad[0].as_object_mut().unwrap().remove(key);
        assert!(schemas.validate(&bad, index).is_err(), "a report without `{key}` passes");
    }
}

#[test]
fn the_schema_knows_the_metrics_and_describes_all() {
    let schema = schema();
    let metrics = &schema["$defs"]["metrics"]["properties"];
    let known: BTreeSet<&str> = metrics.as_object().unwrap().keys().map(String::as_str).collect();
    let named = METRICS.iter().map(|metric| metric.name).chain(["frequency", "tokens"]);
    assert_eq!(known, named.collect());
    for metric in METRICS {
        let said = metrics[metric.name]["description"].as_str().unwrap();
        assert_eq!(said, metric.describe(), "{}", metric.name);
    }
    described("schema", &schema);
}

/// Every property has a description, of its own or of what it refers to.
fn described(at: &str, schema: &Value) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map {
                if key == "properties" {
                    for (name, property) in value.as_object().unwrap() {
                        assert!(property["description"].is_string(), "{at}.{name} has no description");
                    }
                }
                described(&format!("{at}.{key}"), value);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| described(at, value)),
        _ => {}
    }
}
