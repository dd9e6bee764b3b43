use std::ops::Range;

use tch::{Device, Kind, Tensor};
use tch_ext::{TensorError, linear};

use crate::{
    Activation, Matrix, Normalize, Result, SaeError, SparseAutoencoder, SparseFeatures,
    activation::Collector,
    matrix::expect_parameter,
    sae::{expect_input, expect_width, with_last},
};

/// Rows that are encoded side by side: the weights are gone through once for each such block.
const ROWS_AT_A_TIME: i64 = 4096;

/// Pre-activations that exist at a time, in elements: 16 MiB, which glibc's allocator keeps for the next tile.
const TILE: i64 = 1 << 22;

/// An SAE or transcoder of any of the public architectures: they differ in the [`Activation`] and in what is done to the
/// input.
///
/// ```text
/// x̃ = normalize(x) − b_dec      each of the two where the SAE has it
/// π = x̃ W_enc + b_enc
/// f = activation(π)
/// x̂ = f W_dec + b_dec
/// y = undo(x̂) + x W_skip        each of the two where the SAE has it; a transcoder undoes nothing
/// ```
///
/// [`encode`](SparseAutoencoder::encode) makes f, [`decode`](SparseAutoencoder::decode) x̂, and
/// [`finish`](SparseAutoencoder::finish) y. A transcoder's y is not an estimate of x but of another site's activation.
#[derive(Debug)]
pub struct Sae {
    parts: SaeParts,
    /// Pre-activations that exist at a time.
    tile: i64,
}

/// What an [`Sae`] is put together of.
#[derive(Debug)]
pub struct SaeParts {
    /// `[d_in, d_sae]`.
    pub w_enc: Matrix,
    /// `[d_sae]`; the gate's bias of a Gated SAE.
    pub b_enc: Tensor,
    /// `[d_sae, d_out]`.
    pub w_dec: Matrix,
    /// `[d_out]`.
    pub b_dec: Tensor,
    /// `[d_in, d_out]`: added to the output as `x W_skip`.
    pub w_skip: Option<Tensor>,
    /// How pre-activations become latents.
    pub activation: Activation,
    /// What is done to each token before encoding and, but for transcoders, undone after decoding.
    pub normalize: Normalize,
    /// Whether `b_dec` is subtracted from the (normalised) input.
    pub subtract_b_dec: bool,
    /// Whether the output estimates another site's activation than the input's.
    pub transcoder: bool,
}

impl SaeParts {
    /// The plain form: no normalisation, nothing subtracted from the input, no skip, no transcoder.
    pub fn plain(
        w_enc: impl Into<Matrix>,
        b_enc: Tensor,
        w_dec: impl Into<Matrix>,
        b_dec: Tensor,
        activation: Activation,
    ) -> Self {
        Self {
            w_enc: w_enc.into(),
            b_enc,
            w_dec: w_dec.into(),
            b_dec,
            w_skip: None,
            activation,
            normalize: Normalize::None,
            subtract_b_dec: false,
            transcoder: false,
        }
    }
}

impl Sae {
    /// Puts an SAE together.
    ///
    /// # Errors
    /// A tensor of another shape or dtype than float32, or that is not finite; `k` outside `1..=d_sae`; a `b_dec` to
    /// subtract that is not as wide as the input; an SAE with `d_in ≠ d_out`.
    pub fn new(parts: SaeParts) -> Result<Self> {
        let w_dec = match parts.w_dec.held() {
            // Rows of the decoder must lie one after another to be gathered.
            Some(held) if !held.is_contiguous() => held.f_contiguous()?.into(),
            _ => parts.w_dec,
        };
        let sae = Self { parts: SaeParts { w_dec, ..parts }, tile: TILE };
        sae.check()?;
        Ok(sae)
    }

    /// A JumpReLU SAE in Gemma Scope's form: nothing is subtracted from the input, since the pre-encoder bias has been folded
    /// away (Gemma Scope, section 2 and appendix B).
    ///
    /// # Shapes
    /// `w_enc` `[d_in, d_sae]`, `b_enc` `[d_sae]`, `w_dec` `[d_sae, d_out]`, `b_dec` `[d_out]`, `threshold` `[d_sae]`. Where
    /// `d_out` differs from `d_in` it is a transcoder.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn jumprelu(
        w_enc: impl Into<Matrix>,
        b_enc: Tensor,
        w_dec: impl Into<Matrix>,
        b_dec: Tensor,
        threshold: Tensor,
    ) -> Result<Self> {
        let plain = SaeParts::plain(w_enc, b_enc, w_dec, b_dec, Activation::JumpRelu { threshold });
        let transcoder = plain.w_enc.size()[0] != plain.b_dec.numel() as i64 && plain.b_dec.dim() == 1;
        Self::new(SaeParts { transcoder, ..plain })
    }

    /// Sets how many pre-activations may exist at a time while encoding on the CPU: 4 bytes each, some 4 million unless it is
    /// set, and never fewer than 64 for each of up to 4,096 rows. It changes memory and speed, and no latent.
    #[must_use]
    pub fn with_tile(self, elements: i64) -> Self {
        Self { tile: elements.max(1), ..self }
    }

    /// Takes an SAE apart.
    pub fn into_parts(self) -> SaeParts {
        self.parts
    }

    fn check(&self) -> Result<()> {
        let size = |tensor: &Tensor, axis: usize| tensor.size().get(axis).copied();
        let of = |matrix: &Matrix| [0, 1].map(|axis| matrix.axes().get(axis).copied());
        let ([enc_rows, enc_cols], [dec_rows, dec_cols]) = (of(&self.parts.w_enc), of(&self.parts.w_dec));
        let mut d_sae = vec![enc_cols, dec_rows, size(&self.parts.b_enc, 0)];
        d_sae.extend(self.parts.activation.parameters().iter().map(|(_, t)| size(t, 0)));
        let d_in = ("d_in", enc_rows.unwrap_or(0));
        let d_sae = ("d_sae", commonest(&d_sae));
        let d_out = ("d_out", commonest(&[dec_cols, size(&self.parts.b_dec, 0), enc_rows]));
        let matrix = |what: &str, matrix: &Matrix, axes: [(&str, i64); 2]| {
            if matrix.axes() == axes.map(|(_, n)| n) {
                return matrix.held().map_or(Ok(()), |held| expect_parameter(what, held));
            }
            let expected = format!("[{}={}, {}={}]", axes[0].0, axes[0].1, axes[1].0, axes[1].1);
            let got = matrix.axes();
            Err(TensorError::Shape { what: what.to_owned(), expected, got }.into())
        };
        matrix("W_enc", &self.parts.w_enc, [d_in, d_sae])?;
        matrix("W_dec", &self.parts.w_dec, [d_sae, d_out])?;
        for (name, tensor) in self.vectors() {
            let axis = if name == "b_dec" { d_out } else { d_sae };
            tch_ext::expect_shape(name, tensor, &[axis])?;
            expect_parameter(name, tensor)?;
        }
        if let Some(skip) = &self.parts.w_skip {
            tch_ext::expect_shape("W_skip", skip, &[d_in, d_out])?;
            expect_parameter("W_skip", skip)?;
        }
        for (name, size) in [d_in, d_sae, d_out] {
            if size < 1 {
                return Err(SaeError::Parts(format!("{name} must be at least 1, but is {size}")));
            }
        }
        self.check_options(d_sae.1)
    }

    fn check_options(&self, d_sae: i64) -> Result<()> {
        let bad = |problem: String| Err(SaeError::Parts(problem));
        match &self.parts.activation {
            Activation::TopK { k } if !(1..=d_sae).contains(k) => {
                return bad(format!("k must lie between 1 and d_sae = {d_sae}, but is {k}"));
            }
            Activation::GroupMax { k } if *k < 1 || d_sae % *k != 0 => {
                return bad(format!("the number of groups must divide d_sae = {d_sae}, but is {k}"));
            }
            _ => (),
        }
        let (d_in, d_out) = (self.d_in(), self.d_out());
        if self.parts.subtract_b_dec && d_in != d_out {
            return bad(format!(
                "b_dec, of d_out = {d_out}, can't be subtracted from inputs of d_in = {d_in}"
            ));
        }
        if !self.parts.transcoder && d_in != d_out {
            return bad(format!("d_in is {d_in} and d_out {d_out}: only a transcoder's may differ"));
        }
        Ok(())
    }

    /// Moves the SAE to a device.
    ///
    /// # Errors
    /// libtorch's; the system's for weights that were left in a file.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        let to = |t: &Tensor| t.f_to_device(device);
        let parts = SaeParts {
            w_enc: self.parts.w_enc.to_device(device)?,
            b_enc: to(&self.parts.b_enc)?,
            w_dec: self.parts.w_dec.to_device(device)?,
            b_dec: to(&self.parts.b_dec)?,
            w_skip: self.parts.w_skip.as_ref().map(to).transpose()?,
            activation: self.parts.activation.to_device(device)?,
            ..self.parts
        };
        Ok(Self { parts, tile: self.tile })
    }

    /// How pre-activations become latents.
    pub fn activation(&self) -> &Activation {
        &self.parts.activation
    }

    /// What is done to each token before encoding, and undone after decoding.
    pub fn normalize(&self) -> Normalize {
        self.parts.normalize
    }

    /// Whether `b_dec` is subtracted from the input.
    pub fn subtracts_b_dec(&self) -> bool {
        self.parts.subtract_b_dec
    }

    /// The encoder, `[d_in, d_sae]`.
    pub fn encoder(&self) -> &Matrix {
        &self.parts.w_enc
    }

    /// The decoder, `[d_sae, d_out]`.
    pub fn decoder(&self) -> &Matrix {
        &self.parts.w_dec
    }

    /// `[d_in, d_out]`, of an SAE that has one.
    pub fn w_skip(&self) -> Option<&Tensor> {
        self.parts.w_skip.as_ref()
    }

    /// The biases and the activation's parameters by the field's names: `b_enc` (a Gated SAE's `b_gate`), `b_dec`,
    /// `threshold`, `r_mag`, `b_mag`.
    pub fn vectors(&self) -> Vec<(&'static str, &Tensor)> {
        let gate = matches!(self.parts.activation, Activation::Gated { .. });
        let b_enc = (if gate { "b_gate" } else { "b_enc" }, &self.parts.b_enc);
        [vec![b_enc, ("b_dec", &self.parts.b_dec)], self.parts.activation.parameters()].concat()
    }

    /// All parameters by the field's names, in memory: `W_enc`, `W_dec`, the [`vectors`](Self::vectors), `W_skip`.
    ///
    /// # Errors
    /// The system's, for weights that were left in a file.
    pub fn parameters(&self) -> Result<Vec<(&'static str, Tensor)>> {
        let mut all = vec![("W_enc", self.parts.w_enc.whole()?), ("W_dec", self.parts.w_dec.whole()?)];
        all.extend(self.vectors().into_iter().map(|(name, t)| (name, t.shallow_clone())));
        all.extend(self.parts.w_skip.iter().map(|t| ("W_skip", t.shallow_clone())));
        Ok(all)
    }

    /// x̃: what the encoder's matrix is given.
    fn prepared(&self, x: &Tensor) -> Result<Tensor> {
        let x = self.parts.normalize.apply(x)?;
        if self.parts.subtract_b_dec { Ok(x.f_sub(&self.parts.b_dec)?) } else { Ok(x) }
    }

    /// Whether the kernels take the work: on the CPU, where no gradient is to flow.
    fn by_kernels(&self, x: &Tensor) -> bool {
        let mut tensors = vec![x, &self.parts.b_enc, &self.parts.b_dec];
        tensors.extend(self.parts.w_enc.held());
        tensors.extend(self.parts.activation.parameters().into_iter().map(|(_, t)| t));
        tensors.iter().all(|t| t.device() == Device::Cpu && !t.requires_grad())
    }

    /// The active latents of x̃, `[n, d_in]`, tile by tile of latents.
    fn tiles(&self, x: &Tensor) -> Result<SparseFeatures> {
        let (n, d_sae) = (x.size2()?.0, self.d_sae());
        let len = (self.tile / n.max(1)).clamp(64, d_sae.max(64));
        let mut active = Collector::new(&self.parts.activation, &self.parts.b_enc, n as usize)?;
        for first in (0..d_sae).step_by(len as usize) {
            let w_enc = self.parts.w_enc.columns(first..(first + len).min(d_sae))?;
            let g = linear(x, &w_enc.f_tr()?)?; // [n, len]
            active.add(&g.f_contiguous()?, first as usize)?;
        }
        active.finish(d_sae)
    }

    /// The latents of x̃, `[n, d_in]`, dense and differentiable.
    fn dense(&self, x: &Tensor) -> Result<Tensor> {
        self.parts.activation.apply(&x.f_matmul(&self.parts.w_enc.whole()?)?, &self.parts.b_enc)
    }
}

/// The size that most tensors have, so that the odd one out is the one refused; of several, the first.
pub(crate) fn commonest(sizes: &[Option<i64>]) -> i64 {
    let count = |size: &i64| sizes.iter().flatten().filter(|s| *s == size).count();
    // Turned around, since `max_by_key` takes the last of several.
    sizes.iter().flatten().rev().max_by_key(|size| count(size)).copied().unwrap_or(0)
}

impl SparseAutoencoder for Sae {
    fn architecture(&self) -> &'static str {
        match (&self.parts.activation, self.parts.transcoder, self.parts.w_skip.is_some()) {
            (Activation::Relu, false, false) => "standard",
            (Activation::Relu, true, false) => "transcoder",
            (Activation::Relu, _, true) => "skip_transcoder",
            (Activation::JumpRelu { .. }, false, false) => "jumprelu",
            (Activation::JumpRelu { .. }, true, false) => "jumprelu_transcoder",
            (Activation::JumpRelu { .. }, _, true) => "jumprelu_skip_transcoder",
            (Activation::TopK { .. }, false, false) => "topk",
            (Activation::TopK { .. }, true, false) => "topk_transcoder",
            (Activation::TopK { .. }, _, true) => "topk_skip_transcoder",
            (Activation::GroupMax { .. }, false, false) => "groupmax",
            (Activation::GroupMax { .. }, true, false) => "groupmax_transcoder",
            (Activation::GroupMax { .. }, _, true) => "groupmax_skip_transcoder",
            (Activation::Gated { .. }, false, false) => "gated",
            (Activation::Gated { .. }, true, false) => "gated_transcoder",
            (Activation::Gated { .. }, _, true) => "gated_skip_transcoder",
        }
    }

    fn d_in(&self) -> i64 {
        self.parts.w_enc.size()[0]
    }

    fn d_sae(&self) -> i64 {
        self.parts.w_enc.size()[1]
    }

    fn d_out(&self) -> i64 {
        self.parts.b_dec.numel() as i64
    }

    fn is_transcoder(&self) -> bool {
        self.parts.transcoder
    }

    fn encode(&self, x: &Tensor) -> Result<Tensor> {
        let size = expect_input(x, self.d_in())?;
        let rows = x.f_reshape([-1, self.d_in()])?;
        let features = if self.by_kernels(x) {
            self.encode_sparse(&rows)?.to_dense()?
        } else {
            self.dense(&self.prepared(&rows)?)?
        };
        Ok(features.f_reshape(with_last(size, self.d_sae()))?)
    }

    fn encode_sparse(&self, x: &Tensor) -> Result<SparseFeatures> {
        let size = expect_input(x, self.d_in())?;
        if size.len() != 2 {
            let expected = "two axes, d_in".to_owned();
            return Err(SaeError::Width { what: "the input", expected, got: size });
        }
        let x = self.prepared(x)?;
        let by_kernels = self.by_kernels(&x);
        let at_a_time = if by_kernels { ROWS_AT_A_TIME } else { (self.tile / self.d_sae().max(1)).max(64) };
        let mut parts = Vec::new();
        for rows in x.f_split(at_a_time, 0)? {
            parts.push(if by_kernels {
                self.tiles(&rows)?
            } else {
                SparseFeatures::from_dense(&self.dense(&rows)?)?
            });
        }
        SparseFeatures::concat(&parts)
    }

    fn decode(&self, features: &Tensor) -> Result<Tensor> {
        let size = expect_width("the features", features, "d_sae", self.d_sae())?;
        let features = features.f_reshape([-1, self.d_sae()])?;
        let mut rows = self.parts.b_dec.f_expand([features.size2()?.0, self.d_out()], false)?;
        let held = self.parts.w_dec.held().is_some();
        let at_a_time = if held { self.d_sae() } else { self.tile / self.d_out().max(1) }.max(64);
        for first in (0..self.d_sae()).step_by(at_a_time as usize) {
            let latents = first..(first + at_a_time).min(self.d_sae());
            let some = features.f_narrow(1, latents.start, latents.end - latents.start)?;
            rows = rows.f_addmm(&some, &self.parts.w_dec.rows(latents)?)?;
        }
        Ok(rows.f_reshape(with_last(size, self.d_out()))?)
    }

    fn decode_sparse(&self, features: &SparseFeatures) -> Result<Tensor> {
        if features.d_sae() != self.d_sae() {
            let (got, d_sae) = (features.d_sae(), self.d_sae());
            return Err(SaeError::Sparse(format!("d_sae is {got}, but the SAE has {d_sae}")));
        }
        match self.parts.w_dec.held() {
            Some(w_dec) => gather_sum(features, features.indices(), w_dec, &self.parts.b_dec),
            None => {
                let (latents, at, _) = features.indices().f_internal_unique2(true, true, false)?;
                let rows = self.parts.w_dec.select_rows(&latents)?;
                gather_sum(features, &at, &rows, &self.parts.b_dec)
            }
        }
    }

    fn finish(&self, decoded: &Tensor, x: &Tensor) -> Result<Tensor> {
        let size = expect_input(x, self.d_in())?;
        if decoded.size() != with_last(size, self.d_out()) {
            let expected = format!("the input's axes, then d_out = {}", self.d_out());
            return Err(SaeError::Width { what: "the decoded output", expected, got: decoded.size() });
        }
        // A transcoder's output has statistics of its own.
        let out = if self.parts.transcoder {
            decoded.shallow_clone()
        } else {
            self.parts.normalize.undo(decoded, x)?
        };
        match &self.parts.w_skip {
            Some(w_skip) => Ok(out.f_add(&x.f_matmul(w_skip)?)?),
            None => Ok(out),
        }
    }

    fn w_enc(&self, latents: Range<i64>) -> Result<Option<Tensor>> {
        self.parts.w_enc.columns(latents).map(Some)
    }

    fn b_enc(&self, latents: Range<i64>) -> Result<Option<Tensor>> {
        let d_sae = self.d_sae();
        if latents.start < 0 || latents.start > latents.end || latents.end > d_sae {
            return Err(SaeError::Range { start: latents.start, end: latents.end, size: d_sae });
        }
        Ok(Some(self.parts.b_enc.f_narrow(0, latents.start, latents.end - latents.start)?))
    }

    fn w_dec(&self, latents: Range<i64>) -> Result<Tensor> {
        self.parts.w_dec.rows(latents)
    }
}

/// `b_dec + Σ f_e · rows[at_e]`: by our kernel, or by libtorch where a gradient is to flow or the device is not the CPU.
fn gather_sum(features: &SparseFeatures, at: &Tensor, rows: &Tensor, b_dec: &Tensor) -> Result<Tensor> {
    const SUM: i64 = 0;
    let values = features.values();
    if let Some(sums) = native::gather_sum([features.indptr(), at], values, rows, b_dec)? {
        return Ok(sums);
    }
    let (sums, ..) = Tensor::f_embedding_bag(
        rows,
        at,
        features.indptr(),
        false,
        SUM,
        false,
        Some(values),
        true, // the row pointers end with the number of entries
    )?;
    Ok(sums.f_add(b_dec)?.f_to_kind(Kind::Float)?)
}
