use std::collections::BTreeMap;

use eval::Report;
use plotly::{
    Scatter,
    common::{Marker, Mode},
};

use super::{
    fidelity::{FIDELITY, hover},
    figure::{Colour, Figure, Section, Series, axis, drawn, from_zero, json, layout, line},
    groups::{Groups, Key},
    number::rounded,
};

/// The L0 that a canonical SAE of Gemma Scope is nearest to.
pub(super) const CANONICAL_L0: f64 = 100.0;

/// Delta loss and FVU by layer, for each kind of site that has at least two.
pub(super) fn figures(groups: &Groups, reports: &[Report]) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (i, site) in groups.sites.iter().enumerate() {
        for (metric, title, name) in FIDELITY {
            if let Some(series) = series(groups, reports, site, metric) {
                figures.push(Figure {
                    section: Section::Layers,
                    row: site.clone(),
                    caption: format!("{name} by layer"),
                    id: format!("layers-{i}-{metric}"),
                    colour: Colour::Width,
                    layout: layout(axis("layer"), from_zero(title)),
                    series,
                });
            }
        }
    }
    figures
}

/// A point: layer, value, how far its L0 is from the canonical one (as a ratio), and the report.
#[derive(Clone, Copy)]
struct Point {
    layer: usize,
    value: f64,
    distance: f64,
    report: usize,
}

fn series(groups: &Groups, reports: &[Report], site: &str, metric: &str) -> Option<Vec<Series>> {
    let mut lines: BTreeMap<Key, Vec<Point>> = BTreeMap::new();
    let mut layers = Vec::new();
    for (i, report) in reports.iter().enumerate() {
        let key = groups.key(report);
        let value = report.metrics.get(metric).and_then(rounded);
        if let (true, Some(layer), Some(value)) = (key.site == site, key.layer, value) {
            let l0 = report.metrics.get("l0").filter(|l0| *l0 > 0.0);
            let distance = l0.map_or(f64::INFINITY, |l0| (l0 / CANONICAL_L0).ln().abs());
            layers.push(layer);
            lines.entry(Key { layer: None, ..key }).or_default().push(Point {
                layer,
                value,
                distance,
                report: i,
            });
        }
    }
    layers.sort_unstable();
    layers.dedup();
    if layers.len() < 2 {
        return None;
    }
    let mut all = Vec::new();
    for (key, mut points) in lines {
        points.sort_by(|a, b| a.layer.cmp(&b.layer).then(a.distance.total_cmp(&b.distance)));
        let mut on_line: Vec<Point> = Vec::new();
        let mut others = Vec::new();
        for point in points {
            if on_line.last().is_some_and(|last| last.layer == point.layer) {
                others.push(point);
            } else {
                on_line.push(point);
            }
        }
        for (points, mode) in [(others, Mode::Markers), (on_line, Mode::LinesMarkers)] {
            all.extend(trace(groups, reports, &key, &points, mode));
        }
    }
    Some(all)
}

fn trace(groups: &Groups, reports: &[Report], key: &Key, points: &[Point], mode: Mode) -> Option<Series> {
    if points.is_empty() {
        return None;
    }
    let faint = matches!(mode, Mode::Markers);
    let (xs, ys) = points.iter().map(|point| (point.layer, point.value)).unzip();
    let marker = Marker::new().size(if faint { 6 } else { 9 }).symbol(groups.symbol(key.width));
    let trace = Scatter::new(xs, ys)
        .mode(mode)
        .opacity(if faint { 0.5 } else { 1.0 })
        .line(line().dash(groups.dash(&key.kind)))
        .marker(marker)
        .name(drawn(&format!("{} latents, {}", key.width, key.kind)))
        .ids(points.iter().map(|point| point.report.to_string()).collect())
        .hover_text_array(points.iter().filter_map(|point| reports.get(point.report)).map(hover).collect())
        .hover_template("%{hovertext}<extra></extra>");
    Some(Series {
        layer: None,
        width: Some(groups.width_slot(key.width)),
        sae: None,
        trace: json(&trace).ok()?,
    })
}
