//! Values that others computed with the real weights. They wait for `GEMMA_SCOPE_REAL_WEIGHTS`, a folder that holds
//! `gemma-2-2b/` (Hugging Face layout) and `gemma-scope-2b-pt-res/layer_0/width_16k/average_l0_105/params.npz`.
//!
//! Source of the numbers: candle-mi 0.2.2, `examples/results/attention_knockout/gemma-2-2b.json` and
//! `scripts/sae_reference.json` (made with PyTorch), prompt "The capital of France is" with BOS, float32.

use std::path::PathBuf;

use gemma_scope::{
    hooks::HookedModelExt as _,
    hub::{Hub, HubError},
    load::{LoadedModel, load_model, load_sae},
    model::LoadOptions,
    sae::{OpenOptions, SaeExt as _, SparseAutoencoder as _},
    tch::Kind,
};

const PROMPT: &str = "The capital of France is";

/// Of the softmax at the last position: id and probability.
const NEXT: [(i64, f64); 10] = [
    (573, 0.100046),
    (974, 0.080775),
    (1170, 0.078237),
    (2078, 0.050353),
    (3836, 0.048319),
    (780, 0.041932),
    (7127, 0.038784),
    (2247, 0.026976),
    (10964, 0.025307),
    (235248, 0.007939),
];

/// Of the latents at the last position: index and activation.
const LATENTS: [(usize, f64); 10] = [
    (10492, 44.0724),
    (8920, 16.8729),
    (6887, 8.5976),
    (5542, 6.8104),
    (6085, 6.2580),
    (6735, 5.7137),
    (14856, 3.5655),
    (11517, 3.3660),
    (10034, 3.1190),
    (688, 2.0420),
];

/// The folder, or `None` with a word on stdout.
fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("GEMMA_SCOPE_REAL_WEIGHTS").map(PathBuf::from);
    if folder.is_none() {
        #[expect(clippy::print_stdout, reason = "a skipped test says so")]
        {
            println!("skipped: GEMMA_SCOPE_REAL_WEIGHTS names no folder with the real weights");
        }
    }
    folder
}

fn no_hub() -> Result<Hub, HubError> {
    panic!("the real weights are local")
}

fn gemma(folder: &std::path::Path) -> LoadedModel {
    load_model(folder.join("gemma-2-2b").to_str().unwrap(), &LoadOptions::default(), no_hub).unwrap()
}

#[test]
fn gemma_2_2b_completes_a_sentence() {
    let Some(folder) = folder() else { return };
    let loaded = gemma(&folder);
    let tokens = loaded.tokenizer().unwrap().batch(&[PROMPT]).unwrap();
    let logits = loaded.model.logits(&tokens).unwrap();
    let p = logits.select(1, tokens.pos() - 1).select(0, 0).softmax(-1, Kind::Double);
    for (id, want) in NEXT {
        let got = p.double_value(&[id]);
        assert!((got - want).abs() < 2e-4, "token {id}: {got} is not {want}");
    }
}

#[test]
fn a_gemma_scope_sae_reads_it() {
    let Some(folder) = folder() else { return };
    let loaded = gemma(&folder);
    let path = folder.join("gemma-scope-2b-pt-res/layer_0/width_16k/average_l0_105");
    let scope = load_sae(path.to_str().unwrap(), None, &OpenOptions::default(), no_hub).unwrap();
    let tokens = loaded.tokenizer().unwrap().batch(&[PROMPT]).unwrap();
    let acts = loaded.model.harvest(&tokens, &[scope.site]).unwrap();
    let x = acts.get(scope.site).unwrap().squeeze_dim(0);
    let last = x.narrow(0, tokens.pos() - 1, 1);
    assert!((last.norm().double_value(&[]) - 61.8125).abs() < 0.05);
    let features = scope.sae.encode(&last).unwrap();
    assert_eq!(features.gt(0.0).sum(Kind::Int64).int64_value(&[]), 14);
    for (latent, want) in LATENTS {
        let got = features.double_value(&[0, latent as i64]);
        assert!((got - want).abs() < 2e-2, "latent {latent}: {got} is not {want}");
    }
    let x_hat = scope.sae.reconstruct(&x).unwrap();
    assert!((x_hat.narrow(0, tokens.pos() - 1, 1).norm().double_value(&[]) - 59.7459).abs() < 0.05);
    let mse = (x_hat - x).square().mean(Kind::Double).double_value(&[]);
    assert!((mse - 6.91266).abs() < 0.02, "{mse}");
}
