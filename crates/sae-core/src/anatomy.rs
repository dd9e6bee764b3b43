//! What the weights of an SAE say without any activation: norms, angles between latents, and which tokens a direction writes
//! for. Everything goes some latents (or tokens) at a time, so that a dense `[d_sae, d_sae]` or `[d_sae, d_vocab]` is never
//! made. Nothing here carries gradients.
//!
//! ```no_run
//! # fn main() -> sae_core::Result<()> {
//! use sae_core::{FeatureId, OpenOptions, SparseAutoencoder as _};
//! use sae_core::anatomy::{Anatomy, LogitOptions, logit_effects};
//! let sae = sae_core::open(std::path::Path::new("params.npz"), &OpenOptions::default())?.sae;
//! let nearest = Anatomy::new(&sae).neighbours(FeatureId(7), 10)?;
//! # let w_e = tch::Tensor::new();
//! // Of a model with tied embeddings, [d_vocab, d_model], columns of W_U are rows of W_E.
//! let w_u = |tokens: std::ops::Range<i64>| Ok(w_e.f_narrow(0, tokens.start, tokens.end - tokens.start)?.f_tr()?);
//! let effects = logit_effects(&sae.w_dec(0..64)?, w_u, 256_000, &LogitOptions::default())?;
//! # Ok(())
//! # }
//! ```

use std::ops::Range;

use tch::{Kind, Tensor};
use tch_ext::{expect_finite, expect_kind, expect_shape, linear};

use crate::{FeatureId, Result, SaeError, SaeExt as _, SparseAutoencoder, sparse::strongest_first};

/// Latents whose rows are there at a time: a block of cosines is their square, 64 MiB.
const LATENTS: i64 = 4096;

/// Logits that exist at a time, in elements: 32 MiB.
const TILE: i64 = 1 << 23;

/// The weights of an SAE, to be looked at.
#[derive(Debug, Clone, Copy)]
pub struct Anatomy<'s> {
    sae: &'s dyn SparseAutoencoder,
    at_a_time: i64,
}

/// What latents read and write, as lengths.
#[derive(Debug)]
pub struct Norms {
    /// `‖W_enc[:, f]‖₂`: `[d_sae]`; `None` where the encoder is not one matrix.
    pub encoder: Option<Tensor>,
    /// `‖W_dec[f]‖₂`: `[d_sae]`.
    pub decoder: Tensor,
}

/// The latent whose direction is nearest to each latent's.
#[derive(Debug)]
pub struct MaxCosine {
    /// The cosine to it: `[d_sae]`, float32.
    pub cosine: Tensor,
    /// Which it is: `[d_sae]`, int64.
    pub other: Tensor,
}

impl<'s> Anatomy<'s> {
    /// Of this SAE, 4096 latents at a time.
    pub fn new(sae: &'s dyn SparseAutoencoder) -> Self {
        Self { sae, at_a_time: LATENTS }
    }

    /// With so many latents at a time (at least one): memory goes with it, and results change by rounding alone.
    #[must_use]
    pub fn at_a_time(self, latents: i64) -> Self {
        Self { at_a_time: latents.max(1), ..self }
    }

    /// The norms of all latents.
    ///
    /// # Errors
    /// The SAE's.
    pub fn norms(&self) -> Result<Norms> {
        let decoder =
            self.chunks().map(|latents| norms(&self.w_dec(latents)?)).collect::<Result<Vec<_>>>()?;
        let encoder = self.chunks().map(|latents| self.w_enc(latents)?.map(|w| norms(&w)).transpose());
        let encoder = encoder.collect::<Result<Option<Vec<_>>>>()?;
        Ok(Norms {
            encoder: encoder.map(|e| Tensor::f_cat(&e, 0)).transpose()?,
            decoder: Tensor::f_cat(&decoder, 0)?,
        })
    }

    /// The cosine of what each latent reads and what it writes, `W_enc[:, f]` and `W_dec[f]`: `[d_sae]`. `None` where the
    /// encoder is not one matrix, or the two live in spaces of different widths. 0 for a latent that reads or writes nothing.
    ///
    /// Of a transcoder, whose two ends have one width, it compares directions at two sites.
    ///
    /// # Errors
    /// The SAE's.
    pub fn encoder_decoder_cosine(&self) -> Result<Option<Tensor>> {
        if self.sae.d_in() != self.sae.d_out() {
            return Ok(None);
        }
        let cosines = self.chunks().map(|latents| {
            let Some(reads) = self.w_enc(latents.clone())? else { return Ok(None) };
            let product = unit(&reads)?.f_mul(&self.units(latents)?)?;
            Ok(Some(product.f_sum_dim_intlist(1, false, Kind::Float)?.f_clamp(-1.0, 1.0)?))
        });
        let cosines = cosines.collect::<Result<Option<Vec<_>>>>()?;
        Ok(cosines.map(|c| Tensor::f_cat(&c, 0)).transpose()?)
    }

    /// For each latent the largest cosine of its direction `W_dec[f]` and another latent's, and which one that is (ties: the
    /// lower index): SAEBench's `max_decoder_cosine_sim`, by which absorbed and duplicated latents show. A latent that
    /// writes nothing has cosine 0 to all.
    ///
    /// Costs `d_sae² · d_out` operations; each block of two groups of latents is multiplied once and serves both. Of an SAE that
    /// is left in its file, the file is read `d_sae / 8192` times.
    ///
    /// # Errors
    /// The SAE's; [`SaeError::Parts`] for one of fewer than two latents.
    pub fn max_cosine(&self) -> Result<MaxCosine> {
        let d_sae = self.sae.d_sae();
        if d_sae < 2 {
            return Err(SaeError::Parts("a lone latent has no other to be compared with".to_owned()));
        }
        let device = self.w_dec(0..0)?.device();
        let best = MaxCosine {
            cosine: Tensor::f_full([d_sae], f64::NEG_INFINITY, (Kind::Float, device))?,
            other: Tensor::f_zeros([d_sae], (Kind::Int64, device))?,
        };
        // Every latent meets the others in ascending order, so that the first of equals stays.
        for (i, some) in self.chunks().enumerate() {
            let units = self.units(some.clone())?;
            let mut within = linear(&units, &units)?; // [some, some]
            let _ = within.f_fill_diagonal_(f64::NEG_INFINITY, false)?;
            best.improve(&some, &within, 1, some.start)?;
            for others in self.chunks().skip(i + 1) {
                let cosines = linear(&units, &self.units(others.clone())?)?; // [some, others]
                best.improve(&some, &cosines, 1, others.start)?;
                best.improve(&others, &cosines, 0, some.start)?;
            }
        }
        Ok(MaxCosine { cosine: best.cosine.f_clamp(-1.0, 1.0)?, other: best.other })
    }

    /// The `k` other latents whose directions have the largest cosine to this one's, nearest first; ties go to the lower index.
    ///
    /// # Errors
    /// [`SaeError::Feature`]; the SAE's.
    pub fn neighbours(&self, feature: FeatureId, k: usize) -> Result<Vec<(FeatureId, f32)>> {
        self.sae.check_feature(feature)?;
        let own = feature.0 as i64;
        let direction = self.units(own..own + 1)?.f_tr()?; // [d_out, 1]
        let mut all = Vec::new();
        for latents in self.chunks() {
            let cosines = self.units(latents.clone())?.f_matmul(&direction)?.f_clamp(-1.0, 1.0)?;
            let cosines = cosines.f_add_scalar(0.0)?; // −0 becomes 0, which it ties with
            all.extend(latents.zip(Vec::<f32>::try_from(&cosines.f_flatten(0, -1)?)?));
        }
        all.retain(|(other, _)| *other != own);
        strongest_first(&mut all, k);
        Ok(all.into_iter().map(|(other, cosine)| (FeatureId(other as usize), cosine)).collect())
    }

    fn chunks(&self) -> impl Iterator<Item = Range<i64>> + use<> {
        spans(self.sae.d_sae(), self.at_a_time)
    }

    /// Columns of `W_enc` as rows: `[len, d_in]`.
    fn w_enc(&self, latents: Range<i64>) -> Result<Option<Tensor>> {
        Ok(self.sae.w_enc(latents)?.map(|w| w.f_detach()?.f_tr()).transpose()?)
    }

    /// Rows of `W_dec`: `[len, d_out]`.
    fn w_dec(&self, latents: Range<i64>) -> Result<Tensor> {
        Ok(self.sae.w_dec(latents)?.f_detach()?)
    }

    /// Rows of `W_dec` of length 1.
    fn units(&self, latents: Range<i64>) -> Result<Tensor> {
        unit(&self.w_dec(latents)?)
    }
}

impl MaxCosine {
    /// Takes what is larger in `cosines`, of `latents` and, along `axis`, others that begin with `first`.
    fn improve(&self, latents: &Range<i64>, cosines: &Tensor, axis: i64, first: i64) -> Result<()> {
        let (largest, at) = cosines.f_max_dim(axis, false)?;
        let of = |t: &Tensor| t.f_narrow(0, latents.start, latents.end - latents.start);
        let (mut cosine, mut other) = (of(&self.cosine)?, of(&self.other)?);
        let better = largest.f_gt_tensor(&cosine)?;
        let at = at.f_add_scalar(first)?.f_where_self(&better, &other)?;
        let largest = largest.f_where_self(&better, &cosine)?;
        other.f_copy_(&at)?;
        cosine.f_copy_(&largest)?;
        Ok(())
    }
}

/// How [`logit_effects`] looks.
#[derive(Debug, Clone, Copy)]
pub struct LogitOptions<'g> {
    /// How many tokens at each end.
    pub k: usize,
    /// The gain of the final norm, `[d_model]`, which multiplies the directions first: `1 + w` for Gemma, whose weights w are
    /// kept as the difference from 1. `None`, as in Neuronpedia, is the plain `W_dec W_U`.
    pub gain: Option<&'g Tensor>,
    /// Tokens of the vocabulary that are gone through together (at least one): results change by rounding alone.
    pub at_a_time: i64,
}

impl Default for LogitOptions<'_> {
    /// Ten tokens at each end, no gain, 8192 tokens at a time.
    fn default() -> Self {
        Self { k: 10, gain: None, at_a_time: 8192 }
    }
}

/// The tokens that a direction speaks for and against.
#[derive(Debug, Clone, PartialEq)]
pub struct LogitEffects {
    /// The largest logits and their tokens, largest first; ties go to the lower token.
    pub top: Vec<(i64, f32)>,
    /// The smallest logits and their tokens, smallest first; ties go to the lower token.
    pub bottom: Vec<(i64, f32)>,
}

/// What directions of the residual stream, `[m, d_model]` (some rows of `W_dec`), do to the logits by the direct path: for each
/// of them the extremes of `d · W_U`, as Neuronpedia shows them for every latent.
///
/// `unembed` gives columns of `W_U`, `[d_model, tokens.len()]`; with tied embeddings those are rows of `W_E`. The logits are
/// those before a soft cap, and lack the final norm's scale, which depends on the whole residual stream; its gain is in
/// [`LogitOptions`]. They compare tokens for one latent; an activation multiplies all of them alike.
///
/// # Errors
/// Directions that are not `[m, d_model]` float32 and finite, or `unembed`'s answers of other shapes; `unembed`'s own errors.
pub fn logit_effects(
    directions: &Tensor,
    unembed: impl Fn(Range<i64>) -> Result<Tensor>,
    d_vocab: i64,
    options: &LogitOptions<'_>,
) -> Result<Vec<LogitEffects>> {
    let Ok((m, d_model)) = directions.size2() else {
        let (what, expected) = ("the directions", "two axes, d_model".to_owned());
        return Err(SaeError::Width { what, expected, got: directions.size() });
    };
    expect_kind("the directions", directions, &[Kind::Float])?;
    expect_finite("the directions", directions)?;
    let mut directions = directions.f_detach()?;
    if let Some(gain) = options.gain {
        expect_shape("the final norm's gain", gain, &[("d_model", d_model)])?;
        directions = directions.f_mul(&gain.f_detach()?.f_to_kind(Kind::Float)?)?;
    }
    let mut effects = vec![LogitEffects { top: Vec::new(), bottom: Vec::new() }; m.max(0) as usize];
    for tokens in spans(d_vocab, options.at_a_time.max(1)) {
        let n = tokens.end - tokens.start;
        let columns = unembed(tokens.clone())?;
        expect_shape("W_U", &columns, &[("d_model", d_model), ("tokens", n)])?;
        expect_finite("W_U", &columns)?;
        let rows = columns.f_detach()?.f_to_kind(Kind::Float)?.f_tr()?.f_contiguous()?; // [tokens, d_model]
        for some in spans(m, (TILE / n).max(1)) {
            let logits = linear(&directions.f_narrow(0, some.start, some.end - some.start)?, &rows)?;
            let logits = Vec::<f32>::try_from(&logits.f_flatten(0, -1)?)?;
            let of_some = effects.get_mut(some.start as usize..some.end as usize).unwrap_or_default();
            for (effect, logits) in of_some.iter_mut().zip(logits.chunks_exact(n as usize)) {
                for (token, &logit) in tokens.clone().zip(logits) {
                    offer(&mut effect.top, options.k, (token, logit), |a, b| a > b);
                    offer(&mut effect.bottom, options.k, (token, logit), |a, b| a < b);
                }
            }
        }
    }
    Ok(effects)
}

/// Puts an entry where it belongs among the best `k`, behind its equals.
fn offer(best: &mut Vec<(i64, f32)>, k: usize, entry: (i64, f32), better: impl Fn(f32, f32) -> bool) {
    if best.len() >= k && best.last().is_none_or(|(_, last)| !better(entry.1, *last)) {
        return;
    }
    let at = best.partition_point(|(_, value)| !better(entry.1, *value));
    best.insert(at, entry);
    best.truncate(k);
}

/// `0..n` in pieces.
fn spans(n: i64, at_a_time: i64) -> impl Iterator<Item = Range<i64>> + use<> {
    let step = usize::try_from(at_a_time).unwrap_or(1).max(1);
    (0..n).step_by(step).map(move |start| start..n.min(start.saturating_add(at_a_time)))
}

/// The length of each row: `[rows]`.
fn norms(rows: &Tensor) -> Result<Tensor> {
    Ok(rows.f_norm_scalaropt_dim(2, [1], false)?)
}

/// Rows of length 1; what has no length stays 0.
fn unit(rows: &Tensor) -> Result<Tensor> {
    let norms = norms(rows)?.f_unsqueeze(1)?;
    Ok(rows.f_div(&norms.f_masked_fill(&norms.f_eq(0.0)?, 1.0)?)?)
}
