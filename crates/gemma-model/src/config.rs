use hooks::ModelDims;

use crate::{ModelError, Result};

/// What attention in a block may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// The last `sliding_window` positions, the query's own among them: `q - sliding_window < k <= q`.
    Sliding,
    /// Every position up to the query's own.
    Global,
}

/// The shape and the constants of a Gemma 2 model.
#[derive(Debug, Clone, PartialEq)]
pub struct Gemma2Config {
    /// The sizes.
    pub dims: ModelDims,
    /// Which blocks look how far. In the released models the even ones slide (Gemma 2, section 2).
    pub layer_kinds: Vec<LayerKind>,
    /// How many positions a sliding block sees.
    pub sliding_window: usize,
    /// Scores are multiplied by the root's inverse of this; not always `d_head` (27B: 144, with heads of 128).
    pub query_pre_attn_scalar: f64,
    /// `c` in `c · tanh(score / c)`, or none.
    pub attn_softcap: Option<f64>,
    /// `c` in `c · tanh(logit / c)`, or none.
    pub final_softcap: Option<f64>,
    /// ε of every RMSNorm.
    pub rms_eps: f64,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// What every text begins with.
    pub bos: i64,
    /// What ends a text; -it models have a second one.
    pub eos: Vec<i64>,
    /// What fills a batch.
    pub pad: i64,
}

impl Gemma2Config {
    /// Gemma 2 2B (Gemma 2, table 1).
    pub fn gemma_2_2b() -> Self {
        Self::released(26, 2304, 8, 4, 256, 9216, 256.0)
    }

    /// Gemma 2 9B (Gemma 2, table 1).
    pub fn gemma_2_9b() -> Self {
        Self::released(42, 3584, 16, 8, 256, 14336, 256.0)
    }

    /// Gemma 2 27B (Gemma 2, table 1). Its scores are scaled by d_model / n_heads = 144, not by d_head.
    pub fn gemma_2_27b() -> Self {
        Self::released(46, 4608, 32, 16, 128, 36864, 144.0)
    }

    fn released(
        n_layers: usize,
        d_model: usize,
        n_heads: usize,
        n_kv_heads: usize,
        d_head: usize,
        d_mlp: usize,
        query_pre_attn_scalar: f64,
    ) -> Self {
        let dims = ModelDims {
            n_layers,
            d_model,
            n_heads,
            n_kv_heads,
            d_head,
            d_mlp,
            d_vocab: 256_000,
            n_ctx: 8192,
        };
        Self {
            layer_kinds: Self::alternating(n_layers),
            dims,
            sliding_window: 4096,
            query_pre_attn_scalar,
            attn_softcap: Some(50.0),
            final_softcap: Some(30.0),
            rms_eps: 1e-6,
            rope_theta: 10_000.0,
            bos: 2,
            eos: vec![1],
            pad: 0,
        }
    }

    /// Sliding, global, sliding, …: block 0 slides (Hugging Face `configuration_gemma2.py`; transformers 4.42 had it inverted).
    pub fn alternating(n_layers: usize) -> Vec<LayerKind> {
        (0..n_layers).map(|l| if l % 2 == 0 { LayerKind::Sliding } else { LayerKind::Global }).collect()
    }

    /// The ids that never count in metrics: BOS, EOS and PAD.
    pub fn special(&self) -> Vec<i64> {
        [vec![self.bos, self.pad], self.eos.clone()].concat()
    }

    /// Refuses sizes that make no model; `file` stands in the error.
    pub(crate) fn validate(&self, file: &str) -> Result<()> {
        let d = &self.dims;
        let sizes = [
            ("num_hidden_layers", d.n_layers),
            ("hidden_size", d.d_model),
            ("num_attention_heads", d.n_heads),
            ("num_key_value_heads", d.n_kv_heads),
            ("head_dim", d.d_head),
            ("intermediate_size", d.d_mlp),
            ("vocab_size", d.d_vocab),
            ("max_position_embeddings", d.n_ctx),
            ("sliding_window", self.sliding_window),
        ];
        let bad = |problem: String| Err(ModelError::Config { file: file.to_owned(), problem });
        if let Some((key, n)) = sizes.iter().find(|(_, n)| *n == 0 || i32::try_from(*n).is_err()) {
            return bad(format!("`{key}` is {n}, but must be between 1 and {}", i32::MAX));
        }
        if !d.n_heads.is_multiple_of(d.n_kv_heads) {
            return bad(format!("{} heads can't share {} key-value heads evenly", d.n_heads, d.n_kv_heads));
        }
        if !d.d_head.is_multiple_of(2) {
            return bad(format!("`head_dim` is {}, but the rotary embedding needs an even one", d.d_head));
        }
        if self.layer_kinds.len() != d.n_layers {
            return bad(format!(
                "`layer_types` has {} entries for {} layers",
                self.layer_kinds.len(),
                d.n_layers
            ));
        }
        let reals = [
            ("query_pre_attn_scalar", self.query_pre_attn_scalar),
            ("rms_norm_eps", self.rms_eps),
            ("rope_theta", self.rope_theta),
            ("attn_logit_softcapping", self.attn_softcap.unwrap_or(1.0)),
            ("final_logit_softcapping", self.final_softcap.unwrap_or(1.0)),
        ];
        match reals.iter().find(|(_, v)| !(v.is_finite() && *v > 0.0)) {
            Some((key, v)) => bad(format!("`{key}` must be positive, but is {v}")),
            None => Ok(()),
        }
    }
}
