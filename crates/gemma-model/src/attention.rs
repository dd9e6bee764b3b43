use std::ops::Range;

use hooks::{HookPoint, HookSet, LayerIdx};
use tch::{Kind, Tensor};
use tch_ext::linear;

use crate::{Gemma2Config, Result, mask::Visibility, rope::Rope};

/// The scores that exist at one time, over all heads and rows of the batch: 8 MiB in float32.
const SCORES_AT_A_TIME: i64 = 1 << 21;

/// Grouped-query attention with soft-capped scores.
#[derive(Debug)]
pub(crate) struct Attention {
    /// `[n_heads · d_head, d_model]`.
    pub(crate) w_q: Tensor,
    /// `[n_kv_heads · d_head, d_model]`.
    pub(crate) w_k: Tensor,
    /// `[n_kv_heads · d_head, d_model]`.
    pub(crate) w_v: Tensor,
    /// `[d_model, n_heads · d_head]`.
    pub(crate) w_o: Tensor,
}

/// What all blocks of one run share.
#[derive(Debug)]
pub(crate) struct Surroundings<'c> {
    pub(crate) config: &'c Gemma2Config,
    pub(crate) rope: Rope,
    pub(crate) visibility: Visibility,
    /// The column of the first query: 0 in a plain run, what the cache holds in generation.
    pub(crate) first_pos: i64,
}

/// Keys and values that the queries of a run may look at: a stretch of columns from `first` on.
#[derive(Debug)]
pub(crate) struct Keys {
    /// `[batch, n_kv_heads, key_pos, d_head]`, turned by their positions.
    pub(crate) k: Tensor,
    /// `[batch, n_kv_heads, key_pos, d_head]`.
    pub(crate) v: Tensor,
    pub(crate) first: i64,
}

impl Keys {
    /// Those of the run itself: `[batch, pos, n_kv_heads, d_head]`.
    pub(crate) fn of(k: &Tensor, v: &Tensor, first: i64) -> Result<Self> {
        Ok(Self { k: k.f_transpose(1, 2)?, v: v.f_transpose(1, 2)?, first })
    }

    fn columns(&self) -> Range<i64> {
        self.first..self.first + self.k.size().get(2).copied().unwrap_or(0)
    }

    fn within(&self, columns: &Range<i64>) -> Result<(Tensor, Tensor)> {
        let part = |t: &Tensor| t.f_narrow(2, columns.start - self.first, columns.end - columns.start);
        Ok((part(&self.k)?, part(&self.v)?))
    }
}

/// Some queries, and the columns that their window reaches: hidden keys among them, visible ones nowhere else.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Span {
    queries: Range<i64>,
    keys: Range<i64>,
}

impl Attention {
    /// The normalised residual, `[batch, pos, d_model]`, to queries `[batch, pos, n_heads, d_head]`, keys and values
    /// `[batch, pos, n_kv_heads, d_head]`; queries and keys turned by their positions.
    pub(crate) fn queries_keys_values(
        &self,
        x: &Tensor,
        l: LayerIdx,
        around: &Surroundings<'_>,
        hooks: &mut HookSet<'_>,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let q = hooks.at(HookPoint::AttnQ(l), heads(x, &self.w_q, around)?)?;
        let k = hooks.at(HookPoint::AttnK(l), heads(x, &self.w_k, around)?)?;
        let v = hooks.at(HookPoint::AttnV(l), heads(x, &self.w_v, around)?)?;
        let turned = around.rope.rotate(&q)?;
        drop(q);
        let q = hooks.at(HookPoint::AttnRotQ(l), turned)?;
        let k = hooks.at(HookPoint::AttnRotK(l), around.rope.rotate(&k)?)?;
        Ok((q, k, v))
    }

    /// Values weighted by attention: `[batch, pos, n_heads, d_head]`.
    ///
    /// The queries go span by span, and each span looks only at the keys that its window reaches: memory grows with the
    /// window, and the tensor of all scores is made only where a hook looks at it.
    pub(crate) fn mix(
        &self,
        q: &Tensor,
        keys: &Keys,
        window: Option<i64>,
        l: LayerIdx,
        around: &Surroundings<'_>,
        hooks: &mut HookSet<'_>,
    ) -> Result<Tensor> {
        let spans = spans(q, keys, window, around.first_pos);
        if hooks.wants(HookPoint::AttnScores(l)) || hooks.wants(HookPoint::AttnPattern(l)) {
            return mix_in_sight(q, keys, window, &spans, l, around, hooks);
        }
        let parts = spans.iter().map(|span| {
            let pattern = softmax(&scores(q, keys, window, span, around)?)?;
            weigh(&pattern, keys, span)
        });
        joined(parts.collect::<Result<_>>()?)
    }

    /// `W_O z`: `[batch, pos, n_heads, d_head]` to `[batch, pos, d_model]`.
    ///
    /// `hook_result`, each head's share of it, is computed only where a hook looks, and then the output moves by the sum of
    /// what the hooks changed, so that looking alone changes no bit.
    pub(crate) fn output(&self, z: &Tensor, l: LayerIdx, hooks: &mut HookSet<'_>) -> Result<Tensor> {
        let out = linear(&z.f_flatten(2, 3)?, &self.w_o)?;
        let site = HookPoint::AttnResult(l);
        if !hooks.wants(site) {
            return Ok(out);
        }
        let n_heads = z.size().get(2).copied().unwrap_or(1);
        let w_o = self.w_o.f_unflatten(1, [n_heads, -1])?; // [d_model, n_heads, d_head]
        let result = Tensor::f_einsum("bphd,mhd->bphm", &[z, &w_o], None::<i64>)?;
        let edited = hooks.at(site, result.shallow_clone())?;
        if edited.data_ptr() == result.data_ptr() && !edited.requires_grad() {
            return Ok(out);
        }
        let change = edited.f_sub(&result)?.f_sum_dim_intlist(2, false, out.f_kind()?)?;
        Ok(out.f_add(&change)?)
    }
}

/// `[batch, pos, d_model]` to `[batch, pos, heads, d_head]`.
fn heads(x: &Tensor, w: &Tensor, around: &Surroundings<'_>) -> Result<Tensor> {
    let d_head = around.config.dims.d_head as i64;
    Ok(linear(x, w)?.f_unflatten(-1, [-1, d_head])?)
}

/// As many queries at a time as [`SCORES_AT_A_TIME`] allows, if each looked at all keys; that depends on no window, so that a
/// window which hides nothing changes no bit.
fn spans(q: &Tensor, keys: &Keys, window: Option<i64>, first_pos: i64) -> Vec<Span> {
    let (batch, pos, n_heads) = match q.size()[..] {
        [batch, pos, n_heads, _] => (batch, pos, n_heads),
        _ => (1, 0, 1),
    };
    let all = keys.columns();
    let at_a_time = (SCORES_AT_A_TIME / (batch * n_heads * (all.end - all.start)).max(1)).clamp(16, 1 << 12);
    let end = first_pos + pos;
    let mut spans = Vec::new();
    let mut start = first_pos;
    while start < end {
        let queries = start..(start + at_a_time).min(end);
        let reach = window.map_or(all.start, |window| all.start.max(queries.start - window + 1));
        spans.push(Span { keys: reach..queries.end, queries: queries.clone() });
        start = queries.end;
    }
    spans
}

/// `c · tanh(q·k / (√s · c))`, −∞ where the key is hidden: scale, then soft-cap, then mask.
///
/// `[batch, n_heads, query_pos, key_pos]` of one span.
fn scores(
    q: &Tensor,
    keys: &Keys,
    window: Option<i64>,
    span: &Span,
    around: &Surroundings<'_>,
) -> Result<Tensor> {
    let config = around.config;
    let n = span.queries.end - span.queries.start;
    let q = q.f_narrow(1, span.queries.start - around.first_pos, n)?.f_transpose(1, 2)?;
    let (k, _) = keys.within(&span.keys)?;
    let size = q.size();
    let q = grouped(&q, &k)?; // [batch, n_kv_heads, group · query_pos, d_head]
    let mut scores = q.f_matmul(&k.f_transpose(2, 3)?)?;
    let scale = config.query_pre_attn_scalar.sqrt().recip();
    let hidden = around.visibility.hidden(&span.queries, &span.keys, window)?;
    let shape = [&size[..3], &[-1]].concat();
    if scores.requires_grad() {
        scores = scores.f_mul_scalar(scale)?;
        if let Some(cap) = config.attn_softcap {
            scores = scores.f_div_scalar(cap)?.f_tanh()?.f_mul_scalar(cap)?;
        }
        scores = scores.f_view(shape.as_slice())?;
        return match hidden {
            Some(hidden) => Ok(scores.f_masked_fill(&hidden, f64::NEG_INFINITY)?),
            None => Ok(scores),
        };
    }
    // The same steps in the memory of the product.
    let _ = scores.f_mul_scalar_(scale)?;
    if let Some(cap) = config.attn_softcap {
        let _ = scores.f_div_scalar_(cap)?.f_tanh_()?.f_mul_scalar_(cap)?;
    }
    let mut scores = scores.f_view(shape.as_slice())?;
    if let Some(hidden) = hidden {
        let _ = scores.f_masked_fill_(&hidden, f64::NEG_INFINITY)?;
    }
    Ok(scores)
}

/// In float32 whatever the dtype, then back (Hugging Face `modeling_gemma2.py`, `eager_attention_forward`).
fn softmax(scores: &Tensor) -> Result<Tensor> {
    Ok(scores.f_softmax(-1, Kind::Float)?.f_to_kind(scores.f_kind()?)?)
}

/// Values weighted by a span's pattern: `[batch, query_pos, n_heads, d_head]`.
fn weigh(pattern: &Tensor, keys: &Keys, span: &Span) -> Result<Tensor> {
    let (_, v) = keys.within(&span.keys)?;
    let size = pattern.size();
    let z = grouped(pattern, &v)?.f_matmul(&v)?; // [batch, n_kv_heads, group · query_pos, d_head]
    Ok(z.f_view([&size[..3], &[-1]].concat().as_slice())?.f_transpose(1, 2)?)
}

/// The spans' results, `[batch, query_pos, …]` each, one after the other.
fn joined(parts: Vec<Tensor>) -> Result<Tensor> {
    match &parts[..] {
        [one] => Ok(one.f_contiguous()?),
        _ => Ok(Tensor::f_cat(&parts, 1)?),
    }
}

/// The same with all scores and patterns in one tensor, for the hooks that look at them.
///
/// Each span is computed as it is without hooks, so that looking alone changes no bit. A hook that gives weight to a key
/// which no span reaches is obeyed: then every span looks at all keys.
fn mix_in_sight(
    q: &Tensor,
    keys: &Keys,
    window: Option<i64>,
    spans: &[Span],
    l: LayerIdx,
    around: &Surroundings<'_>,
    hooks: &mut HookSet<'_>,
) -> Result<Tensor> {
    let all = keys.columns();
    let parts = spans.iter().map(|span| scores(q, keys, window, span, around)).collect::<Result<Vec<_>>>()?;
    let whole = whole(parts, spans, &all, f64::NEG_INFINITY)?; // [batch, n_heads, query_pos, key_pos]
    let seen = hooks.at(HookPoint::AttnScores(l), whole)?;
    let spans = reaching(spans, &seen, &all, f64::NEG_INFINITY)?;
    let first = around.first_pos;
    let patterns =
        spans.iter().map(|s| softmax(&part(&seen, s, first, &all)?)).collect::<Result<Vec<_>>>()?;
    let pattern = self::whole(patterns, &spans, &all, 0.0)?;
    let pattern = hooks.at(HookPoint::AttnPattern(l), pattern)?;
    let spans = reaching(&spans, &pattern, &all, 0.0)?;
    let mixed = spans.iter().map(|span| weigh(&part(&pattern, span, first, &all)?, keys, span));
    joined(mixed.collect::<Result<_>>()?)
}

/// Spans' parts, `[batch, n_heads, query_pos, key_pos]` each, as one tensor over all keys, with `fill` where none reaches.
fn whole(mut parts: Vec<Tensor>, spans: &[Span], all: &Range<i64>, fill: f64) -> Result<Tensor> {
    if let ([span], 1) = (spans, parts.len())
        && span.keys == *all
        && let Some(part) = parts.pop()
    {
        return Ok(part);
    }
    let rows = parts.iter().zip(spans).map(|(part, span)| {
        let (left, right) = (span.keys.start - all.start, all.end - span.keys.end);
        Ok(part.f_pad([left, right], "constant", fill)?)
    });
    Ok(Tensor::f_cat(&rows.collect::<Result<Vec<_>>>()?, 2)?)
}

/// One span's part of the whole, as it was computed.
fn part(whole: &Tensor, span: &Span, first_pos: i64, all: &Range<i64>) -> Result<Tensor> {
    let rows = whole.f_narrow(2, span.queries.start - first_pos, span.queries.end - span.queries.start)?;
    Ok(rows.f_narrow(3, span.keys.start - all.start, span.keys.end - span.keys.start)?.f_contiguous()?)
}

/// The spans, unless the whole holds something else than `fill` where they do not reach: then the same over all keys.
fn reaching(spans: &[Span], whole: &Tensor, all: &Range<i64>, fill: f64) -> Result<Vec<Span>> {
    let first = spans.first().map_or(0, |span| span.queries.start);
    for span in spans {
        let rows = whole.f_narrow(2, span.queries.start - first, span.queries.end - span.queries.start)?;
        for (start, end) in [(all.start, span.keys.start), (span.keys.end, all.end)] {
            let beyond = rows.f_narrow(3, start - all.start, end - start)?;
            if end > start && beyond.f_ne(fill)?.f_any()?.f_int64_value(&[])? != 0 {
                let wide = |span: &Span| Span { queries: span.queries.clone(), keys: all.clone() };
                return Ok(spans.iter().map(wide).collect());
            }
        }
    }
    Ok(spans.to_vec())
}

/// Puts the query heads that share a key-value head side by side: `[batch, n_heads, pos, x]` to
/// `[batch, n_kv_heads, group · pos, x]`. Query head j reads key-value head ⌊j / group⌋.
fn grouped(by_head: &Tensor, kv: &Tensor) -> Result<Tensor> {
    let n_kv_heads = kv.size().get(1).copied().unwrap_or(1);
    Ok(by_head.f_unflatten(1, [n_kv_heads, -1])?.f_flatten(2, 3)?)
}
