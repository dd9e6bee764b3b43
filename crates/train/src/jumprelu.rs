//! The JumpReLU objective and its pseudo-gradients, written out (arXiv 2407.14435; Gemma Scope, section 2).

use tch::{Kind, Tensor};

use crate::Result;

/// The parameters of a JumpReLU SAE in training, float32.
#[derive(Debug)]
pub struct Parameters {
    /// `[d_in, d_sae]`.
    pub w_enc: Tensor,
    /// `[d_sae]`.
    pub b_enc: Tensor,
    /// `[d_sae, d_in]`.
    pub w_dec: Tensor,
    /// `[d_in]`; subtracted from the input too (the pre-encoder bias).
    pub b_dec: Tensor,
    /// θ: `[d_sae]`.
    pub threshold: Tensor,
}

/// The gradients of [`Parameters`], each of its parameter's shape, and the two terms of the loss.
#[derive(Debug)]
pub struct Gradients {
    /// Of `w_enc`.
    pub w_enc: Tensor,
    /// Of `b_enc`.
    pub b_enc: Tensor,
    /// Of `w_dec`.
    pub w_dec: Tensor,
    /// Of `b_dec`.
    pub b_dec: Tensor,
    /// Of θ itself; times θ it is that of log θ.
    pub threshold: Tensor,
    /// Mean over rows of `‖x − x̂‖²`.
    pub mse: f64,
    /// Mean number of active latents a row.
    pub l0: f64,
    /// Which latents any row activated: `[d_sae]`, bool.
    pub fired: Tensor,
}

/// One evaluation of the loss `mean ‖x − x̂‖² + λ · mean ‖f‖₀` and its gradients.
///
/// With ε the bandwidth, K the rectangle (1 on |u| < ½) and H the step, the jump's pseudo-derivatives are
/// `∂f/∂θ = −(θ/ε) K((π − θ)/ε)` and `∂H(π − θ)/∂θ = −(1/ε) K((π − θ)/ε)`; towards π the jump passes the gradient where the
/// latent is on, and the step passes none. In full, for a batch of B rows:
///
/// ```text
/// π = (x − b_dec) W_enc + b_enc,  f = π ⊙ H(π − θ),  x̂ = f W_dec + b_dec
/// E = (2/B)(x̂ − x),  df = E W_decᵀ,  dπ = df ⊙ H(π − θ)
/// dW_dec = fᵀE,  dW_enc = (x − b_dec)ᵀ dπ,  db_enc = Σ dπ,  db_dec = Σ E − (Σ dπ) W_encᵀ
/// dθ = −(1/ε) Σ K((π − θ)/ε) ⊙ (θ df + λ/B)
/// ```
///
/// # Shapes
/// `x` is `[B, d_in]`.
///
/// # Errors
/// libtorch's, as for other shapes.
pub fn gradients(p: &Parameters, x: &Tensor, lambda: f64, bandwidth: f64) -> Result<Gradients> {
    let _no_grad = tch::no_grad_guard();
    let rows = x.size().first().copied().unwrap_or(0).max(1) as f64;
    let centred = x.f_sub(&p.b_dec)?;
    let pre_acts = p.b_enc.f_addmm(&centred, &p.w_enc)?; // [B, d_sae]
    let mut above = pre_acts.f_sub(&p.threshold)?;
    let active = above.f_gt(0.0)?;
    let near = above.f_abs_()?.f_lt(bandwidth / 2.0)?;
    let features = pre_acts.f_mul(&active)?;
    let error = p.b_dec.f_addmm(&features, &p.w_dec)?.f_sub_(x)?; // x̂ − x
    let mse = error.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])? / rows;
    let l0 = active.f_sum(Kind::Int64)?.f_int64_value(&[])? as f64 / rows;

    let error = error.f_mul_scalar(2.0 / rows)?;
    let d_features = error.f_matmul(&p.w_dec.f_tr()?)?;
    let d_pre = d_features.f_mul(&active)?;
    let sum_d_pre = d_pre.f_sum_dim_intlist(0, false, Kind::Float)?;
    let from_input = p.w_enc.f_mv(&sum_d_pre)?;
    let d_threshold = d_features.f_mul(&p.threshold)?.f_add_scalar_(lambda / rows)?.f_mul_(&near)?;
    Ok(Gradients {
        w_enc: centred.f_tr()?.f_matmul(&d_pre)?,
        b_enc: sum_d_pre,
        w_dec: features.f_tr()?.f_matmul(&error)?,
        b_dec: error.f_sum_dim_intlist(0, false, Kind::Float)?.f_sub(&from_input)?,
        threshold: d_threshold.f_sum_dim_intlist(0, false, Kind::Float)?.f_mul_scalar(-1.0 / bandwidth)?,
        mse,
        l0,
        fired: active.f_any_dim(0, false)?,
    })
}
