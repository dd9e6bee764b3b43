use plotly::{
    Layout,
    common::{Line, Title},
    layout::{Axis, AxisType, HoverMode, Margin, RangeMode},
};
use serde::Serialize;
use serde_json::Value;

use super::Groups;
use crate::{Result, html::escape};

/// A part of the page with figures in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Fidelity,
    Layers,
    Chosen,
}

impl Section {
    pub(super) const ALL: [Self; 3] = [Self::Fidelity, Self::Layers, Self::Chosen];

    pub(super) fn id(self) -> &'static str {
        match self {
            Self::Fidelity => "fidelity",
            Self::Layers => "layers",
            Self::Chosen => "chosen",
        }
    }

    pub(super) fn heading(self) -> &'static str {
        match self {
            Self::Fidelity => "Sparsity and fidelity",
            Self::Layers => "Quality by layer",
            Self::Chosen => "Latents, positions and subsets",
        }
    }

    /// What is drawn, as HTML.
    pub(super) fn note(self, groups: &Groups) -> String {
        let dashes =
            groups.dashes().map(|dashes| format!(" Lines are {}.", escape(&dashes))).unwrap_or_default();
        match (self, groups.sparsities) {
            (Self::Fidelity, several) => {
                let line = if several { " A line joins the SAEs of one layer and width." } else { "" };
                format!(
                    "Lower is more faithful, further left is sparser.{line} An SAE without one of the two values, or with an L0 of \
                     zero, is in the table alone.{dashes} Click a point for its SAE."
                )
            }
            (Self::Layers, true) => format!(
                "Every SAE is a point. Where several share a layer and a width, the line goes through the one whose L0 is \
                 nearest to {}, as Gemma Scope chooses its canonical SAEs.{dashes}",
                super::layers::CANONICAL_L0
            ),
            (Self::Layers, false) => format!("Every SAE is a point.{dashes}"),
            (Self::Chosen, _) => {
                "Histograms, positions and subsets of the SAEs that you pick, side by side.".to_owned()
            }
        }
    }
}

/// A plot, and where it stands.
#[derive(Serialize)]
pub(super) struct Figure {
    #[serde(skip)]
    pub(super) section: Section,
    /// The heading above the figures of a row; empty for none.
    #[serde(skip)]
    pub(super) row: String,
    #[serde(skip)]
    pub(super) caption: String,
    pub(super) id: String,
    /// Which of a series' slots gives its colour.
    pub(super) colour: Colour,
    pub(super) layout: Layout,
    pub(super) series: Vec<Series>,
}

/// What colours tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Colour {
    Layer,
    Width,
    Sae,
}

/// A trace and what it is of, so that the script can colour it, and leave it out.
#[derive(Serialize)]
pub(super) struct Series {
    pub(super) layer: Option<usize>,
    pub(super) width: Option<usize>,
    pub(super) sae: Option<usize>,
    pub(super) trace: Value,
}

impl Series {
    /// A trace that belongs to one SAE.
    pub(super) fn of_sae(sae: usize, trace: &impl Serialize) -> Option<Self> {
        Some(Self { layer: None, width: None, sae: Some(sae), trace: json(trace).ok()? })
    }
}

/// The trace as JSON.
pub(super) fn json(trace: &impl Serialize) -> Result<Value> {
    Ok(serde_json::to_value(trace)?)
}

/// Axes with these titles; colours and fonts are the script's.
pub(super) fn layout(x: Axis, y: Axis) -> Layout {
    let margin = Margin::new().left(70).right(12).top(8).bottom(48);
    Layout::new().x_axis(x).y_axis(y).margin(margin).show_legend(false).hover_mode(HoverMode::Closest)
}

pub(super) fn axis(title: &str) -> Axis {
    Axis::new().title(Title::with_text(title))
}

/// An axis on which zero is the ideal.
pub(super) fn from_zero(title: &str) -> Axis {
    axis(title).range_mode(RangeMode::ToZero)
}

/// A logarithmic axis, whose ticks the script chooses: plotly.js 3.0 writes 20 as a small 2.
pub(super) fn logarithmic(title: &str) -> Axis {
    axis(title).type_(AxisType::Log)
}

/// A text for plotly.js, which reads tags, and of the entities these.
pub(super) fn drawn(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A thin line.
pub(super) fn line() -> Line {
    Line::new().width(1.6)
}
