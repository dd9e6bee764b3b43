//! SAEs that a Python script trained and judged on a small Gemma (tools/golden/eval_golden.py): the same L0 and FVU.

use dashboard::{Prompt, SaeAt, analyze};
use gemma_model::{Gemma2, LoadOptions};
use sae_core::{OpenOptions, open};
use testkit::{fixture, read_tokens};

/// What float32 sums in another order may differ by.
const TOLERANCE: f64 = 1e-5;

const CASES: [(&str, &str); 3] = [
    ("resid_post/layer_2/width_64/average_l0_37", "blocks.2.hook_resid_post"),
    ("mlp_out/layer_1/width_64/average_l0_19", "blocks.1.hook_mlp_out"),
    ("attn_z/layer_1/width_64/average_l0_27", "blocks.1.attn.hook_z"),
];

#[test]
fn metrics_are_the_references() {
    let model = Gemma2::load(&fixture("gemma2/mini-2b"), &LoadOptions::default()).unwrap();
    let tokens = read_tokens("eval/tokens.json");
    let pieces = |row: &Vec<i64>| row.iter().map(|id| format!("<{id}>")).collect::<Vec<_>>();
    let prompts: Vec<Prompt> =
        tokens.rows().iter().map(|row| Prompt { text: String::new(), pieces: pieces(row) }).collect();
    let load =
        |path: &str| open(&fixture(&format!("eval/{path}/params.npz")), &OpenOptions::default()).unwrap().sae;
    let loaded = CASES.map(|(path, _)| load(path));
    let saes: Vec<SaeAt<'_>> = CASES
        .iter()
        .zip(&loaded)
        .map(|((path, site), sae)| SaeAt { id: (*path).to_owned(), site: site.parse().unwrap(), sae })
        .collect();
    let analysis = analyze(&model, "mini-2b", &tokens, &prompts, &saes, 5).unwrap();

    let text = std::fs::read_to_string(fixture("eval/expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_str(&text).unwrap();
    for sae in &analysis.saes {
        let want = &expected[&sae.id];
        let metrics = serde_json::to_value(sae.metrics).unwrap();
        for name in ["l0", "fvu", "explained_variance"] {
            let (got, want) = (metrics[name].as_f64().unwrap(), want[name].as_f64().unwrap());
            assert!((got - want).abs() <= TOLERANCE * want.abs(), "{} {name}: {got} is not {want}", sae.id);
        }
        // Cosine there is the mean over counted tokens; here it stands at each of them.
        let counted = analysis.prompts.iter().zip(&sae.prompts).flat_map(|(prompt, found)| {
            prompt
                .counted
                .iter()
                .zip(&found.tokens)
                .filter(|(c, _)| **c)
                .map(|(_, token)| token.cosine.unwrap())
        });
        let (n, sum) = counted.fold((0.0, 0.0), |(n, sum), cosine| (n + 1.0, sum + cosine));
        let (got, want) = (sum / n, want["cosine"].as_f64().unwrap());
        assert!((got - want).abs() <= TOLERANCE, "{} cosine: {got} is not {want}", sae.id);
    }
}
