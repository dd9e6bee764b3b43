//! The strongest latents, in order.

use proptest::{collection::vec, prelude::*};
use sae_core::{FeatureHit, FeatureId, SparseFeatures, top_features};
use testkit::normal;

use crate::common::{cases, matrix, refused};

fn hit(row: i64, pos: i64, feature: usize, activation: f64) -> FeatureHit {
    FeatureHit { row, pos, feature: FeatureId(feature), activation }
}

#[test]
fn strongest_first_and_ties_to_the_lower_index() {
    let features = matrix(&[1.0, 3.0, 0.0, 3.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 0.0], 5);
    let sparse = SparseFeatures::from_dense(&features).unwrap();
    let row = |k| {
        sparse.top_k(k).unwrap().into_iter().map(|r| r.into_iter().map(|(f, v)| (f.0, v)).collect()).collect()
    };
    let all: Vec<Vec<(usize, f64)>> = row(9);
    assert_eq!(all, [vec![(1, 3.0), (3, 3.0), (4, 2.0), (0, 1.0)], vec![], vec![(0, 4.0)]]);
    let one: Vec<Vec<(usize, f64)>> = row(1);
    assert_eq!(one, [vec![(1, 3.0)], vec![], vec![(0, 4.0)]]);
    let none: Vec<Vec<(usize, f64)>> = row(0);
    assert_eq!(none, [vec![], vec![], vec![]]);
}

#[test]
fn token_by_token() {
    let features =
        matrix(&[0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 5.0, 5.0, 1.0, 0.0, 0.5, 0.0], 3).reshape([2, 2, 3]);
    let want =
        [hit(0, 0, 2, 2.0), hit(0, 0, 1, 1.0), hit(1, 0, 0, 5.0), hit(1, 0, 1, 5.0), hit(1, 1, 1, 0.5)];
    assert_eq!(top_features(&features, 2).unwrap(), want);
    assert!(top_features(&features.narrow(1, 0, 0), 2).unwrap().is_empty());
}

#[test]
fn features_of_other_axes_are_refused() {
    for size in [vec![3], vec![2, 3], vec![1, 2, 3, 4]] {
        refused(top_features(&normal(&size, 1), 2), &["features", "three axes", &format!("{size:?}")]);
    }
}

proptest! {
    #![proptest_config(cases(64))]

    /// Few distinct values, so that ties are many.
    #[test]
    fn as_a_full_sort_gives_them(values in vec(0u8..4, 24), k in 0usize..8) {
        let values: Vec<f32> = values.into_iter().map(f32::from).collect();
        let got = SparseFeatures::from_dense(&matrix(&values, 6)).unwrap().top_k(k).unwrap();
        for (row, got) in values.chunks(6).zip(got) {
            let mut want: Vec<(FeatureId, f64)> =
                row.iter().enumerate().map(|(i, v)| (FeatureId(i), f64::from(*v))).collect();
            want.retain(|(_, v)| *v != 0.0);
            want.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
            want.truncate(k);
            prop_assert_eq!(got, want);
        }
    }
}
