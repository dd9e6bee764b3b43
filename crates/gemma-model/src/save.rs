use std::{collections::HashMap, io::Write as _, path::Path};

use serde_json::json;
use tch::Kind;
use tch_ext::{TensorError, write_atomically, write_safetensors};

use crate::{Gemma2, Gemma2Config, LayerKind, Result};

impl Gemma2 {
    /// Writes the model in the Hugging Face layout: `config.json` and `model.safetensors`, which transformers opens too.
    ///
    /// # Errors
    /// The system's.
    pub fn save(&self, folder: &Path, kind: Kind) -> Result<()> {
        self.config().save(&folder.join("config.json"), kind)?;
        let cast = self.parameters().into_iter().map(|(name, w)| Ok((name, w.f_detach()?.f_to_kind(kind)?)));
        let cast = cast.collect::<Result<Vec<_>>>()?;
        let text = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        let tensors = cast.iter().map(|(name, w)| (name.clone(), w));
        Ok(write_safetensors(&folder.join("model.safetensors"), tensors, text)?)
    }
}

impl Gemma2Config {
    /// Writes `config.json` as transformers does; `kind` is the dtype that it names.
    ///
    /// # Errors
    /// The system's.
    pub fn save(&self, path: &Path, kind: Kind) -> Result<()> {
        let d = &self.dims;
        let layer_types: Vec<_> = self
            .layer_kinds
            .iter()
            .map(|kind| match kind {
                LayerKind::Sliding => "sliding_attention",
                LayerKind::Global => "full_attention",
            })
            .collect();
        let dtype = match kind {
            Kind::BFloat16 => "bfloat16",
            Kind::Half => "float16",
            _ => "float32",
        };
        let eos = match self.eos.as_slice() {
            [one] => json!(one),
            many => json!(many),
        };
        let text = json!({
            "architectures": ["Gemma2ForCausalLM"],
            "attention_bias": false,
            "attention_dropout": 0.0,
            "attn_logit_softcapping": self.attn_softcap,
            "bos_token_id": self.bos,
            "eos_token_id": eos,
            "final_logit_softcapping": self.final_softcap,
            "head_dim": d.d_head,
            "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": d.d_model,
            "intermediate_size": d.d_mlp,
            "layer_types": layer_types,
            "max_position_embeddings": d.n_ctx,
            "model_type": "gemma2",
            "num_attention_heads": d.n_heads,
            "num_hidden_layers": d.n_layers,
            "num_key_value_heads": d.n_kv_heads,
            "pad_token_id": self.pad,
            "query_pre_attn_scalar": whole(self.query_pre_attn_scalar),
            "rms_norm_eps": self.rms_eps,
            "rope_theta": self.rope_theta,
            "sliding_window": self.sliding_window,
            "torch_dtype": dtype,
            "vocab_size": d.d_vocab,
        });
        write_atomically(path, |file| writeln!(file, "{text:#}").map_err(|e| TensorError::io(path, e)))?;
        Ok(())
    }
}

/// A whole number as an integer: transformers refuses a scalar of `64.0`.
fn whole(x: f64) -> serde_json::Value {
    if x.fract() == 0.0 && x.abs() < 1e9 { json!(x as i64) } else { json!(x) }
}
