mod chosen;
mod facts;
mod fidelity;
mod figure;
mod groups;
mod layers;
mod number;
mod table;

use std::{collections::BTreeMap, fmt::Write as _};

use eval::Report;
use plotly::Plot;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    DashboardError, Result,
    html::{escape, inline_json},
};
use figure::{Figure, Section};
use groups::Groups;

const PAGE: &str = include_str!("../../assets/suite.html");
const STYLE: &str = include_str!("../../assets/suite.css");
const SCRIPT: &str = include_str!("../../assets/suite.js");

/// The reports of an evaluation suite as one HTML page: the whole of a file that needs no other and no network, and works
/// from `file://`.
///
/// A table of all SAEs, the sparsity–fidelity trade-off for each kind of site (Gemma Scope, section 4.2), quality by layer,
/// and for SAEs that the reader picks, side by side: how often latents are active, how many are at once, quality by position
/// and by subset; every metric, its definition, and where it comes from. Plots are plotly.js', which the page holds (4.7 MB);
/// numbers per latent are left out. Without JavaScript the table and the definitions are there. What is not defined is an en
/// dash in tables and absent from plots. Texts are inlined so that no text can end a script or add markup.
///
/// # Errors
/// [`DashboardError::NoReport`] where `reports` is empty; JSON that could not be written.
pub fn suite_page(reports: &[Report], title: &str) -> Result<String> {
    if reports.is_empty() {
        return Err(DashboardError::NoReport);
    }
    let groups = Groups::new(reports);
    let figures: Vec<Figure> =
        [fidelity::figures(&groups, reports), layers::figures(&groups, reports), chosen::figures(reports)]
            .into_iter()
            .flatten()
            .collect();
    let data = Data {
        saes: reports.iter().map(Numbers::of).collect(),
        definitions: table::definitions(reports),
        layers: &groups.layers,
        widths: groups.width_names(),
        symbols: groups.symbol_names(),
        figures: &figures,
    };
    let mut parts = String::new();
    let mut rest = PAGE;
    // In the order of the page. What is put in is never searched: a text may contain a mark.
    for (mark, text) in [
        ("{{title}}", escape(title)),
        ("{{css}}", STYLE.to_owned()),
        ("{{heading}}", escape(title)),
        ("{{facts}}", facts::html(reports)),
        ("{{table}}", table::html(reports)),
        ("{{figures}}", sections(&figures, &groups)),
        ("{{definitions}}", table::definitions_html(&data.definitions)),
        ("{{json}}", inline_json(&data)?),
        ("{{plotly}}", plotly_js()),
        ("{{js}}", SCRIPT.to_owned()),
    ] {
        let (before, after) = rest.split_once(mark).unwrap_or((rest, ""));
        parts += before;
        parts += &text;
        rest = after;
    }
    parts += rest;
    Ok(parts)
}

/// What the page's script knows.
#[derive(Serialize)]
struct Data<'a> {
    saes: Vec<Numbers<'a>>,
    definitions: Vec<table::Definition>,
    layers: &'a [usize],
    widths: Vec<String>,
    symbols: Vec<&'static str>,
    figures: &'a [Figure],
}

/// A report without what is in the figures, and without numbers per latent.
#[derive(Serialize)]
struct Numbers<'a> {
    id: &'a str,
    metrics: &'a BTreeMap<String, f64>,
    tokens: u64,
    scored: u64,
    dead: u64,
    by_subset: &'a BTreeMap<String, eval::Quality>,
    provenance: Map<String, Value>,
}

impl<'a> Numbers<'a> {
    fn of(report: &'a Report) -> Self {
        Self {
            id: &report.id,
            metrics: &report.metrics.values,
            tokens: report.tokens,
            scored: report.scored,
            dead: report.density_histogram.dead,
            by_subset: &report.by_subset,
            provenance: facts::provenance(report),
        }
    }
}

/// The sections and the places of the figures, which the script fills.
fn sections(figures: &[Figure], groups: &Groups) -> String {
    let mut html = String::new();
    for section in Section::ALL {
        let of: Vec<_> = figures.iter().filter(|figure| figure.section == section).collect();
        if of.is_empty() {
            continue;
        }
        let (id, heading, note) = (section.id(), section.heading(), section.note(groups));
        let _ = writeln!(
            html,
            "<section class=\"plots\" id=\"{id}\"><h2>{heading}</h2>\n<p class=\"note\">{note}</p>"
        );
        let _ = writeln!(html, "<div class=\"controls\" id=\"{id}-controls\"></div>");
        let mut row = None;
        for figure in of {
            if row != Some(&figure.row) {
                if row.is_some() {
                    html += "</div>\n";
                }
                if !figure.row.is_empty() {
                    let _ = writeln!(html, "<h3>{}</h3>", escape(&figure.row));
                }
                html += "<div class=\"pair\">\n";
                row = Some(&figure.row);
            }
            let (id, caption) = (&figure.id, escape(&figure.caption));
            let _ = writeln!(
                html,
                "<figure><figcaption>{caption}</figcaption><div class=\"plot\" id=\"{id}\" role=\"img\" \
                 aria-label=\"{caption} ({})\"></div></figure>",
                if figure.row.is_empty() { heading.to_owned() } else { escape(&figure.row) }
            );
        }
        html += "</div>\n</section>\n";
    }
    html
}

/// plotly.js as the crate ships it. Of the crate's script elements the second is MathJax, which nothing here needs.
fn plotly_js() -> String {
    let elements = Plot::offline_js_sources();
    let (_, script) = elements.split_once('>').unwrap_or_default();
    script.split_once("</script>").unwrap_or_default().0.to_owned()
}
