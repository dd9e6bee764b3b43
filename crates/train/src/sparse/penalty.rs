use tch::{Kind, Tensor};

use super::Work;
use crate::{
    Result,
    config::{JumpRelu, Sparsity},
};

/// What a JumpReLU objective asks for latents that are on, and its derivatives towards the step `H(π_bi − θ_i)`: the sum of one
/// that the row has and one that the latent has.
pub(super) struct Penalty {
    /// The terms by name.
    pub(super) parts: Vec<(String, f64)>,
    /// `[B]`.
    pub(super) by_row: Tensor,
    /// `[d_sae]`.
    pub(super) by_latent: Option<Tensor>,
}

impl Penalty {
    /// `l0` `[B]` and `counts` `[d_sae]`, int64: how many latents a row has on, and on how many rows a latent is.
    pub(super) fn new(work: &Work<'_>, o: &JumpRelu, l0: &Tensor, counts: &Tensor) -> Result<Self> {
        let (rows, lambda) = (work.rows as f64, work.at.lambda);
        let total = l0.f_sum(Kind::Int64)?.f_int64_value(&[])? as f64;
        let l0 = l0.f_to_kind(Kind::Double)?;
        let same = |slope: f64| Ok::<_, crate::TrainError>(l0.f_zeros_like()?.f_add_scalar(slope)?);
        let (sparsity, by_row) = match o.sparsity {
            Sparsity::L0 => (lambda * total / rows, same(lambda / rows)?),
            Sparsity::Quadratic { target_l0 } => {
                let over = l0.f_sub_scalar(target_l0)?;
                let sum = over.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
                let weight = lambda * 2.0 / (target_l0 * rows);
                (weight * sum, over.f_mul_scalar(2.0 * weight)?)
            }
            Sparsity::Relative { target_l0 } => {
                let over = total / rows / target_l0 - 1.0;
                (lambda * over * over, same(lambda * 2.0 * over / (target_l0 * rows))?)
            }
            // `supports` refuses it.
            Sparsity::Tanh { .. } => (f64::NAN, same(f64::NAN)?),
        };
        let mut parts = vec![("sparsity".to_owned(), sparsity)];
        let mut by_latent = None;
        if let Some(penalty) = &o.frequency_penalty {
            let relative = counts.f_to_kind(Kind::Double)?.f_div_scalar(rows * penalty.scale)?;
            let sum = relative.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?;
            parts.push(("frequency".to_owned(), penalty.coefficient * sum));
            let slope = 2.0 * penalty.coefficient / (penalty.scale * rows);
            by_latent = Some(relative.f_mul_scalar(slope)?.f_to_kind(Kind::Float)?);
        }
        Ok(Self { parts, by_row: by_row.f_to_kind(Kind::Float)?, by_latent })
    }
}
