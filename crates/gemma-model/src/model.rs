use std::{ops::Range, path::Path};

use hooks::{HookError, HookPoint, HookSet, HookedModel, LayerIdx, ModelDims, TokenBatch};
use tch::{Device, Kind, Tensor};
use tch_ext::{WeightSource, expect_kind, expect_shape};

use crate::{
    Gemma2Config, ModelError, Result,
    attention::{Attention, Surroundings},
    block::Block,
    mask::hidden,
    mlp::Mlp,
    norm::RmsNorm,
    rope::Rope,
};

/// Where a model's weights go, and as what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadOptions {
    /// The device.
    pub device: Device,
    /// The dtype to compute in, whatever the files hold.
    pub kind: Kind,
}

impl Default for LoadOptions {
    /// float32 on the CPU.
    fn default() -> Self {
        Self { device: Device::Cpu, kind: Kind::Float }
    }
}

/// A Gemma 2 model.
///
/// `logits = 30 · tanh(norm(x_L) Eᵀ / 30)`, where `x_0 = √d_model · E[tokens]` and each block adds its attention and its MLP
/// (Gemma 2, section 2). The embedding `E` is kept once, for both ends.
#[derive(Debug)]
pub struct Gemma2 {
    config: Gemma2Config,
    /// `[d_vocab, d_model]`.
    embed: Tensor,
    blocks: Vec<Block>,
    ln_final: RmsNorm,
}

impl Gemma2 {
    /// Loads a folder in the Hugging Face layout: `config.json` and safetensors, single or sharded, in F32, BF16 or F16.
    ///
    /// # Errors
    /// A configuration that this crate does not implement; a tensor that is missing, superfluous, of another shape or
    /// dtype, or not finite; the system's.
    pub fn load(folder: &Path, options: &LoadOptions) -> Result<Self> {
        let config = Gemma2Config::load(&folder.join("config.json"))?;
        Self::from_source(config, WeightSource::open_folder(folder)?, options)
    }

    /// Takes every weight of `config` from a source, and refuses a source that holds more.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn from_source(
        config: Gemma2Config,
        mut source: WeightSource,
        options: &LoadOptions,
    ) -> Result<Self> {
        let model =
            Self::from_fn(config, |name, axes| Ok(source.take(name, axes, options.kind, options.device)?))?;
        source.finish()?;
        Ok(model)
    }

    /// Makes a model of the tensors that `get(name, axes)` returns; names are Hugging Face's, axes are the field's.
    ///
    /// # Errors
    /// What `get` returns; a tensor of another shape than asked.
    pub fn from_fn(
        config: Gemma2Config,
        mut get: impl FnMut(&str, &[(&str, i64)]) -> Result<Tensor>,
    ) -> Result<Self> {
        config.validate("the configuration")?;
        let mut get = |name: String, axes: &[(&str, i64)]| {
            let tensor = get(&name, axes)?;
            expect_shape(&name, &tensor, axes)?;
            Ok::<_, ModelError>(tensor)
        };
        let d = config.dims.clone();
        let d_model = ("d_model", d.d_model as i64);
        let q_dim = ("n_heads·d_head", (d.n_heads * d.d_head) as i64);
        let kv_dim = ("n_kv_heads·d_head", (d.n_kv_heads * d.d_head) as i64);
        let d_mlp = ("d_mlp", d.d_mlp as i64);
        let eps = config.rms_eps;
        let embed = get("model.embed_tokens.weight".to_owned(), &[("d_vocab", d.d_vocab as i64), d_model])?;
        let mut blocks = Vec::with_capacity(d.n_layers);
        for (l, &kind) in config.layer_kinds.iter().enumerate() {
            let mut weight = |name: &str, axes: &[_]| get(format!("model.layers.{l}.{name}.weight"), axes);
            let mut norm = |name: &str| Ok::<_, ModelError>(RmsNorm { w: weight(name, &[d_model])?, eps });
            let ln1 = norm("input_layernorm")?;
            let ln1_post = norm("post_attention_layernorm")?;
            let ln2 = norm("pre_feedforward_layernorm")?;
            let ln2_post = norm("post_feedforward_layernorm")?;
            let attn = Attention {
                w_q: weight("self_attn.q_proj", &[q_dim, d_model])?,
                w_k: weight("self_attn.k_proj", &[kv_dim, d_model])?,
                w_v: weight("self_attn.v_proj", &[kv_dim, d_model])?,
                w_o: weight("self_attn.o_proj", &[d_model, q_dim])?,
            };
            let mlp = Mlp {
                w_gate: weight("mlp.gate_proj", &[d_mlp, d_model])?,
                w_up: weight("mlp.up_proj", &[d_mlp, d_model])?,
                w_down: weight("mlp.down_proj", &[d_model, d_mlp])?,
            };
            blocks.push(Block { kind, ln1, attn, ln1_post, ln2, mlp, ln2_post });
        }
        let ln_final = RmsNorm { w: get("model.norm.weight".to_owned(), &[d_model])?, eps };
        Ok(Self { config, embed, blocks, ln_final })
    }

    /// The configuration.
    pub fn config(&self) -> &Gemma2Config {
        &self.config
    }

    /// The embedding, which is also the unembedding: `[d_vocab, d_model]`.
    pub fn w_e(&self) -> &Tensor {
        &self.embed
    }

    /// Where the weights are.
    pub fn device(&self) -> Device {
        self.embed.device()
    }

    /// Every weight with its Hugging Face name, in the order of the forward pass.
    pub fn parameters(&self) -> Vec<(String, &Tensor)> {
        let mut all = vec![("model.embed_tokens.weight".to_owned(), &self.embed)];
        for (l, b) in self.blocks.iter().enumerate() {
            let named = [
                ("input_layernorm", &b.ln1.w),
                ("self_attn.q_proj", &b.attn.w_q),
                ("self_attn.k_proj", &b.attn.w_k),
                ("self_attn.v_proj", &b.attn.w_v),
                ("self_attn.o_proj", &b.attn.w_o),
                ("post_attention_layernorm", &b.ln1_post.w),
                ("pre_feedforward_layernorm", &b.ln2.w),
                ("mlp.gate_proj", &b.mlp.w_gate),
                ("mlp.up_proj", &b.mlp.w_up),
                ("mlp.down_proj", &b.mlp.w_down),
                ("post_feedforward_layernorm", &b.ln2_post.w),
            ];
            all.extend(named.map(|(name, w)| (format!("model.layers.{l}.{name}.weight"), w)));
        }
        all.push(("model.norm.weight".to_owned(), &self.ln_final.w));
        all
    }

    fn embed_tokens(&self, tokens: &TokenBatch, hooks: &mut HookSet<'_>) -> Result<Tensor> {
        tokens.check(&self.config.dims)?;
        let ids = tokens.ids().f_to_device(self.device())?;
        let rows = Tensor::f_embedding(&self.embed, &ids, -1, false, false)?;
        // √d_model is rounded to the model's dtype first (gemma_pytorch `model.py`): in bfloat16 59.87 becomes 59.75 for 9B.
        let multiplier = Tensor::f_from_slice(&[(self.config.dims.d_model as f64).sqrt()])?.f_squeeze()?;
        let multiplier = multiplier.f_to_kind(rows.f_kind()?)?.f_to_device(self.device())?;
        Ok(hooks.at(HookPoint::Embed, rows.f_mul(&multiplier)?)?)
    }

    fn run_blocks(
        &self,
        resid: &Tensor,
        tokens: &TokenBatch,
        range: Range<usize>,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        let n_layers = self.blocks.len();
        let Some(blocks) = self.blocks.get(range.clone()) else {
            return Err(ModelError::Blocks { start: range.start, end: range.end, n_layers });
        };
        self.expect_resid(resid, tokens.batch(), tokens.pos())?;
        let around = self.surroundings(tokens, resid.f_kind()?)?;
        let mut x = resid.shallow_clone();
        for (l, block) in range.zip(blocks) {
            x = block.forward(x, LayerIdx(l), &around, hooks)?;
        }
        Ok(x)
    }

    fn surroundings(&self, tokens: &TokenBatch, kind: Kind) -> Result<Surroundings<'_>> {
        let (config, device, pos) = (&self.config, self.device(), tokens.pos());
        let attended = tokens.attended().map(|a| a.f_to_device(device)).transpose()?;
        let window = Some(config.sliding_window as i64);
        Ok(Surroundings {
            config,
            rope: Rope::new(pos, config.dims.d_head as i64, config.rope_theta, kind, device)?,
            global: hidden(pos, None, attended.as_ref(), device)?,
            sliding: hidden(pos, window, attended.as_ref(), device)?,
        })
    }

    fn to_logits(&self, resid: &Tensor, hooks: &mut HookSet<'_>) -> Result<Tensor> {
        let size = resid.size();
        self.expect_resid(
            resid,
            size.first().copied().unwrap_or_default(),
            size.get(1).copied().unwrap_or_default(),
        )?;
        let x = self.ln_final.forward(resid, HookPoint::LnFinalScale, HookPoint::LnFinalNormalized, hooks)?;
        let logits = x.f_linear(&self.embed, None::<Tensor>)?; // [batch, pos, d_vocab]
        match self.config.final_softcap {
            Some(cap) => Ok(logits.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)?),
            None => Ok(logits),
        }
    }

    fn expect_resid(&self, resid: &Tensor, batch: i64, pos: i64) -> Result<()> {
        let axes = [("batch", batch), ("pos", pos), ("d_model", self.config.dims.d_model as i64)];
        expect_shape("residual", resid, &axes)?;
        Ok(expect_kind("residual", resid, &[self.embed.f_kind()?])?)
    }
}

impl HookedModel for Gemma2 {
    fn dims(&self) -> &ModelDims {
        &self.config.dims
    }

    fn embed(&self, tokens: &TokenBatch, hooks: &mut HookSet<'_>) -> Result<Tensor, HookError> {
        Ok(self.embed_tokens(tokens, hooks)?)
    }

    fn blocks(
        &self,
        resid: &Tensor,
        tokens: &TokenBatch,
        range: Range<usize>,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor, HookError> {
        Ok(self.run_blocks(resid, tokens, range, hooks)?)
    }

    fn unembed(&self, resid: &Tensor, hooks: &mut HookSet<'_>) -> Result<Tensor, HookError> {
        Ok(self.to_logits(resid, hooks)?)
    }
}
