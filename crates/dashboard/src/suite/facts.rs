use std::fmt::Write as _;

use eval::Report;
use serde_json::{Map, Value, json};

use super::number::{UNDEFINED, grouped};
use crate::html::escape;

/// What is said first, in this order; the rest follows by name.
const FIRST: [&str; 12] = [
    "model",
    "dtype",
    "files",
    "text",
    "tokens",
    "scored",
    "positions",
    "ctx",
    "rows",
    "text.sequences",
    "text.documents",
    "version",
];
/// What may differ between SAEs of one suite: it is what a suite compares.
const COMPARED: [&str; 7] = ["hook", "hook_out", "architecture", "d_in", "d_out", "d_sae", "sae_dtype"];
/// What reports must share for their numbers to be comparable.
const SHARED: [&str; 10] =
    ["model", "dtype", "text", "text.sha256", "tokens", "scored", "positions", "ctx", "rows", "version"];
/// More different values than this are counted, not listed.
const LISTED: usize = 3;
/// Characters of a value in such a list.
const LONGEST: usize = 40;

/// Everything a report says of its origin, by name; what is within an object has its name before its own: `sae.revision`.
pub(super) fn provenance(report: &Report) -> Map<String, Value> {
    let mut flat = Map::new();
    if let Ok(value) = serde_json::to_value(&report.provenance) {
        flatten("", value, &mut flat);
    }
    flat
}

fn flatten(name: &str, value: Value, flat: &mut Map<String, Value>) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                let name = if name.is_empty() { key } else { format!("{name}.{key}") };
                flatten(&name, value, flat);
            }
        }
        value => {
            flat.insert(name.to_owned(), value);
        }
    }
}

/// What the reports were made of, with a warning where that differs.
pub(super) fn html(reports: &[Report]) -> String {
    let all: Vec<Map<String, Value>> = reports
        .iter()
        .map(|report| {
            let mut map = provenance(report);
            map.insert("tokens".to_owned(), json!(report.tokens));
            map.insert("scored".to_owned(), json!(report.scored));
            map
        })
        .collect();
    let (mut first, mut more, mut differing) = (String::new(), String::new(), Vec::new());
    let _ = writeln!(first, "<div><dt>SAEs</dt><dd>{}</dd></div>", reports.len());
    for name in names(&all) {
        match distinct(&all, name).as_slice() {
            [one] => {
                let html = if FIRST.contains(&name) { &mut first } else { &mut more };
                let _ = writeln!(html, "<div><dt>{}</dt><dd>{}</dd></div>", escape(label(name)), escape(one));
            }
            several if SHARED.contains(&name) => {
                differing.push(format!("{} ({})", label(name), listed(several)));
            }
            // Hashes, times and names of files: each SAE's own, and shown with it.
            _ => {}
        }
    }
    let mut html = format!("<dl class=\"facts\">\n{first}</dl>\n");
    if !more.is_empty() {
        let _ = writeln!(
            html,
            "<details><summary>More of how it was done</summary><dl class=\"facts\">\n{more}</dl></details>"
        );
    }
    if !differing.is_empty() {
        let _ = writeln!(
            html,
            "<p class=\"warning\" role=\"note\"><b>These reports differ in more than the SAE.</b> {}</p>",
            escape(&differing.join("; "))
        );
    }
    html
}

fn label(name: &str) -> &str {
    match name {
        "files" => "text",
        "tokens" => "positions that count",
        "scored" => "losses that count",
        "positions" => "which positions",
        "ctx" => "context (tokens)",
        "text.sequences" => "sequences",
        "text.documents" => "documents",
        other => other,
    }
}

fn names(all: &[Map<String, Value>]) -> Vec<&str> {
    let mut rest: Vec<&str> = all.iter().flat_map(Map::keys).map(String::as_str).collect();
    rest.sort_unstable();
    rest.dedup();
    rest.retain(|name| !(FIRST.contains(name) || COMPARED.contains(name) && all.len() > 1));
    let known = FIRST.into_iter().filter(|name| all.iter().any(|map| map.contains_key(*name)));
    known.chain(rest).collect()
}

/// The different values of a name as texts, in the order of the reports.
fn distinct(all: &[Map<String, Value>], name: &str) -> Vec<String> {
    let mut values: Vec<String> = Vec::new();
    for map in all {
        let text = map.get(name).map_or_else(|| UNDEFINED.to_owned(), text);
        if !values.contains(&text) {
            values.push(text);
        }
    }
    values
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.as_u64().map_or_else(|| number.to_string(), grouped),
        Value::Array(parts) => parts.iter().map(text).collect::<Vec<_>>().join(", "),
        Value::Null => UNDEFINED.to_owned(),
        other => other.to_string(),
    }
}

fn listed(values: &[String]) -> String {
    let short = |value: &String| match value.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", value.get(..end).unwrap_or_default()),
        None => value.clone(),
    };
    let shown = values.iter().take(LISTED).map(short).collect::<Vec<_>>().join(", ");
    if values.len() > LISTED { format!("{} values: {shown}, …", values.len()) } else { shown }
}
