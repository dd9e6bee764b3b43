//! `SparseFeatures::new` refuses each invariant that does not hold, and says which.

use sae_core::SparseFeatures;
use tch::{Kind, Tensor};
use testkit::normal;

use crate::common::refused;

fn new(indptr: &[i64], indices: &[i64], values: &[f32]) -> sae_core::Result<SparseFeatures> {
    let of = |t: &[i64]| Tensor::from_slice(t);
    SparseFeatures::new(of(indptr), of(indices), Tensor::from_slice(values), 4)
}

#[test]
fn a_sound_one_is_taken() {
    assert_eq!(new(&[0, 2, 2, 3], &[1, 3, 0], &[1.0, 2.0, 3.0]).unwrap().nnz(), 3);
}

#[test]
fn row_pointers_that_do_not_rise_from_zero_to_the_end() {
    let at_fault = ["sparse features", "indptr", "rise from 0 to the number of entries"];
    for indptr in [[1, 2, 3], [0, 2, 2], [0, 3, 2], [0, -1, 3], [0, 4, 3], [-1, 2, 3], [0, 0, 4]] {
        refused(new(&indptr, &[1, 3, 0], &[1.0, 2.0, 3.0]), &at_fault);
    }
    refused(new(&[], &[], &[]), &["sparse features", "indptr"]);
    refused(new(&[0], &[1], &[1.0]), &at_fault);
}

#[test]
fn indices_out_of_order_or_range() {
    for indices in [[3, 1, 0], [1, 1, 0], [1, 4, 0], [-1, 1, 0], [1, 3, i64::MAX]] {
        let at_fault = ["sparse features", "indices of a row", "ascend", "less than d_sae"];
        refused(new(&[0, 2, 3], &indices, &[1.0, 2.0, 3.0]), &at_fault);
    }
}

#[test]
fn a_stored_zero() {
    for zero in [0.0, -0.0] {
        refused(new(&[0, 2, 3], &[1, 3, 0], &[1.0, zero, 3.0]), &["sparse features", "zero"]);
    }
}

#[test]
fn tensors_of_other_shapes_or_dtypes() {
    let (p, i, v) = (Tensor::from_slice(&[0i64, 1]), Tensor::from_slice(&[1i64]), normal(&[1], 1));
    let take = |p: &Tensor, i: &Tensor, v: &Tensor| {
        SparseFeatures::new(p.shallow_clone(), i.shallow_clone(), v.shallow_clone(), 4)
    };
    take(&p, &i, &v).unwrap();
    refused(take(&p.to_kind(Kind::Int), &i, &v), &["sparse features", "indptr", "int64"]);
    refused(take(&p, &i.to_kind(Kind::Int), &v), &["sparse features", "indices", "int64"]);
    refused(take(&p.unsqueeze(0), &i, &v), &["indptr", "one axis"]);
    refused(take(&p, &i.unsqueeze(0), &v.unsqueeze(0)), &["indices", "one axis"]);
    refused(take(&p, &i, &normal(&[2], 1)), &["values", "equally long"]);
}

#[test]
fn dense_features_of_other_axes() {
    for size in [vec![4], vec![2, 3, 4], vec![]] {
        let at_fault = ["sparse features", "[n, d_sae]", &format!("{size:?}")];
        refused(SparseFeatures::from_dense(&normal(&size, 1)), &at_fault);
    }
}

#[test]
fn parts_that_can_not_be_put_together() {
    refused(SparseFeatures::concat(&[]), &["sparse features", "nothing"]);
    let parts = [4, 5].map(|d| SparseFeatures::from_dense(&normal(&[2, d], 1)).unwrap());
    refused(SparseFeatures::concat(&parts), &["sparse features", "different widths"]);
}
