use eval::{DensityHistogram, Quality, Report};
use plotly::{
    Bar, Histogram, Layout, Scatter,
    common::{Fill, LineShape, Mode, Orientation},
    histogram::{HistFunc, HistNorm},
    layout::{Axis, BarMode, HoverMode},
};

use super::{
    figure::{Colour, Figure, Section, Series, axis, drawn, from_zero, layout, line},
    number::{four, grouped, rounded},
};

/// A value of a part of the data.
type Part = fn(&Quality) -> Option<f64>;
/// What is drawn by position and by subset: an element's name, its axis, a caption.
const PARTS: [(&str, &str, &str, Part); 3] = [
    ("delta_loss", "delta loss (nats per token)", "Delta loss", |part| part.delta_loss),
    ("fvu", "fraction of variance unexplained", "FVU", |part| part.fvu),
    ("l0", "active latents per token", "L0", |part| part.l0),
];
/// More bins than a histogram of L0 can have.
const BINS: usize = 60;

/// Figures of which the script draws the SAEs that the reader picks, each with a series an SAE.
pub(super) fn figures(reports: &[Report]) -> Vec<Figure> {
    let mut figures = vec![
        figure("density", "How often latents are active", densities(), reports, density),
        figure("l0", "How many latents are active at once", l0s(), reports, l0),
    ];
    for (id, title, name, value) in PARTS {
        let layout =
            layout(axis("position in the sequence"), from_zero(title)).hover_mode(HoverMode::XUnified);
        figures.push(figure(
            &format!("position-{id}"),
            &format!("{name} by position"),
            layout,
            reports,
            |i, report| position(i, report, value),
        ));
    }
    for (id, title, name, value) in PARTS {
        let layout = layout(from_zero(title), Axis::new().auto_margin(true)).bar_mode(BarMode::Group);
        figures.push(figure(
            &format!("subset-{id}"),
            &format!("{name} by subset"),
            layout,
            reports,
            |i, report| subset(i, report, value),
        ));
    }
    figures.retain(|figure| !figure.series.is_empty());
    figures
}

fn figure(
    id: &str,
    caption: &str,
    layout: Layout,
    reports: &[Report],
    series: impl Fn(usize, &Report) -> Option<Series>,
) -> Figure {
    Figure {
        section: Section::Chosen,
        row: String::new(),
        caption: caption.to_owned(),
        id: id.to_owned(),
        colour: Colour::Sae,
        layout,
        series: reports.iter().enumerate().filter_map(|(i, report)| series(i, report)).collect(),
    }
}

fn densities() -> Layout {
    let powers = -9..=0_i32;
    let ticks = powers.clone().map(f64::from).collect();
    let texts =
        powers.map(|power| if power < -3 { ten_to(power) } else { share(10_f64.powi(power)) }).collect();
    let x: Axis = axis("share of positions on which a latent is active")
        .tick_values(ticks)
        .tick_text(texts)
        .tick_angle(0.0);
    layout(x, from_zero("latents (% of all)"))
}

fn density(i: usize, report: &Report) -> Option<Series> {
    let DensityHistogram { log10_edges: edges, latents, dead } = &report.density_histogram;
    let all = (latents.iter().sum::<u64>() + dead).max(1);
    // Bins are equally wide, as `eval` makes them: a line that steps midway between their middles steps at their edges.
    let width = edges.get(1)? - edges.first()?;
    let percent = |n: u64| 100.0 * n as f64 / all as f64;
    let mut steps = vec![(edges.first()? - width / 2.0, 0.0, "none".to_owned())];
    for (bin, &n) in edges.windows(2).zip(latents) {
        let &[from, to] = bin else { continue };
        let about = format!(
            "active on a share of {} to {} of positions:<br>{} latents ({} % of all)",
            share(10_f64.powf(from)),
            share(10_f64.powf(to)),
            grouped(n),
            four(Some(percent(n)))
        );
        steps.push((rounded(f64::midpoint(from, to))?, rounded(percent(n))?, about));
    }
    steps.push((edges.last()? + width / 2.0, 0.0, "none".to_owned()));
    let trace =
        Scatter::new(steps.iter().map(|step| step.0).collect(), steps.iter().map(|step| step.1).collect())
            .mode(Mode::Lines)
            .line(line().shape(LineShape::Hvh))
            .fill(Fill::ToZeroY)
            .name(drawn(&report.id))
            .hover_text_array(steps.into_iter().map(|step| step.2).collect())
            .hover_template("<b>%{fullData.name}</b><br>%{hovertext}<extra></extra>");
    Series::of_sae(i, &trace)
}

fn l0s() -> Layout {
    layout(axis("active latents"), axis("positions (%)")).bar_mode(BarMode::Overlay)
}

fn l0(i: usize, report: &Report) -> Option<Series> {
    let histogram = &report.l0_histogram;
    if histogram.l0.is_empty() {
        return None;
    }
    let trace = Histogram::new_xy(histogram.l0.clone(), histogram.tokens.clone())
        .hist_func(HistFunc::Sum)
        .hist_norm(HistNorm::Percent)
        .n_bins_x(BINS)
        .bin_group("l0")
        .name(drawn(&report.id))
        .hover_template(
            "<b>%{fullData.name}</b><br>%{x} active latents: %{y:.3~g} % of positions<extra></extra>",
        );
    Series::of_sae(i, &trace)
}

fn position(i: usize, report: &Report, value: Part) -> Option<Series> {
    let values: Vec<Option<f64>> =
        report.by_position.iter().map(|part| value(part).and_then(rounded)).collect();
    values.iter().flatten().next()?;
    // A position is the entry's index, which plotly.js supplies: so many numbers less in the page.
    let trace = Scatter::new(Vec::<u64>::new(), values)
        .mode(Mode::Lines)
        .line(line())
        .connect_gaps(false)
        .name(drawn(&report.id))
        .hover_template("%{y:.4~g}");
    let mut series = Series::of_sae(i, &trace)?;
    series.trace.as_object_mut()?.remove("x");
    Some(series)
}

fn subset(i: usize, report: &Report, value: Part) -> Option<Series> {
    let parts: Vec<(String, f64)> = report
        .by_subset
        .iter()
        // The first one is drawn at the bottom.
        .rev()
        .filter_map(|(name, part)| Some((drawn(name), value(part).and_then(rounded)?)))
        .collect();
    if parts.is_empty() {
        return None;
    }
    let (names, values) = parts.into_iter().unzip();
    let trace = Bar::new(values, names)
        .orientation(Orientation::Horizontal)
        .name(drawn(&report.id))
        .hover_template("<b>%{fullData.name}</b><br>%{y}: %{x:.4~g}<extra></extra>");
    Series::of_sae(i, &trace)
}

/// A share of positions in two digits: `0.32`, `0.0016`, `1.6 × 10⁻⁵`.
fn share(share: f64) -> String {
    let power = share.log10().floor();
    if power >= -3.0 {
        let digits = (1.0 - power).max(0.0) as usize;
        let text = format!("{share:.digits$}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    let factor = format!("{:.1}", share / 10_f64.powf(power));
    format!("{} × {}", factor.trim_end_matches(".0"), ten_to(power as i32))
}

/// `10⁻⁴`, in letters: plotly.js would set an exponent too small to read.
fn ten_to(power: i32) -> String {
    const DIGITS: [char; 10] = ['⁰', '¹', '²', '³', '⁴', '⁵', '⁶', '⁷', '⁸', '⁹'];
    let exponent = power.unsigned_abs().to_string();
    let digits = exponent.bytes().filter_map(|digit| DIGITS.get(usize::from(digit - b'0')));
    ["10", if power < 0 { "⁻" } else { "" }]
        .into_iter()
        .map(str::to_owned)
        .chain(digits.map(char::to_string))
        .collect()
}
