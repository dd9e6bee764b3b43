use tch::{Device, Kind, Tensor};
use tch_ext::{expect_finite, expect_kind, expect_shape};

use crate::{Result, SaeError, SparseAutoencoder, SparseFeatures, sae::expect_width};

/// Rows that [`JumpRelu::encode_sparse`] makes dense at a time.
const ROWS_AT_A_TIME: i64 = 512;

/// A JumpReLU SAE (arXiv 2407.14435; Gemma Scope, section 2):
///
/// ```text
/// π = x W_enc + b_enc
/// f = π ⊙ H(π − θ)        H is 1 above zero and 0 elsewhere: a latent at its threshold is off
/// x̂ = f W_dec + b_dec
/// ```
///
/// θ ≥ 0, so f ≥ 0. Nothing is subtracted from the input: Gemma Scope folds its pre-encoder bias away (appendix B).
#[derive(Debug)]
pub struct JumpRelu {
    /// `[d_in, d_sae]`.
    w_enc: Tensor,
    /// `[d_sae]`.
    b_enc: Tensor,
    /// `[d_sae, d_out]`.
    w_dec: Tensor,
    /// `[d_out]`.
    b_dec: Tensor,
    /// θ: `[d_sae]`.
    threshold: Tensor,
}

impl JumpRelu {
    /// Puts an SAE together.
    ///
    /// # Shapes
    /// `w_enc` `[d_in, d_sae]`, `b_enc` `[d_sae]`, `w_dec` `[d_sae, d_out]`, `b_dec` `[d_out]`, `threshold` `[d_sae]`, all
    /// float32.
    ///
    /// # Errors
    /// A tensor of another shape or dtype, or that is not finite; a negative threshold.
    pub fn new(
        w_enc: Tensor,
        b_enc: Tensor,
        w_dec: Tensor,
        b_dec: Tensor,
        threshold: Tensor,
    ) -> Result<Self> {
        let size = |tensor: &Tensor, axis: usize| tensor.size().get(axis).copied();
        let d_in = ("d_in", size(&w_enc, 0).unwrap_or(0));
        let d_sae = [size(&w_enc, 1), size(&w_dec, 0), size(&b_enc, 0), size(&threshold, 0)];
        let d_sae = ("d_sae", commonest(&d_sae));
        let d_out = ("d_out", commonest(&[size(&w_dec, 1), size(&b_dec, 0), size(&w_enc, 0)]));
        for (name, tensor, axes) in [
            ("W_enc", &w_enc, [d_in, d_sae].as_slice()),
            ("b_enc", &b_enc, &[d_sae]),
            ("W_dec", &w_dec, &[d_sae, d_out]),
            ("b_dec", &b_dec, &[d_out]),
            ("threshold", &threshold, &[d_sae]),
        ] {
            expect_shape(name, tensor, axes)?;
            expect_kind(name, tensor, &[Kind::Float])?;
            expect_finite(name, tensor)?;
        }
        if threshold.f_lt(0.0)?.f_any()?.f_int64_value(&[])? != 0 {
            let problem = "a threshold is negative".to_owned();
            return Err(SaeError::File { file: "threshold".to_owned(), problem });
        }
        Ok(Self { w_enc, b_enc, w_dec, b_dec, threshold })
    }

    /// Moves the SAE to a device.
    ///
    /// # Errors
    /// libtorch's.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        let to = |t: &Tensor| t.f_to_device(device);
        Ok(Self {
            w_enc: to(&self.w_enc)?,
            b_enc: to(&self.b_enc)?,
            w_dec: to(&self.w_dec)?,
            b_dec: to(&self.b_dec)?,
            threshold: to(&self.threshold)?,
        })
    }

    /// The parameters by the names of Gemma Scope's files.
    pub fn parameters(&self) -> [(&'static str, &Tensor); 5] {
        [
            ("W_enc", &self.w_enc),
            ("W_dec", &self.w_dec),
            ("b_enc", &self.b_enc),
            ("b_dec", &self.b_dec),
            ("threshold", &self.threshold),
        ]
    }

    /// π, `[n, d_in]` to `[n, d_sae]`.
    fn pre_acts(&self, rows: &Tensor) -> Result<Tensor> {
        Ok(self.b_enc.f_addmm(rows, &self.w_enc)?)
    }

    /// Where latents are off, given π: not above the threshold. NaN is on, so that it shows in every form of the features.
    fn off(&self, pre_acts: &Tensor) -> Result<Tensor> {
        Ok(pre_acts.f_le_tensor(&self.threshold)?)
    }
}

/// The size that most tensors have, so that the odd one out is the one refused; of several, the first.
fn commonest(sizes: &[Option<i64>]) -> i64 {
    let count = |size: &i64| sizes.iter().flatten().filter(|s| *s == size).count();
    // Turned around, since `max_by_key` takes the last of several.
    sizes.iter().flatten().rev().max_by_key(|size| count(size)).copied().unwrap_or(0)
}

impl SparseAutoencoder for JumpRelu {
    fn architecture(&self) -> &'static str {
        "jumprelu"
    }

    fn d_in(&self) -> i64 {
        self.w_enc.size().first().copied().unwrap_or_default()
    }

    fn d_sae(&self) -> i64 {
        self.w_dec.size().first().copied().unwrap_or_default()
    }

    fn d_out(&self) -> i64 {
        self.b_dec.numel() as i64
    }

    fn encode(&self, x: &Tensor) -> Result<Tensor> {
        let mut size = expect_width("the input", x, "d_in", self.d_in())?;
        let pre_acts = self.pre_acts(&x.f_reshape([-1, self.d_in()])?)?;
        let features = pre_acts.f_masked_fill(&self.off(&pre_acts)?, 0.0)?;
        if let Some(last) = size.last_mut() {
            *last = self.d_sae();
        }
        Ok(features.f_reshape(size)?)
    }

    fn encode_sparse(&self, x: &Tensor) -> Result<SparseFeatures> {
        let size = expect_width("the input", x, "d_in", self.d_in())?;
        if size.len() != 2 {
            return Err(SaeError::Width {
                what: "the input",
                expected: "two axes, d_in".to_owned(),
                got: size,
            });
        }
        let mut parts = Vec::new();
        for rows in x.f_split(ROWS_AT_A_TIME, 0)? {
            let pre_acts = self.pre_acts(&rows)?;
            let active = self.off(&pre_acts)?.f_logical_not()?;
            parts.push(SparseFeatures::from_mask(&pre_acts, &active, self.d_sae())?);
        }
        SparseFeatures::concat(&parts)
    }

    fn decode(&self, features: &Tensor) -> Result<Tensor> {
        let mut size = expect_width("the features", features, "d_sae", self.d_sae())?;
        let rows = self.b_dec.f_addmm(&features.f_reshape([-1, self.d_sae()])?, &self.w_dec)?;
        if let Some(last) = size.last_mut() {
            *last = self.d_out();
        }
        Ok(rows.f_reshape(size)?)
    }

    fn decode_sparse(&self, features: &SparseFeatures) -> Result<Tensor> {
        if features.d_sae() != self.d_sae() {
            return Err(SaeError::Sparse(format!(
                "d_sae is {}, but the SAE has {}",
                features.d_sae(),
                self.d_sae()
            )));
        }
        const SUM: i64 = 0;
        let (sums, ..) = Tensor::f_embedding_bag(
            &self.w_dec,
            features.indices(),
            features.indptr(),
            false,
            SUM,
            false,
            Some(features.values()),
            true, // the row pointers end with the number of entries
        )?;
        Ok(sums.f_add(&self.b_dec)?)
    }

    fn w_dec(&self) -> &Tensor {
        &self.w_dec
    }
}
