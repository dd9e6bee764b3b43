use hooks::{HookPoint, LayerIdx};

use crate::{Opened, Result, Sae, SaeError, SaeParts, SparseAutoencoder as _};

/// What an SAE of Gemma Scope was trained on (Gemma Scope, section 3.1): its repository and folder tell, its file does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// The residual stream after a block.
    Residual(LayerIdx),
    /// All heads' outputs side by side, before `W_O`.
    Attention(LayerIdx),
    /// What the MLP adds to the stream, after its norm.
    Mlp(LayerIdx),
    /// From the MLP's normalised input, *before* the norm's gain, to what it adds to the stream (appendix C).
    Transcoder(LayerIdx),
    /// The rows of the embedding table, *before* they are multiplied by `√d_model`.
    Embedding,
}

impl Place {
    /// Reads it off a path in the layout of the repositories: `…-res/layer_20/…`, `…-transcoders/layer_3/…`,
    /// `…-res/embedding/…`, or with the hook's short name before the layer, `resid_post/layer_2/…`.
    pub fn from_path(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.split(['/', '\\']).collect();
        let before = |at: usize| at.checked_sub(1).and_then(|i| parts.get(i)).copied().unwrap_or_default();
        let found = parts.iter().enumerate().rev().find_map(|(i, part)| {
            let number = part.strip_prefix("layer_")?;
            Some((i, LayerIdx(number.parse().ok()?)))
        });
        let Some((at, layer)) = found else {
            let at = parts.iter().rposition(|part| *part == "embedding")?;
            return before(at).ends_with("-res").then_some(Self::Embedding);
        };
        let kind = before(at);
        let is = |short: &str, long: &str| kind.ends_with(&format!("-{short}")) || kind == long;
        match () {
            () if is("res", "resid_post") => Some(Self::Residual(layer)),
            () if is("att", "attn_z") => Some(Self::Attention(layer)),
            () if is("mlp", "mlp_out") => Some(Self::Mlp(layer)),
            () if is("transcoders", "transcoder") => Some(Self::Transcoder(layer)),
            () => None,
        }
    }

    /// The site that is read.
    pub fn site(self) -> HookPoint {
        match self {
            Self::Residual(layer) => HookPoint::ResidPost(layer),
            Self::Attention(layer) => HookPoint::AttnZ(layer),
            Self::Mlp(layer) => HookPoint::MlpOut(layer),
            Self::Transcoder(layer) => HookPoint::Ln2Normalized(layer),
            Self::Embedding => HookPoint::Embed,
        }
    }

    /// The site whose activation the output estimates.
    pub fn site_out(self) -> HookPoint {
        match self {
            Self::Transcoder(layer) => HookPoint::MlpOut(layer),
            other => other.site(),
        }
    }
}

impl Opened {
    /// Of a file of Gemma Scope, the SAE that its place makes of it: a transcoder is marked as one, though it is as wide as an
    /// SAE, and the embedding's is folded so that it reads `hook_embed`, which is `√d_model` times the rows that it was trained
    /// on. (SAELens folds `W_enc` and `W_dec` alike, and leaves `b_dec`, which is as much too small then.)
    ///
    /// # Errors
    /// An SAE of `d_in ≠ d_out` at the place of one that is no transcoder.
    pub fn at(self, place: Place) -> Result<Self> {
        let Self { sae, mut about } = self;
        (about.site, about.site_out) = (Some(place.site()), Some(place.site_out()));
        let sae = match place {
            Place::Transcoder(_) => Sae::new(SaeParts { transcoder: true, ..sae.into_parts() })?,
            _ if sae.is_transcoder() => {
                let (d_in, d_out) = (sae.d_in(), sae.d_out());
                return Err(SaeError::Parts(format!(
                    "a transcoder (d_in = {d_in}, d_out = {d_out}) lies where its path says that an SAE is"
                )));
            }
            Place::Embedding => {
                let d_model = sae.d_in() as f64;
                sae.fold_input_scale(d_model.sqrt().recip())?
            }
            _ => sae,
        };
        Ok(Self { sae, about })
    }
}
