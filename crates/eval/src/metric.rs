use std::collections::BTreeMap;

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its name in JSON.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What it measures, exactly.
    pub definition: &'static str,
    /// Where the definition comes from.
    pub source: &'static str,
}

const GS: &str = "Gemma Scope, section 4";
const GATED: &str = "Gated SAEs, arXiv 2404.16014";
const SAELENS: &str = "SAELens evals.py";
const DL: &str = "dictionary_learning evaluation.py";
const SAEBENCH: &str = "SAEBench core";
const AS_ZERO: &str = "as with zero in SAELens evals.py";

const fn metric(
    name: &'static str,
    unit: &'static str,
    definition: &'static str,
    source: &'static str,
) -> Metric {
    Metric { name, unit, definition, source }
}

/// Every metric of a [`Report`](crate::Report), in the order in which it is shown.
///
/// Throughout: *positions that count* are those that the evaluation was asked for (all but BOS, EOS and PAD, unless it was
/// something else), and the activation is replaced there and left as it is elsewhere. A *loss counts* where a position and
/// its next both do and belong to one document. `x` is the activation that is replaced, `x_hat` what replaces it; the two differ from what the SAE reads
/// for transcoders alone. `f` are the latents. Sums run over all of the data and are divided once.
pub const METRICS: &[Metric] = &[
    metric("ce_clean", "nats per token", "mean cross-entropy of the next token, over losses that count", GS),
    metric("ce_spliced", "nats per token", "the same with x_hat in place of x at positions that count", GS),
    metric("ce_zero", "nats per token", "the same with zero in place of x at positions that count", GATED),
    metric(
        "ce_mean",
        "nats per token",
        "the same with the mean of x over the data in place of x at positions that count",
        GATED,
    ),
    metric("delta_loss", "nats per token", "ce_spliced - ce_clean", GS),
    metric("loss_recovered_zero", "fraction", "(ce_zero - ce_spliced) / (ce_zero - ce_clean)", GATED),
    metric("loss_recovered_mean", "fraction", "(ce_mean - ce_spliced) / (ce_mean - ce_clean)", GATED),
    metric(
        "kl",
        "nats per token",
        "mean KL(clean || spliced) of the next token's distribution, over losses that count",
        SAELENS,
    ),
    metric("kl_zero", "nats per token", "mean KL(clean || zero in place of x)", SAELENS),
    metric("kl_mean", "nats per token", "mean KL(clean || mean in place of x)", AS_ZERO),
    metric("kl_score_zero", "fraction", "(kl_zero - kl) / kl_zero", SAELENS),
    metric("kl_score_mean", "fraction", "(kl_mean - kl) / kl_mean", AS_ZERO),
    metric("l0", "latents per token", "mean number of active latents (f > 0), over positions that count", GS),
    metric("l0_std", "latents per token", "standard deviation of that number over positions that count", GS),
    metric("l0_median", "latents per token", "its median (the lower of two)", GS),
    metric("l0_max", "latents per token", "its maximum", GS),
    metric("l1", "units of x", "mean of sum_j |f_j|, over positions that count", SAELENS),
    metric(
        "fvu",
        "fraction",
        "sum |x - x_hat|^2 / sum |x - mean(x)|^2, over positions that count, pooled over all of the data",
        GS,
    ),
    metric(
        "explained_variance",
        "fraction",
        "1 - fvu: SAELens' explained_variance since its issue 665",
        SAELENS,
    ),
    metric(
        "explained_variance_legacy",
        "fraction",
        "mean of 1 - |x - x_hat|^2 / |x - mean(x)|^2, a ratio for each x that is not the mean; with the mean over all of the data, where \
         SAELens takes each batch's own",
        SAELENS,
    ),
    metric(
        "frac_variance_explained",
        "fraction",
        "1 - sum_d Var_d(x - x_hat) / sum_d Var_d(x), pooled: a constant error costs nothing",
        DL,
    ),
    metric("mse", "squared units of x", "mean of |x - x_hat|^2, summed over the entries", SAELENS),
    metric(
        "normalized_mse",
        "fraction",
        "mean of |x - x_hat|^2 / |x|^2, over x that are not 0",
        "OpenAI sparse_autoencoder loss.py",
    ),
    metric("l2_loss", "units of x", "mean of |x - x_hat|, not squared", DL),
    metric("cosine", "cosine", "mean cosine of x and x_hat; that of 0 is 0", SAELENS),
    metric(
        "l2_ratio",
        "ratio",
        "mean of |x_hat| / |x|, over x that are not 0 (there a norm below 1e-4 counts as 1)",
        SAELENS,
    ),
    metric("l2_norm_in", "units of x", "mean of |x|", SAELENS),
    metric("l2_norm_out", "units of x", "mean of |x_hat|", SAELENS),
    metric(
        "relative_reconstruction_bias",
        "ratio",
        "sum |x_hat|^2 / sum <x, x_hat>: below 1 where reconstructions shrink",
        "Gated SAEs, arXiv 2404.16014, eq. 10",
    ),
    metric("dead_fraction", "fraction", "share of latents that no position that counts activates", GS),
    metric(
        "frac_over_1_percent",
        "fraction",
        "share of latents that more than 1 % of positions that count activate",
        SAEBENCH,
    ),
    metric("frac_over_10_percent", "fraction", "the same with 10 %", SAEBENCH),
    metric(
        "mass_over_1_percent",
        "fraction",
        "share of all activity (the summed frequency) that falls to those above 1 %",
        SAEBENCH,
    ),
    metric("mass_over_10_percent", "fraction", "the same with 10 %", SAEBENCH),
    metric(
        "consistent_activation_heuristic",
        "tokens per sequence",
        "mean over latents that are active at all of (positions / sequences on which it is active); texts packed into one \
         sequence are one",
        SAELENS,
    ),
    metric(
        "uniformity",
        "fraction",
        "r_L0: mean of exp(S(p)) / |y|_0, where y = f * (W_dec grad_x L) and p = |y| / sum |y|, L the next token's logit \
         less the mean logit, and the gradient that of a position's own L; over those of the positions that were asked for where some y is not 0",
        "Gemma Scope, appendix D.5",
    ),
    metric("encoder_norm", "units of 1/x", "mean norm of what a latent reads: a column of W_enc", SAELENS),
    metric("decoder_norm", "ratio", "mean norm of what a latent writes: a row of W_dec", SAELENS),
    metric(
        "encoder_decoder_cosine",
        "cosine",
        "mean cosine of what a latent reads and what it writes",
        SAELENS,
    ),
    metric("encoder_bias", "units of f", "mean of b_enc", SAELENS),
    metric(
        "max_encoder_cosine",
        "cosine",
        "mean over latents of the largest cosine with another latent's column of W_enc",
        SAELENS,
    ),
    metric("max_decoder_cosine", "cosine", "the same of rows of W_dec", SAELENS),
];

impl Metric {
    /// The metric of a name.
    pub fn named(name: &str) -> Option<&'static Self> {
        METRICS.iter().find(|metric| metric.name == name)
    }

    /// Definition, unit and source in one text.
    pub fn describe(&self) -> String {
        format!("{} ({}) [{}]", self.definition, self.unit, self.source)
    }
}

/// All definitions by name.
pub(crate) fn definitions() -> BTreeMap<String, String> {
    METRICS.iter().map(|metric| (metric.name.to_owned(), metric.describe())).collect()
}
