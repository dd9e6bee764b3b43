//! The embedded default is what its card says.

use gemma_scope::{
    hooks::HookedModelExt as _,
    load::{load_model, load_sae},
    model::LoadOptions,
    sae::{OpenOptions, SparseAutoencoder as _, conformance},
    tch::Kind,
    tiny,
};
use serde_json::Value;

fn facts() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/facts.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn no_hub() -> Result<gemma_scope::hub::Hub, gemma_scope::hub::HubError> {
    panic!("the embedded default must not ask for the hub")
}

#[test]
fn it_keeps_what_was_promised() {
    let facts = facts();
    let number = |path: &str| facts.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path}"));
    let parameters = number("/parameters");
    assert!((3e6..=6e6).contains(&parameters), "{parameters}");
    let bigram = number("/baselines/bigram_witten_bell").min(number("/baselines/bigram_best_weight"));
    assert!(number("/heldout_loss") <= bigram - 0.5, "at least half a nat below the bigram");
    assert!(number("/sae/metrics/loss_recovered_zero") >= 0.9);
    assert!(number("/sae/metrics/l0") <= 60.0);
    assert!(number("/sae/metrics/dead_fraction") < 0.1);
}

#[test]
fn the_assets_are_small() {
    fn size(path: &std::path::Path) -> u64 {
        if path.is_file() {
            return path.metadata().unwrap().len();
        }
        std::fs::read_dir(path).unwrap().map(|e| size(&e.unwrap().path())).sum()
    }
    let total = size(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/assets")));
    assert!(total <= 16 << 20, "{total} bytes");
}

#[test]
fn the_model_reads_english() {
    let loaded = load_model("tiny", &LoadOptions::default(), no_hub).unwrap();
    let config = loaded.model.config();
    assert_eq!((config.pad, config.eos.as_slice(), config.bos), (0, [1].as_slice(), 2));
    let tokenizer = loaded.tokenizer().unwrap();
    assert_eq!(tokenizer.d_vocab(), config.dims.d_vocab);
    let tokens = tokenizer.batch(&["I am your obedient servant, and I have the honor to"]).unwrap();
    let last = loaded.model.logits(&tokens).unwrap().select(1, tokens.pos() - 1).select(0, 0);
    // A verb must follow; "be" is by far the likeliest one in this prose.
    let top = Vec::<i64>::try_from(last.topk(10, -1, true, true).1).unwrap();
    assert!(top.iter().any(|&id| tokenizer.piece(id) == " be"), "{top:?}");
}

#[test]
fn every_embedded_sae_conforms() {
    let loaded = load_model("tiny", &LoadOptions::default(), no_hub).unwrap();
    let tokens = loaded.tokenizer().unwrap().batch(&["The whale rose slowly out of the water."]).unwrap();
    let mut count = 0;
    for id in tiny::sae_ids() {
        let scope = load_sae(id, None, &OpenOptions::default(), no_hub).unwrap();
        let acts = loaded.model.harvest(&tokens, &[scope.site]).unwrap();
        let x = acts.get(scope.site).unwrap().to_kind(Kind::Float).narrow(1, 1, 8).squeeze_dim(0);
        assert_eq!(x.size()[1], scope.sae.d_in());
        conformance::check(&scope.sae, &x).unwrap();
        conformance::check(Box::new(scope.sae).as_ref(), &x).unwrap();
        count += 1;
    }
    assert!(count > 0, "an SAE is embedded");
}
