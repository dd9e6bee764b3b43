//! Attention goes through the queries span by span; where the seams lie does not show.

use gemma_model::{Gemma2, Gemma2Config, LayerKind};
use hooks::{
    ActivationCache, HookPoint, HookSet, HookedModelExt as _, LayerIdx, ModelDims, TokenBatch, edit, replace,
};
use tch::{Kind, Tensor};
use testkit::{assert_close, assert_same, relative_error};

use crate::common::{ONE_STEP, batch};

/// Long enough for six spans of 2²¹ / (8 heads · 1200 keys) = 218 queries.
const POS: usize = 1200;

/// Shorter than a span, and no divisor of one.
const WINDOW: usize = 101;

/// A window longer than a span.
const WIDE_WINDOW: usize = 500;

/// A cap that the scores come near.
const CAP: f64 = 2.0;

fn thin(sliding_window: usize) -> Gemma2 {
    let dims = ModelDims {
        n_layers: 2,
        d_model: 16,
        n_heads: 8,
        n_kv_heads: 4,
        d_head: 4,
        d_mlp: 16,
        d_vocab: 50,
        n_ctx: 2048,
    };
    let config = Gemma2Config {
        layer_kinds: vec![LayerKind::Sliding, LayerKind::Global],
        dims,
        sliding_window,
        // Sharp patterns, in which single keys matter.
        query_pre_attn_scalar: 0.5,
        attn_softcap: Some(CAP),
        ..Gemma2Config::gemma_2_2b()
    };
    Gemma2::init(config, 11).unwrap()
}

fn text() -> Vec<i64> {
    (0..POS as i64).map(|i| 3 + (i * 31 + i * i / 7) % 46).collect()
}

fn plain_text() -> TokenBatch {
    batch(&[text()])
}

/// Padding on the left, and a document's end in the middle of the third span.
fn awkward_text() -> TokenBatch {
    let masked = |p: usize| i64::from(p >= 300);
    let mask = [(0..POS).map(masked).collect()];
    let documents = [(0..POS).map(|p| i64::from(p >= 510)).collect()];
    TokenBatch::with_documents(&[text()], Some(&mask), &documents, &[0, 1, 2]).unwrap()
}

fn site(of: fn(LayerIdx) -> HookPoint, l: usize) -> HookPoint {
    of(LayerIdx(l))
}

/// `[batch, pos, heads, d_head]` of one row as plain numbers, position by position, head by head.
fn plain(act: &Tensor) -> Vec<Vec<Vec<f64>>> {
    let act = act.get(0).to_kind(Kind::Double);
    (0..act.size()[0]).map(|p| Vec::<Vec<f64>>::try_from(act.get(p)).unwrap()).collect()
}

/// Attention as in the paper, one query and one key after the other, in float64: z, `[pos][n_heads][d_head]`.
fn naive(
    acts: &ActivationCache,
    config: &Gemma2Config,
    l: usize,
    sees: impl Fn(usize, usize) -> bool,
) -> Vec<Vec<Vec<f64>>> {
    let of = |site| plain(acts.get(site).unwrap());
    let (q, k, v) =
        (of(site(HookPoint::AttnRotQ, l)), of(site(HookPoint::AttnRotK, l)), of(site(HookPoint::AttnV, l)));
    let group = config.dims.n_heads / config.dims.n_kv_heads;
    let cap = config.attn_softcap.unwrap();
    let scale = config.query_pre_attn_scalar.sqrt().recip();
    let head = |at_q: usize, h: usize| {
        let mut z = vec![0.0; config.dims.d_head];
        let mut total = 0.0;
        for at_k in (0..k.len()).filter(|at_k| sees(at_q, *at_k)) {
            let product: f64 = q[at_q][h].iter().zip(&k[at_k][h / group]).map(|(a, b)| a * b).sum();
            // Scores lie within the cap: exp needs no care.
            let weight = (cap * (product * scale / cap).tanh()).exp();
            total += weight;
            for (z, v) in z.iter_mut().zip(&v[at_k][h / group]) {
                *z += weight * v;
            }
        }
        z.into_iter().map(|z| z / total).collect()
    };
    (0..q.len()).map(|at_q| (0..config.dims.n_heads).map(|h| head(at_q, h)).collect()).collect()
}

fn as_tensor(z: &[Vec<Vec<f64>>]) -> Tensor {
    let size = [1, z.len() as i64, z[0].len() as i64, z[0][0].len() as i64];
    Tensor::from_slice(&z.concat().concat()).reshape(size)
}

fn sites_of_attention(l: usize) -> Vec<HookPoint> {
    let of: [fn(LayerIdx) -> HookPoint; 4] =
        [HookPoint::AttnRotQ, HookPoint::AttnRotK, HookPoint::AttnV, HookPoint::AttnZ];
    of.map(|of| site(of, l)).to_vec()
}

#[test]
fn z_is_attention_written_out() {
    for window in [WINDOW, WIDE_WINDOW] {
        let model = thin(window);
        for (l, window) in [(0, window), (1, POS)] {
            let sites = sites_of_attention(l);
            let z = site(HookPoint::AttnZ, l);

            let acts = model.harvest(&plain_text(), &sites).unwrap();
            let want = naive(&acts, model.config(), l, |q, k| k <= q && q - k < window);
            let what = format!("layer {l}, window {window}");
            assert_close(&what, acts.get(z).unwrap(), &as_tensor(&want), ONE_STEP);

            let acts = model.harvest(&awkward_text(), &sites).unwrap();
            let text = |p: usize| p >= 300;
            let sees = |q: usize, k: usize| {
                let visible = k <= q && q - k < window && text(k) && (q >= 510) == (k >= 510);
                // Padding sees itself, so that it is no NaN.
                visible || (q == k && !text(q))
            };
            let want = naive(&acts, model.config(), l, sees);
            let what = format!("layer {l}, window {window}, padding and documents");
            assert_close(&what, acts.get(z).unwrap(), &as_tensor(&want), ONE_STEP);
        }
    }
}

#[test]
fn looking_changes_no_bit() {
    for (model, tokens) in [(thin(WINDOW), plain_text()), (thin(WIDE_WINDOW), awkward_text())] {
        let want = model.logits(&tokens).unwrap();
        for l in 0..2 {
            for at in [site(HookPoint::AttnScores, l), site(HookPoint::AttnPattern, l)] {
                let (seen, _) = model.run_with_cache(&tokens, &[at]).unwrap();
                assert_same(&format!("{at} observed"), &seen, &want);
                let mut hooks = HookSet::new();
                hooks.on(at, replace(|_, act| Ok(act.copy())));
                assert_same(&format!("{at} replaced by itself"), &model.run(&tokens, hooks).unwrap(), &want);
            }
        }
    }
}

/// Entry [q, k]: whether layer `l` hides key k from query q of the plain text.
fn hidden(window: Option<usize>) -> Tensor {
    let ones = Tensor::ones([POS as i64; 2], (Kind::Bool, tch::Device::Cpu));
    let visible = match window {
        Some(window) => ones.tril(0).logical_and(&ones.triu(1 - window as i64)),
        None => ones.tril(0),
    };
    visible.logical_not()
}

#[test]
fn the_pattern_is_a_softmax_over_what_is_seen() {
    let model = thin(WINDOW);
    for (l, window) in [(0, Some(WINDOW)), (1, None)] {
        let (scores, pattern) = (site(HookPoint::AttnScores, l), site(HookPoint::AttnPattern, l));
        let acts = model.harvest(&plain_text(), &[scores, pattern]).unwrap();
        let (scores, pattern) = (acts.get(scores).unwrap(), acts.get(pattern).unwrap());
        let sums = pattern.sum_dim_intlist(-1, false, Kind::Double);
        assert_close("sums", &sums, &sums.ones_like(), ONE_STEP);
        assert_close("softmax", pattern, &scores.softmax(-1, Kind::Double), ONE_STEP);
        let hidden = hidden(window).expand_as(scores);
        let infinite = scores.eq(f64::NEG_INFINITY);
        assert!(infinite.equal(&hidden), "layer {l}: what is hidden, and that alone, is -inf");
        assert_eq!(pattern.masked_select(&hidden).abs().max().double_value(&[]), 0.0, "layer {l}");
        // The cap leaves no visible key without weight.
        assert!(pattern.masked_select(&hidden.logical_not()).min().double_value(&[]) > 0.0, "layer {l}");
    }
}

/// z of a run with one hook, and the values that it is made of, `[batch, pos, n_heads, d_head]`.
fn z_with(model: &Gemma2, at: HookPoint, hook: impl hooks::Hook) -> (Tensor, Tensor) {
    let l = at.layer().unwrap();
    let mut acts = ActivationCache::default();
    let mut hooks = HookSet::new();
    hooks.on(at, hook).on_each([HookPoint::AttnV(l), HookPoint::AttnZ(l)], &mut acts);
    let _logits = model.run(&plain_text(), hooks).unwrap();
    let v = acts.get(HookPoint::AttnV(l)).unwrap().repeat_interleave_self_int(2, 2, None);
    (acts.take(HookPoint::AttnZ(l)).unwrap(), v)
}

#[test]
fn a_pattern_that_looks_everywhere_is_obeyed() {
    let model = thin(WINDOW);
    for l in 0..2 {
        let uniform = Tensor::from(1.0 / POS as f64);
        let (z, v) = z_with(&model, site(HookPoint::AttnPattern, l), edit::set(uniform));
        let mean = v.mean_dim(1, true, Kind::Double).expand_as(&z);
        assert_close(&format!("layer {l}: z is the mean of all values"), &z, &mean, ONE_STEP);
    }
}

#[test]
fn a_pattern_that_looks_at_one_hidden_key_is_obeyed() {
    let model = thin(WINDOW);
    for l in 0..2 {
        // Ahead of almost all queries, and behind the windows of most.
        for key in [0, 217, 218, POS as i64 - 1] {
            let one = Tensor::zeros([POS as i64], (Kind::Float, tch::Device::Cpu));
            let _ = one.narrow(0, key, 1).fill_(1.0);
            let (z, v) = z_with(&model, site(HookPoint::AttnPattern, l), edit::set(one));
            // Zeros and one product with 1: exact.
            let want = v.narrow(1, key, 1).expand_as(&z).contiguous();
            assert_same(&format!("layer {l}, key {key}"), &z, &want);
        }
    }
}

#[test]
fn a_single_query_that_looks_back_beyond_its_window_is_obeyed() {
    let model = thin(WINDOW);
    let (query, key) = (900, 5);
    let look_back = replace(move |_, pattern: &Tensor| {
        let edited = pattern.copy();
        let row = edited.select(2, query);
        let _ = row.shallow_clone().fill_(0.0);
        let _ = row.narrow(2, key, 1).fill_(1.0);
        Ok(edited)
    });
    let at = site(HookPoint::AttnPattern, 0);
    let (z, v) = z_with(&model, at, look_back);
    assert_close("the query", &z.select(1, query), &v.select(1, key), ONE_STEP);
    let (plain, _) = z_with(&model, at, edit::scale(1.0));
    for (start, end) in [(0, query), (query + 1, POS as i64)] {
        let of = |z: &Tensor| z.narrow(1, start, end - start);
        assert_close("the others", &of(&z), &of(&plain), ONE_STEP);
    }
}

#[test]
fn scores_that_hide_nothing_are_obeyed() {
    let model = thin(WINDOW);
    for l in 0..2 {
        let (z, v) = z_with(&model, site(HookPoint::AttnScores, l), edit::zero());
        let mean = v.mean_dim(1, true, Kind::Double).expand_as(&z);
        assert_close(&format!("layer {l}: equal scores, equal weights"), &z, &mean, ONE_STEP);
    }
}

#[test]
fn a_changed_token_leaves_earlier_logits_alone() {
    let model = thin(WINDOW);
    let before = model.logits(&plain_text()).unwrap();
    // In the first span, on both sides of a seam, in the last.
    for at in [100, 217, 218, 219, 700, POS - 1] {
        let mut text = text();
        text[at] = if text[at] == 3 { 4 } else { 3 };
        let after = model.logits(&batch(&[text])).unwrap();
        let at = at as i64;
        assert_same(&format!("before {at}"), &after.narrow(1, 0, at), &before.narrow(1, 0, at));
        let own = relative_error(&after.select(1, at), &before.select(1, at));
        assert!(own > 1e-3, "position {at} sees itself");
    }
}

#[test]
fn a_row_in_a_batch_is_the_row_alone() {
    // Four rows have four times the seams.
    let model = thin(WINDOW);
    let row = |row: i64| text().iter().map(|id| 3 + (id + row) % 46).collect::<Vec<i64>>();
    let rows: Vec<_> = (0..4).map(row).collect();
    let together = model.logits(&batch(&rows)).unwrap();
    for (i, row) in rows.iter().enumerate() {
        let alone = model.logits(&batch(std::slice::from_ref(row))).unwrap();
        assert_close(&format!("row {i}"), &together.get(i as i64), &alone.get(0), ONE_STEP);
    }
}

#[test]
fn a_window_that_hides_nothing_changes_no_bit() {
    let model = thin(POS);
    let global = Gemma2Config { layer_kinds: vec![LayerKind::Global; 2], ..model.config().clone() };
    let global = crate::common::with_config(&model, global);
    assert_same("logits", &model.logits(&plain_text()).unwrap(), &global.logits(&plain_text()).unwrap());
}

#[test]
fn gradients_flow_across_spans() {
    // Each position's gradient goes through all the spans that look at it, up to the last.
    let model = thin(WIDE_WINDOW);
    let embed = model.harvest(&plain_text(), &[HookPoint::Embed]).unwrap().take(HookPoint::Embed).unwrap();
    let leaf = embed.set_requires_grad(true);
    let mut hooks = HookSet::new();
    hooks.on(HookPoint::Embed, replace(|_, _| Ok(leaf.shallow_clone())));
    let logits = model.forward(&plain_text(), &mut hooks).unwrap();
    let last = logits.select(1, POS as i64 - 1).log_softmax(-1, Kind::Float).select(-1, 7).sum(Kind::Float);
    let grad = Tensor::run_backward(&[last], &[&leaf], false, false).remove(0);
    let by_position = grad.abs().amax([0, 2], false);
    assert_eq!(by_position.isfinite().all().int64_value(&[]), 1);
    assert!(by_position.min().double_value(&[]) > 0.0, "the global block sees every position");
    // What `forward` computes with gradients on is what a run computes without.
    assert_close("logits", &logits.detach(), &model.logits(&plain_text()).unwrap(), ONE_STEP);
}
