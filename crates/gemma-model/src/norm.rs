use hooks::{HookPoint, HookSet};
use tch::{Kind, Tensor};

use crate::Result;

/// `y = x / √(mean(x²) + ε) · (1 + w)`: Gemma stores the gain as its distance from one.
#[derive(Debug)]
pub(crate) struct RmsNorm {
    /// `[d_model]`.
    pub(crate) w: Tensor,
    pub(crate) eps: f64,
}

impl RmsNorm {
    /// `[batch, pos, d_model]` to the same.
    ///
    /// In float32 whatever the dtype, gain included, with one cast at the end (Hugging Face `modeling_gemma2.py`,
    /// `Gemma2RMSNorm`; Llama casts before the gain, which is another function in bfloat16).
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        scale_site: HookPoint,
        normalized_site: HookPoint,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        let kind = x.f_kind()?;
        let x = x.f_to_kind(Kind::Float)?;
        let mean_square = x.f_square()?.f_mean_dim(-1, true, Kind::Float)?;
        let scale = hooks.at(scale_site, mean_square.f_add_scalar(self.eps)?.f_sqrt()?)?; // [batch, pos, 1]
        let normalized = hooks.at(normalized_site, x.f_div(&scale)?)?;
        self.gain(normalized, kind, hooks.wants(normalized_site))
    }

    /// `normalized · (1 + w)` as `kind`, in the same memory where nobody has seen it and no gradient asks for it.
    pub(crate) fn gain(&self, mut normalized: Tensor, kind: Kind, seen: bool) -> Result<Tensor> {
        let gain = self.w.f_to_kind(Kind::Float)?.f_add_scalar(1.0)?;
        let kept = seen || normalized.requires_grad() || gain.requires_grad();
        let y = if kept { normalized.f_mul(&gain)? } else { normalized.f_mul_(&gain)? };
        Ok(y.f_to_kind(kind)?)
    }
}
