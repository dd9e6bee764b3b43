use tch::Tensor;

/// The trained tensors of one SAE, float32, as the optimiser sees them.
#[derive(Debug)]
pub struct Params {
    /// What latents read: `[d_sae, d_in]`, a row each (files hold the transpose).
    pub w_enc: Tensor,
    /// `[d_sae]`; a Gated SAE's `b_gate`.
    pub b_enc: Tensor,
    /// What latents write: `[d_sae, d_out]`.
    pub w_dec: Tensor,
    /// `[d_out]`.
    pub b_dec: Tensor,
    /// JumpReLU's, `[d_sae]`: log θ or θ, as [`Threshold`](crate::config::Threshold) says.
    pub threshold: Option<Tensor>,
    /// A Gated SAE's `[d_sae]`: `W_mag = exp(r_mag) W_gate`.
    pub r_mag: Option<Tensor>,
    /// A Gated SAE's `[d_sae]`.
    pub b_mag: Option<Tensor>,
    /// A skip transcoder's: `[d_out, d_in]`.
    pub w_skip: Option<Tensor>,
}

impl Params {
    /// The tensors that are there, by the names of a checkpoint, always in this order.
    pub fn named(&self) -> Vec<(&'static str, &Tensor)> {
        let all = [
            ("W_enc", Some(&self.w_enc)),
            ("b_enc", Some(&self.b_enc)),
            ("W_dec", Some(&self.w_dec)),
            ("b_dec", Some(&self.b_dec)),
            ("threshold", self.threshold.as_ref()),
            ("r_mag", self.r_mag.as_ref()),
            ("b_mag", self.b_mag.as_ref()),
            ("W_skip", self.w_skip.as_ref()),
        ];
        all.into_iter().filter_map(|(name, tensor)| Some((name, tensor?))).collect()
    }
}
