use tch::Tensor;

use crate::Result;

/// The step and the jump at θ, with the pseudo-derivatives of arXiv 2407.14435. With K the rectangle,
/// 1 on `|u| < 1/2` and 0 elsewhere, and ε the bandwidth:
///
/// ```text
/// H(π − θ)                ∂/∂θ = −(1/ε) K((π − θ)/ε)    ∂/∂π = 0
/// JumpReLU(π) = π H(π − θ)    ∂/∂θ = −(θ/ε) K((π − θ)/ε)    ∂/∂π = H(π − θ)
/// ```
///
/// With `to_input` the kernel's derivatives reach π too, with the other sign.
///
/// The paper's code applies ReLU to π first. For θ ≥ 0 no value differs: π ≤ 0 is never above θ. Neither does a derivative
/// as long as θ ≥ ε/2; below, that code counts every π ≤ 0 as inside the window, and this one only those nearer than ε/2.
/// At θ = 0, which only a direct threshold reaches, the jump passes θ no gradient, so that the step's alone moves it.
///
/// libtorch's automatic differentiation knows neither rule. Both are written as `value − drift · kernel`, where value and
/// kernel are constants and drift is exactly 0 with the derivative of `θ` (or of `θ − π`), so that values do not change.
pub(super) struct Gate<'t> {
    pre_acts: &'t Tensor,
    threshold: &'t Tensor,
    /// `H(π − θ)`, 0 or 1: `[B, d_sae]`.
    open: Tensor,
    /// `K((π − θ)/ε) / ε`: `[B, d_sae]`.
    kernel: Tensor,
    /// 0, with a derivative.
    drift: Tensor,
}

impl<'t> Gate<'t> {
    /// The gate of `pre_acts`, `[B, d_sae]`, at `threshold`, `[d_sae]`.
    pub(super) fn new(
        pre_acts: &'t Tensor,
        threshold: &'t Tensor,
        bandwidth: f64,
        to_input: bool,
    ) -> Result<Self> {
        let kind = pre_acts.f_kind()?;
        let above = pre_acts.f_detach()?.f_sub(&threshold.f_detach()?)?;
        let near = above.f_abs()?.f_lt(bandwidth / 2.0)?;
        let mut drift = drift(threshold)?;
        if to_input {
            drift = drift.f_sub(&self::drift(pre_acts)?)?;
        }
        Ok(Self {
            pre_acts,
            threshold,
            open: above.f_gt(0.0)?.f_to_kind(kind)?,
            kernel: near.f_to_kind(kind)?.f_div_scalar(bandwidth)?,
            drift,
        })
    }

    /// `H(π − θ)`.
    pub(super) fn step(&self) -> Result<Tensor> {
        Ok(self.open.f_sub(&self.drift.f_mul(&self.kernel)?)?)
    }

    /// `π H(π − θ)`.
    pub(super) fn jump(&self) -> Result<Tensor> {
        let slope = self.kernel.f_mul(&self.threshold.f_detach()?)?;
        Ok(self.pre_acts.f_mul(&self.open)?.f_sub(&self.drift.f_mul(&slope)?)?)
    }
}

/// 0 with the derivative of `t`.
pub(super) fn drift(t: &Tensor) -> Result<Tensor> {
    Ok(t.f_sub(&t.f_detach()?)?)
}
