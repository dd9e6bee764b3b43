use std::ops::Range;

use tch::{Kind, Tensor};

use crate::{
    Activation, Result, Sae, SaeError, SaeParts, SparseAutoencoder, SparseFeatures,
    sae::{expect_input, with_last},
};

/// Dense pre-activations that exist at a time.
const TILE: i64 = 1 << 22;

/// An SAE that computes in bfloat16 (Gemma Scope, appendix D.4): weights, biases and inputs are rounded to it, products are summed
/// in float32 and rounded, and rounded again when a bias was added, as PyTorch's `x @ W + b` does. Thresholds stay float32. Of a Gated
/// SAE's magnitude and of a skip connection only the result is rounded.
///
/// It shows what bfloat16 costs, on any device and without units for it; it saves no memory and is slower than [`Sae`].
#[derive(Debug)]
pub struct Bf16Sae {
    /// With rounded matrices, and biases of zero.
    sae: Sae,
    b_enc: Tensor,
    b_dec: Tensor,
    subtract_b_dec: bool,
}

impl Bf16Sae {
    /// Rounds an SAE.
    ///
    /// # Errors
    /// [`SaeError::Parts`] for one that normalises its input, for which no rounding is defined; libtorch's; the system's for weights
    /// that were left in a file.
    pub fn new(sae: Sae) -> Result<Self> {
        if sae.normalize() != crate::Normalize::None {
            let problem = "an SAE that normalises its input is not evaluated in bfloat16";
            return Err(SaeError::Parts(problem.to_owned()));
        }
        let parts = sae.into_parts();
        let zeros = |t: &Tensor| t.f_zeros_like();
        let activation = match parts.activation {
            Activation::Gated { r_mag, b_mag } => {
                Activation::Gated { r_mag: round(&r_mag)?, b_mag: round(&b_mag)? }
            }
            other => other,
        };
        let (b_enc, b_dec) = (round(&parts.b_enc)?, round(&parts.b_dec)?);
        let rounded = SaeParts {
            w_enc: round(&parts.w_enc.whole()?)?.into(),
            w_dec: round(&parts.w_dec.whole()?)?.into(),
            w_skip: parts.w_skip.as_ref().map(round).transpose()?,
            b_enc: zeros(&b_enc)?,
            b_dec: zeros(&b_dec)?,
            activation,
            subtract_b_dec: false,
            ..parts
        };
        Ok(Self { sae: Sae::new(rounded)?, b_enc, b_dec, subtract_b_dec: parts.subtract_b_dec })
    }

    /// The latents of rows, dense: `[n, d_in]` to `[n, d_sae]`.
    fn dense(&self, x: &Tensor) -> Result<Tensor> {
        let x = round(x)?;
        let x = if self.subtract_b_dec { round(&x.f_sub(&self.b_dec)?)? } else { x };
        let product = round(&x.f_matmul(&self.sae.encoder().whole()?)?)?;
        let features = match self.sae.activation() {
            // The gate's bias goes to the gate alone.
            gated @ Activation::Gated { .. } => gated.apply(&product, &self.b_enc)?,
            other => other.apply(&round(&product.f_add(&self.b_enc)?)?, &self.b_enc.f_zeros_like()?)?,
        };
        round(&features)
    }
}

/// The nearest bfloat16, as float32.
fn round(t: &Tensor) -> Result<Tensor> {
    Ok(t.f_to_kind(Kind::BFloat16)?.f_to_kind(Kind::Float)?)
}

impl SparseAutoencoder for Bf16Sae {
    fn architecture(&self) -> &'static str {
        self.sae.architecture()
    }

    fn d_in(&self) -> i64 {
        self.sae.d_in()
    }

    fn d_sae(&self) -> i64 {
        self.sae.d_sae()
    }

    fn d_out(&self) -> i64 {
        self.sae.d_out()
    }

    fn is_transcoder(&self) -> bool {
        self.sae.is_transcoder()
    }

    fn encode(&self, x: &Tensor) -> Result<Tensor> {
        let size = expect_input(x, self.d_in())?;
        let features = self.dense(&x.f_reshape([-1, self.d_in()])?)?;
        Ok(features.f_reshape(with_last(size, self.d_sae()))?)
    }

    fn encode_sparse(&self, x: &Tensor) -> Result<SparseFeatures> {
        let rows = (TILE / self.d_sae().max(1)).max(64);
        let parts = x.f_split(rows, 0)?;
        let parts = parts.iter().map(|rows| SparseFeatures::from_dense(&self.encode(rows)?));
        SparseFeatures::concat(&parts.collect::<Result<Vec<_>>>()?)
    }

    fn decode(&self, features: &Tensor) -> Result<Tensor> {
        round(&round(&self.sae.decode(&round(features)?)?)?.f_add(&self.b_dec)?)
    }

    fn decode_sparse(&self, features: &SparseFeatures) -> Result<Tensor> {
        round(&round(&self.sae.decode_sparse(features)?)?.f_add(&self.b_dec)?)
    }

    fn finish(&self, decoded: &Tensor, x: &Tensor) -> Result<Tensor> {
        match self.sae.w_skip() {
            Some(_) => round(&self.sae.finish(decoded, &round(x)?)?),
            None => Ok(decoded.shallow_clone()),
        }
    }

    fn w_enc(&self, latents: Range<i64>) -> Result<Option<Tensor>> {
        self.sae.w_enc(latents)
    }

    fn b_enc(&self, latents: Range<i64>) -> Result<Option<Tensor>> {
        let _checked = self.sae.b_enc(latents.clone())?;
        Ok(Some(self.b_enc.f_narrow(0, latents.start, latents.end - latents.start)?))
    }

    fn w_dec(&self, latents: Range<i64>) -> Result<Tensor> {
        self.sae.w_dec(latents)
    }
}
