//! Hugging Face's `config.json`, read by the rule of penzai: a key that we know is used, a key that can't change the
//! function is passed over, and any other must hold the reference's default, or the error names it.

use std::{fs, path::Path};

use hooks::ModelDims;
use serde_json::{Map, Value, json};
use tch_ext::TensorError;

use crate::{Gemma2Config, LayerKind, ModelError, Result, error::one_line};

/// The list of layers is made before the weights are looked at: a false number must not ask for the machine's memory.
const MAX_LAYERS: usize = 10_000;

/// Keys that say nothing about the function in evaluation.
const PASSED_OVER: &[&str] = &[
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "auto_map",
    "cache_implementation",
    "dtype",
    "initializer_range",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

impl Gemma2Config {
    /// Reads `config.json` as transformers writes it: the old keys (`rope_theta`) and those of version 5
    /// (`rope_parameters`, `layer_types`).
    ///
    /// # Errors
    /// [`ModelError::Config`] for a missing key, a key we don't know, or a value that we don't implement.
    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|e| TensorError::io(path, e))?;
        Self::from_json(&path.display().to_string(), &text)
    }

    /// As [`load`](Self::load), from text; `file` stands for it in errors.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_json(file: &str, text: &str) -> Result<Self> {
        let json: Value = serde_json::from_str(text)
            .map_err(|e| ModelError::Config { file: file.to_owned(), problem: format!("not JSON: {e}") })?;
        let Value::Object(keys) = json else {
            let problem = "not a JSON object".to_owned();
            return Err(ModelError::Config { file: file.to_owned(), problem });
        };
        let mut reader = Reader { file, keys };
        let config = reader.config()?;
        reader.finish()?;
        config.validate(file)?;
        Ok(config)
    }
}

struct Reader<'a> {
    file: &'a str,
    keys: Map<String, Value>,
}

impl Reader<'_> {
    fn config(&mut self) -> Result<Gemma2Config> {
        let model_type = self.take("model_type")?;
        if model_type != "gemma2" {
            return Err(self.bad(format!("`model_type` is {model_type}, but only \"gemma2\" is read")));
        }
        let n_layers = self.size("num_hidden_layers")?;
        if n_layers > MAX_LAYERS {
            return Err(self.bad(format!("`num_hidden_layers` is {n_layers}, more than any model has")));
        }
        let dims = ModelDims {
            n_layers,
            d_model: self.size("hidden_size")?,
            n_heads: self.size("num_attention_heads")?,
            n_kv_heads: self.size("num_key_value_heads")?,
            d_head: self.size("head_dim")?,
            d_mlp: self.size("intermediate_size")?,
            d_vocab: self.size("vocab_size")?,
            n_ctx: self.size("max_position_embeddings")?,
        };
        let sliding_window = self.size("sliding_window")?;
        // 9B and 27B carry the window twice.
        self.expect("sliding_window_size", &[json!(sliding_window), Value::Null])?;
        self.activation()?;
        Ok(Gemma2Config {
            layer_kinds: self.layer_kinds(n_layers)?,
            dims,
            sliding_window,
            query_pre_attn_scalar: self.real("query_pre_attn_scalar")?,
            attn_softcap: self.softcap("attn_logit_softcapping")?,
            final_softcap: self.softcap("final_logit_softcapping")?,
            rms_eps: self.real("rms_norm_eps")?,
            rope_theta: self.rope_theta()?,
            bos: self.id("bos_token_id")?,
            eos: self.eos()?,
            pad: self.id("pad_token_id")?,
        })
    }

    /// What is left must be harmless.
    fn finish(mut self) -> Result<()> {
        self.keys.retain(|key, _| !PASSED_OVER.contains(&key.as_str()));
        self.expect("attention_bias", &[json!(false)])?;
        self.expect("tie_word_embeddings", &[json!(true)])?;
        self.expect("use_bidirectional_attention", &[Value::Null, json!(false)])?;
        self.expect("rope_scaling", &[Value::Null])?;
        self.expect("quantization_config", &[Value::Null])?;
        match self.keys.iter().next() {
            None => Ok(()),
            Some((key, value)) => Err(self.bad(format!("unknown key `{key}` (= {value})"))),
        }
    }

    /// GELU's tanh form, always. Transformers reads `hidden_activation`; the older `hidden_act` says the same in the
    /// released files, and its legacy value "gelu" was meant as the tanh form too (transformers PR 29402).
    fn activation(&mut self) -> Result<()> {
        self.expect("hidden_activation", &[json!("gelu_pytorch_tanh"), Value::Null])?;
        self.expect("hidden_act", &[json!("gelu_pytorch_tanh"), json!("gelu")])
    }

    fn layer_kinds(&mut self, n_layers: usize) -> Result<Vec<LayerKind>> {
        let Some(value) = self.keys.remove("layer_types") else {
            return Ok(Gemma2Config::alternating(n_layers));
        };
        let kind = |v: &Value| match v.as_str() {
            Some("sliding_attention") => Ok(LayerKind::Sliding),
            Some("full_attention") => Ok(LayerKind::Global),
            _ => Err(self.bad(format!("`layer_types` holds {v}, which is not known"))),
        };
        let list = value.as_array().ok_or_else(|| self.bad("`layer_types` must be a list".to_owned()))?;
        list.iter().map(kind).collect()
    }

    fn rope_theta(&mut self) -> Result<f64> {
        let Some(value) = self.keys.remove("rope_parameters") else { return self.real("rope_theta") };
        let Value::Object(mut rope) = value else {
            return Err(self.bad("`rope_parameters` must be an object".to_owned()));
        };
        let theta = rope.remove("rope_theta").and_then(|v| v.as_f64());
        let theta = theta.ok_or_else(|| self.bad("`rope_parameters.rope_theta` is missing".to_owned()))?;
        match rope.remove("rope_type") {
            None => (),
            Some(kind) if kind == "default" => (),
            Some(kind) => {
                return Err(
                    self.bad(format!("`rope_parameters.rope_type` is {kind}, which is not implemented"))
                );
            }
        }
        if let Some((key, value)) = rope.iter().next() {
            return Err(self.bad(format!("unknown key `rope_parameters.{key}` (= {value})")));
        }
        self.expect("rope_theta", &[json!(theta)])?;
        Ok(theta)
    }

    fn eos(&mut self) -> Result<Vec<i64>> {
        let value = self.take("eos_token_id")?;
        let ids: Option<Vec<i64>> = match &value {
            Value::Array(list) => list.iter().map(Value::as_i64).collect(),
            one => one.as_i64().map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.bad(format!("`eos_token_id` is {value}, which is no id")))
    }

    fn take(&mut self, key: &str) -> Result<Value> {
        self.keys.remove(key).ok_or_else(|| self.bad(format!("key `{key}` is missing")))
    }

    fn size(&mut self, key: &str) -> Result<usize> {
        let value = self.take(key)?;
        let size = value.as_u64().and_then(|n| usize::try_from(n).ok());
        size.ok_or_else(|| self.bad(format!("`{key}` is {value}, but must be a whole number")))
    }

    fn id(&mut self, key: &str) -> Result<i64> {
        let value = self.take(key)?;
        value.as_i64().ok_or_else(|| self.bad(format!("`{key}` is {value}, which is no id")))
    }

    fn real(&mut self, key: &str) -> Result<f64> {
        let value = self.take(key)?;
        value.as_f64().ok_or_else(|| self.bad(format!("`{key}` is {value}, but must be a number")))
    }

    /// A soft-cap may be switched off with null, but the key must be there.
    fn softcap(&mut self, key: &str) -> Result<Option<f64>> {
        match self.take(key)? {
            Value::Null => Ok(None),
            value => {
                let cap = value.as_f64();
                cap.map(Some)
                    .ok_or_else(|| self.bad(format!("`{key}` is {value}, but must be a number or null")))
            }
        }
    }

    /// A key that may be absent, but holds one of these where it is not.
    fn expect(&mut self, key: &str, allowed: &[Value]) -> Result<()> {
        let same = |a: &Value, b: &Value| a == b || a.as_f64().is_some_and(|x| Some(x) == b.as_f64());
        match self.keys.remove(key) {
            Some(value) if !allowed.iter().any(|a| same(a, &value)) => {
                Err(self.bad(format!("`{key}` is {value}, which is not implemented")))
            }
            _ => Ok(()),
        }
    }

    fn bad(&self, problem: String) -> ModelError {
        ModelError::Config { file: self.file.to_owned(), problem: one_line(&problem) }
    }
}
