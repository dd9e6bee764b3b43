use tch::Tensor;

use crate::{
    Params, Result, TrainError,
    config::{Config, JumpRelu, PreAct, PreActLatents, Sparsity, Threshold},
};

use super::{
    Batch, Loss, Moment,
    linear::{decoder_norms, mean_of_sums, pre_acts, squared_error},
    prefixes::reconstruct,
    straight_through::{Gate, drift},
};

/// See [`JumpRelu`] for the formula of every term.
pub(super) fn loss(config: &Config, o: &JumpRelu, p: &Params, batch: Batch<'_>, at: &Moment) -> Result<Loss> {
    let threshold = threshold(o, p)?;
    let pre_acts = pre_acts(config, p, batch.x)?;
    let gate = Gate::new(&pre_acts, &threshold, o.bandwidth, o.gradient_to_input)?;
    let features = gate.jump()?;
    let rebuilt = reconstruct(p, batch.x, &features, &o.prefixes, o.prefix_loss, |recon| {
        squared_error(recon, batch.target)
    })?;
    let mut parts = rebuilt.parts;
    let sparsity = sparsity(o.sparsity, p, &gate, &features)?.f_mul_scalar(at.lambda)?;
    parts.push(("sparsity".to_owned(), sparsity));
    if let Some(pre_act) = &o.pre_act {
        parts.push(("pre_act".to_owned(), pre_act_loss(*pre_act, p, &pre_acts, &threshold, at)?));
    }
    if let Some(penalty) = &o.frequency_penalty {
        let kind = features.f_kind()?;
        let frequencies = gate.step()?.f_mean_dim(0, false, kind)?; // [d_sae]
        let cost = frequencies.f_div_scalar(penalty.scale)?.f_square()?.f_sum(kind)?;
        parts.push(("frequency".to_owned(), cost.f_mul_scalar(penalty.coefficient)?));
    }
    Ok(Loss { parts, features, recon: rebuilt.recon })
}

/// θ: `[d_sae]`.
pub(super) fn threshold(o: &JumpRelu, p: &Params) -> Result<Tensor> {
    let raw = p.threshold.as_ref();
    let raw =
        raw.ok_or_else(|| TrainError::Config("a JumpReLU SAE needs the parameter `threshold`".to_owned()))?;
    match o.threshold {
        Threshold::Log => Ok(raw.f_exp()?),
        // A cut inside the graph would hold a latent at 0 for ever.
        Threshold::Direct => Ok(raw.f_detach()?.f_clamp_min(0.0)?.f_add(&drift(raw)?)?),
    }
}

fn sparsity(which: Sparsity, p: &Params, gate: &Gate<'_>, features: &Tensor) -> Result<Tensor> {
    let kind = features.f_kind()?;
    let l0 = || -> Result<Tensor> { Ok(gate.step()?.f_sum_dim_intlist(1, false, kind)?) }; // [B]
    match which {
        Sparsity::L0 => Ok(l0()?.f_mean(kind)?),
        Sparsity::Quadratic { target_l0 } => {
            Ok(l0()?.f_sub_scalar(target_l0)?.f_square()?.f_mean(kind)?.f_mul_scalar(2.0 / target_l0)?)
        }
        Sparsity::Relative { target_l0 } => {
            Ok(l0()?.f_mean(kind)?.f_div_scalar(target_l0)?.f_sub_scalar(1.0)?.f_square()?)
        }
        Sparsity::Tanh { scale } => {
            mean_of_sums(&features.f_mul(&decoder_norms(p)?)?.f_mul_scalar(scale)?.f_tanh()?)
        }
    }
}

fn pre_act_loss(
    pre_act: PreAct,
    p: &Params,
    pre_acts: &Tensor,
    threshold: &Tensor,
    at: &Moment,
) -> Result<Tensor> {
    let below = threshold.f_sub(pre_acts)?.f_relu()?.f_mul(&decoder_norms(p)?)?;
    let drawn = match pre_act.latents {
        PreActLatents::All => below,
        PreActLatents::Dead => below.f_mul(&at.dead)?,
    };
    Ok(mean_of_sums(&drawn)?.f_mul_scalar(pre_act.coefficient)?)
}
