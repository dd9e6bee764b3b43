//! Rewritings of an SAE that change its parameters and not its function: what a format can't say is folded into weights.

use tch::{Kind, Tensor};

use crate::{Activation, Result, Sae, SaeError, SaeParts, SparseAutoencoder as _};

/// A decoder row's norm is taken to be at least this, so that a row of zeros can be divided by it (as in SAELens).
const SMALLEST_NORM: f64 = 1e-8;

impl SaeParts {
    /// The norm of each latent's decoder row: `[d_sae]`, at least 1e-8.
    ///
    /// # Errors
    /// The system's, for weights that were left in a file.
    pub fn decoder_norms(&self) -> Result<Tensor> {
        let squares = self.w_dec.whole()?.f_square()?;
        let norms = squares.f_sum_dim_intlist([1].as_slice(), false, Kind::Float)?.f_sqrt()?;
        Ok(norms.f_clamp_min(SMALLEST_NORM)?)
    }

    /// Latents n times as large, written with decoder rows n times as small: `W_enc · n`, `b_enc · n`, `θ · n`, `b_mag · n`,
    /// `W_dec / n`; n is `[d_sae]` and positive.
    ///
    /// The output stays what it was, but for TopK and GroupMax: there n says which latents are the largest. That is how
    /// `rescale_acts_by_decoder_norm` is read.
    ///
    /// # Errors
    /// libtorch's, as for another number of factors; the system's.
    pub fn scale_latents(self, n: &Tensor) -> Result<Self> {
        let by = |t: Tensor| t.f_mul(n);
        Ok(Self {
            w_enc: self.w_enc.whole()?.f_mul(n)?.into(),
            b_enc: by(self.b_enc)?,
            w_dec: self.w_dec.whole()?.f_div(&n.f_unsqueeze(1)?)?.into(),
            activation: match self.activation {
                Activation::JumpRelu { threshold } => Activation::JumpRelu { threshold: by(threshold)? },
                Activation::Gated { r_mag, b_mag } => Activation::Gated { r_mag, b_mag: by(b_mag)? },
                other => other,
            },
            ..self
        })
    }

    /// Of an SAE made for inputs `scale · x`, the one for x itself: `W_enc · scale`, `W_dec / scale`, `b_dec / scale`. Latents
    /// stay as they are.
    ///
    /// # Errors
    /// The system's.
    pub fn scale_input(self, scale: f64) -> Result<Self> {
        Ok(Self {
            w_enc: self.w_enc.whole()?.f_mul_scalar(scale)?.into(),
            w_dec: self.w_dec.whole()?.f_div_scalar(scale)?.into(),
            b_dec: self.b_dec.f_div_scalar(scale)?,
            ..self
        })
    }
}

impl Sae {
    /// Decoder rows of norm 1, the norms folded into the encoder (and into the threshold): latents are then as large as what
    /// they write (Anthropic, April 2024 update; SAELens' `fold_W_dec_norm`).
    ///
    /// # Errors
    /// A TopK SAE, of which other latents might then be the largest; the system's.
    pub fn fold_decoder_norms(self) -> Result<Self> {
        if let Activation::TopK { .. } | Activation::GroupMax { .. } = self.activation() {
            let problem = "a TopK SAE's decoder norms can't be folded: other latents would be the largest";
            return Err(SaeError::Parts(problem.to_owned()));
        }
        let parts = self.into_parts();
        let norms = parts.decoder_norms()?;
        Self::new(parts.scale_latents(&norms)?)
    }

    /// Of an SAE made for inputs `scale · x`, the one for x itself: see [`SaeParts::scale_input`].
    ///
    /// # Errors
    /// A scale that is not a positive number; an SAE that normalises each token, whose input has no scale; the system's.
    pub fn fold_input_scale(self, scale: f64) -> Result<Self> {
        if !(scale > 0.0 && scale.is_finite()) {
            return Err(SaeError::Parts(format!("an input's scale must be positive, but is {scale}")));
        }
        let name = self.normalize().name();
        if name != "none" {
            return Err(SaeError::Parts(format!("an SAE with `{name}` has no scale of its input to fold")));
        }
        Self::new(self.into_parts().scale_input(scale)?)
    }

    /// Nothing subtracted from the input any more: `b_enc − b_dec W_enc` is the encoder's bias (Gemma Scope, appendix B).
    ///
    /// # Errors
    /// The system's.
    pub fn fold_pre_encoder_bias(self) -> Result<Self> {
        if self.subtracts_b_dec() { self.with_bias_shifted(-1.0, false) } else { Ok(self) }
    }

    /// `b_dec` subtracted from the input, and `b_enc + b_dec W_enc` the encoder's bias: the reverse of
    /// [`fold_pre_encoder_bias`](Self::fold_pre_encoder_bias).
    ///
    /// # Errors
    /// An input and output of different widths; the system's.
    pub fn unfold_pre_encoder_bias(self) -> Result<Self> {
        if self.subtracts_b_dec() {
            return Ok(self);
        }
        if self.d_in() != self.d_out() {
            let problem = "b_dec can't be subtracted from an input of another width".to_owned();
            return Err(SaeError::Parts(problem));
        }
        self.with_bias_shifted(1.0, true)
    }

    /// The encoder's bias moved by `sign · b_dec W_enc`.
    fn with_bias_shifted(self, sign: f64, subtract_b_dec: bool) -> Result<Self> {
        let parts = self.into_parts();
        // In float64: the sum is over d_in products, and the result stands for every token's.
        let double = |t: &Tensor| t.f_to_kind(Kind::Double);
        let w_enc = double(&parts.w_enc.whole()?)?;
        let shift = double(&parts.b_dec)?.f_unsqueeze(0)?.f_matmul(&w_enc)?.f_squeeze_dim(0)?;
        let shift = shift.f_mul_scalar(sign)?;
        let b_enc = double(&parts.b_enc)?.f_add(&shift)?.f_to_kind(Kind::Float)?;
        let activation = match parts.activation {
            Activation::Gated { r_mag, b_mag } => {
                let magnitude = shift.f_mul(&double(&r_mag)?.f_exp()?)?;
                let b_mag = double(&b_mag)?.f_add(&magnitude)?.f_to_kind(Kind::Float)?;
                Activation::Gated { r_mag, b_mag }
            }
            other => other,
        };
        Self::new(SaeParts { b_enc, activation, subtract_b_dec, ..parts })
    }

    /// The same function as JumpReLU with thresholds that are not negative: ReLU has the threshold 0; a Gated SAE is JumpReLU of `x (W_enc ⊙ exp(r_mag)) + b_mag` with
    /// `θ = max(0, b_mag − exp(r_mag) b_gate)` (arXiv 2404.16014, section 3.2).
    ///
    /// # Errors
    /// A TopK SAE, whose threshold depends on the token; the system's.
    pub fn to_jumprelu(self) -> Result<Self> {
        let parts = self.into_parts();
        let parts = match parts.activation {
            Activation::JumpRelu { threshold } => {
                let threshold = threshold.f_clamp_min(0.0)?;
                SaeParts { activation: Activation::JumpRelu { threshold }, ..parts }
            }
            Activation::Relu => {
                let threshold = parts.b_enc.f_zeros_like()?;
                SaeParts { activation: Activation::JumpRelu { threshold }, ..parts }
            }
            Activation::Gated { ref r_mag, ref b_mag } => {
                let scale = r_mag.f_exp()?;
                let threshold = b_mag.f_sub(&scale.f_mul(&parts.b_enc)?)?.f_clamp_min(0.0)?;
                SaeParts {
                    w_enc: parts.w_enc.whole()?.f_mul(&scale)?.into(),
                    b_enc: b_mag.shallow_clone(),
                    activation: Activation::JumpRelu { threshold },
                    ..parts
                }
            }
            Activation::TopK { .. } | Activation::GroupMax { .. } => {
                let problem = "a TopK SAE is no JumpReLU SAE: its threshold depends on the token";
                return Err(SaeError::Parts(problem.to_owned()));
            }
        };
        Self::new(parts)
    }
}
