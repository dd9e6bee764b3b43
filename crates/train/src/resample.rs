//! New weights for dead latents (Bricken et al. 2023, "Towards Monosemanticity", appendix on neuron resampling).

use rand::{SeedableRng as _, rngs::StdRng};
use rand_distr::{Distribution as _, weighted::WeightedIndex};
use tch::{Kind, Tensor};

use crate::{
    Adam, Params, Result,
    config::Config,
    init::unit_rows,
    objective::{self, Batch, Moment},
};

/// The norm of a new encoder row, as a share of the mean norm of the living ones'.
const ENCODER_SHARE: f64 = 0.2;

/// Each dead latent takes up one row of the batch, drawn with a chance proportional to the square of the row's squared error: its
/// decoder row becomes the row's target, less `b_dec`, at the norm that the decoder begins with, its encoder row the row itself (less
/// `b_dec`, where that is subtracted from the input) at a fifth of the living rows' mean norm, its biases 0, and Adam forgets it. The
/// paper draws from 819,200 tokens; here it is the batch at hand. Says whether there was anything to do.
pub(crate) fn resample(
    config: &Config,
    p: &Params,
    adams: &mut [(&'static str, Adam)],
    batch: Batch<'_>,
    at: &Moment,
    (seed, step): (u64, u64),
) -> Result<bool> {
    let _no_grad = tch::no_grad_guard();
    let d_sae = config.d_sae;
    if at.n_dead == 0 {
        return Ok(false);
    }
    let dead = at.dead.f_nonzero()?.f_view(-1)?;
    let recon = objective::loss(config, p, batch, at)?.recon;
    let error = batch.target.f_sub(&recon)?.f_square()?.f_sum_dim_intlist(1, false, Kind::Double)?;
    let weights = Vec::<f64>::try_from(error.f_square()?.f_to_device(tch::Device::Cpu)?)?;
    // An SAE without any error has no latent to want.
    let Ok(chance) = WeightedIndex::new(&weights) else { return Ok(false) };
    let mut rng = StdRng::seed_from_u64(seed ^ step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let rows: Vec<i64> = (0..at.n_dead).map(|_| chance.sample(&mut rng) as i64).collect();
    let rows = Tensor::f_from_slice(&rows)?.f_to_device(batch.x.device())?;

    let targets = batch.target.f_index_select(0, &rows)?.f_sub(&p.b_dec)?;
    let directions = unit_rows(&targets)?.f_mul_scalar(config.init.decoder_norm)?;
    let inputs = batch.x.f_index_select(0, &rows)?;
    let inputs = if config.pre_encoder_bias { inputs.f_sub(&p.b_dec)? } else { inputs };
    let norms = p.w_enc.f_square()?.f_sum_dim_intlist(1, false, Kind::Double)?.f_sqrt()?;
    let living = at.dead.f_logical_not()?;
    let norm = if at.n_dead < d_sae { norms.f_masked_select(&living)? } else { norms };
    let norm = norm.f_mean(Kind::Double)?.f_double_value(&[])?;
    let readers = unit_rows(&inputs)?.f_mul_scalar(norm * ENCODER_SHARE)?;

    let _ = p.w_dec.shallow_clone().f_index_copy_(0, &dead, &directions)?;
    let _ = p.w_enc.shallow_clone().f_index_copy_(0, &dead, &readers)?;
    for bias in [Some(&p.b_enc), p.b_mag.as_ref(), p.r_mag.as_ref()].into_iter().flatten() {
        let _ = bias.shallow_clone().f_index_fill_(0, &dead, 0.0)?;
    }
    for (_, adam) in adams.iter_mut().filter(|(name, _)| !matches!(*name, "b_dec" | "W_skip")) {
        adam.forget(&dead)?;
    }
    Ok(true)
}
