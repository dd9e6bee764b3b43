use std::fmt::Write as _;

use eval::{METRICS, Metric, Report};
use serde::Serialize;

use super::{
    groups::{layer, site},
    number::{UNDEFINED, fixed, grouped},
};
use crate::html::escape;

/// A column of numbers: the metric, its heading, decimals, and what it is multiplied by.
const COLUMNS: [(&str, &str, usize, f64); 11] = [
    ("l0", "L0", 1, 1.0),
    ("fvu", "FVU", 4, 1.0),
    ("delta_loss", "delta loss", 4, 1.0),
    ("loss_recovered_zero", "loss recovered (zero)", 4, 1.0),
    ("loss_recovered_mean", "loss recovered (mean)", 4, 1.0),
    ("kl", "KL", 4, 1.0),
    ("cosine", "cosine", 4, 1.0),
    ("l2_ratio", "norm ratio", 4, 1.0),
    ("dead_fraction", "dead (%)", 2, 100.0),
    ("frac_over_10_percent", "dense, > 10 % (%)", 2, 100.0),
    ("uniformity", "uniformity", 4, 1.0),
];

/// A metric as the page explains it.
#[derive(Serialize)]
pub(super) struct Definition {
    name: String,
    unit: &'static str,
    definition: String,
    source: &'static str,
}

/// The metrics that any report has, in their order, as the reports define them.
pub(super) fn definitions(reports: &[Report]) -> Vec<Definition> {
    let said = |name: &str| reports.iter().find_map(|report| report.definitions.get(name)).cloned();
    let has = |name: &str| reports.iter().any(|report| report.metrics.get(name).is_some());
    let known = METRICS.iter().filter(|metric| has(metric.name)).map(|metric| {
        let Metric { name, unit, definition, source } = *metric;
        match said(name).filter(|text| *text != metric.describe()) {
            // Of another version: its own words hold.
            Some(text) => Definition { name: name.to_owned(), unit: "", definition: text, source: "" },
            None => Definition { name: name.to_owned(), unit, definition: definition.to_owned(), source },
        }
    });
    let mut others: Vec<&String> = reports.iter().flat_map(|report| report.metrics.values.keys()).collect();
    others.sort_unstable();
    others.dedup();
    let unknown = others.into_iter().filter(|name| Metric::named(name).is_none()).map(|name| Definition {
        name: name.clone(),
        unit: "",
        definition: said(name).unwrap_or_else(|| UNDEFINED.to_owned()),
        source: "",
    });
    known.chain(unknown).collect()
}

/// What every number means.
pub(super) fn definitions_html(definitions: &[Definition]) -> String {
    let mut html = String::from(
        "<table class=\"definitions\"><caption>Every metric, its unit, its exact definition and where that comes from</caption>\n\
         <thead><tr><th scope=\"col\">metric</th><th scope=\"col\">unit</th><th scope=\"col\">definition</th>\
         <th scope=\"col\">source</th></tr></thead>\n<tbody>\n",
    );
    for Definition { name, unit, definition, source } in definitions {
        let _ = writeln!(
            html,
            "<tr><th scope=\"row\"><code>{}</code></th><td>{}</td><td>{}</td><td>{}</td></tr>",
            escape(name),
            escape(unit),
            escape(definition),
            escape(source)
        );
    }
    html + "</tbody></table>"
}

/// All SAEs, a row each. Columns that no report has a number for are left out.
pub(super) fn html(reports: &[Report]) -> String {
    let has = |name: &str| reports.iter().any(|report| report.metrics.get(name).is_some());
    let columns: Vec<_> = COLUMNS.into_iter().filter(|(name, ..)| has(name)).collect();
    let longest = reports.iter().map(|report| report.id.chars().count()).max().unwrap_or_default();
    let mut html = format!("<table id=\"saes\" style=\"--name: {}ch\">", longest + 6);
    html += "<caption>All SAEs. A click on a heading sorts; a click on a name shows every metric of the SAE.\
         </caption>\n<thead><tr><th scope=\"col\">SAE</th><th scope=\"col\">site</th><th scope=\"col\" class=\"n\">layer</th>\
         <th scope=\"col\" class=\"n\">latents</th><th scope=\"col\">architecture</th>";
    for (name, heading, ..) in &columns {
        let about = Metric::named(name).map(Metric::describe).unwrap_or_default();
        let _ = write!(
            html,
            "<th scope=\"col\" class=\"n\" title=\"{}\">{}</th>",
            escape(&about),
            escape(heading)
        );
    }
    html += "</tr></thead>\n<tbody>\n";
    for (i, report) in reports.iter().enumerate() {
        let provenance = &report.provenance;
        let layer = layer(report);
        let _ = write!(
            html,
            "<tr id=\"sae-{i}\"><th scope=\"row\"><a href=\"#sae-{i}\"><bdi>{}</bdi></a></th><td>{}</td>{}{}<td>{}</td>",
            breakable(&report.id),
            escape(&site(report)),
            cell(layer.map(|l| l as f64), &layer.map_or_else(|| UNDEFINED.to_owned(), |l| l.to_string())),
            cell(Some(provenance.d_sae as f64), &grouped(provenance.d_sae.unsigned_abs())),
            escape(&provenance.architecture),
        );
        for (name, _, decimals, times) in &columns {
            let value = report.metrics.get(name).map(|value| value * times);
            html += &cell(value, &fixed(value, *decimals));
        }
        html += "</tr>\n";
    }
    html + "</tbody></table>"
}

/// A name as HTML, with places where a line may end.
fn breakable(name: &str) -> String {
    escape(name).replace('/', "/<wbr>")
}

/// A cell with a number, which the script sorts by.
fn cell(value: Option<f64>, text: &str) -> String {
    let sort = value.filter(|v| v.is_finite()).map(|v| format!(" data-v=\"{v}\"")).unwrap_or_default();
    format!("<td class=\"n\"{sort}>{text}</td>")
}
