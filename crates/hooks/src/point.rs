use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{HookError, ModelDims, Result};

/// A block of the model, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerIdx(pub usize);

impl fmt::Display for LayerIdx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What one axis of an activation counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Sequences.
    Batch,
    /// Positions in the sequence.
    Pos,
    /// Positions that look.
    QueryPos,
    /// Positions that are looked at.
    KeyPos,
    /// The residual stream.
    DModel,
    /// Query heads.
    NHeads,
    /// Key and value heads.
    NKvHeads,
    /// Inside a head.
    DHead,
    /// The hidden layer of the MLP.
    DMlp,
    /// A single number, kept as an axis of size one.
    One,
}

impl Axis {
    /// The axis's name in docs and errors: `d_model`, `n_heads`, ….
    pub const fn name(self) -> &'static str {
        match self {
            Self::Batch => "batch",
            Self::Pos => "pos",
            Self::QueryPos => "query_pos",
            Self::KeyPos => "key_pos",
            Self::DModel => "d_model",
            Self::NHeads => "n_heads",
            Self::NKvHeads => "n_kv_heads",
            Self::DHead => "d_head",
            Self::DMlp => "d_mlp",
            Self::One => "1",
        }
    }

    fn size(self, dims: &ModelDims, batch: i64, pos: i64) -> i64 {
        match self {
            Self::Batch => batch,
            Self::Pos | Self::QueryPos | Self::KeyPos => pos,
            Self::DModel => dims.d_model as i64,
            Self::NHeads => dims.n_heads as i64,
            Self::NKvHeads => dims.n_kv_heads as i64,
            Self::DHead => dims.d_head as i64,
            Self::DMlp => dims.d_mlp as i64,
            Self::One => 1,
        }
    }
}

/// One table makes the enum, its names, its axes and the order in which a model passes its sites.
macro_rules! hook_points {
    (
        before { $($(#[$bdoc:meta])* $b:ident = $bname:literal $baxes:tt;)* }
        layer { $($(#[$ldoc:meta])* $l:ident = $lname:literal $laxes:tt;)* }
        after { $($(#[$adoc:meta])* $a:ident = $aname:literal $aaxes:tt;)* }
    ) => {
        /// A named place in a model's forward pass. The names are TransformerLens'.
        ///
        /// The enum is closed: a text that is none of these names is an error, so a misspelt hook cannot exist.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum HookPoint {
            $($(#[$bdoc])* $b,)*
            $($(#[$ldoc])* $l(LayerIdx),)*
            $($(#[$adoc])* $a,)*
        }

        /// Makes the site of a layer.
        type LayerSite = fn(LayerIdx) -> HookPoint;
        const BEFORE: &[(&str, HookPoint)] = &[$(($bname, HookPoint::$b)),*];
        const LAYER: &[(&str, LayerSite)] = &[$(($lname, HookPoint::$l)),*];
        const AFTER: &[(&str, HookPoint)] = &[$(($aname, HookPoint::$a)),*];

        impl HookPoint {
            /// What each axis of the activation counts.
            pub const fn axes(self) -> &'static [Axis] {
                use Axis::*;
                match self {
                    $(Self::$b => &$baxes,)*
                    $(Self::$l(_) => &$laxes,)*
                    $(Self::$a => &$aaxes,)*
                }
            }

            /// The block that the site lies in, if it lies in one.
            pub const fn layer(self) -> Option<LayerIdx> {
                match self {
                    $(Self::$b => None,)*
                    $(Self::$l(layer) => Some(layer),)*
                    $(Self::$a => None,)*
                }
            }

            /// The name without the layer: `hook_resid_post`, `attn.hook_z`.
            pub const fn short_name(self) -> &'static str {
                match self {
                    $(Self::$b => $bname,)*
                    $(Self::$l(_) => $lname,)*
                    $(Self::$a => $aname,)*
                }
            }
        }
    };
}

hook_points! {
    before {
        /// The embedded tokens, after the multiplication by √d_model (so what enters block 0). Gemma Scope's embedding SAEs
        /// were trained on the table's rows, before it.
        Embed = "hook_embed" [Batch, Pos, DModel];
    }
    layer {
        /// The residual stream that enters the block.
        ResidPre = "hook_resid_pre" [Batch, Pos, DModel];
        /// What the input of the attention is divided by: √(mean x² + ε).
        Ln1Scale = "ln1.hook_scale" [Batch, Pos, One];
        /// The input of the attention, normalised, before the gain 1 + w.
        Ln1Normalized = "ln1.hook_normalized" [Batch, Pos, DModel];
        /// Queries, before the rotary embedding.
        AttnQ = "attn.hook_q" [Batch, Pos, NHeads, DHead];
        /// Keys, before the rotary embedding.
        AttnK = "attn.hook_k" [Batch, Pos, NKvHeads, DHead];
        /// Values.
        AttnV = "attn.hook_v" [Batch, Pos, NKvHeads, DHead];
        /// Queries, after the rotary embedding.
        AttnRotQ = "attn.hook_rot_q" [Batch, Pos, NHeads, DHead];
        /// Keys, after the rotary embedding.
        AttnRotK = "attn.hook_rot_k" [Batch, Pos, NKvHeads, DHead];
        /// Attention scores, after scale, soft-cap and mask (−∞ where the key is hidden).
        AttnScores = "attn.hook_attn_scores" [Batch, NHeads, QueryPos, KeyPos];
        /// Attention probabilities.
        AttnPattern = "attn.hook_pattern" [Batch, NHeads, QueryPos, KeyPos];
        /// The heads' outputs before `W_O`: Gemma Scope's attention site, there with the last two axes flattened.
        AttnZ = "attn.hook_z" [Batch, Pos, NHeads, DHead];
        /// Each head's share of the attention's output, before the post-attention norm; the shares sum to `W_O z`.
        AttnResult = "attn.hook_result" [Batch, Pos, NHeads, DModel];
        /// What the attention's output is divided by.
        Ln1PostScale = "ln1_post.hook_scale" [Batch, Pos, One];
        /// The attention's output, normalised, before the gain 1 + w.
        Ln1PostNormalized = "ln1_post.hook_normalized" [Batch, Pos, DModel];
        /// What the attention adds to the residual stream: after the post-attention norm.
        AttnOut = "hook_attn_out" [Batch, Pos, DModel];
        /// The residual stream between attention and MLP.
        ResidMid = "hook_resid_mid" [Batch, Pos, DModel];
        /// The residual stream as the MLP's branch reads it: an edit here leaves the stream itself alone.
        MlpIn = "hook_mlp_in" [Batch, Pos, DModel];
        /// What the input of the MLP is divided by.
        Ln2Scale = "ln2.hook_scale" [Batch, Pos, One];
        /// The input of the MLP, normalised, before the gain 1 + w. Gemma Scope's transcoders read this.
        Ln2Normalized = "ln2.hook_normalized" [Batch, Pos, DModel];
        /// The gate, before GELU.
        MlpPre = "mlp.hook_pre" [Batch, Pos, DMlp];
        /// The branch that the gate multiplies.
        MlpPreLinear = "mlp.hook_pre_linear" [Batch, Pos, DMlp];
        /// The product of the two: the input of the down projection.
        MlpPost = "mlp.hook_post" [Batch, Pos, DMlp];
        /// What the MLP's output is divided by.
        Ln2PostScale = "ln2_post.hook_scale" [Batch, Pos, One];
        /// The MLP's output, normalised, before the gain 1 + w.
        Ln2PostNormalized = "ln2_post.hook_normalized" [Batch, Pos, DModel];
        /// What the MLP adds to the residual stream: after the post-feedforward norm. Gemma Scope's MLP site.
        MlpOut = "hook_mlp_out" [Batch, Pos, DModel];
        /// The residual stream that leaves the block. Gemma Scope's residual site.
        ResidPost = "hook_resid_post" [Batch, Pos, DModel];
    }
    after {
        /// What the last residual stream is divided by.
        LnFinalScale = "ln_final.hook_scale" [Batch, Pos, One];
        /// The last residual stream, normalised, before the gain 1 + w.
        LnFinalNormalized = "ln_final.hook_normalized" [Batch, Pos, DModel];
    }
}

impl HookPoint {
    /// Every site of a model with `n_layers` blocks, in the order in which a forward pass meets them.
    pub fn all(n_layers: usize) -> impl Iterator<Item = Self> {
        let layers = (0..n_layers).flat_map(|l| LAYER.iter().map(move |(_, site)| site(LayerIdx(l))));
        BEFORE.iter().map(|(_, p)| *p).chain(layers).chain(AFTER.iter().map(|(_, p)| *p))
    }

    /// The residual stream after every block.
    pub fn resid_posts(n_layers: usize) -> impl Iterator<Item = Self> {
        (0..n_layers).map(|l| Self::ResidPost(LayerIdx(l)))
    }

    /// How many blocks must run for the site to be met.
    pub fn blocks_needed(self, n_layers: usize) -> usize {
        match (self.layer(), self) {
            (Some(LayerIdx(l)), _) => l.saturating_add(1),
            (None, Self::Embed) => 0,
            (None, _) => n_layers,
        }
    }

    /// The residual stream that a run needs, besides the activation, to begin again behind this site: see
    /// [`HookedModel::resume`](crate::HookedModel::resume). A stretch of the stream itself is its own. `None` where no run can
    /// begin, since other branches than one run side by side (queries, keys, values) or the site lies behind the blocks.
    pub fn stream(self) -> Option<Self> {
        match self {
            Self::Embed | Self::ResidPre(_) | Self::ResidMid(_) | Self::ResidPost(_) => Some(self),
            Self::AttnZ(l) | Self::AttnOut(l) => Some(Self::ResidPre(l)),
            Self::Ln2Normalized(l) | Self::MlpPost(l) | Self::MlpOut(l) => Some(Self::ResidMid(l)),
            _ => None,
        }
    }

    /// Whether the site lies behind the last block.
    pub fn is_final(self) -> bool {
        AFTER.iter().any(|(_, p)| *p == self)
    }

    /// The sizes of the activation in a model of `dims`, for a batch of `batch` sequences of `pos` positions.
    pub fn shape(self, dims: &ModelDims, batch: i64, pos: i64) -> Vec<i64> {
        self.axes().iter().map(|axis| axis.size(dims, batch, pos)).collect()
    }

    /// Reads comma-separated names in which `*` stands for every layer: `blocks.*.hook_resid_post,ln_final.hook_scale`.
    ///
    /// # Errors
    /// [`HookError::Name`] for a name that is none, [`HookError::OutOfRange`] for a layer that is not there.
    pub fn parse_list(text: &str, n_layers: usize) -> Result<Vec<Self>> {
        let mut sites: Vec<Self> = Vec::new();
        for name in text.split(',').map(str::trim).filter(|n| !n.is_empty()) {
            match name.strip_prefix("blocks.*.") {
                Some(rest) => {
                    for l in 0..n_layers {
                        sites.push(format!("blocks.{l}.{rest}").parse().map_err(|e| as_pattern(e, name))?);
                    }
                }
                None => sites.push(name.parse()?),
            }
        }
        if sites.is_empty() {
            return Err(HookError::Name { text: text.to_owned(), nearest: vec![] });
        }
        for site in &sites {
            site.check(n_layers)?;
        }
        Ok(sites)
    }

    pub(crate) fn check(self, n_layers: usize) -> Result<()> {
        match self.layer() {
            Some(LayerIdx(l)) if l >= n_layers => Err(HookError::OutOfRange { site: self, n_layers }),
            _ => Ok(()),
        }
    }
}

/// The error of one layer's name, told of the pattern it came from.
fn as_pattern(error: HookError, pattern: &str) -> HookError {
    match error {
        HookError::Name { nearest, .. } => {
            let nearest = nearest.iter().map(|n| n.replacen(".0.", ".*.", 1)).collect();
            HookError::Name { text: pattern.to_owned(), nearest }
        }
        other => other,
    }
}

impl fmt::Display for HookPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layer() {
            Some(layer) => write!(f, "blocks.{layer}.{}", self.short_name()),
            None => f.write_str(self.short_name()),
        }
    }
}

impl FromStr for HookPoint {
    type Err = HookError;

    /// Reads exactly what [`Display`](fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self> {
        let whole = BEFORE.iter().chain(AFTER).find(|(name, _)| *name == text).map(|(_, point)| *point);
        let in_layer = || {
            let (layer, name) = text.strip_prefix("blocks.")?.split_once('.')?;
            let (_, site) = LAYER.iter().find(|(n, _)| *n == name)?;
            Some(site(LayerIdx(parse_layer(layer)?)))
        };
        whole
            .or_else(in_layer)
            .ok_or_else(|| HookError::Name { text: text.to_owned(), nearest: nearest(text) })
    }
}

/// Digits alone, without a sign or leading zeros: each site has one name.
fn parse_layer(text: &str) -> Option<usize> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

/// The three names most like a text, with the text's own layer where it has one.
fn nearest(text: &str) -> Vec<String> {
    let text = text.to_lowercase();
    let layer = text.split('.').nth(1).and_then(parse_layer).unwrap_or(0);
    let layers = LAYER.iter().map(|(_, site)| site(LayerIdx(layer)).to_string());
    let others = BEFORE.iter().chain(AFTER).map(|(name, _)| (*name).to_owned());
    let mut names: Vec<(f64, String)> =
        layers.chain(others).map(|name| (strsim::jaro_winkler(&text, &name), name)).collect();
    names.sort_by(|a, b| b.0.total_cmp(&a.0));
    names.into_iter().take(3).map(|(_, name)| name).collect()
}

impl Serialize for HookPoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HookPoint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
