use tch::{Kind, Tensor};

use crate::Result;

/// What is done to each token's input before it is encoded, and undone on the output.
///
/// The statistics come from the input alone, so undoing asks for it again: nothing is remembered between the two, where
/// SAELens keeps them in the SAE from `encode` to the next `decode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Normalize {
    /// Nothing.
    #[default]
    None,
    /// `(x − μ) / (σ + 1e-5)`, undone by `· σ + μ`; σ is the unbiased standard deviation over `d_in`, and the small number is
    /// not undone (SAELens `layer_norm`; OpenAI's TopK SAEs).
    LayerNorm,
    /// `x · √d_in / ‖x‖`, undone by `· ‖x‖ / √d_in` (SAELens `constant_norm_rescale`).
    ConstantNorm,
}

impl Normalize {
    /// SAELens' name.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::LayerNorm => "layer_norm",
            Self::ConstantNorm => "constant_norm_rescale",
        }
    }

    /// `[.., d_in]` to `[.., d_in]`.
    pub(crate) fn apply(self, x: &Tensor) -> Result<Tensor> {
        const EPS: f64 = 1e-5;
        match self {
            Self::None => Ok(x.shallow_clone()),
            Self::LayerNorm => {
                let (mean, std) = mean_and_std(x)?;
                Ok(x.f_sub(&mean)?.f_div(&std.f_add_scalar(EPS)?)?)
            }
            Self::ConstantNorm => Ok(x.f_mul(&root_d_over_norm(x)?)?),
        }
    }

    /// Undoes it on an output, given the input it was made from.
    pub(crate) fn undo(self, out: &Tensor, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(out.shallow_clone()),
            Self::LayerNorm => {
                let (mean, std) = mean_and_std(x)?;
                Ok(out.f_mul(&std)?.f_add(&mean)?)
            }
            Self::ConstantNorm => Ok(out.f_div(&root_d_over_norm(x)?)?),
        }
    }
}

/// Mean and unbiased standard deviation: `[.., 1]` each.
fn mean_and_std(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let mean = x.f_mean_dim(Some([-1].as_slice()), true, Kind::Float)?;
    let squares = x.f_sub(&mean)?.f_square()?.f_sum_dim_intlist([-1].as_slice(), true, Kind::Float)?;
    // libtorch's own would print a warning where there are no rows.
    let d = x.size().last().copied().unwrap_or(1);
    Ok((mean, squares.f_div_scalar((d - 1) as f64)?.f_sqrt()?))
}

fn root_d_over_norm(x: &Tensor) -> Result<Tensor> {
    let d = x.size().last().copied().unwrap_or(1) as f64;
    let norm = x.f_norm_scalaropt_dim(2.0, [-1], true)?;
    Ok(norm.f_reciprocal()?.f_mul_scalar(d.sqrt())?)
}
