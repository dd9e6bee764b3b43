//! Attention, worked out again in float64 from what stands at the site before.

use gemma_model::LayerKind;
use tch::{Kind, Tensor};
use testkit::assert_close;

use crate::common::{CASES, ONE_STEP, Run};

/// `[batch, pos, heads, d_head]` as plain numbers, with its sizes.
fn plain(tensor: &Tensor) -> (Vec<f64>, [usize; 4]) {
    let size: Vec<usize> = tensor.size().iter().map(|&n| n as usize).collect();
    (Vec::<f64>::try_from(&tensor.to_kind(Kind::Double).flatten(0, -1)).unwrap(), size.try_into().unwrap())
}

/// The rotary embedding of the half-split layout, entry by entry: the pair (i, i + d/2) at position p turns by
/// p · θ^(−2i/d) (arXiv 2104.09864, section 3.2.2).
fn rotated(x: &Tensor, theta: f64) -> Tensor {
    let (x, [batch, pos, heads, d_head]) = plain(x);
    let half = d_head / 2;
    let mut out = vec![0.0; x.len()];
    for row in 0..batch * pos * heads {
        let p = (row / heads) % pos;
        let at = row * d_head;
        for i in 0..half {
            let angle = p as f64 * theta.powf(-2.0 * i as f64 / d_head as f64);
            let (a, b) = (x[at + i], x[at + half + i]);
            out[at + i] = a * angle.cos() - b * angle.sin();
            out[at + half + i] = b * angle.cos() + a * angle.sin();
        }
    }
    let size = [batch, pos, heads, d_head].map(|n| n as i64);
    Tensor::from_slice(&out).reshape(size)
}

/// Whether query `q` sees key `k`: never ahead, within the window, no padding. A query that this leaves blind (padding)
/// sees itself.
fn visible(run: &Run, l: usize) -> Vec<Vec<Vec<bool>>> {
    let pos = run.tokens.pos() as usize;
    let attended: Vec<Vec<bool>> = match run.tokens.attended() {
        Some(mask) => Vec::<Vec<f64>>::try_from(&mask.to_kind(Kind::Double))
            .unwrap()
            .iter()
            .map(|r| r.iter().map(|v| *v == 1.0).collect())
            .collect(),
        None => vec![vec![true; pos]; run.tokens.batch() as usize],
    };
    let window = match run.config().layer_kinds[l] {
        LayerKind::Sliding => run.config().sliding_window,
        LayerKind::Global => pos,
    };
    let row = |attended: &Vec<bool>, q: usize| {
        let sees: Vec<bool> = (0..pos).map(|k| k <= q && q - k < window && attended[k]).collect();
        if sees.contains(&true) { sees } else { (0..pos).map(|k| k == q).collect() }
    };
    attended.iter().map(|attended| (0..pos).map(|q| row(attended, q)).collect()).collect()
}

#[test]
fn queries_keys_and_values_are_projections_of_the_normed_stream() {
    for case in CASES {
        let run = Run::of(case);
        for l in run.layers() {
            let weight = |name: &str| format!("model.layers.{l}.{name}");
            let x = run.normed(&format!("blocks.{l}.ln1.hook_normalized"), &weight("input_layernorm"));
            for (site, w) in [("hook_q", "q_proj"), ("hook_k", "k_proj"), ("hook_v", "v_proj")] {
                let got = run.at(&format!("blocks.{l}.attn.{site}"));
                // Heads lie side by side in the rows of the projection.
                let want = x.matmul(&run.weight(&weight(&format!("self_attn.{w}"))).tr()).view_as(&got);
                assert_close(&format!("{case}: layer {l} {site}"), &got, &want, ONE_STEP);
            }
        }
    }
}

#[test]
fn rotary_turns_each_pair_by_its_angle() {
    for case in CASES {
        let run = Run::of(case);
        for l in run.layers() {
            for (before, after) in [("hook_q", "hook_rot_q"), ("hook_k", "hook_rot_k")] {
                let want = rotated(&run.at(&format!("blocks.{l}.attn.{before}")), run.config().rope_theta);
                assert_close(
                    &format!("{case}: layer {l} {after}"),
                    &run.at(&format!("blocks.{l}.attn.{after}")),
                    &want,
                    ONE_STEP,
                );
            }
        }
    }
}

#[test]
fn rotary_leaves_the_first_position_and_every_length_alone() {
    for case in CASES {
        let run = Run::of(case);
        let (q, rotated) = (run.at("blocks.1.attn.hook_q"), run.at("blocks.1.attn.hook_rot_q"));
        assert_close(case, &rotated.select(1, 0), &q.select(1, 0), 0.0);
        let length = |x: &Tensor| x.square().sum_dim_intlist(-1, false, Kind::Double);
        assert_close(case, &length(&rotated), &length(&q), ONE_STEP);
    }
}

#[test]
fn scores_are_capped_then_masked() {
    for case in CASES {
        let run = Run::of(case);
        let config = run.config();
        let (group, cap) = (config.dims.n_heads / config.dims.n_kv_heads, config.attn_softcap.unwrap());
        for l in run.layers() {
            let (q, [_, _, n_heads, d_head]) = plain(run.raw(&format!("blocks.{l}.attn.hook_rot_q")));
            let (k, [_, _, n_kv_heads, _]) = plain(run.raw(&format!("blocks.{l}.attn.hook_rot_k")));
            let (scores, [batch, _, pos, _]) = plain(run.raw(&format!("blocks.{l}.attn.hook_attn_scores")));
            let visible = visible(&run, l);
            let mut worst = 0.0f64;
            assert_eq!(scores.len(), batch * n_heads * pos * pos);
            for (i, &score) in scores.iter().enumerate() {
                let (b, h, at_q, at_k) =
                    (i / (n_heads * pos * pos), i / (pos * pos) % n_heads, i / pos % pos, i % pos);
                if !visible[b][at_q][at_k] {
                    assert_eq!(score, f64::NEG_INFINITY, "{case}: layer {l}, query {at_q}, key {at_k}");
                    continue;
                }
                let of = |x: &[f64], heads: usize, head: usize, p: usize, d: usize| {
                    x[((b * pos + p) * heads + head) * d_head + d]
                };
                // Query head h reads key head ⌊h / group⌋.
                let product: f64 = (0..d_head)
                    .map(|d| of(&q, n_heads, h, at_q, d) * of(&k, n_kv_heads, h / group, at_k, d))
                    .sum();
                let want = cap * (product / (config.query_pre_attn_scalar.sqrt() * cap)).tanh();
                worst = worst.max((score - want).abs());
            }
            // Relative to the cap, which these weights come near.
            assert!(worst <= ONE_STEP * cap, "{case}: layer {l} is off by {worst:.1e}");
        }
    }
}

#[test]
fn the_pattern_is_the_softmax_of_the_scores() {
    for case in CASES {
        let run = Run::of(case);
        for l in run.layers() {
            let pattern = run.at(&format!("blocks.{l}.attn.hook_pattern"));
            let want = run.at(&format!("blocks.{l}.attn.hook_attn_scores")).softmax(-1, Kind::Double);
            assert_close(&format!("{case}: layer {l}"), &pattern, &want, ONE_STEP);
            let sums = pattern.sum_dim_intlist(-1, false, Kind::Double);
            assert_close(&format!("{case}: layer {l} sums"), &sums, &sums.ones_like(), ONE_STEP);
            for (b, rows) in visible(&run, l).iter().enumerate() {
                let rows: Vec<bool> = rows.concat();
                let hidden =
                    Tensor::from_slice(&rows).logical_not().view([1, run.tokens.pos(), run.tokens.pos()]);
                let leaked = pattern.get(b as i64).masked_select(&hidden);
                assert_eq!(leaked.abs().sum(Kind::Double).double_value(&[]), 0.0, "{case}: layer {l}");
            }
        }
    }
}

#[test]
fn z_is_the_pattern_times_the_values() {
    for case in CASES {
        let run = Run::of(case);
        let group = (run.config().dims.n_heads / run.config().dims.n_kv_heads) as i64;
        for l in run.layers() {
            let at = |site: &str| run.at(&format!("blocks.{l}.attn.{site}"));
            let v = at("hook_v").repeat_interleave_self_int(group, 2, None);
            let want = Tensor::einsum("bhqk,bkhd->bqhd", &[at("hook_pattern"), v], None::<i64>);
            assert_close(&format!("{case}: layer {l}"), &at("hook_z"), &want, ONE_STEP);
        }
    }
}

#[test]
fn results_of_the_heads_sum_to_the_output() {
    for case in CASES {
        let run = Run::of(case);
        let dims = &run.config().dims;
        for l in run.layers() {
            let at = |site: &str| run.at(&format!("blocks.{l}.{site}"));
            let sum = at("attn.hook_result").sum_dim_intlist(2, false, Kind::Double);
            // What entered the norm after it.
            let entered = at("ln1_post.hook_normalized") * at("ln1_post.hook_scale");
            assert_close(&format!("{case}: layer {l} norm"), &sum, &entered, ONE_STEP);
            // W_O z, as o_proj computes it, and head by head.
            let w_o = run.weight(&format!("model.layers.{l}.self_attn.o_proj")); // [d_model, n_heads · d_head]
            let z = at("attn.hook_z");
            assert_close(
                &format!("{case}: layer {l} W_O z"),
                &sum,
                &z.flatten(2, 3).matmul(&w_o.tr()),
                ONE_STEP,
            );
            for h in 0..dims.n_heads as i64 {
                let d_head = dims.d_head as i64;
                let want = z.select(2, h).matmul(&w_o.narrow(1, h * d_head, d_head).tr());
                assert_close(
                    &format!("{case}: layer {l} head {h}"),
                    &at("attn.hook_result").select(2, h),
                    &want,
                    ONE_STEP,
                );
            }
        }
    }
}
