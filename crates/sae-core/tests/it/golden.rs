//! `fixtures/sae/gemma-scope`: what PyTorch computes with the same `params.npz` (see `sae_golden.py`).

use sae_core::{OpenOptions, SaeExt as _, SparseAutoencoder, SparseFeatures, open};
use tch::{Kind, Tensor};
use testkit::{Golden, assert_close, assert_same, fixture};

use crate::common::numbers;

/// Relative to each value: sums of 24 products in float32, in another order, differ by some 1e-7; a wrong bias or threshold by
/// 1e-1.
const FEATURES: f64 = 1e-5;
/// Relative to the largest value: sums of up to 96 products.
const RECONSTRUCTION: f64 = 1e-5;

const CASES: [&str; 2] = ["stored", "deflated"];

struct Case {
    sae: Box<dyn SparseAutoencoder>,
    x: Tensor,
    features: Tensor,
    recon: Tensor,
}

fn load(case: &str) -> Case {
    let folder = format!("sae/gemma-scope/{case}");
    let sae = open(&fixture(&format!("{folder}/params.npz")), &OpenOptions::default()).unwrap().sae;
    let mut golden = Golden::open(&format!("{folder}/expected.safetensors"));
    let [x, features, recon] = ["x", "feature_acts", "recon"].map(|name| golden.get(name));
    Case { sae: Box::new(sae), x, features, recon }
}

#[test]
fn sizes_are_those_of_the_file() {
    for case in CASES {
        let Case { sae, x, features, recon } = load(case);
        assert_eq!((sae.architecture(), sae.d_in(), sae.d_sae(), sae.d_out()), ("jumprelu", 24, 96, 24));
        assert_eq!((x.size(), features.size(), recon.size()), (vec![33, 24], vec![33, 96], vec![33, 24]));
    }
}

#[test]
fn encode_gives_the_same_latents_and_values() {
    for case in CASES {
        let Case { sae, x, features, .. } = load(case);
        assert_features(case, &sae.encode(&x).unwrap(), &features);
        assert_features(case, &sae.encode_sparse(&x).unwrap().to_dense().unwrap(), &features);
    }
}

#[test]
fn decode_gives_the_same_reconstruction() {
    for case in CASES {
        let Case { sae, x, features, recon } = load(case);
        // Of the reference's features, then of our own.
        assert_close(case, &sae.decode(&features).unwrap(), &recon, RECONSTRUCTION);
        let sparse = SparseFeatures::from_dense(&features).unwrap();
        assert_close(case, &sae.decode_sparse(&sparse).unwrap(), &recon, RECONSTRUCTION);
        assert_close(case, &sae.reconstruct(&x).unwrap(), &recon, RECONSTRUCTION);
        let cube = sae.reconstruct(&x.reshape([3, 11, 24])).unwrap();
        assert_close(case, &cube, &recon.reshape([3, 11, 24]), RECONSTRUCTION);
    }
}

#[test]
fn sparse_features_are_the_references_row_by_row() {
    for case in CASES {
        let Case { sae, x, features, .. } = load(case);
        let got = sae.encode_sparse(&x).unwrap();
        let active = features.gt(0.0);
        assert_same("counts", &got.counts().unwrap(), &active.sum_dim_intlist(1, false, Kind::Int64));
        assert_same("indices", got.indices(), &active.nonzero().select(1, 1));
    }
}

#[track_caller]
fn assert_features(case: &str, got: &Tensor, want: &Tensor) {
    assert_eq!(got.size(), want.size(), "{case}");
    for (i, (got, want)) in numbers(got).into_iter().zip(numbers(want)).enumerate() {
        assert_eq!(got != 0.0, want != 0.0, "{case}: entry {i} is active in one alone: {got} and {want}");
        assert!((got - want).abs() <= FEATURES * want, "{case}: entry {i} is {got}, but should be {want}");
    }
}
