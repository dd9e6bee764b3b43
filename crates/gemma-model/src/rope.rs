use tch::{Device, Kind, Tensor};

use crate::Result;

/// Cosines and sines of the rotary embedding for the positions of one run (RoFormer, arXiv 2104.09864), in the half-split
/// layout: entry i turns with entry i + d_head/2.
#[derive(Debug)]
pub(crate) struct Rope {
    /// `[pos, 1, d_head]`: the axis of heads is broadcast.
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// For positions 0 to `pos - 1`. Angles in float32, cosine and sine cast to the model's dtype, as Hugging Face does.
    pub(crate) fn new(pos: i64, d_head: i64, theta: f64, kind: Kind, device: Device) -> Result<Self> {
        let on = (Kind::Float, device);
        let exponent = Tensor::f_arange_start_step(0, d_head, 2, on)?.f_div_scalar(d_head)?;
        let inv_freq = Tensor::f_pow_scalar(theta, &exponent)?.f_reciprocal()?; // θ^(-2i / d_head)
        let angles = Tensor::f_arange(pos, on)?.f_outer(&inv_freq)?; // [pos, d_head / 2]
        let angles = Tensor::f_cat(&[&angles, &angles], -1)?.f_unsqueeze(1)?;
        Ok(Self { cos: angles.f_cos()?.f_to_kind(kind)?, sin: angles.f_sin()?.f_to_kind(kind)? })
    }

    /// `x · cos + rotate_half(x) · sin`: `[batch, pos, heads, d_head]` to the same.
    pub(crate) fn rotate(&self, x: &Tensor) -> Result<Tensor> {
        let half = x.size().last().copied().unwrap_or(0) / 2;
        let (first, second) = (x.f_narrow(-1, 0, half)?, x.f_narrow(-1, half, half)?);
        let rotated = Tensor::f_cat(&[&second.f_neg()?, &first], -1)?;
        Ok(x.f_mul(&self.cos)?.f_add(&rotated.f_mul(&self.sin)?)?)
    }
}
