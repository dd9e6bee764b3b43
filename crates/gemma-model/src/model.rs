use std::{
    cell::RefCell,
    collections::BTreeMap,
    ops::Range,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use hooks::{HookError, HookPoint, HookSet, HookedModel, LayerIdx, ModelDims, TokenBatch};
use tch::{Device, Kind, Tensor};
use tch_ext::{Unread, WeightSource, expect_kind, expect_shape, linear};

use crate::{
    Gemma2Config, KvCache, LayerKind, ModelError, Result,
    attention::{Attention, Surroundings},
    block::Block,
    mask::Visibility,
    mlp::Mlp,
    norm::RmsNorm,
    rope::{At, Rope},
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
    /// No two models of a process have the same.
    id: u64,
    /// Weights that are mapped and were not looked at yet, by the part of the model that reads them.
    unread: RefCell<BTreeMap<Part, Vec<Unread>>>,
}

/// What of a model is read together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Embed,
    Block(usize),
    LnFinal,
}

impl Part {
    /// The part that a Hugging Face name belongs to.
    fn of(name: &str) -> Self {
        let block = |rest: &str| rest.split('.').next()?.parse().ok();
        match name.strip_prefix("model.layers.").and_then(block) {
            Some(l) => Self::Block(l),
            None if name.starts_with("model.embed") => Self::Embed,
            None => Self::LnFinal,
        }
    }
}

impl Gemma2 {
    /// Loads a folder in the Hugging Face layout: `config.json` and safetensors, single or sharded, in F32, BF16 or F16.
    ///
    /// On the CPU, in the dtype in which they are stored, weights are mapped: the system reads those that are used, when
    /// they are (so the files must stay as they are while the model lives: one that is cut short under a program ends it; one
    /// that is replaced by renaming does no harm). A run that meets NaN or infinity among them for the first time ends with an error that names the tensor.
    /// Other weights are converted one tensor at a time.
    ///
    /// # Errors
    /// A configuration that this crate does not implement; a tensor that is missing, superfluous, of another shape or
    /// dtype, or not finite; the system's.
    pub fn load(folder: &Path, options: &LoadOptions) -> Result<Self> {
        let config = Gemma2Config::load(&folder.join("config.json"))?;
        Self::from_source(config, WeightSource::open_folder(folder)?, options)
    }

    /// As [`load`](Self::load), and calls `progress(bytes taken, bytes in all)` after each tensor.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_with_progress(
        folder: &Path,
        options: &LoadOptions,
        progress: impl FnMut(u64, u64) + Send + 'static,
    ) -> Result<Self> {
        let config = Gemma2Config::load(&folder.join("config.json"))?;
        Self::from_source(config, WeightSource::open_folder(folder)?.with_progress(progress), options)
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
        let mut left: BTreeMap<Part, Vec<Unread>> = BTreeMap::new();
        let mut model = Self::from_fn(config, |name, axes| {
            let (tensor, unread) = source.take_unread(name, axes, options.kind, options.device)?;
            left.entry(Part::of(name)).or_default().extend(unread);
            Ok(tensor)
        })?;
        source.finish()?;
        model.unread = RefCell::new(left);
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
            let window = match kind {
                LayerKind::Sliding => Some(config.sliding_window as i64),
                LayerKind::Global => None,
            };
            blocks.push(Block { window, ln1, attn, ln1_post, ln2, mlp, ln2_post });
        }
        let ln_final = RmsNorm { w: get("model.norm.weight".to_owned(), &[d_model])?, eps };
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        Ok(Self {
            config,
            embed,
            blocks,
            ln_final,
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            unread: RefCell::default(),
        })
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

    /// Looks at weights that nobody has looked at, before their first use.
    fn read(&self, part: Part) -> Result<()> {
        let mut unread = self.unread.borrow_mut();
        if let Some(weights) = unread.get(&part) {
            weights.iter().try_for_each(Unread::check)?;
            unread.remove(&part);
        }
        Ok(())
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
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
        self.read(Part::Embed)?;
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
        let around = self.surroundings(tokens)?;
        let mut x = resid.shallow_clone();
        for (l, block) in range.zip(blocks) {
            self.read(Part::Block(l))?;
            x = block.forward(x, LayerIdx(l), &around, None, hooks)?;
        }
        Ok(x)
    }

    /// What a plain run of `tokens` sees.
    fn surroundings(&self, tokens: &TokenBatch) -> Result<Surroundings<'_>> {
        let device = self.device();
        let on_device = |t: Option<&Tensor>| t.map(|t| t.f_to_device(device)).transpose();
        let at = match tokens.positions() {
            None => At::Columns { first: 0, len: tokens.pos() },
            Some(positions) => At::Each(positions),
        };
        let visibility = Visibility {
            attended: on_device(tokens.attended())?,
            documents: on_device(tokens.documents())?,
            device,
        };
        Ok(Surroundings { config: &self.config, rope: self.rope(at)?, visibility, first_pos: 0 })
    }

    fn rope(&self, at: At<'_>) -> Result<Rope> {
        let d_head = self.config.dims.d_head as i64;
        Rope::new(at, d_head, self.config.rope_theta, self.embed.f_kind()?, self.device())
    }

    /// An empty cache for `batch` sequences.
    pub fn cache(&self, batch: usize) -> KvCache {
        KvCache::new(self.id, batch as i64, self.blocks.iter().map(|block| block.window))
    }

    /// Runs the tokens that follow what the cache holds: `[batch, new]` to the last residual stream at them,
    /// `[batch, new, d_model]`, the same as in a run of the whole sequence. Gradients are off.
    ///
    /// Hooks fire at every call and see the new positions; [`Visit::first_pos`](hooks::Visit::first_pos) says where they
    /// stand. Attention scores and patterns are over the keys that the block still holds. After an error the cache is as it
    /// was before.
    ///
    /// # Errors
    /// [`ModelError::Cache`] for a cache of another model or batch, or a full context; as the model's other runs.
    pub fn extend(
        &self,
        cache: &mut KvCache,
        tokens: &TokenBatch,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        cache.check(self, tokens)?;
        hooks.check(&self.config.dims)?;
        hooks.begin_at(cache.len());
        let ran = self.extend_blocks(cache, tokens, hooks);
        hooks.begin_at(0);
        match ran {
            Ok((resid, attended)) => {
                cache.commit(tokens.pos(), attended);
                Ok(resid)
            }
            Err(error) => {
                cache.roll_back();
                Err(error)
            }
        }
    }

    fn extend_blocks(
        &self,
        cache: &mut KvCache,
        tokens: &TokenBatch,
        hooks: &mut HookSet<'_>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (first, len, device) = (cache.len(), tokens.pos(), self.device());
        let attended = cache.attended_with(tokens, device)?;
        // Positions count from each row's first token, as in a run of the whole.
        let positions = attended.as_ref().map(|attended| {
            let start = attended.f_to_kind(Kind::Int64)?.f_argmax(1, true)?; // the first of the largest
            let columns =
                Tensor::f_arange_start(first, first + len, (Kind::Int64, device))?.f_unsqueeze(0)?;
            columns.f_sub(&start)?.f_clamp_min(0)
        });
        let positions = positions.transpose()?;
        let around = Surroundings {
            config: &self.config,
            rope: self.rope(positions.as_ref().map_or(At::Columns { first, len }, At::Each))?,
            visibility: Visibility {
                attended: attended.as_ref().map(Tensor::shallow_clone),
                documents: None,
                device,
            },
            first_pos: first,
        };
        let mut x = self.embed_tokens(tokens, hooks)?;
        for (l, (block, layer)) in self.blocks.iter().zip(&mut cache.layers).enumerate() {
            self.read(Part::Block(l))?;
            x = block.forward(x, LayerIdx(l), &around, Some(layer), hooks)?;
        }
        Ok((x, attended))
    }

    fn resume_at(
        &self,
        site: HookPoint,
        act: &Tensor,
        stream: &Tensor,
        tokens: &TokenBatch,
        end: usize,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        let n_layers = self.blocks.len();
        let start = match site {
            HookPoint::Embed => return self.run_blocks(act, tokens, 0..end, hooks),
            HookPoint::ResidPost(LayerIdx(l)) => {
                return self.run_blocks(act, tokens, l.saturating_add(1)..end, hooks);
            }
            _ => site.layer().filter(|_| site.stream().is_some()).ok_or(HookError::NoResume(site))?.0,
        };
        let Some(block) = self.blocks.get(start).filter(|_| start < end && end <= n_layers) else {
            return Err(ModelError::Blocks { start, end, n_layers });
        };
        let l = LayerIdx(start);
        let dims = &self.config.dims;
        let shape = site.shape(dims, tokens.batch(), tokens.pos());
        let axes: Vec<(&str, i64)> = site.axes().iter().map(|axis| axis.name()).zip(shape).collect();
        expect_shape(&site.to_string(), act, &axes)?;
        let inside_norm = matches!(site, HookPoint::Ln2Normalized(_));
        let kind = if inside_norm { Kind::Float } else { self.embed.f_kind()? };
        expect_kind(&site.to_string(), act, &[kind])?;
        self.expect_resid(stream, tokens.batch(), tokens.pos())?;
        let (act, x) = (act.shallow_clone(), stream.shallow_clone());
        self.read(Part::Block(start))?;
        let around = self.surroundings(tokens)?;
        let out = match site {
            HookPoint::ResidPre(_) => block.after_resid_pre(act, l, &around, None, hooks),
            HookPoint::AttnZ(_) => block.after_z(act, x, l, hooks),
            HookPoint::AttnOut(_) => block.after_attn_out(act, x, l, hooks),
            HookPoint::ResidMid(_) => block.after_resid_mid(act, l, hooks),
            HookPoint::Ln2Normalized(_) => {
                let normed = block.ln2.gain(act, x.f_kind()?, true)?;
                block.after_mlp_norm(normed, x, l, hooks)
            }
            HookPoint::MlpPost(_) => block.after_mlp_post(act, x, l, hooks),
            HookPoint::MlpOut(_) => block.after_mlp_out(act, x, l, hooks),
            _ => Err(HookError::NoResume(site).into()),
        };
        self.run_blocks(&out?, tokens, start + 1..end, hooks)
    }

    fn norm_of(&self, resid: &Tensor, hooks: &mut HookSet<'_>) -> Result<Tensor> {
        let size = resid.size();
        let of = |axis: usize| size.get(axis).copied().unwrap_or_default();
        self.expect_resid(resid, of(0), of(1))?;
        self.read(Part::LnFinal)?;
        self.ln_final.forward(resid, HookPoint::LnFinalScale, HookPoint::LnFinalNormalized, hooks)
    }

    fn logits_of(&self, normed: &Tensor, vocab: Range<usize>) -> Result<Tensor> {
        let size = normed.size();
        let of = |axis: usize| size.get(axis).copied().unwrap_or_default();
        self.expect_resid(normed, of(0), of(1))?;
        let d_vocab = self.config.dims.d_vocab;
        if vocab.start > vocab.end || vocab.end > d_vocab {
            return Err(ModelError::Vocabulary { start: vocab.start, end: vocab.end, d_vocab });
        }
        self.read(Part::Embed)?;
        let rows = self.embed.f_narrow(0, vocab.start as i64, vocab.len() as i64)?;
        let mut logits = linear(normed, &rows)?; // [batch, pos, vocab]
        match self.config.final_softcap {
            Some(cap) if logits.requires_grad() => {
                Ok(logits.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)?)
            }
            Some(cap) => Ok(logits.f_div_scalar_(cap)?.f_tanh_()?.f_mul_scalar_(cap)?),
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

    fn resume(
        &self,
        site: HookPoint,
        act: &Tensor,
        stream: &Tensor,
        tokens: &TokenBatch,
        end: usize,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor, HookError> {
        Ok(self.resume_at(site, act, stream, tokens, end, hooks)?)
    }

    fn final_norm(&self, resid: &Tensor, hooks: &mut HookSet<'_>) -> Result<Tensor, HookError> {
        Ok(self.norm_of(resid, hooks)?)
    }

    fn readout(&self, normed: &Tensor, vocab: Range<usize>) -> Result<Tensor, HookError> {
        Ok(self.logits_of(normed, vocab)?)
    }
}
