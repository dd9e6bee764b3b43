//! The catalogue: every SAE that Gemma Scope and Gemma Scope 2 released, by name, without asking the hub.
//!
//! ```
//! use sae_core::catalogue::{self, Filter, Site};
//! let swept = catalogue::matching("gemma-scope-2b-pt-res/layer_20/width_16k/*")?;
//! assert_eq!(swept.len(), 5);
//! let filter = Filter { model: Some("2b".to_owned()), site: Some(Site::Residual), layers: Some(5..=12), ..Filter::default() };
//! for entry in filter.choose(catalogue::all())? {
//!     println!("{entry}: L0 {}", entry.l0); // `load_sae` takes the name
//! }
//! # Ok::<(), sae_core::SaeError>(())
//! ```
//!
//! It is what SAELens 6.54 lists (`tools/catalogue`): the crosscoders and cross-layer transcoders of Gemma Scope 2, which
//! nothing here reads, are not in it.

mod filter;
mod names;
mod released;
mod width;

use std::{fmt, str::FromStr};

use hooks::LayerIdx;
use serde::{Serialize, Serializer, ser::SerializeStruct as _};

pub use filter::Filter;
pub use names::{find, matching};
pub use width::Width;

use crate::SaeError;

/// Every released SAE: the first Gemma Scope's releases, then the second's, of each by layer, width and L0.
pub fn all() -> impl Iterator<Item = Entry> {
    released::entries().iter().copied()
}

/// A released SAE. It displays as the name that the loader takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The release, as SAELens calls it: `gemma-scope-2b-pt-res`, `gemma-scope-2-1b-pt-res-all`.
    pub release: &'static str,
    /// The repository on the hub: `google/gemma-scope-2b-pt-res`.
    pub repo: &'static str,
    /// The model whose activations it reads: `google/gemma-2-2b`.
    pub model: &'static str,
    /// What kind of activation that is.
    pub site: Site,
    /// The layer; `None` for the embedding.
    pub layer: Option<LayerIdx>,
    /// How many latents.
    pub width: Width,
    /// The mean number of active latents: of Gemma Scope as measured, of Gemma Scope 2 as aimed at.
    pub l0: u32,
    /// Whether it is the one of its layer and width that SAELens and Neuronpedia call canonical (L0 nearest 100). Gemma Scope
    /// 2 has none.
    pub canonical: bool,
    /// The folder in the repository where the layers lie, of Gemma Scope 2 alone.
    folder: Option<&'static str>,
    /// `medium_seed_1` or the like, of Gemma Scope 2 alone.
    size: Option<Size>,
    page: Page,
}

/// What says which of the SAEs of a layer and width it is, in Gemma Scope 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    name: &'static str,
    suffix: &'static str,
}

/// Which page of Neuronpedia shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Page {
    None,
    OfLayerAndWidth,
    OfL0,
}

impl Entry {
    /// The folder in the repository: `layer_20/width_16k/average_l0_71`, `resid_post/layer_13_width_16k_l0_medium`.
    pub fn path(&self) -> String {
        let id = self.id();
        self.folder.map_or_else(|| id.clone(), |folder| format!("{folder}/{id}"))
    }

    /// Neuronpedia's id: `gemma-2-2b/20-gemmascope-res-16k`; `None` where the SAE has no page that SAELens lists.
    pub fn neuronpedia(&self) -> Option<String> {
        let own = match self.page {
            Page::None => return None,
            Page::OfLayerAndWidth => String::new(),
            Page::OfL0 => format!("__l0-{}", self.l0),
        };
        let model = self.model.trim_start_matches("google/").trim_end_matches("-pt");
        let scope = if self.size.is_some() { "gemmascope-2" } else { "gemmascope" };
        let LayerIdx(layer) = self.layer?;
        Some(format!("{model}/{layer}-{scope}-{}-{}{own}", self.site, self.width))
    }

    /// Its place below the repository, or below the folder of its site.
    fn id(&self) -> String {
        let layer = self.layer.map_or_else(|| "embedding".to_owned(), |LayerIdx(l)| format!("layer_{l}"));
        match self.size {
            None => format!("{layer}/width_{}/average_l0_{}", self.width, self.l0),
            Some(Size { name, suffix }) => format!("{layer}_width_{}_l0_{name}{suffix}", self.width),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The first Gemma Scope's names are known without their owner.
        let repo = if self.size.is_some() { self.repo } else { self.release };
        write!(f, "{repo}/{}", self.path())
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Entry", 12)?;
        fields.serialize_field("name", &self.to_string())?;
        fields.serialize_field("release", self.release)?;
        fields.serialize_field("repo", self.repo)?;
        fields.serialize_field("path", &self.path())?;
        fields.serialize_field("model", self.model)?;
        fields.serialize_field("site", self.site.name())?;
        fields.serialize_field("layer", &self.layer.map(|LayerIdx(l)| l))?;
        fields.serialize_field("width", self.width.label())?;
        fields.serialize_field("d_sae", &self.width.d_sae())?;
        fields.serialize_field("l0", &self.l0)?;
        fields.serialize_field("canonical", &self.canonical)?;
        fields.serialize_field("neuronpedia", &self.neuronpedia())?;
        fields.end()
    }
}

/// What kind of activation an SAE reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Site {
    /// The residual stream after a block: `res`.
    Residual,
    /// All heads' outputs side by side: `att`.
    Attention,
    /// What the MLP adds to the stream: `mlp`.
    Mlp,
    /// The MLP's input, for what it adds to the stream: `transcoder`.
    Transcoder,
    /// The rows of the embedding table: `embedding`.
    Embedding,
}

impl Site {
    const ALL: [Self; 5] = [Self::Residual, Self::Attention, Self::Mlp, Self::Transcoder, Self::Embedding];

    /// The name in the releases' names.
    pub fn name(self) -> &'static str {
        match self {
            Self::Residual => "res",
            Self::Attention => "att",
            Self::Mlp => "mlp",
            Self::Transcoder => "transcoder",
            Self::Embedding => "embedding",
        }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Site {
    type Err = SaeError;

    fn from_str(text: &str) -> Result<Self, SaeError> {
        Self::ALL.into_iter().find(|site| site.name() == text).ok_or_else(|| {
            let known = Self::ALL.map(Self::name).join(", ");
            SaeError::Catalogue(format!("`{}` is no site; the sites are {known}", text.escape_debug()))
        })
    }
}

/// Some values for a sentence: all, or of many the first ones and the last.
fn shown(values: &[String]) -> String {
    const MANY: usize = 20;
    match values {
        [first, second, third, .., last] if values.len() > MANY => {
            format!("{first}, {second}, {third}, … {last}")
        }
        _ => values.join(", "),
    }
}

/// Each value once, in the order of their first appearance.
fn distinct(values: impl Iterator<Item = String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    values.filter(|value| seen.insert(value.clone())).collect()
}
