use serde_json::{Map, Value};
use tch::Kind;

use super::{super::config::Config, kind};
use crate::{Normalize, Result};

/// What of `cfg.json` makes the function, and its metadata.
pub(super) struct Settings {
    pub(super) latents: Latents,
    pub(super) transcoder: bool,
    pub(super) skip: bool,
    pub(super) d_in: i64,
    pub(super) d_sae: i64,
    /// Of a transcoder.
    pub(super) d_out: i64,
    pub(super) dtype: Kind,
    pub(super) apply_b_dec: bool,
    pub(super) normalize: Normalize,
    /// Whether the input was scaled in training, by a factor that stands elsewhere.
    pub(super) average: bool,
    pub(super) hook_z: bool,
    /// Whether the file must hold a `scaling_factor`.
    pub(super) finetuned: bool,
    pub(super) metadata: Map<String, Value>,
}

/// How latents are made, as far as the settings say.
#[derive(Clone, Copy)]
pub(super) enum Latents {
    Relu,
    JumpRelu,
    Gated,
    TopK { k: i64, rescale: bool },
    BatchTopK { rescale: bool },
}

/// Keys that describe the model and the data, and that SAELens keeps as metadata (`LLM_METADATA_KEYS`).
pub(super) const DESCRIPTION: [&str; 17] = [
    "model_name",
    "hook_name",
    "model_class_name",
    "hook_head_index",
    "model_from_pretrained_kwargs",
    "prepend_bos",
    "exclude_special_tokens",
    "neuronpedia_id",
    "context_size",
    "seqpos_slice",
    "dataset_path",
    "sae_lens_version",
    "sae_lens_training_version",
    "hook_name_out",
    "hook_head_index_out",
    "hf_hook_name",
    "hf_hook_name_out",
];

/// Keys of trainings and of runs, from version 1 to 6: an SAE in use is the same whatever they say.
#[rustfmt::skip]
const TRAINING: &[&str] = &[
    "act_store_device", "activations_mixing_fraction", "adam_beta1", "adam_beta2", "autocast", "autocast_lm",
    "aux_loss_coefficient", "b_dec_init_method", "cached_activations_path", "checkpoint_path", "compile_llm", "compile_sae",
    "dataset_trust_remote_code", "dead_feature_estimation_method", "dead_feature_threshold", "dead_feature_window",
    "decoder_fine_tuning", "decoder_heuristic_init", "decoder_heuristic_init_norm", "decoder_init_norm",
    "decoder_orthogonal_init", "device", "disable_concat_sequences", "eval_batch_size_prompts", "eval_every_n_wandb_logs",
    "expansion_factor", "feature_reinit_scale", "feature_sampling_method", "feature_sampling_window", "finetuning_method",
    "finetuning_tokens", "from_pretrained_path", "hook_eval", "hook_layer", "hook_layer_out", "hook_point_eval",
    "hook_point_layer", "init_encoder_as_decoder_transpose", "is_dataset_tokenized", "jumprelu_bandwidth",
    "jumprelu_init_threshold", "jumprelu_sparsity_loss_mode", "jumprelu_ste_to_input", "jumprelu_tanh_scale",
    "l0_coefficient", "l0_warm_up_steps", "l1_coefficient", "l1_warm_up_steps", "llm_compilation_mode", "llm_device",
    "log_activations_store_to_wandb", "log_optimizer_state_to_wandb", "log_to_wandb", "logger", "lp_norm", "lr",
    "lr_decay_steps", "lr_end", "lr_scheduler_name", "lr_warm_up_steps", "matryoshka_widths", "model_kwargs",
    "mse_loss_normalization", "n_batches_for_norm_estimate", "n_batches_in_buffer", "n_checkpoints", "n_eval_batches",
    "n_restart_cycles", "noise_scale", "normalize_sae_decoder", "output_path", "pre_act_loss_coefficient",
    "prefetch_llm_batches", "resample_batches", "resume", "resume_from_checkpoint", "run_name", "sae_compilation_mode",
    "save_final_checkpoint", "scale_sparsity_penalty_by_decoder_norm", "seed", "sequence_separator_token", "store_batch_size",
    "store_batch_size_prompts", "streaming", "target_l0", "tokens_per_buffer", "topk_threshold_lr",
    "total_training_steps", "total_training_tokens", "train_batch_size", "train_batch_size_tokens", "training_tokens",
    "use_cached_activations", "use_chat_formatting", "use_ghost_grads", "use_matryoshka_aux_loss",
    "use_sparse_activations", "verbose", "wandb_entity", "wandb_id", "wandb_log_frequency", "wandb_project",
];

impl Settings {
    /// Reads a `cfg.json` of version 6, or one that was brought into its form.
    pub(super) fn read(mut config: Config) -> Result<Self> {
        let (d_in, d_sae) = (config.size("d_in")?, config.size("d_sae")?);
        let (d_in, d_sae) = (config.required("d_in", d_in)?, config.required("d_sae", d_sae)?);
        let (latents, transcoder, skip) = architecture(&mut config, d_sae)?;
        let dtype = config.text("dtype")?;
        let dtype = config.required("dtype", dtype)?;
        let Some(dtype) = kind(&dtype) else {
            return Err(config.bad(&format!("`dtype` is `{dtype}`, which is no dtype of an SAE's")));
        };
        let mut d_out = d_in;
        if transcoder {
            const DEFAULT: i64 = 768;
            d_out = config.size("d_out")?.unwrap_or(DEFAULT);
        } else {
            config.only("d_out", &[d_in.into()])?;
        }
        let apply_b_dec = config.flag("apply_b_dec_to_input")?.unwrap_or(true);
        if transcoder && apply_b_dec {
            // SAELens opens none without it either: the default is for SAEs.
            return Err(config.bad("`apply_b_dec_to_input` must be there and false for a transcoder"));
        }
        let (normalize, average) = normalize(&mut config, transcoder)?;
        config.only("use_error_term", &[false.into()])?;
        let reshape = config.text("reshape_activations")?;
        let finetuned = config.flag("finetuning_scaling_factor")?.unwrap_or(false);
        let mut metadata = config.object("metadata")?.map(Config::rest).unwrap_or_default();
        for (key, value) in config.harmless(&DESCRIPTION) {
            metadata.entry(key).or_insert(value);
        }
        let hook_z = hook_z(&config, reshape.as_deref(), &metadata)?;
        config.harmless(TRAINING);
        config.finish()?;
        Ok(Self {
            latents,
            transcoder,
            skip,
            d_in,
            d_sae,
            d_out,
            dtype,
            apply_b_dec,
            normalize,
            average,
            hook_z,
            finetuned,
            metadata,
        })
    }

    /// Whether pre-activations are multiplied by the norms of decoder rows.
    pub(super) fn rescale(&self) -> bool {
        matches!(self.latents, Latents::TopK { rescale: true, .. } | Latents::BatchTopK { rescale: true })
    }
}

/// How latents are made, whether it is a transcoder, and whether it has a skip connection.
fn architecture(config: &mut Config, d_sae: i64) -> Result<(Latents, bool, bool)> {
    let name = config.text("architecture")?;
    let name = config.required("architecture", name)?;
    let refused =
        |config: &Config, why: &str| Err(config.bad(&format!("the architecture `{name}` is not read{why}")));
    let found = match name.as_str() {
        "standard" => (Latents::Relu, false, false),
        "jumprelu" => (Latents::JumpRelu, false, false),
        "gated" => (Latents::Gated, false, false),
        "transcoder" => (Latents::Relu, true, false),
        "skip_transcoder" => (Latents::Relu, true, true),
        "jumprelu_transcoder" => (Latents::JumpRelu, true, false),
        "jumprelu_skip_transcoder" => (Latents::JumpRelu, true, true),
        "topk" => {
            const DEFAULT: i64 = 100;
            let k = config.size("k")?.unwrap_or(DEFAULT);
            if k > d_sae {
                return Err(config.bad(&format!("`k` is {k}, but there are only {d_sae} latents")));
            }
            let rescale = config.flag("rescale_acts_by_decoder_norm")?.unwrap_or(false);
            (Latents::TopK { k, rescale }, false, false)
        }
        "batchtopk" | "matryoshka_batchtopk" => {
            // The mean number of active latents: of the training alone.
            config.number("k")?;
            let rescale = config.flag("rescale_acts_by_decoder_norm")?.unwrap_or(true);
            (Latents::BatchTopK { rescale }, false, false)
        }
        "abstopk" => return refused(config, ": its latents may be negative"),
        "matching_pursuit" => return refused(config, ": it has no encoder, but encodes by iteration"),
        "temporal" => return refused(config, ": it attends to the whole sequence"),
        _ => return refused(config, ""),
    };
    config.only("rescale_acts_by_decoder_norm", &[false.into()])?;
    Ok(found)
}

/// What is done to each token, and whether a factor for all is missing.
fn normalize(config: &mut Config, transcoder: bool) -> Result<(Normalize, bool)> {
    const KEY: &str = "normalize_activations";
    let name = config.text(KEY)?;
    let name = name.as_deref().unwrap_or("none");
    for normalize in [Normalize::None, Normalize::LayerNorm, Normalize::ConstantNorm] {
        if normalize.name() == name {
            return Ok((normalize, false));
        }
    }
    match name {
        "expected_average_only_in" if !transcoder => Ok((Normalize::None, true)),
        "expected_average_only_in" | "covariance_whitening" => {
            let problem = "and what it needs is not in the folder: fold it with SAELens first";
            Err(config.bad(&format!("`{KEY}` is `{name}`, {problem}")))
        }
        _ => Err(config.bad(&format!("`{KEY}` is `{name}`, which is not read"))),
    }
}

/// Whether SAELens flattens the heads.
fn hook_z(config: &Config, reshape: Option<&str>, metadata: &Map<String, Value>) -> Result<bool> {
    match reshape.unwrap_or("none") {
        "none" => Ok(false),
        "hook_z" => match metadata.get("hook_name").and_then(Value::as_str) {
            Some(hook) if !hook.ends_with("_z") => {
                let problem = format!("`reshape_activations` is `hook_z`, but `hook_name` is `{hook}`");
                Err(config.bad(&problem))
            }
            _ => Ok(true),
        },
        other => Err(config.bad(&format!("`reshape_activations` is `{other}`, which is not read"))),
    }
}
