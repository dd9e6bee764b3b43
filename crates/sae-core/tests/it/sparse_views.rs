//! `SparseFeatures` seen by row and by latent, cut and put together, against the dense tensor that they came from.

use std::ops::Range;

use proptest::{collection::vec, prelude::*};
use sae_core::{FeatureId, SparseFeatures, TopRows};
use tch::{Device, Kind, Tensor};
use testkit::{assert_same, normal};

use crate::common::{cases, matrix, refused};

/// `[n, d]` of few distinct values, so that ties are many; some rows and latents are empty.
pub(crate) fn dense() -> impl Strategy<Value = Vec<Vec<f32>>> {
    (0usize..9, 1usize..9)
        .prop_flat_map(|(n, d)| vec(vec((0u8..6).prop_map(|v| f32::from(v.saturating_sub(2))), d), n))
}

pub(crate) fn tensor(rows: &[Vec<f32>]) -> Tensor {
    let d = rows.first().map_or(3, Vec::len) as i64;
    Tensor::from_slice(&rows.concat()).reshape([rows.len() as i64, d])
}

fn sparse(rows: &[Vec<f32>]) -> SparseFeatures {
    SparseFeatures::from_dense(&tensor(rows)).unwrap()
}

#[track_caller]
pub(crate) fn same_features(got: &SparseFeatures, want: &SparseFeatures) {
    assert_same("pointers", got.indptr(), want.indptr());
    assert_same("indices", got.indices(), want.indices());
    assert_same("values", got.values(), want.values());
    assert_eq!(got.d_sae(), want.d_sae());
    // The invariants hold too.
    let [p, i, v] = [got.indptr(), got.indices(), got.values()].map(Tensor::shallow_clone);
    SparseFeatures::new(p, i, v, got.d_sae()).unwrap();
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn rows_are_those_of_the_dense_tensor(rows in dense()) {
        let view = sparse(&rows).by_row().unwrap();
        prop_assert_eq!(view.n_rows(), rows.len() as i64);
        for (i, row) in rows.iter().enumerate() {
            let want: Vec<_> = row.iter().enumerate().filter(|(_, v)| **v != 0.0).map(|(f, v)| (FeatureId(f), *v)).collect();
            prop_assert_eq!(view.row(i as i64).unwrap().collect::<Vec<_>>(), want);
        }
    }

    #[test]
    fn latents_are_columns_of_the_dense_tensor(rows in dense()) {
        let features = sparse(&rows);
        let view = features.by_latent().unwrap();
        let counts = Vec::<i64>::try_from(features.latent_counts().unwrap()).unwrap();
        prop_assert_eq!(view.d_sae(), features.d_sae());
        prop_assert_eq!(counts.len() as i64, features.d_sae());
        let mut firing = Vec::new();
        for f in 0..features.d_sae() as usize {
            let want: Vec<_> = (0i64..).zip(&rows).filter(|(_, r)| r[f] != 0.0).map(|(i, r)| (i, r[f])).collect();
            prop_assert_eq!(counts[f], want.len() as i64);
            if !want.is_empty() {
                firing.push(FeatureId(f));
            }
            prop_assert_eq!(view.latent(FeatureId(f)).unwrap().collect::<Vec<_>>(), want);
        }
        prop_assert_eq!(view.firing().collect::<Vec<_>>(), firing);
    }

    #[test]
    fn top_rows_are_a_full_sort(rows in dense(), k in 0usize..6) {
        let mut want = Vec::new();
        for f in 0..rows.first().map_or(0, Vec::len) {
            let mut column: Vec<_> = (0i64..).zip(&rows).map(|(i, r)| (i, r[f])).filter(|(_, v)| *v != 0.0).collect();
            // Stable: of equals the lower row stays first.
            column.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap());
            if !column.is_empty() {
                want.push(TopRows { feature: FeatureId(f), rows: column.into_iter().take(k).collect() });
            }
        }
        prop_assert_eq!(sparse(&rows).top_rows(k).unwrap(), want);
    }

    #[test]
    fn slices_are_slices_of_the_dense_tensor(rows in dense(), cuts in vec(0.0..=1.0, 4)) {
        let (whole, dense) = (sparse(&rows), tensor(&rows));
        let between = |a: f64, b: f64, size: i64| {
            let (a, b) = ((a * size as f64) as i64, (b * size as f64) as i64);
            a.min(b)..a.max(b)
        };
        let (r, l) = (between(cuts[0], cuts[1], whole.n_rows()), between(cuts[2], cuts[3], whole.d_sae()));
        let some = |t: &Tensor, dim, range: &Range<i64>| t.narrow(dim, range.start, range.end - range.start);
        let of = |t: &Tensor| SparseFeatures::from_dense(t).unwrap();
        same_features(&whole.rows(r.clone()).unwrap(), &of(&some(&dense, 0, &r)));
        same_features(&whole.latents(l.clone()).unwrap(), &of(&some(&dense, 1, &l)));
        let both = whole.latents(l.clone()).unwrap().rows(r.clone()).unwrap();
        same_features(&both, &of(&some(&some(&dense, 0, &r), 1, &l)));
    }

    #[test]
    fn slices_put_together_are_the_whole(rows in dense(), one in 0.0..=1.0, other in 0.0..=1.0) {
        let whole = sparse(&rows);
        let cut = |size: i64| {
            let mut cuts = [0, (one * size as f64) as i64, (other * size as f64) as i64, size];
            cuts.sort_unstable();
            cuts
        };
        let rows: Vec<_> = cut(whole.n_rows()).windows(2).map(|w| whole.rows(w[0]..w[1]).unwrap()).collect();
        same_features(&SparseFeatures::concat(&rows).unwrap(), &whole);
        let tiles: Vec<_> = cut(whole.d_sae()).windows(2).map(|w| whole.latents(w[0]..w[1]).unwrap()).collect();
        same_features(&SparseFeatures::beside(&tiles).unwrap(), &whole);
    }

    #[test]
    fn tiles_beside_each_other_are_a_dense_cat(rows in dense(), others in dense()) {
        let n = rows.len().min(others.len());
        let (a, b) = (tensor(&rows).narrow(0, 0, n as i64), tensor(&others).narrow(0, 0, n as i64));
        let of = |t: &Tensor| SparseFeatures::from_dense(t).unwrap();
        let joined = SparseFeatures::beside(&[of(&a), of(&b), of(&a)]).unwrap();
        same_features(&joined, &of(&Tensor::cat(&[&a, &b, &a], 1)));
    }
}

#[test]
fn by_hand() {
    let features =
        SparseFeatures::from_dense(&matrix(&[0.0, 2.0, 0.0, 5.0, 2.0, 0.0, 0.0, 9.0, 0.0], 3)).unwrap();
    let view = features.by_latent().unwrap();
    let of = |f| view.latent(FeatureId(f)).unwrap().collect::<Vec<_>>();
    assert_eq!([of(0), of(1), of(2)], [vec![(1, 5.0)], vec![(0, 2.0), (1, 2.0), (2, 9.0)], vec![]]);
    let top = |f, rows: &[(i64, f32)]| TopRows { feature: FeatureId(f), rows: rows.to_vec() };
    let want = [top(0, &[(1, 5.0)]), top(1, &[(2, 9.0), (0, 2.0)])];
    assert_eq!(features.top_rows(2).unwrap(), want);
    let some = features.latents(1..3).unwrap();
    assert_eq!(Vec::<i64>::try_from(some.indices()).unwrap(), [0, 0, 0], "latents are renumbered");
    assert_eq!(some.d_sae(), 2);
}

#[test]
fn nothing_at_all() {
    for n in [0, 4] {
        let none = SparseFeatures::from_dense(&Tensor::zeros([n, 5], (Kind::Float, Device::Cpu))).unwrap();
        assert_eq!(none.by_row().unwrap().n_rows(), n);
        assert_eq!(none.by_latent().unwrap().firing().count(), 0);
        assert_eq!(none.by_latent().unwrap().latent(FeatureId(4)).unwrap().len(), 0);
        assert!(none.top_rows(3).unwrap().is_empty());
        assert_same(
            "counts",
            &none.latent_counts().unwrap(),
            &Tensor::zeros([5], (Kind::Int64, Device::Cpu)),
        );
        same_features(&none.rows(n..n).unwrap(), &none.rows(0..0).unwrap());
        assert_eq!(none.latents(5..5).unwrap().d_sae(), 0);
        assert_eq!(none.latents(5..5).unwrap().n_rows(), n);
        let parts = [none.latents(0..2).unwrap(), none.latents(2..5).unwrap()];
        same_features(&SparseFeatures::beside(&parts).unwrap(), &none);
    }
}

/// The gradient of the sum of squares is twice the value, whatever the values went through.
#[test]
fn gradients_flow_through_slices_and_joints() {
    let leaf = normal(&[4, 6], 1).relu().set_requires_grad(true);
    let whole = SparseFeatures::from_dense(&leaf).unwrap();
    let tiles = [whole.latents(0..2).unwrap(), whole.latents(2..6).unwrap()];
    let joined = SparseFeatures::beside(&tiles).unwrap();
    let halves = [joined.rows(0..1).unwrap(), joined.rows(1..4).unwrap()];
    let out = SparseFeatures::concat(&halves).unwrap().to_dense().unwrap();
    out.square().sum(Kind::Float).backward();
    assert_same("gradient", &leaf.grad(), &(leaf.detach() * 2.0));
    // Looking carries no gradient and needs none to be off.
    assert_eq!(whole.by_row().unwrap().n_rows(), 4);
    assert_eq!(whole.by_latent().unwrap().d_sae(), 6);
}

#[test]
fn what_is_not_there_is_refused() {
    let features = SparseFeatures::from_dense(&normal(&[3, 5], 1)).unwrap();
    let backwards = Range { start: 2, end: 1 };
    for range in [-1..2, backwards.clone(), 0..6, 6..6, i64::MIN..i64::MAX] {
        refused(features.latents(range), &["out of range", "there are 5"]);
    }
    for range in [-1..2, backwards, 0..4, 4..4, 0..i64::MAX] {
        refused(features.rows(range), &["out of range", "there are 3"]);
    }
    let (rows, latents) = (features.by_row().unwrap(), features.by_latent().unwrap());
    for row in [-1, 3, i64::MAX, i64::MIN] {
        refused(rows.row(row).map(|_| ()), &["out of range", "there are 3", &row.to_string()]);
    }
    for feature in [5, usize::MAX] {
        refused(
            latents.latent(FeatureId(feature)).map(|_| ()),
            &["latent", "the SAE has 5", &feature.to_string()],
        );
        refused(latents.top(FeatureId(feature), 1), &["the SAE has 5"]);
    }
    refused(SparseFeatures::beside(&[]), &["sparse features", "nothing"]);
    let other = SparseFeatures::from_dense(&normal(&[2, 5], 1)).unwrap();
    refused(SparseFeatures::beside(&[features, other]), &["sparse features", "different numbers of rows"]);
}

#[test]
fn widths_beyond_all_memory() {
    let wide = |d_sae: i64| {
        let parts =
            [Tensor::from_slice(&[0i64, 0]), Tensor::from_slice::<i64>(&[]), Tensor::from_slice::<f32>(&[])];
        let [indptr, indices, values] = parts;
        SparseFeatures::new(indptr, indices, values, d_sae)
    };
    refused(wide(-1), &["sparse features", "d_sae", "negative"]);
    let widest = wide(i64::MAX).unwrap();
    refused(widest.by_latent(), &["memory"]);
    let twice = SparseFeatures::concat(&[wide(i64::MAX).unwrap(), wide(i64::MAX).unwrap()]).unwrap();
    refused(twice.to_dense(), &["sparse features", "too many"]);
    refused(SparseFeatures::beside(&[widest, wide(1).unwrap()]), &["sparse features", "too many"]);
}
