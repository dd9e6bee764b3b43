use std::ops::RangeInclusive;

use hooks::LayerIdx;

use super::{Entry, Site, Width, distinct, shown};
use crate::{Result, SaeError};

/// Which SAEs of the catalogue: those that meet every condition that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The release in SAELens' terms: `gemma-scope-2b-pt-res`.
    pub release: Option<String>,
    /// The model: `google/gemma-2-2b`, `gemma-2-2b` or `2b`. Of Gemma 3 the base models may go without their `-pt`.
    pub model: Option<String>,
    /// What kind of activation.
    pub site: Option<Site>,
    /// The layers. The embedding is none.
    pub layers: Option<RangeInclusive<usize>>,
    /// How many latents.
    pub width: Option<Width>,
    /// The mean numbers of active latents.
    pub l0: Option<RangeInclusive<u32>>,
    /// Nothing but what is called canonical.
    pub canonical: bool,
}

impl Filter {
    /// Whether it meets every condition.
    pub fn fits(&self, entry: &Entry) -> bool {
        let in_layers =
            |range: &RangeInclusive<usize>| entry.layer.is_some_and(|LayerIdx(l)| range.contains(&l));
        self.release.as_ref().is_none_or(|release| release == entry.release)
            && self.model.as_ref().is_none_or(|model| is_called(entry.model, model))
            && self.site.is_none_or(|site| site == entry.site)
            && self.layers.as_ref().is_none_or(in_layers)
            && self.width.is_none_or(|width| width == entry.width)
            && self.l0.as_ref().is_none_or(|range| range.contains(&entry.l0))
            && (!self.canonical || entry.canonical)
    }

    /// Those of some entries that meet every condition, in their order.
    ///
    /// # Errors
    /// [`SaeError::Catalogue`] where there are none; it says what there is when one condition is left out.
    pub fn choose(&self, entries: impl IntoIterator<Item = Entry>) -> Result<Vec<Entry>> {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let chosen: Vec<Entry> = entries.iter().filter(|entry| self.fits(entry)).copied().collect();
        if chosen.is_empty() {
            let near = self.near(&entries);
            return Err(SaeError::Catalogue(format!("no released SAE fits: {near}")));
        }
        Ok(chosen)
    }

    fn near(&self, entries: &[Entry]) -> String {
        let mut hints = Vec::new();
        for (what, leave_out, value) in CONDITIONS {
            let mut without = self.clone();
            leave_out(&mut without);
            if without == *self {
                continue;
            }
            let values = distinct(entries.iter().filter(|entry| without.fits(entry)).map(value));
            if !values.is_empty() {
                hints.push(format!("the {what} of those that otherwise do are {}", shown(&values)));
            }
        }
        if hints.is_empty() {
            "nor would any with one of the conditions left out".to_owned()
        } else {
            hints.join("; ")
        }
    }
}

/// A condition's name, how to leave it out, and what an entry has there.
type Condition = (&'static str, fn(&mut Filter), fn(&Entry) -> String);

const CONDITIONS: [Condition; 7] = [
    ("releases", |f| f.release = None, |e| e.release.to_owned()),
    ("models", |f| f.model = None, |e| e.model.to_owned()),
    ("sites", |f| f.site = None, |e| e.site.to_string()),
    ("layers", |f| f.layers = None, |e| e.layer.map_or("embedding".to_owned(), |LayerIdx(l)| l.to_string())),
    ("widths", |f| f.width = None, |e| e.width.to_string()),
    ("L0s", |f| f.l0 = None, |e| e.l0.to_string()),
    ("names", |f| f.canonical = false, Entry::to_string),
];

/// `google/gemma-3-1b-pt` is `gemma-3-1b-pt`, `gemma-3-1b`, `1b-pt` and `1b`.
fn is_called(model: &str, name: &str) -> bool {
    let name = name.strip_prefix("google/").unwrap_or(name);
    let model = model.strip_prefix("google/").unwrap_or(model);
    let size = model.splitn(3, '-').nth(2).unwrap_or(model);
    [model, size].into_iter().any(|full| name == full || Some(name) == full.strip_suffix("-pt"))
}
