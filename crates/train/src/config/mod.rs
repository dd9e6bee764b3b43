//! How an SAE is trained, every constant by name.

mod objective;
mod validate;

pub use objective::{
    Aux, AuxForm, FrequencyPenalty, Gated, JumpRelu, Objective, Over, PreAct, PreActLatents, PrefixLoss,
    ReconstructionLoss, Relu, Sparsity, Threshold, TopK,
};
use serde::{Deserialize, Serialize};

/// How one SAE is trained, every constant open. [`recipe`](crate::recipe) holds what the papers used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Width of what is read.
    pub d_in: i64,
    /// Width of what is written: only for a transcoder, whose target is another activation.
    pub d_out: Option<i64>,
    /// Number of latents.
    pub d_sae: i64,
    /// What activations are divided by, once for the whole site.
    pub scale: Scale,
    /// Whether a transcoder adds `x W_skipᵀ` to its output.
    #[serde(default)]
    pub skip: bool,
    /// Whether `b_dec` is subtracted from the input.
    pub pre_encoder_bias: bool,
    /// The loss.
    pub objective: Objective,
    /// How parameters move.
    pub optimizer: Optimizer,
    /// What the decoder keeps.
    pub decoder: Decoder,
    /// How parameters begin.
    pub init: Init,
    /// Tokens without an activation after which a latent counts as dead.
    pub dead_after: u64,
    /// Dead latents are given new weights (ReLU SAEs).
    pub resample: Option<Resample>,
    /// How gradients are computed.
    #[serde(default)]
    pub gradients: GradientPath,
}

/// The one number that a site's activations are divided by; it is folded away when the SAE is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// `√(E‖x‖²)`, so that the mean square norm is 1 (Gemma Scope, section 3.1).
    MeanSquare,
    /// `E‖x‖ / √d`, so that the mean norm is √d (Anthropic, April 2024; SAELens' `expected_average_only_in`).
    MeanNorm,
    /// √d (Gemma Scope's transcoders, appendix C).
    SqrtWidth,
    /// 1.
    None,
}

/// A number of steps, or a share of the run's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Span {
    /// Steps: a whole number.
    Steps(u64),
    /// A share of all steps, 0 to 1: a number with a point.
    Share(f64),
}

impl Span {
    /// In steps, of a run of `total`.
    pub fn steps(self, total: u64) -> u64 {
        match self {
            Self::Steps(n) => n,
            Self::Share(share) => (share * total as f64).round() as u64,
        }
    }
}

/// Adam and its rate: `lr · warm-up · decay`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Optimizer {
    /// The learning rate after its warm-up.
    pub lr: f64,
    /// Over which it rises.
    pub lr_warmup: Span,
    /// The share of `lr` from which it rises.
    pub lr_warmup_from: f64,
    /// Along which curve.
    pub lr_warmup_shape: Curve,
    /// The last steps, over which it falls.
    pub lr_decay: Span,
    /// The share of `lr` to which it falls.
    pub lr_decay_to: f64,
    /// Along which curve.
    pub lr_decay_shape: Curve,
    /// Decay of the first moment; 0 keeps none.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// The norm, over all parameters together, above which gradients are scaled down to it.
    pub clip: Option<f64>,
    /// The decay of a running mean of the weights, bias-corrected, which is what is exported.
    pub ema: Option<f64>,
}

/// A curve between two rates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Curve {
    /// A straight line.
    Linear,
    /// Half a cosine.
    Cosine,
}

/// What the decoder keeps. A decoder row is what a latent writes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decoder {
    /// Whether rows are renormalised to 1 after every step.
    pub unit_norm: bool,
    /// Whether the part of a row's gradient along the row is taken out before the optimiser sees it.
    pub project_gradient: bool,
}

/// How parameters begin. Biases of the encoder, `r_mag` and `W_skip` begin at 0.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Init {
    /// The norm of every decoder row.
    pub decoder_norm: f64,
    /// The encoder.
    pub encoder: EncoderInit,
    /// `b_dec`.
    pub b_dec: BiasInit,
}

/// How the encoder begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EncoderInit {
    /// As the decoder's transpose.
    Transpose,
    /// As unit vectors of its own (Gemma Scope's transcoders).
    Random,
}

/// How `b_dec` begins, from the first batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BiasInit {
    /// At 0.
    Zero,
    /// At the targets' mean.
    Mean,
    /// At the targets' geometric median (Weiszfeld's iteration).
    GeometricMedian,
}

/// Resampling of dead latents (Bricken et al. 2023, appendix "Neuron resampling").
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resample {
    /// Every how many steps.
    pub every: u64,
    /// Not after this step.
    pub until: u64,
}

/// How gradients are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GradientPath {
    /// The sparse step where the objective has one, else as `Plain`.
    #[default]
    Sparse,
    /// The formulas of the paper and libtorch's automatic differentiation.
    Plain,
}
