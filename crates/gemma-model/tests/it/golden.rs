//! Every tensor of `fixtures/gemma2/*/expected.safetensors`: what transformers computes on the same checkpoint.

use gemma_model::{Gemma2, LoadOptions};
use hooks::{HookPoint, HookedModelExt as _, TokenBatch};
use tch::{Kind, Tensor};
use testkit::{Golden, assert_close, fixture, read_tokens};

/// Relative to a tensor's largest magnitude. The reference's own float32 differs from its float64 by up to 1e-5; a wrong
/// formula shows as 1e-2 or more.
const TOLERANCE: f64 = 3e-5;

const CASES: [&str; 5] = ["mini-2b", "mini-9b", "mini-27b", "mini-padded", "mini-sharded"];

#[test]
fn every_tensor_of_every_case() {
    for case in CASES {
        let model = Gemma2::load(&fixture(&format!("gemma2/{case}")), &LoadOptions::default()).unwrap();
        let tokens = read_tokens(&format!("gemma2/{case}/tokens.json"));
        let mut golden = Golden::open(&format!("gemma2/{case}/expected.safetensors"));
        let sites: Vec<HookPoint> = golden.names().iter().filter_map(|name| name.parse().ok()).collect();
        let (logits, cache) = model.run_with_cache(&tokens, &sites).unwrap();
        let mut compared = 0;
        for name in golden.names() {
            let got = match name.as_str() {
                // bfloat16 has its own test.
                "logits_bf16" => continue,
                "logits" => logits.shallow_clone(),
                "loss_per_token" => loss_per_token(&logits, &tokens),
                site => cache.get(site.parse().unwrap()).unwrap().shallow_clone(),
            };
            let (got, want) = (kept(&name, &got, &tokens), kept(&name, &golden.get(&name), &tokens));
            assert_close(&format!("{case}: {name}"), &got, &want, TOLERANCE);
            compared += 1;
        }
        // 15 sites a block, two outside of them, logits and losses: nothing was left out.
        assert_eq!(compared, 15 * model.config().dims.n_layers + 4, "{case}");
    }
}

fn loss_per_token(logits: &Tensor, tokens: &TokenBatch) -> Tensor {
    let pos = tokens.pos();
    let log_p = logits.narrow(1, 0, pos - 1).log_softmax(-1, Kind::Float);
    -log_p.gather(-1, &tokens.ids().narrow(1, 1, pos - 1).unsqueeze(-1), false).squeeze_dim(-1)
}

/// Zero where padding stands: what is computed there means nothing (see `tools/golden/gemma2_golden.py`).
fn kept(name: &str, tensor: &Tensor, tokens: &TokenBatch) -> Tensor {
    let Some(attended) = tokens.attended() else { return tensor.shallow_clone() };
    let mask = match name {
        n if n.ends_with("hook_pattern") => attended.view([tokens.batch(), 1, tokens.pos(), 1]),
        "loss_per_token" => attended.narrow(1, 0, tokens.pos() - 1).shallow_clone(),
        _ => {
            let mut mask = attended.shallow_clone();
            while mask.dim() < tensor.dim() {
                mask = mask.unsqueeze(-1);
            }
            mask
        }
    };
    tensor.masked_fill(&mask.logical_not(), 0.0)
}
