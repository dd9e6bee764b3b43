//! The names and shapes of TransformerLens, written out.

use hooks::{Axis, HookPoint, LayerIdx, ModelDims};

/// The hook points of a TransformerLens model of one block with RMSNorm, norms after attention and MLP, a gated MLP and
/// rotary embedding, in the order of its forward pass, with the shapes of its comments. `1` is a kept axis of size one.
const SITES: &[(&str, &str)] = &[
    ("hook_embed", "batch pos d_model"),
    ("blocks.0.hook_resid_pre", "batch pos d_model"),
    ("blocks.0.ln1.hook_scale", "batch pos 1"),
    ("blocks.0.ln1.hook_normalized", "batch pos d_model"),
    ("blocks.0.attn.hook_q", "batch pos n_heads d_head"),
    ("blocks.0.attn.hook_k", "batch pos n_kv_heads d_head"),
    ("blocks.0.attn.hook_v", "batch pos n_kv_heads d_head"),
    ("blocks.0.attn.hook_rot_q", "batch pos n_heads d_head"),
    ("blocks.0.attn.hook_rot_k", "batch pos n_kv_heads d_head"),
    ("blocks.0.attn.hook_attn_scores", "batch n_heads query_pos key_pos"),
    ("blocks.0.attn.hook_pattern", "batch n_heads query_pos key_pos"),
    ("blocks.0.attn.hook_z", "batch pos n_heads d_head"),
    ("blocks.0.attn.hook_result", "batch pos n_heads d_model"),
    ("blocks.0.ln1_post.hook_scale", "batch pos 1"),
    ("blocks.0.ln1_post.hook_normalized", "batch pos d_model"),
    ("blocks.0.hook_attn_out", "batch pos d_model"),
    ("blocks.0.hook_resid_mid", "batch pos d_model"),
    ("blocks.0.hook_mlp_in", "batch pos d_model"),
    ("blocks.0.ln2.hook_scale", "batch pos 1"),
    ("blocks.0.ln2.hook_normalized", "batch pos d_model"),
    ("blocks.0.mlp.hook_pre", "batch pos d_mlp"),
    ("blocks.0.mlp.hook_pre_linear", "batch pos d_mlp"),
    ("blocks.0.mlp.hook_post", "batch pos d_mlp"),
    ("blocks.0.ln2_post.hook_scale", "batch pos 1"),
    ("blocks.0.ln2_post.hook_normalized", "batch pos d_model"),
    ("blocks.0.hook_mlp_out", "batch pos d_model"),
    ("blocks.0.hook_resid_post", "batch pos d_model"),
    ("ln_final.hook_scale", "batch pos 1"),
    ("ln_final.hook_normalized", "batch pos d_model"),
];

#[test]
fn names_axes_and_order() {
    let ours: Vec<(String, String)> = HookPoint::all(1)
        .map(|p| (p.to_string(), p.axes().iter().map(|a| a.name()).collect::<Vec<_>>().join(" ")))
        .collect();
    let theirs: Vec<(String, String)> = SITES.iter().map(|&(n, a)| (n.to_owned(), a.to_owned())).collect();
    assert_eq!(ours, theirs);
}

#[test]
fn further_blocks_have_the_same_sites() {
    let (first, last) = (&SITES[..1], &SITES[SITES.len() - 2..]);
    let block = &SITES[1..SITES.len() - 2];
    let in_layer =
        |l: usize| block.iter().map(move |(name, _)| name.replacen("blocks.0.", &format!("blocks.{l}."), 1));
    let whole = |sites: &[(&str, &str)]| sites.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>();
    for n_layers in [0, 1, 2, 13] {
        let want = [whole(first), (0..n_layers).flat_map(in_layer).collect(), whole(last)].concat();
        assert_eq!(HookPoint::all(n_layers).map(|p| p.to_string()).collect::<Vec<_>>(), want);
    }
}

/// Sizes that are all different, so that no two axes can be mistaken for each other.
const DIMS: ModelDims = ModelDims {
    n_layers: 2,
    d_model: 11,
    n_heads: 6,
    n_kv_heads: 3,
    d_head: 8,
    d_mlp: 40,
    d_vocab: 100,
    n_ctx: 64,
};

#[test]
fn shapes() {
    let size = |axis: &str| match axis {
        "batch" => 5,
        "pos" | "query_pos" | "key_pos" => 7,
        "d_model" => 11,
        "n_heads" => 6,
        "n_kv_heads" => 3,
        "d_head" => 8,
        "d_mlp" => 40,
        "1" => 1,
        other => panic!("{other}"),
    };
    for &(name, axes) in SITES {
        let site: HookPoint = name.parse().unwrap();
        assert_eq!(site.shape(&DIMS, 5, 7), axes.split(' ').map(size).collect::<Vec<i64>>(), "{name}");
    }
    assert_eq!(HookPoint::AttnZ(LayerIdx(1)).axes(), [Axis::Batch, Axis::Pos, Axis::NHeads, Axis::DHead]);
}

#[test]
fn where_a_site_lies() {
    for point in HookPoint::all(4) {
        let name = point.to_string();
        let layer = name.strip_prefix("blocks.").map(|rest| rest.split('.').next().unwrap().parse().unwrap());
        assert_eq!(point.layer(), layer.map(LayerIdx), "{name}");
        assert_eq!(
            point.short_name(),
            name.split_once("blocks.").map_or(name.as_str(), |(_, r)| r.split_once('.').unwrap().1)
        );
        assert_eq!(point.is_final(), name.starts_with("ln_final"), "{name}");
        let needed = match layer {
            Some(l) => l + 1,
            None if name == "hook_embed" => 0,
            None => 4,
        };
        assert_eq!(point.blocks_needed(4), needed, "{name}");
    }
    let posts: Vec<_> = HookPoint::resid_posts(2).map(|p| p.to_string()).collect();
    assert_eq!(posts, ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]);
}
