use std::{fmt, str::FromStr};

use hooks::{HookPoint, LayerIdx};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    Place, Result, SaeError,
    catalogue::{self, Site, Width},
};

/// A released Gemma Scope SAE: `gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`.
///
/// `canonical` for the L0 is resolved when it is parsed, and a leading `google/` or a trailing `/params.npz` may be there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SaeId {
    release: &'static Release,
    /// `None` for the embedding.
    layer: Option<LayerIdx>,
    width: Width,
    l0: u32,
}

/// One repository (Gemma Scope, table 1).
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Release {
    name: &'static str,
    model: &'static str,
    n_layers: usize,
    site: Site,
    d_in: i64,
}

const fn release(name: &'static str, model: &'static str, n_layers: usize, site: Site, d_in: i64) -> Release {
    Release { name, model, n_layers, site, d_in }
}

static RELEASES: [Release; 9] = [
    release("gemma-scope-2b-pt-res", "google/gemma-2-2b", 26, Site::Residual, 2304),
    release("gemma-scope-2b-pt-att", "google/gemma-2-2b", 26, Site::Attention, 2048),
    release("gemma-scope-2b-pt-mlp", "google/gemma-2-2b", 26, Site::Mlp, 2304),
    release("gemma-scope-2b-pt-transcoders", "google/gemma-2-2b", 26, Site::Transcoder, 2304),
    release("gemma-scope-9b-pt-res", "google/gemma-2-9b", 42, Site::Residual, 3584),
    release("gemma-scope-9b-pt-att", "google/gemma-2-9b", 42, Site::Attention, 4096),
    release("gemma-scope-9b-pt-mlp", "google/gemma-2-9b", 42, Site::Mlp, 3584),
    release("gemma-scope-27b-pt-res", "google/gemma-2-27b", 46, Site::Residual, 4608),
    release("gemma-scope-9b-it-res", "google/gemma-2-9b-it", 42, Site::Residual, 3584),
];

impl SaeId {
    /// The repository: `google/gemma-scope-2b-pt-res`.
    pub fn repo(&self) -> String {
        format!("google/{}", self.release.name)
    }

    /// The file in the repository: `layer_20/width_16k/average_l0_71/params.npz`.
    pub fn params_path(&self) -> String {
        format!("{}/width_{}/average_l0_{}/params.npz", self.folder(), self.width, self.l0)
    }

    /// The model whose activations the SAE reads: `google/gemma-2-2b`.
    pub fn model(&self) -> &'static str {
        self.release.model
    }

    /// What it was trained on.
    pub fn place(&self) -> Place {
        let Some(layer) = self.layer else { return Place::Embedding };
        match self.release.site {
            Site::Residual => Place::Residual(layer),
            Site::Attention => Place::Attention(layer),
            Site::Mlp => Place::Mlp(layer),
            Site::Transcoder => Place::Transcoder(layer),
            Site::Embedding => Place::Embedding,
        }
    }

    /// The site that the SAE reads. For transcoders this is their input: [`Place::site_out`] is the other.
    pub fn hook_point(&self) -> HookPoint {
        self.place().site()
    }

    /// The number of latents.
    pub fn d_sae(&self) -> i64 {
        self.width.d_sae()
    }

    /// The width of the input.
    pub fn d_in(&self) -> i64 {
        self.release.d_in
    }

    /// The mean number of active latents that the file's name gives.
    pub fn l0(&self) -> u32 {
        self.l0
    }

    fn folder(&self) -> String {
        self.layer.map_or_else(|| "embedding".to_owned(), |LayerIdx(l)| format!("layer_{l}"))
    }
}

impl fmt::Display for SaeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/width_{}/average_l0_{}", self.release.name, self.folder(), self.width, self.l0)
    }
}

impl FromStr for SaeId {
    type Err = SaeError;

    fn from_str(text: &str) -> Result<Self> {
        // A line break, say, would tear the sentence apart.
        let visible = |t: &str| t.escape_debug().to_string();
        parse(text).map_err(|problem| SaeError::Id { text: visible(text), problem: visible(&problem) })
    }
}

fn parse(text: &str) -> Result<SaeId, String> {
    const FORM: &str = "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71";
    let short = text.strip_prefix("google/").unwrap_or(text);
    let short = short.strip_suffix("/params.npz").unwrap_or(short);
    let parts: Vec<&str> = short.split('/').collect();
    let [name, place, width, l0] = parts.as_slice() else {
        return Err(format!("it should read like `{FORM}`"));
    };
    // SAELens names the same files by releases of their own with this ending.
    let name = name.strip_suffix("-canonical").unwrap_or(name);
    let release = RELEASES.iter().find(|r| r.name == name).ok_or_else(|| {
        let known: Vec<_> = RELEASES.iter().map(|r| r.name).collect();
        format!("there is no release `{name}`; the releases are {}", known.join(", "))
    })?;
    let layer = match place.strip_prefix("layer_") {
        Some(layer) => {
            Some(digits(layer).map(|l| LayerIdx(l as usize)).filter(|l| l.0 < release.n_layers).ok_or_else(
                || format!("`{place}` is not one of its layers, layer_0 to layer_{}", release.n_layers - 1),
            )?)
        }
        None if *place == "embedding" && release.site == Site::Residual => None,
        None => return Err(format!("`{place}` should read like `layer_20`")),
    };
    let width = width.strip_prefix("width_").and_then(Width::labelled).ok_or_else(|| {
        let known: Vec<_> = Width::all().map(|width| format!("width_{width}")).collect();
        format!("`{width}` is no width; the widths are {}", known.join(", "))
    })?;
    let l0 = match l0.strip_prefix("average_l0_") {
        Some(number) => digits(number).ok_or_else(|| format!("`{l0}` should read like `average_l0_71`"))?,
        None if *l0 == "canonical" => canonical(release, layer, width)?,
        None => return Err(format!("`{l0}` should read like `average_l0_71`, or be `canonical`")),
    };
    Ok(SaeId { release, layer, width, l0 })
}

fn canonical(release: &Release, layer: Option<LayerIdx>, width: Width) -> Result<u32, String> {
    let mut known = catalogue::all().filter(|entry| entry.canonical && entry.release == release.name);
    let found = known.find(|entry| entry.layer == layer && entry.width == width);
    found.map(|entry| entry.l0).ok_or_else(|| "none of this layer and width is called canonical".to_owned())
}

/// Digits alone, without a sign or leading zeros.
fn digits(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

impl Serialize for SaeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SaeId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
