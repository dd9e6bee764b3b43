use std::{fmt, ops::Range};

use hooks::{Axis, HookPoint};
use tch::{Kind, Tensor};
use tch_ext::expect_kind;

use crate::{Result, SaeError, SparseFeatures};

/// A latent of an SAE, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FeatureId(pub usize);

impl fmt::Display for FeatureId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An SAE that can be used: `f = encode(x)`, `x̂ = decode(f)`, `y = finish(x̂, x)`. Gradients flow; nothing here changes the
/// gradient mode.
///
/// Implementors keep the laws of [`conformance`](crate::conformance).
pub trait SparseAutoencoder: fmt::Debug + Send {
    /// The name of the architecture, as SAELens writes it: `jumprelu`, `topk`, `skip_transcoder`, ….
    fn architecture(&self) -> &'static str;

    /// Width of the input.
    fn d_in(&self) -> i64;

    /// Number of latents.
    fn d_sae(&self) -> i64;

    /// Width of the output; differs from `d_in` for transcoders alone.
    fn d_out(&self) -> i64;

    /// Whether the output estimates the activation of another site than the one that is read.
    fn is_transcoder(&self) -> bool {
        self.d_in() != self.d_out()
    }

    /// `[.., d_in]` to `[.., d_sae]`, all entries ≥ 0. Takes float32.
    ///
    /// # Errors
    /// [`SaeError::Width`]; another dtype.
    fn encode(&self, x: &Tensor) -> Result<Tensor>;

    /// `[n, d_in]` to the active latents alone, row by row: exactly the non-zeros of [`encode`](Self::encode).
    ///
    /// # Errors
    /// [`SaeError::Width`]; another dtype.
    fn encode_sparse(&self, x: &Tensor) -> Result<SparseFeatures>;

    /// What the latents write: `[.., d_sae]` to `[.., d_out]`.
    ///
    /// # Errors
    /// [`SaeError::Width`].
    fn decode(&self, features: &Tensor) -> Result<Tensor>;

    /// Sparse features of n rows to `[n, d_out]`: a sum of decoder rows, not a matmul over `d_sae`.
    ///
    /// # Errors
    /// [`SaeError::Sparse`] for features of another width.
    fn decode_sparse(&self, features: &SparseFeatures) -> Result<Tensor>;

    /// The output, `[.., d_out]`, of what was decoded and the input `[.., d_in]`: a skip connection is added, and what
    /// normalisation did to the input is undone. Most SAEs have neither.
    ///
    /// # Errors
    /// [`SaeError::Width`].
    fn finish(&self, decoded: &Tensor, x: &Tensor) -> Result<Tensor> {
        let _ = x;
        Ok(decoded.shallow_clone())
    }

    /// What some latents read: columns of `W_enc`, `[d_in, len]`. `None` where the encoder is not one matrix.
    ///
    /// # Errors
    /// [`SaeError::Range`].
    fn w_enc(&self, latents: Range<i64>) -> Result<Option<Tensor>> {
        let _ = latents;
        Ok(None)
    }

    /// What is added to what some latents read: entries of `b_enc`, `[len]`, for a Gated SAE of its gate's. `None` where there is
    /// nothing of the kind.
    ///
    /// # Errors
    /// [`SaeError::Range`].
    fn b_enc(&self, latents: Range<i64>) -> Result<Option<Tensor>> {
        let _ = latents;
        Ok(None)
    }

    /// What some latents write: rows of `W_dec`, `[len, d_out]`.
    ///
    /// # Errors
    /// [`SaeError::Range`].
    fn w_dec(&self, latents: Range<i64>) -> Result<Tensor>;
}

/// What users call on an SAE.
pub trait SaeExt: SparseAutoencoder {
    /// `finish(decode(encode(x)), x)`: `[.., d_in]` to `[.., d_out]`, by way of the sparse features.
    ///
    /// # Errors
    /// [`SaeError::Width`].
    fn reconstruct(&self, x: &Tensor) -> Result<Tensor> {
        let size = expect_input(x, self.d_in())?;
        let rows = x.f_reshape([-1, self.d_in()])?;
        let out = self.reconstruct_from(&self.encode_sparse(&rows)?, &rows)?;
        Ok(out.f_reshape(with_last(size, self.d_out()))?)
    }

    /// As [`reconstruct`](Self::reconstruct), where the features of `x`, `[n, d_in]`, are there already.
    ///
    /// # Errors
    /// [`SaeError::Width`], [`SaeError::Sparse`].
    fn reconstruct_from(&self, features: &SparseFeatures, x: &Tensor) -> Result<Tensor> {
        self.finish(&self.decode_sparse(features)?, x)
    }

    /// The direction that a latent writes: row f of `W_dec`, `[d_out]`.
    ///
    /// # Errors
    /// [`SaeError::Feature`].
    fn direction(&self, feature: FeatureId) -> Result<Tensor> {
        self.check_feature(feature)?;
        let f = feature.0 as i64;
        Ok(self.w_dec(f..f + 1)?.f_squeeze_dim(0)?)
    }

    /// Refuses a latent that the SAE does not have.
    ///
    /// # Errors
    /// [`SaeError::Feature`].
    fn check_feature(&self, feature: FeatureId) -> Result<()> {
        let there = i64::try_from(feature.0).is_ok_and(|f| f < self.d_sae());
        if there { Ok(()) } else { Err(SaeError::Feature { feature: feature.0, d_sae: self.d_sae() }) }
    }
}

impl<S: SparseAutoencoder + ?Sized> SaeExt for S {}

/// Checks the last axis of `x` and returns all sizes.
pub(crate) fn expect_width(what: &'static str, x: &Tensor, axis: &str, width: i64) -> Result<Vec<i64>> {
    let got = x.size();
    if got.last() == Some(&width) {
        return Ok(got);
    }
    Err(SaeError::Width { what, expected: format!("{axis} = {width}"), got })
}

/// Checks that `x` is float32 with `d_in` entries in the last axis, and returns all sizes.
pub(crate) fn expect_input(x: &Tensor, d_in: i64) -> Result<Vec<i64>> {
    let size = expect_width("the input", x, "d_in", d_in)?;
    expect_kind("the input", x, &[Kind::Float])?;
    Ok(size)
}

/// Sizes with another last one.
pub(crate) fn with_last(mut size: Vec<i64>, last: i64) -> Vec<i64> {
    if let Some(n) = size.last_mut() {
        *n = last;
    }
    size
}

/// The activation of a site as an SAE reads it: `[batch, pos, d_in]`, float32. At sites with a head axis the last two are
/// flattened: Gemma Scope's attention SAEs read all heads side by side (Gemma Scope, section 3.1).
///
/// # Errors
/// libtorch's.
pub fn as_input(site: HookPoint, act: &Tensor) -> Result<Tensor> {
    let flat = match site.axes() {
        [Axis::Batch, Axis::Pos, _, _] => act.f_flatten(2, 3)?,
        _ => act.shallow_clone(),
    };
    Ok(flat.f_to_kind(Kind::Float)?)
}

/// A latent's activation on one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FeatureHit {
    /// Sequence.
    pub row: i64,
    /// Position in the sequence.
    pub pos: i64,
    /// The latent.
    pub feature: FeatureId,
    /// How strongly it is active.
    pub activation: f64,
}

/// The `k` strongest active latents of every token of `[batch, pos, d_sae]`, token by token, strongest first (ties: the
/// lower index first). Tokens with fewer active latents give fewer.
///
/// # Errors
/// [`SaeError::Width`] for another number of axes.
pub fn top_features(features: &Tensor, k: usize) -> Result<Vec<FeatureHit>> {
    let size = features.size();
    let &[_, pos, d_sae] = size.as_slice() else {
        return Err(SaeError::Width {
            what: "features",
            expected: "three axes, d_sae".to_owned(),
            got: size,
        });
    };
    let rows = SparseFeatures::from_dense(&features.f_reshape([-1, d_sae])?)?;
    let mut hits = Vec::new();
    for (i, top) in rows.top_k(k)?.into_iter().enumerate() {
        let (row, at) = (i as i64 / pos, i as i64 % pos);
        hits.extend(top.into_iter().map(|(feature, activation)| FeatureHit {
            row,
            pos: at,
            feature,
            activation,
        }));
    }
    Ok(hits)
}
