//! Ways of running a model against Hugging Face's: past the real window, packed documents, generation
//! (`tools/golden/modes_golden.py`).

use gemma_model::{GenerateOptions, Generation, generate};
use hooks::{HookPoint, HookSet, HookedModelExt as _, TokenBatch, observe};
use serde_json::Value;
use tch::{Kind, Tensor};
use testkit::{Golden, assert_close, fixture};

use crate::common::{WHOLE_MODEL, batch, model, tokens};

fn json(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(path)).unwrap()).unwrap()
}

fn rows(json: &Value, key: &str) -> Vec<Vec<i64>> {
    serde_json::from_value(json[key].clone()).unwrap()
}

fn expected(case: &str) -> Golden {
    Golden::open(&format!("gemma2/{case}/expected.safetensors"))
}

/// The sites that a file holds.
fn sites(golden: &Golden) -> Vec<HookPoint> {
    golden.names().iter().filter_map(|name| name.parse().ok()).collect()
}

#[test]
fn past_the_real_window() {
    let (model, tokens, mut golden) = (model("window-4096"), tokens("window-4096"), expected("window-4096"));
    let sites = sites(&golden);
    assert_eq!((sites.len(), golden.names().len()), (3, 5));
    let positions = golden.get("positions");
    let (logits, acts) = model.run_with_cache(&tokens, &sites).unwrap();
    let at = |act: &Tensor| act.index_select(1, &positions);
    for site in sites {
        let name = site.to_string();
        assert_close(&name, &at(acts.get(site).unwrap()), &golden.get(&name), WHOLE_MODEL);
    }
    assert_close("logits", &at(&logits), &golden.get("logits"), WHOLE_MODEL);
}

#[test]
fn past_the_real_window_through_a_cache() {
    let (model, tokens, mut golden) = (model("window-4096"), tokens("window-4096"), expected("window-4096"));
    let text = &tokens.rows()[0];
    let mut cache = model.cache(1);
    let mut parts = Vec::new();
    // Up to just before the window is full, then in steps across its edge.
    let mut ends = vec![4090, 4095];
    ends.extend(4096..4104);
    ends.push(text.len());
    let mut start = 0;
    for end in ends {
        let piece = batch(&[text[start..end].to_vec()]);
        parts.push(model.extend(&mut cache, &piece, &mut HookSet::new()).unwrap());
        start = end;
    }
    let resid = Tensor::cat(&parts, 1);
    let logits = model.unembed(&resid, &mut HookSet::new()).unwrap();
    let positions = golden.get("positions");
    let at = |act: &Tensor| act.index_select(1, &positions);
    assert_close("last residual", &at(&resid), &golden.get("blocks.2.hook_resid_post"), WHOLE_MODEL);
    assert_close("logits", &at(&logits), &golden.get("logits"), WHOLE_MODEL);
}

#[test]
fn packed_documents() {
    let (model, json, mut golden) = (model("packed"), json("gemma2/packed/tokens.json"), expected("packed"));
    let (ids, mask) = (rows(&json, "input_ids"), rows(&json, "attention_mask"));
    let documents = rows(&json, "document_ids");
    let tokens = TokenBatch::with_documents(&ids, Some(&mask), &documents, &[0, 1, 2]).unwrap();
    let sites = sites(&golden);
    assert_eq!((sites.len(), golden.names().len()), (8, 9));
    let (logits, acts) = model.run_with_cache(&tokens, &sites).unwrap();
    // The reference is zero at padding.
    let kept = |act: &Tensor| {
        let mut mask = tokens.attended().unwrap().shallow_clone();
        while mask.dim() < act.dim() {
            mask = mask.unsqueeze(-1);
        }
        act.masked_fill(&mask.logical_not(), 0.0)
    };
    for site in sites {
        let name = site.to_string();
        let want = golden.get(&name);
        assert_close(&name, &kept(acts.get(site).unwrap()).view_as(&want), &want, WHOLE_MODEL);
    }
    assert_close("logits", &kept(&logits), &golden.get("logits"), WHOLE_MODEL);
}

#[test]
fn greedy_generation_of_prompts_of_different_lengths() {
    let (model, mut golden) = (model("generate"), expected("generate"));
    let json = json("gemma2/generate/generate.json");
    let (prompts, want) = (rows(&json, "prompts"), rows(&json, "new_ids"));
    let n = want[0].len();
    let options = || GenerateOptions { stop: Some(vec![]), ..GenerateOptions::greedy(n) };

    let mut normed = Vec::new();
    let mut hooks = HookSet::new();
    hooks.on(
        HookPoint::LnFinalNormalized,
        observe(|_, act| {
            normed.push(act.copy());
            Ok(())
        }),
    );
    let got = generate(&model, &prompts, options(), hooks, |_| {}).unwrap();
    assert_eq!(got, want);
    assert_eq!(normed.len(), n);

    // The logits that chose the first and the last token, read off from what stood before them.
    let parameters = model.parameters();
    let gain = parameters.iter().find(|(name, _)| name == "model.norm.weight").unwrap().1 + 1.0;
    for (name, normed) in [("logits_first", &normed[0]), ("logits_last", &normed[n - 1])] {
        let logits = (normed * &gain).matmul(&model.w_e().tr()).squeeze_dim(1).to_kind(Kind::Double);
        let cap = model.config().final_softcap.unwrap();
        assert_close(name, &((logits / cap).tanh() * cap), &golden.get(name), WHOLE_MODEL);
    }

    // And each prompt alone.
    for (prompt, want) in prompts.iter().zip(&want) {
        let mut generation = Generation::new(&model, std::slice::from_ref(prompt), options()).unwrap();
        let mut row = Vec::new();
        while let Some(ids) = generation.step(&mut HookSet::new()).unwrap() {
            row.extend(ids[0]);
        }
        assert_eq!(row, *want);
    }
}
