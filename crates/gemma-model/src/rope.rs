use tch::{Device, Kind, Tensor};

use crate::Result;

/// Cosines and sines of the rotary embedding for the positions of one run (RoFormer, arXiv 2104.09864), in the half-split
/// layout: entry i turns with entry i + d_head/2.
#[derive(Debug)]
pub(crate) struct Rope {
    /// `[batch or 1, pos, 1, d_head]`: the axis of heads is broadcast.
    cos: Tensor,
    sin: Tensor,
}

/// The positions of a run.
#[derive(Debug)]
pub(crate) enum At<'t> {
    /// The same in every row: from `first` on, `len` of them.
    Columns { first: i64, len: i64 },
    /// `[batch, pos]`, int64.
    Each(&'t Tensor),
}

impl Rope {
    /// Angles in float32, cosine and sine cast to the model's dtype, as Hugging Face does.
    pub(crate) fn new(at: At<'_>, d_head: i64, theta: f64, kind: Kind, device: Device) -> Result<Self> {
        let on = (Kind::Float, device);
        let positions = match at {
            At::Columns { first, len } => Tensor::f_arange_start(first, first + len, on)?.f_unsqueeze(0)?,
            At::Each(positions) => positions.f_to_device(device)?.f_to_kind(Kind::Float)?,
        };
        let exponent = Tensor::f_arange_start_step(0, d_head, 2, on)?.f_div_scalar(d_head)?;
        let inv_freq = Tensor::f_pow_scalar(theta, &exponent)?.f_reciprocal()?; // θ^(-2i / d_head)
        let angles = positions.f_unsqueeze(-1)?.f_mul(&inv_freq)?; // [batch or 1, pos, d_head / 2]
        let angles = Tensor::f_cat(&[&angles, &angles], -1)?.f_unsqueeze(2)?;
        Ok(Self { cos: angles.f_cos()?.f_to_kind(kind)?, sin: angles.f_sin()?.f_to_kind(kind)? })
    }

    /// `x · cos + rotate_half(x) · sin`: `[batch, pos, heads, d_head]` to the same.
    ///
    /// `rotate_half` makes `[-x₂, x₁]` of `[x₁, x₂]`. It is not written to memory: each half of the product is added to its
    /// place, and `a - b` is `a + (-b)` to the last bit.
    pub(crate) fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let half = x.size().last().copied().unwrap_or(0) / 2;
        let halves =
            |t: &Tensor| Ok::<_, tch::TchError>((t.f_narrow(-1, 0, half)?, t.f_narrow(-1, half, half)?));
        let (x1, x2) = halves(x)?;
        let (sin1, sin2) = halves(&self.sin)?;
        let rotated = x.f_mul(&self.cos)?;
        let (mut first, mut second) = halves(&rotated)?;
        let _ = first.f_sub_(&x2.f_mul(&sin1)?)?;
        let _ = second.f_add_(&x1.f_mul(&sin2)?)?;
        Ok(rotated)
    }
}
