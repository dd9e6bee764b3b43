//! Sliding windows: local equals global attention while the sequence fits, and differs when it does not.

use gemma_model::{Gemma2Config, LayerKind};
use hooks::{HookPoint, HookedModelExt as _, LayerIdx, TokenBatch};
use testkit::{assert_close, assert_same, relative_error};

use crate::common::{CASES, WHOLE_MODEL, batch, model, with_config};

/// Half of the first token's influence would be more than this.
const SEEN: f64 = 1e-4;

fn all(config: &Gemma2Config, kind: LayerKind) -> Gemma2Config {
    Gemma2Config { layer_kinds: vec![kind; config.dims.n_layers], ..config.clone() }
}

/// Some tokens of one sequence.
fn text(length: usize) -> TokenBatch {
    batch(&[(0..length as i64).map(|i| 3 + (i * 97 + 31) % 200).collect()])
}

#[test]
fn local_equals_global_while_the_sequence_fits() {
    for case in CASES {
        let released = model(case);
        let window = released.config().sliding_window;
        let global = with_config(&released, all(released.config(), LayerKind::Global));
        for length in [1, window - 1, window] {
            let (a, b) = (released.logits(&text(length)).unwrap(), global.logits(&text(length)).unwrap());
            assert_same(&format!("{case}: {length} tokens, window {window}"), &a, &b);
        }
        let tokens = text(window + 1);
        let (a, b) = (released.logits(&tokens).unwrap(), global.logits(&tokens).unwrap());
        let w = window as i64;
        assert_same(&format!("{case}: within the window"), &a.narrow(1, 0, w), &b.narrow(1, 0, w));
        let beyond = relative_error(&a.select(1, w), &b.select(1, w));
        assert!(beyond > SEEN, "{case}: the first token beyond the window changes nothing ({beyond:.1e})");
    }
}

#[test]
fn a_window_as_long_as_the_context_is_global() {
    let released = model("mini-2b");
    let wide = with_config(&released, Gemma2Config { sliding_window: 64, ..released.config().clone() });
    let global = with_config(&released, all(released.config(), LayerKind::Global));
    assert_same("64 tokens", &wide.logits(&text(64)).unwrap(), &global.logits(&text(64)).unwrap());
}

#[test]
fn a_window_of_one_sees_itself_alone() {
    let released = model("mini-2b");
    let config = Gemma2Config { sliding_window: 1, ..all(released.config(), LayerKind::Sliding) };
    let blind = with_config(&released, config);
    let together = blind.logits(&text(12)).unwrap();
    for p in 0..12i64 {
        let id = text(12).rows()[0][p as usize];
        // Where a token looks at itself alone, position does not matter: rotary turns query and key alike.
        let alone = blind.logits(&batch(&[vec![id]])).unwrap();
        assert_close(&format!("position {p}"), &together.select(1, p), &alone.select(1, 0), WHOLE_MODEL);
    }
}

#[test]
fn stacked_windows_reach_further_than_one() {
    // Each sliding block passes on what the one below saw: after n of them, n · (window − 1) positions back.
    let released = model("mini-9b");
    let local = with_config(&released, all(released.config(), LayerKind::Sliding));
    let (window, n_layers) = (released.config().sliding_window, released.config().dims.n_layers);
    let reach = n_layers * (window - 1);
    let (a, mut b) = (text(reach + 2).rows().to_vec(), text(reach + 2).rows().to_vec());
    b[0][0] = 3;
    assert_ne!(a, b);
    let (a, b) = (local.logits(&batch(&a)).unwrap(), local.logits(&batch(&b)).unwrap());
    let at = |p: usize| relative_error(&a.select(1, p as i64), &b.select(1, p as i64));
    assert!(at(reach) > 0.0, "the furthest position that hears of token 0");
    assert_eq!(at(reach + 1), 0.0, "the first that cannot");
}

#[test]
fn released_models_alternate_from_a_sliding_block() {
    let released = model("mini-9b");
    let window = released.config().sliding_window as i64;
    let tokens = text(20);
    let n_layers = released.config().dims.n_layers;
    let sites: Vec<_> = (0..n_layers).map(|l| HookPoint::AttnPattern(LayerIdx(l))).collect();
    let cache = released.harvest(&tokens, &sites).unwrap();
    for (l, site) in sites.into_iter().enumerate() {
        let pattern = cache.get(site).unwrap();
        let far = pattern.tril(-window).abs().max().double_value(&[]);
        assert_eq!(far > 0.0, l % 2 == 1, "block {l}");
        let furthest_seen = pattern.diagonal(1 - window, 2, 3).abs().max().double_value(&[]);
        assert!(furthest_seen > 0.0, "block {l} sees the last position of its window");
    }
}
