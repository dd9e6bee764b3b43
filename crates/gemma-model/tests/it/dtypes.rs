//! Checkpoints in float32, bfloat16 and float16, and computing in each.

use std::collections::HashMap;

use gemma_model::{Gemma2, LoadOptions};
use hooks::{HookPoint, HookedModelExt as _};
use tch::{Device, Kind, Tensor};
use testkit::{Golden, assert_close, assert_same, fixture, relative_error};

use crate::common::{CASES, model, tokens};

/// The dtypes that a checkpoint may have.
const STORED: [Kind; 3] = [Kind::Float, Kind::BFloat16, Kind::Half];

fn load(folder: &std::path::Path, kind: Kind) -> Gemma2 {
    Gemma2::load(folder, &LoadOptions { kind, device: Device::Cpu }).unwrap()
}

fn weights(model: &Gemma2) -> HashMap<String, &Tensor> {
    model.parameters().into_iter().collect()
}

#[test]
fn a_saved_model_comes_back_bit_by_bit() {
    for case in CASES {
        let folder = tempfile::tempdir().unwrap();
        let model = model(case);
        model.save(folder.path(), Kind::Float).unwrap();
        let back = load(folder.path(), Kind::Float);
        assert_eq!(back.config(), model.config(), "{case}");
        for (name, w) in weights(&back) {
            assert_same(&format!("{case}: {name}"), w, weights(&model)[&name]);
        }
        assert_same(case, &back.logits(&tokens(case)).unwrap(), &model.logits(&tokens(case)).unwrap());
    }
}

#[test]
fn every_stored_dtype_becomes_every_wanted_one() {
    let model = model("mini-2b");
    for stored in STORED {
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path(), stored).unwrap();
        for wanted in STORED {
            let back = load(folder.path(), wanted);
            for (name, w) in weights(&back) {
                // What is lost is what the two casts lose.
                let want = weights(&model)[&name].to_kind(stored).to_kind(wanted);
                assert_same(&format!("{stored:?} to {wanted:?}: {name}"), w, &want);
            }
        }
    }
}

#[test]
fn a_model_stored_in_half_the_bits_is_the_model_of_the_rounded_weights() {
    let (model, tokens) = (model("mini-9b"), tokens("mini-9b"));
    for (kind, mantissa) in [(Kind::BFloat16, 8), (Kind::Half, 11)] {
        let folder = tempfile::tempdir().unwrap();
        model.save(folder.path(), kind).unwrap();
        let back = load(folder.path(), Kind::Float);
        let rounded = Gemma2::from_fn(model.config().clone(), |name, _| {
            Ok(weights(&model)[name].to_kind(kind).to_kind(Kind::Float))
        });
        let (got, want) = (back.logits(&tokens).unwrap(), rounded.unwrap().logits(&tokens).unwrap());
        assert_same(&format!("{kind:?}"), &got, &want);
        // And near the model of the exact ones: five layers, each of which may blow a rounding up some tens of times.
        let tolerance = 100.0 * 0.5f64.powi(mantissa);
        assert_close(&format!("{kind:?}"), &got, &model.logits(&tokens).unwrap(), tolerance);
    }
}

#[test]
fn a_trained_model_can_be_saved() {
    let folder = tempfile::tempdir().unwrap();
    let model = Gemma2::init(crate::common::small(), 5).unwrap();
    model.save(folder.path(), Kind::Float).unwrap();
    for (name, w) in weights(&load(folder.path(), Kind::Float)) {
        assert!(!w.requires_grad());
        assert_same(&name, w, &weights(&model)[&name].detach());
    }
}

#[test]
fn activations_have_the_models_dtype() {
    for kind in [Kind::BFloat16, Kind::Float] {
        let model = load(&fixture("gemma2/mini-padded"), kind);
        let sites: Vec<_> = HookPoint::all(model.config().dims.n_layers).collect();
        let (logits, cache) = model.run_with_cache(&tokens("mini-padded"), &sites).unwrap();
        assert_eq!(logits.kind(), kind);
        for (site, act) in cache.iter() {
            // RMSNorm is float32 inside, whatever the dtype (Hugging Face, `Gemma2RMSNorm`).
            let inside_norm = site.to_string().contains("ln");
            assert_eq!(act.kind(), if inside_norm { Kind::Float } else { kind }, "{site}");
            assert_eq!(act.isnan().any().int64_value(&[]), 0, "{site}");
        }
    }
}

#[test]
fn bfloat16_rounds_where_the_reference_does() {
    for case in CASES {
        let mut golden = Golden::open(&format!("gemma2/{case}/expected.safetensors"));
        let (exact, theirs) = (golden.get("logits"), golden.get("logits_bf16"));
        let tokens = tokens(case);
        let ours = load(&fixture(&format!("gemma2/{case}")), Kind::BFloat16)
            .logits(&tokens)
            .unwrap()
            .to_kind(Kind::Float);
        let kept = |t: &Tensor| match tokens.attended() {
            Some(mask) => t.masked_fill(&mask.logical_not().unsqueeze(-1), 0.0),
            None => t.shallow_clone(),
        };
        let off = |a: &Tensor, b: &Tensor| relative_error(&kept(a), &kept(b));
        let rounding = off(&theirs, &exact);
        assert!(rounding > 1e-3, "{case}: bfloat16 rounds nothing");
        // The same roundings at the same places: sums alone may run in another order.
        assert!(off(&ours, &theirs) <= rounding, "{case}: {:.1e} of {rounding:.1e}", off(&ours, &theirs));
        assert!(off(&ours, &exact) <= 1.5 * rounding, "{case}: {:.1e} of {rounding:.1e}", off(&ours, &exact));
    }
}
