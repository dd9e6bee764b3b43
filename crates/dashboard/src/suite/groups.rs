use std::collections::BTreeSet;

use eval::Report;
use hooks::LayerIdx;
use plotly::common::{DashType, MarkerSymbol};

use super::number::{grouped, short_width};

/// By what a suite's SAEs differ: each list ascends, or is in the order of the reports.
pub(super) struct Groups {
    /// Kinds of sites: `hook_resid_post`; of transcoders `ln2.hook_normalized → hook_mlp_out`.
    pub(super) sites: Vec<String>,
    pub(super) layers: Vec<usize>,
    pub(super) widths: Vec<i64>,
    /// Architectures, with what else differs.
    kinds: Vec<String>,
    /// Of the keys of the provenance that make SAEs incomparable, those in which the reports differ.
    differing: Vec<&'static str>,
    /// Whether some SAEs differ in their sparsity alone.
    pub(super) sparsities: bool,
}

/// SAEs that a line may join: all but their sparsity is the same.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) site: String,
    pub(super) kind: String,
    pub(super) width: i64,
    pub(super) layer: Option<usize>,
}

const SYMBOLS: [(&str, MarkerSymbol); 8] = [
    ("●", MarkerSymbol::Circle),
    ("◆", MarkerSymbol::Diamond),
    ("■", MarkerSymbol::Square),
    ("▲", MarkerSymbol::TriangleUp),
    ("▼", MarkerSymbol::TriangleDown),
    ("★", MarkerSymbol::Star),
    ("⬟", MarkerSymbol::Pentagon),
    ("✚", MarkerSymbol::Cross),
];
const DASHES: [(&str, DashType); 5] = [
    ("solid", DashType::Solid),
    ("dashed", DashType::Dash),
    ("dotted", DashType::Dot),
    ("dash and dot", DashType::DashDot),
    ("long dashes", DashType::LongDash),
];

impl Groups {
    pub(super) fn new(reports: &[Report]) -> Self {
        let differs = |key: &&str| {
            let mut values = reports.iter().map(|report| report.provenance.more.get(*key));
            let first = values.next();
            values.any(|value| Some(value) != first)
        };
        let mut groups = Self {
            sites: Vec::new(),
            layers: Vec::new(),
            widths: Vec::new(),
            kinds: Vec::new(),
            differing: ["model", "dtype", "sae_dtype"].into_iter().filter(differs).collect(),
            sparsities: false,
        };
        let mut keys = BTreeSet::new();
        for report in reports {
            let key = groups.key(report);
            groups.sparsities |= !keys.insert(key.clone());
            push_new(&mut groups.sites, key.site);
            push_new(&mut groups.kinds, key.kind);
            push_new(&mut groups.widths, key.width);
            if let Some(layer) = key.layer {
                push_new(&mut groups.layers, layer);
            }
        }
        groups.layers.sort_unstable();
        groups.widths.sort_unstable();
        groups
    }

    pub(super) fn key(&self, report: &Report) -> Key {
        let about = &report.provenance;
        let more = self.differing.iter().filter_map(|key| about.more.get(*key)?.as_str());
        let kind = [about.architecture.as_str()].into_iter().chain(more).collect::<Vec<_>>().join(", ");
        Key { site: site(report), kind, width: report.provenance.d_sae, layer: layer(report) }
    }

    pub(super) fn layer_slot(&self, layer: Option<usize>) -> Option<usize> {
        self.layers.iter().position(|&of| Some(of) == layer)
    }

    pub(super) fn width_slot(&self, width: i64) -> usize {
        self.widths.iter().position(|&of| of == width).unwrap_or_default()
    }

    pub(super) fn symbol(&self, width: i64) -> MarkerSymbol {
        nth(&SYMBOLS, self.width_slot(width)).1
    }

    pub(super) fn dash(&self, kind: &str) -> DashType {
        nth(&DASHES, self.kinds.iter().position(|of| of == kind).unwrap_or_default()).1
    }

    /// What the dashes mean, where there are several.
    pub(super) fn dashes(&self) -> Option<String> {
        let one = |(i, kind): (usize, &String)| format!("{}: {kind}", nth(&DASHES, i).0);
        (self.kinds.len() > 1).then(|| self.kinds.iter().enumerate().map(one).collect::<Vec<_>>().join("; "))
    }

    pub(super) fn symbol_names(&self) -> Vec<&'static str> {
        (0..self.widths.len()).map(|i| nth(&SYMBOLS, i).0).collect()
    }

    /// `16k` as in the names of releases, or the whole number where that would not tell two apart.
    pub(super) fn width_names(&self) -> Vec<String> {
        let short: Vec<_> = self.widths.iter().map(|&width| short_width(width)).collect();
        let distinct = short.iter().enumerate().all(|(i, name)| !short.iter().take(i).any(|of| of == name));
        if distinct {
            short
        } else {
            self.widths.iter().map(|&width| grouped(width.unsigned_abs())).collect()
        }
    }
}

/// The kind of site: the hook's name without its layer, and where the output goes if that is elsewhere.
pub(super) fn site(report: &Report) -> String {
    let (from, to) = (report.provenance.hook, report.provenance.hook_out);
    if from == to {
        from.short_name().to_owned()
    } else {
        format!("{} → {}", from.short_name(), to.short_name())
    }
}

pub(super) fn layer(report: &Report) -> Option<usize> {
    report.provenance.hook.layer().map(|LayerIdx(layer)| layer)
}

fn push_new<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}

fn nth<A: Clone, const N: usize>(list: &[A; N], i: usize) -> A {
    list[i % N].clone()
}
