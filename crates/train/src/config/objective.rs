use serde::{Deserialize, Serialize};

use super::Span;

/// Which loss is trained. In a configuration: a table with the key `architecture`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "architecture", rename_all = "lowercase")]
pub enum Objective {
    /// JumpReLU (arXiv 2407.14435; Gemma Scope and Gemma Scope 2).
    Jumprelu(JumpRelu),
    /// Gated (arXiv 2404.16014).
    Gated(Gated),
    /// TopK (arXiv 2406.04093), BatchTopK (arXiv 2412.06410) and Matryoshka (arXiv 2503.17547).
    Topk(TopK),
    /// ReLU with an L1 penalty.
    Relu(Relu),
}

/// The JumpReLU objective: `mean ‖x − x̂‖² + sparsity + pre-activation loss + frequency penalty`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JumpRelu {
    /// λ, the price of sparsity after its warm-up.
    pub lambda: f64,
    /// Over which λ rises linearly from 0.
    pub lambda_warmup: Span,
    /// What λ multiplies.
    pub sparsity: Sparsity,
    /// ε, the width of the straight-through kernel.
    pub bandwidth: f64,
    /// What is trained in θ's place.
    pub threshold: Threshold,
    /// θ at the start.
    pub initial_threshold: f64,
    /// Whether the step's and the jump's kernel pass gradient to the pre-activations too (Anthropic, January 2025; SAELens'
    /// `jumprelu_ste_to_input`). The papers of Gemma Scope do not.
    #[serde(default)]
    pub gradient_to_input: bool,
    /// Draws latents that are off towards their thresholds (Anthropic, January 2025).
    pub pre_act: Option<PreAct>,
    /// Against latents that are on too often (Gemma Scope 2).
    pub frequency_penalty: Option<FrequencyPenalty>,
    /// Widths of the nested dictionaries whose reconstructions count too; the last is `d_sae`. Empty for none (Gemma Scope 2
    /// trains so).
    #[serde(default)]
    pub prefixes: Vec<i64>,
    /// How the reconstruction losses of the prefixes join.
    #[serde(default)]
    pub prefix_loss: PrefixLoss,
}

/// The sparsity that λ multiplies; l0 is a row's number of active latents, `Σ_i H(π_i − θ_i)`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Sparsity {
    /// `mean l0` (Gemma Scope, section 2).
    L0,
    /// `mean 2/L0* (l0 − L0*)²` over rows (Gemma Scope 2; SAELens' `quadratic`).
    Quadratic {
        /// L0*.
        target_l0: f64,
    },
    /// `(mean l0 / L0* − 1)²` of the whole batch (arXiv 2407.14435, appendix; dictionary_learning's `target_l0`).
    Relative {
        /// L0*.
        target_l0: f64,
    },
    /// `mean Σ tanh(c f ‖d‖)` (Anthropic, January 2025; SAELens' `tanh`).
    Tanh {
        /// c.
        scale: f64,
    },
}

/// What the optimiser moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Threshold {
    /// log θ, which keeps θ positive (arXiv 2407.14435, appendix J).
    Log,
    /// θ itself, cut at 0 (SAELens).
    Direct,
}

/// `coefficient · mean Σ_i ReLU(θ_i − π_i) ‖d_i‖` over `latents`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreAct {
    /// λ_P.
    pub coefficient: f64,
    /// Which latents are drawn.
    pub latents: PreActLatents,
}

/// See [`PreAct`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreActLatents {
    /// All (Anthropic).
    All,
    /// Those that count as dead (SAELens).
    Dead,
}

/// `coefficient · Σ_i (p_i / scale)²`, with p_i the share of the batch's rows on which latent i is on, through the same
/// straight-through step. Gemma Scope 2 tells the shape (quadratic in the frequencies) and not the constants.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FrequencyPenalty {
    /// Its weight; not multiplied by λ.
    pub coefficient: f64,
    /// The frequency that costs 1: 0.1 or 0.01 were tried.
    pub scale: f64,
}

/// The Gated objective: `mean ‖x − x̂‖² + λ mean Σ ReLU(π_gate) + mean ‖x − x̂_frozen(ReLU(π_gate))‖²`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gated {
    /// λ after its warm-up.
    pub lambda: f64,
    /// Over which λ rises linearly from 0.
    pub lambda_warmup: Span,
    /// Whether the auxiliary reconstruction leaves the decoder alone (the paper), or trains it too (SAELens).
    pub frozen_decoder: bool,
    /// Whether the L1 term weighs latents by their decoder's norm (SAELens).
    pub l1_by_decoder_norm: bool,
}

/// The TopK family: `reconstruction + auxiliary`, with k latents a row or k a row on average over the batch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TopK {
    /// Active latents of a row; with `over = "batch"` their mean, which may be broken.
    pub k: f64,
    /// Over what the k are chosen.
    pub over: Over,
    /// How the squared error is counted.
    pub reconstruction: ReconstructionLoss,
    /// Whether latents are `π_i ‖d_i‖`, chosen and reported so, and decode by unit rows `d_i / ‖d_i‖` (SAELens).
    #[serde(default)]
    pub rescale_by_decoder_norm: bool,
    /// The dead latents' task, to rebuild the error that the others leave.
    pub aux: Option<Aux>,
    /// For `over = "batch"`: the rate at which the inference threshold follows the smallest active latent.
    pub threshold_lr: Option<f64>,
    /// Widths of the nested dictionaries (Matryoshka), the last `d_sae`. Empty for none.
    #[serde(default)]
    pub prefixes: Vec<i64>,
    /// How the reconstruction losses of the prefixes join.
    #[serde(default)]
    pub prefix_loss: PrefixLoss,
}

/// Over what the strongest latents are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Over {
    /// k of every row (TopK).
    Row,
    /// k · B of the whole batch (BatchTopK); the trained SAE is a JumpReLU with one threshold.
    Batch,
}

/// How the squared error of a batch `[B, d]` is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReconstructionLoss {
    /// `mean_rows Σ_d (x − x̂)²`.
    Sum,
    /// `mean_rows mean_d (x − x̂)²` (BatchTopK's own code).
    Mean,
    /// `mean_rows Σ_d (x − x̂)² / σ²`, with σ² the first batch's `mean ‖x − x̄‖²` (OpenAI: `mse_scale`).
    Normalized,
}

/// The auxiliary loss of dead latents: with `e = x − x̂` held fixed and ê the decoding, without `b_dec`, of each row's `k`
/// strongest dead latents. Nothing where no latent is dead.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aux {
    /// Its weight.
    pub coefficient: f64,
    /// How many; no more than are dead. `d_in / 2` if not said.
    pub k: Option<i64>,
    /// How the error is counted.
    pub form: AuxForm,
}

/// See [`Aux`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuxForm {
    /// `Σ ‖e − ê‖² / Σ ‖e‖²` over the batch, its divisor held fixed, 0 where it is 0 (arXiv 2406.04093, section A.2). ê
    /// decodes `ReLU(π)`.
    Ratio,
    /// `min(n_dead / k, 1) · mean_rows ‖e − ê‖²`, with k as asked for, whatever is dead. ê decodes π itself, below 0 too
    /// (SAELens).
    Scaled,
    /// `mean_rows mean_d (e − ê)²` (BatchTopK's own code). ê decodes `ReLU(π)`.
    Mean,
}

/// How the reconstruction losses of nested prefixes join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PrefixLoss {
    /// Their mean, together with that of `b_dec` alone (arXiv 2503.17547's code).
    #[default]
    Mean,
    /// Their sum (SAELens).
    Sum,
}

/// The ReLU objective: `mean ‖x − x̂‖² + λ mean Σ f_i`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Relu {
    /// λ after its warm-up.
    pub lambda: f64,
    /// Over which λ rises linearly from 0.
    pub lambda_warmup: Span,
    /// Whether latents are weighed by their decoder's norm (Anthropic, April 2024).
    pub l1_by_decoder_norm: bool,
}
