use std::collections::BTreeMap;

use hooks::HookPoint;
use serde::{Deserialize, Serialize};

/// What every SAE finds in every prompt. As JSON, this is what `gemma-scope analyze --json` writes.
///
/// Activations are float32, as the SAE computes them; every other number is a float64 or a count. A number that is not
/// defined is null; none is ever NaN or infinite. "Counted" tokens are those that metrics are about: not BOS, EOS or padding
/// (Gemma Scope, section 4).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Analysis {
    /// The model's name.
    pub model: String,
    /// The texts, token by token.
    pub prompts: Vec<PromptTokens>,
    /// What each SAE finds, in the order given.
    pub saes: Vec<SaeAnalysis>,
    /// What each number means, by the name of its field.
    pub definitions: BTreeMap<String, String>,
}

/// A text and its tokens. Padding is left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptTokens {
    /// The text as it was given.
    pub text: String,
    /// How each token reads, BOS among them.
    pub tokens: Vec<String>,
    /// Each token's id.
    pub ids: Vec<i64>,
    /// Whether each token counts in metrics.
    pub counted: Vec<bool>,
}

/// What one SAE finds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SaeAnalysis {
    /// The SAE's name.
    pub id: String,
    /// Where it reads.
    pub hook: HookPoint,
    /// Its architecture, as SAELens writes it: `jumprelu`, ….
    pub architecture: String,
    /// How many latents it has.
    pub d_sae: i64,
    /// Metrics over the counted tokens of all prompts.
    pub metrics: Metrics,
    /// What it finds in each prompt.
    pub prompts: Vec<PromptAnalysis>,
    /// Every latent that is named anywhere in `prompts`, by rising index, with all tokens that activate it.
    pub latents: Vec<LatentTrace>,
}

/// Metrics over the counted tokens of all prompts, as [`eval`] computes them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// How many tokens count.
    pub tokens: i64,
    /// Mean number of active latents a token; null where no token counts.
    pub l0: Option<f64>,
    /// `Σ‖x − x̂‖² / Σ‖x − x̄‖²`; null where x does not vary (as with one token), and for transcoders.
    pub fvu: Option<f64>,
    /// `1 − fvu`.
    pub explained_variance: Option<f64>,
}

/// What an SAE finds in one prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptAnalysis {
    /// Each token.
    pub tokens: Vec<TokenAnalysis>,
    /// The latents with the largest activation on a counted token of this prompt, strongest first (ties: the lower index
    /// first); at most [`PER_PROMPT`](crate::PER_PROMPT).
    pub strongest: Vec<PromptLatent>,
    /// The latents that stand out in this prompt, as many: ranked by how far their largest activation on a counted token
    /// exceeds their mean activation ([`LatentTrace::mean_activation`]). Latents that are active everywhere, and so say
    /// little of a single text, lead `strongest` in most SAEs; here they come late.
    pub distinctive: Vec<PromptLatent>,
}

/// What an SAE finds in one token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenAnalysis {
    /// How many latents are active.
    pub l0: i64,
    /// `1 − ‖x − x̂‖² / ‖x − x̄‖²`, where x̄ is the mean of x over the counted tokens of all prompts of this analysis: 1 is
    /// perfect, 0 no better than x̄, less is worse. Null where x does not differ from x̄, and where [`Metrics::fvu`] is null.
    pub explained_variance: Option<f64>,
    /// Cosine of the angle between x and x̂; null where either is zero, and for transcoders.
    pub cosine: Option<f64>,
    /// The strongest latents, strongest first (ties: the lower index first).
    pub top: Vec<LatentActivation>,
    /// The latents that stand out here, as many: ranked by how far their activation exceeds their mean activation.
    pub distinctive: Vec<LatentActivation>,
}

/// A latent on a token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentActivation {
    /// The latent, counted from 0.
    pub latent: usize,
    /// How strongly it is active.
    pub activation: f32,
}

/// A latent in a prompt.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptLatent {
    /// The latent, counted from 0.
    pub latent: usize,
    /// Its largest activation on a counted token of the prompt.
    pub max_activation: f32,
    /// The token with this activation (the first of several), counted from 0, BOS included.
    pub max_token: usize,
    /// On how many counted tokens of the prompt it is active.
    pub active_tokens: usize,
    /// Its activation on each token of the prompt, 0 where it is not active.
    pub activations: Vec<f32>,
}

/// A latent in all prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LatentTrace {
    /// The latent, counted from 0.
    pub latent: usize,
    /// Its largest activation on a counted token of any prompt; 0 where only uncounted tokens activate it.
    pub max_activation: f32,
    /// Its mean activation over the counted tokens of all prompts, those included on which it is 0.
    pub mean_activation: f64,
    /// On how many counted tokens of all prompts it is active.
    pub active_tokens: usize,
    /// Where it is active, for each prompt that activates it; uncounted tokens too.
    pub active: Vec<ActiveTokens>,
}

/// The tokens of one prompt that activate a latent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActiveTokens {
    /// The prompt, counted from 0.
    pub prompt: usize,
    /// The tokens, rising.
    pub tokens: Vec<usize>,
    /// The activation on each of them.
    pub activations: Vec<f32>,
}
