//! `SparseFeatures`: what goes in comes out.

use proptest::{collection::vec, prelude::*};
use sae_core::SparseFeatures;
use tch::{Device, Kind, Tensor};
use testkit::{assert_same, normal};

use crate::common::{cases, matrix};

/// `[n, d]` with about half of its entries zero, some rows empty.
fn dense() -> impl Strategy<Value = Tensor> {
    (0usize..7, 1usize..9).prop_flat_map(|(n, d)| {
        let row = (any::<bool>(), vec((any::<bool>(), 0.01f32..9.0), d)).prop_map(|(some, row)| {
            row.into_iter().map(move |(on, v)| if some && on { v } else { 0.0 }).collect::<Vec<f32>>()
        });
        vec(row, n).prop_map(move |rows| Tensor::from_slice(&rows.concat()).reshape([n as i64, d as i64]))
    })
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn dense_to_sparse_and_back(features in dense()) {
        let sparse = SparseFeatures::from_dense(&features).unwrap();
        assert_same("features", &sparse.to_dense().unwrap(), &features);
        prop_assert_eq!(vec![sparse.n_rows(), sparse.d_sae()], features.size());
    }

    #[test]
    fn parts_pass_for_features_made_elsewhere(features in dense()) {
        let made = SparseFeatures::from_dense(&features).unwrap();
        let parts = [made.indptr(), made.indices(), made.values()].map(Tensor::shallow_clone);
        let [indptr, indices, values] = parts;
        let again = SparseFeatures::new(indptr, indices, values, made.d_sae()).unwrap();
        assert_same("features", &again.to_dense().unwrap(), &features);
    }

    #[test]
    fn counts_are_those_of_the_rows(features in dense()) {
        let counts = SparseFeatures::from_dense(&features).unwrap().counts().unwrap();
        assert_same("counts", &counts, &features.ne(0.0).sum_dim_intlist(1, false, Kind::Int64));
    }

    #[test]
    fn rows_cut_apart_and_put_together(features in dense(), one in 0.0..=1.0, other in 0.0..=1.0) {
        let n = features.size()[0];
        let mut cuts = [0, (one * n as f64) as i64, (other * n as f64) as i64, n];
        cuts.sort_unstable();
        let part = |w: &[i64]| SparseFeatures::from_dense(&features.narrow(0, w[0], w[1] - w[0])).unwrap();
        let parts: Vec<SparseFeatures> = cuts.windows(2).map(part).collect();
        let joined = SparseFeatures::concat(&parts).unwrap();
        let whole = SparseFeatures::from_dense(&features).unwrap();
        assert_same("pointers", joined.indptr(), whole.indptr());
        assert_same("indices", joined.indices(), whole.indices());
        assert_same("values", joined.values(), whole.values());
        prop_assert_eq!(joined.d_sae(), whole.d_sae());
    }
}

#[test]
fn a_case_by_hand() {
    let features = matrix(&[0.0, 2.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0], 4);
    let sparse = SparseFeatures::from_dense(&features).unwrap();
    assert_eq!(Vec::<i64>::try_from(sparse.indptr()).unwrap(), [0, 2, 2, 3]);
    assert_eq!(Vec::<i64>::try_from(sparse.indices()).unwrap(), [1, 3, 0]);
    assert_eq!(Vec::<f32>::try_from(sparse.values()).unwrap(), [2.0, 1.0, 5.0]);
    assert_eq!((sparse.n_rows(), sparse.nnz(), sparse.d_sae()), (3, 3, 4));
}

#[test]
fn no_rows_and_empty_rows() {
    for n in [0, 1, 5] {
        let zeros = Tensor::zeros([n, 4], (Kind::Float, Device::Cpu));
        let sparse = SparseFeatures::from_dense(&zeros).unwrap();
        assert_eq!((sparse.n_rows(), sparse.nnz()), (n, 0));
        assert_same("features", &sparse.to_dense().unwrap(), &zeros);
        assert!(sparse.top_k(3).unwrap().iter().all(Vec::is_empty));
        assert_eq!(sparse.top_k(3).unwrap().len(), n as usize);
        let bias = crate::common::random_sae(3, 4, 3, 1);
        let out = sae_core::SparseAutoencoder::decode_sparse(&bias, &sparse).unwrap();
        assert_same("b_dec alone", &out, &crate::common::parameter(&bias, "b_dec").expand([n, 3], false));
    }
}

#[test]
fn gradients_flow_through_the_values() {
    let features = normal(&[3, 5], 1).relu().set_requires_grad(true);
    let out = SparseFeatures::from_dense(&features).unwrap().to_dense().unwrap();
    out.square().sum(Kind::Float).backward();
    assert_same("gradient", &features.grad(), &(features.detach() * 2.0));
}
