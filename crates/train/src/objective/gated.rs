use tch::Tensor;

use crate::{
    Params, Result, TrainError,
    config::{Config, Gated, PrefixLoss},
};

use super::{
    Batch, Loss, Moment,
    linear::{centred, decoder_norms, mean_of_sums, offset, squared_error},
    prefixes::reconstruct,
};

/// arXiv 2404.16014, section 3. With `x_c` what the encoder multiplies:
///
/// ```text
/// π_gate = x_c W_gateᵀ + b_gate,   f = 1[π_gate > 0] ⊙ ReLU(exp(r_mag) ⊙ (x_c W_gateᵀ) + b_mag)
/// ```
///
/// The gate's step has no derivative; the L1 term and the auxiliary term train it. The latter's frozen decoder is a copy
/// held fixed of `W_dec`, `b_dec` and `W_skip`; `b_dec` inside of `x_c` is the encoder's and is trained.
pub(super) fn loss(config: &Config, o: &Gated, p: &Params, batch: Batch<'_>, at: &Moment) -> Result<Loss> {
    let needed = |name: &str, t: &Option<Tensor>| match t {
        Some(t) => Ok(t.shallow_clone()),
        None => Err(TrainError::Config(format!("a Gated SAE needs the parameter `{name}`"))),
    };
    let (r_mag, b_mag) = (needed("r_mag", &p.r_mag)?, needed("b_mag", &p.b_mag)?);
    let read = centred(config, p, batch.x)?.f_matmul(&p.w_enc.f_tr()?)?; // [B, d_sae]
    let gate = read.f_add(&p.b_enc)?;
    let open = gate.f_detach()?.f_gt(0.0)?;
    let features = read.f_mul(&r_mag.f_exp()?)?.f_add(&b_mag)?.f_relu()?.f_mul(&open)?;
    let rebuilt =
        reconstruct(p, batch.x, &features, &[], PrefixLoss::Sum, |recon| squared_error(recon, batch.target))?;
    let mut parts = rebuilt.parts;

    let gate = gate.f_relu()?;
    let weighed = if o.l1_by_decoder_norm { gate.f_mul(&decoder_norms(p)?)? } else { gate.shallow_clone() };
    parts.push(("sparsity".to_owned(), mean_of_sums(&weighed)?.f_mul_scalar(at.lambda)?));

    let (offset, w_dec) = (offset(p, batch.x)?, &p.w_dec);
    let by_gate = if o.frozen_decoder {
        offset.f_detach()?.f_addmm(&gate, &w_dec.f_detach()?)?
    } else {
        offset.f_addmm(&gate, w_dec)?
    };
    parts.push(("aux".to_owned(), squared_error(&by_gate, batch.target)?));
    Ok(Loss { parts, features, recon: rebuilt.recon })
}
