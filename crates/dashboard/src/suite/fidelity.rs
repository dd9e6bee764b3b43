use std::collections::BTreeMap;

use eval::Report;
use plotly::{
    Scatter,
    common::{Marker, Mode},
};

use super::{
    figure::{Colour, Figure, Section, Series, drawn, from_zero, json, layout, line, logarithmic},
    groups::{Groups, Key},
    number::{four, rounded},
};

/// What is drawn against L0, its axis, and a name for the element.
pub(super) const FIDELITY: [(&str, &str, &str); 2] = [
    ("delta_loss", "delta loss (nats per token)", "Delta loss"),
    ("fvu", "fraction of variance unexplained", "FVU"),
];

/// Delta loss and FVU against L0 (Gemma Scope, figure 2): for each kind of site one figure each, for each layer, width and
/// architecture a line.
pub(super) fn figures(groups: &Groups, reports: &[Report]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (i, site) in groups.sites.iter().enumerate() {
        for (metric, title, name) in FIDELITY {
            let series = series(groups, reports, site, metric);
            if !series.is_empty() {
                figures.push(Figure {
                    section: Section::Fidelity,
                    row: site.clone(),
                    caption: format!("{name} against L0"),
                    id: format!("fidelity-{i}-{metric}"),
                    colour: Colour::Layer,
                    layout: layout(logarithmic("L0 (active latents per token)"), from_zero(title)),
                    series,
                });
            }
        }
    }
    figures
}

fn series(groups: &Groups, reports: &[Report], site: &str, metric: &str) -> Vec<Series> {
    let mut lines: BTreeMap<Key, Vec<(f64, f64, usize)>> = BTreeMap::new();
    for (i, report) in reports.iter().enumerate() {
        let key = groups.key(report);
        let values =
            (report.metrics.get("l0").and_then(rounded), report.metrics.get(metric).and_then(rounded));
        if let (true, (Some(l0), Some(value))) = (key.site == site, values)
            && l0 > 0.0
        {
            lines.entry(key).or_default().push((l0, value, i));
        }
    }
    lines
        .into_iter()
        .filter_map(|(key, mut points)| {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (xs, ys) = points.iter().map(|&(x, y, _)| (x, y)).unzip();
            let trace = Scatter::new(xs, ys)
                .mode(Mode::LinesMarkers)
                .line(line().dash(groups.dash(&key.kind)))
                .marker(Marker::new().size(9).symbol(groups.symbol(key.width)))
                .name(drawn(&name(&key)))
                .ids(points.iter().map(|&(_, _, i)| i.to_string()).collect())
                .hover_text_array(points.iter().filter_map(|&(_, _, i)| reports.get(i)).map(hover).collect())
                .hover_template("%{hovertext}<extra></extra>");
            let (layer, width) = (groups.layer_slot(key.layer), Some(groups.width_slot(key.width)));
            Some(Series { layer, width, sae: None, trace: json(&trace).ok()? })
        })
        .collect()
}

fn name(key: &Key) -> String {
    let layer = key.layer.map(|layer| format!("layer {layer}, ")).unwrap_or_default();
    format!("{layer}{} latents, {}", key.width, key.kind)
}

/// What is shown at a point. plotly.js reads a few tags in it, so the name is escaped.
pub(super) fn hover(report: &Report) -> String {
    let value = |name| four(report.metrics.get(name));
    format!(
        "<b>{}</b><br>L0 {}<br>FVU {}<br>delta loss {} nats per token<br>loss recovered (zero) {}",
        drawn(&report.id),
        value("l0"),
        value("fvu"),
        value("delta_loss"),
        value("loss_recovered_zero"),
    )
}
