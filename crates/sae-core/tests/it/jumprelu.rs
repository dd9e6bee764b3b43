//! The laws of a JumpReLU SAE on random weights.

use proptest::prelude::*;
use sae_core::{Sae, SaeExt as _, SparseAutoencoder as _, SparseFeatures};
use tch::{Device, Kind, Tensor};
use testkit::{assert_close, assert_same, normal};

use crate::common::{ROUNDING, cases, parameter, random_sae, refused, with_threshold};

prop_compose! {
    /// `d_in`, `d_sae`, `d_out` and a seed.
    fn sizes()(
        d_in in 1i64..20, d_sae in 1i64..50, d_out in 1i64..20, seed in 0u64..1000,
    ) -> (i64, i64, i64, u64) {
        (d_in, d_sae, d_out, seed)
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn batch_and_pos_are_rows((d_in, d_sae, d_out, seed) in sizes(), batch in 1i64..4, pos in 1i64..6) {
        let sae = random_sae(d_in, d_sae, d_out, seed);
        let cube = normal(&[batch, pos, d_in], seed + 9) * 2.0;
        let rows = cube.reshape([-1, d_in]);
        let features = sae.encode(&rows).unwrap();
        assert_same("encode", &sae.encode(&cube).unwrap(), &features.reshape([batch, pos, d_sae]));
        let out = sae.decode(&features).unwrap();
        let decoded = sae.decode(&features.reshape([batch, pos, d_sae])).unwrap();
        assert_same("decode", &decoded, &out.reshape([batch, pos, d_out]));
        let by_rows = sae.reconstruct(&rows).unwrap().reshape([batch, pos, d_out]);
        assert_same("reconstruct", &sae.reconstruct(&cube).unwrap(), &by_rows);
    }

    #[test]
    fn features_are_not_negative_and_lie_above_their_thresholds((d_in, d_sae, d_out, seed) in sizes()) {
        let sae = random_sae(d_in, d_sae, d_out, seed);
        let features = sae.encode(&(normal(&[30, d_in], seed + 9) * 2.0)).unwrap();
        prop_assert!(!bool_of(&features.lt(0.0).any()));
        let below = features.le_tensor(&parameter(&sae, "threshold")).logical_and(&features.ne(0.0));
        prop_assert!(!bool_of(&below.any()));
    }

    #[test]
    fn sparse_is_dense((d_in, d_sae, d_out, seed) in sizes(), rows in 0i64..20) {
        let sae = random_sae(d_in, d_sae, d_out, seed);
        let x = normal(&[rows, d_in], seed + 9) * 2.0;
        let (features, sparse) = (sae.encode(&x).unwrap(), sae.encode_sparse(&x).unwrap());
        assert_same("features", &sparse.to_dense().unwrap(), &features);
        prop_assert_eq!(sparse.nnz(), features.ne(0.0).sum(Kind::Int64).int64_value(&[]));
        prop_assert_eq!((sparse.n_rows(), sparse.d_sae()), (rows, d_sae));
        let out = sae.decode(&features).unwrap();
        assert_close("output", &sae.decode_sparse(&sparse).unwrap(), &out, ROUNDING);
    }

    #[test]
    fn with_zero_thresholds_it_is_relu((d_in, d_sae, d_out, seed) in sizes()) {
        let zeros = Tensor::zeros([d_sae], (Kind::Float, Device::Cpu));
        let sae = with_threshold(d_in, d_sae, d_out, seed, zeros);
        let x = normal(&[20, d_in], seed + 9);
        let relu = (x.matmul(&parameter(&sae, "W_enc")) + parameter(&sae, "b_enc")).relu();
        assert_close("features", &sae.encode(&x).unwrap(), &relu, ROUNDING);
    }

    #[test]
    fn a_latent_writes_its_direction((d_in, d_sae, d_out, seed) in sizes()) {
        let sae = random_sae(d_in, d_sae, d_out, seed);
        let one = Tensor::eye(d_sae, (Kind::Float, Device::Cpu));
        let written = sae.decode(&one).unwrap() - sae.decode(&one.zeros_like()).unwrap();
        for f in 0..d_sae {
            let direction = sae.direction(sae_core::FeatureId(f as usize)).unwrap();
            let largest = written.abs().max().double_value(&[]);
            let off = (written.get(f) - direction).abs().max().double_value(&[]);
            prop_assert!(off <= ROUNDING * largest.max(1.0));
        }
    }
}

/// `encode_sparse` makes 512 rows dense at a time: the seams must not show.
#[test]
fn many_rows_are_as_few() {
    let sae = random_sae(6, 20, 6, 1);
    for rows in [511, 512, 513, 1024, 1300] {
        let x = normal(&[rows, 6], 2) * 2.0;
        let sparse = sae.encode_sparse(&x).unwrap();
        assert_eq!(sparse.n_rows(), rows);
        assert_close("features", &sparse.to_dense().unwrap(), &sae.encode(&x).unwrap(), ROUNDING);
        let again = SparseFeatures::from_dense(&sae.encode(&x).unwrap()).unwrap();
        assert_same("pointers", sparse.indptr(), again.indptr());
    }
}

#[test]
fn what_is_not_finite_stays_visible() {
    let sae = random_sae(6, 20, 6, 1);
    for bad in [f64::NAN, f64::INFINITY] {
        let x = normal(&[3, 6], 2);
        let _ = x.get(1).fill_(bad);
        let (dense, sparse) = (sae.encode(&x).unwrap(), sae.encode_sparse(&x).unwrap().to_dense().unwrap());
        for (form, features) in [("dense", dense), ("sparse", sparse)] {
            assert!(bool_of(&features.get(1).isfinite().logical_not().any()), "{form} hides {bad}");
            assert!(bool_of(&features.get(0).isfinite().all()), "{form} spreads {bad}");
        }
    }
}

#[test]
fn weights_of_another_shape_are_refused_by_name() {
    let good = random_sae(4, 10, 4, 1);
    let names = ["W_enc", "b_enc", "W_dec", "b_dec", "threshold"];
    let build = |wrong: &str, tensor: Tensor| {
        let [w_enc, b_enc, w_dec, b_dec, threshold] =
            names.map(|name| if name == wrong { tensor.shallow_clone() } else { parameter(&good, name) });
        Sae::jumprelu(w_enc, b_enc, w_dec, b_dec, threshold)
    };
    for (name, size) in [
        ("W_enc", vec![4, 9]),
        ("W_enc", vec![10, 4]),
        ("W_enc", vec![4]),
        ("W_enc", vec![4, 10, 1]),
        ("b_enc", vec![9]),
        ("b_enc", vec![1, 10]),
        ("W_dec", vec![9, 4]),
        ("W_dec", vec![10, 5]),
        ("W_dec", vec![4, 10]),
        ("W_dec", vec![10]),
        ("b_dec", vec![5]),
        ("b_dec", vec![4, 1]),
        ("b_dec", vec![]),
        ("threshold", vec![9]),
        ("threshold", vec![10, 1]),
        ("threshold", vec![]),
    ] {
        let zeros = Tensor::zeros(&size, (Kind::Float, Device::Cpu));
        let text = refused(build(name, zeros), &[&format!("`{name}`"), &format!("{size:?}")]);
        assert!(!text.contains("-1"), "speaks of a size that no tensor has: {text}");
    }
    for name in names {
        refused(build(name, parameter(&good, name).to_kind(Kind::Double)), &[name, "F32", "F64"]);
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let tensor = parameter(&good, name).copy();
            let _ = tensor.flatten(0, -1).get(1).fill_(bad);
            refused(build(name, tensor), &[name, "holds 1 NaN or infinite value"]);
        }
    }
}

#[test]
fn inputs_of_another_shape_are_refused_with_both_numbers() {
    let sae = random_sae(4, 10, 6, 1);
    let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
    for size in [vec![2, 5], vec![4, 3], vec![2, 3, 10], vec![]] {
        let (x, got) = (zeros(&size), format!("{size:?}"));
        refused(sae.encode(&x), &["the input", "d_in = 4", &got]);
        refused(sae.encode_sparse(&x), &["the input", "d_in = 4", &got]);
        refused(sae.reconstruct(&x), &["the input", "d_in = 4", &got]);
    }
    for size in [vec![2, 4], vec![2, 3, 9], vec![]] {
        refused(sae.decode(&zeros(&size)), &["the features", "d_sae = 10", &format!("{size:?}")]);
    }
    for size in [vec![4], vec![2, 3, 4]] {
        refused(sae.encode_sparse(&zeros(&size)), &["the input", "two axes", &format!("{size:?}")]);
    }
    let wide = SparseFeatures::from_dense(&zeros(&[2, 11])).unwrap();
    refused(sae.decode_sparse(&wide), &["sparse features", "11", "10"]);
    for feature in [10, 11, usize::MAX] {
        refused(sae.direction(sae_core::FeatureId(feature)), &[&format!("latent {feature}"), "10"]);
    }
}

fn bool_of(t: &Tensor) -> bool {
    t.int64_value(&[]) != 0
}
