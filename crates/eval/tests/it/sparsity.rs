//! L0, frequencies and dead latents: all from one count.

use eval::Sparsity;
use proptest::{collection::vec, prelude::*};
use sae_core::SparseFeatures;
use tch::{Kind, Tensor};

use crate::common::{FLOAT64, cases, refused, zeros};

fn features() -> impl Strategy<Value = Tensor> {
    (1usize..20, 1usize..12).prop_flat_map(|(n, d)| {
        vec(prop_oneof![3 => Just(0.0f32), 1 => 0.1f32..5.0], n * d)
            .prop_map(move |v| Tensor::from_slice(&v).reshape([n as i64, d as i64]))
    })
}

fn sparsity(features: &Tensor) -> Sparsity {
    let mut sparsity = Sparsity::new(features.size()[1]).unwrap();
    sparsity.add(&SparseFeatures::from_dense(features).unwrap()).unwrap();
    sparsity
}

/// Everything that it tells.
fn told(s: &Sparsity) -> (i64, Option<f64>, Option<Vec<f64>>, i64, Option<f64>) {
    (s.tokens(), s.l0().unwrap(), s.frequency().unwrap(), s.dead().unwrap(), s.dead_fraction().unwrap())
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn as_defined(features in features()) {
        let (n, d) = features.size2().unwrap();
        let active = features.ne(0.0).to_kind(Kind::Double);
        let frequency = active.sum_dim_intlist(0, false, Kind::Double) / n as f64;
        let frequency = Vec::<f64>::try_from(frequency).unwrap();
        let dead = frequency.iter().filter(|f| **f == 0.0).count();
        let l0 = active.sum(Kind::Double).double_value(&[]) / n as f64;
        let want = (n, Some(l0), Some(frequency), dead as i64, Some(dead as f64 / d as f64));
        prop_assert_eq!(told(&sparsity(&features)), want);
    }

    #[test]
    fn l0_is_the_sum_of_the_frequencies(features in features()) {
        let sparsity = sparsity(&features);
        let sum: f64 = sparsity.frequency().unwrap().unwrap().iter().sum();
        prop_assert!((sparsity.l0().unwrap().unwrap() - sum).abs() <= FLOAT64);
    }

    #[test]
    fn every_latent_is_dead_or_alive(features in features()) {
        let sparsity = sparsity(&features);
        let alive = sparsity.frequency().unwrap().unwrap().iter().filter(|f| **f > 0.0).count() as i64;
        prop_assert_eq!(sparsity.dead().unwrap() + alive, features.size()[1]);
    }

    #[test]
    fn splitting_and_merging_do_not_matter(features in features(), cut in 0.0..=1.0) {
        let n = features.size()[0];
        let cut = (n as f64 * cut) as i64;
        let (first, second) = (features.narrow(0, 0, cut), features.narrow(0, cut, n - cut));
        let whole = told(&sparsity(&features));
        let mut merged = sparsity(&second);
        merged.merge(&sparsity(&first)).unwrap();
        prop_assert_eq!(told(&merged), whole.clone());
        let mut added = sparsity(&first);
        added.add(&SparseFeatures::from_dense(&second).unwrap()).unwrap();
        prop_assert_eq!(told(&added), whole);
    }
}

#[test]
fn before_the_first_token_there_is_nothing_to_tell() {
    assert_eq!(told(&Sparsity::new(5).unwrap()), (0, None, None, 5, None));
    assert_eq!(told(&sparsity(&zeros(&[0, 5]))), (0, None, None, 5, None));
    assert_eq!(told(&sparsity(&zeros(&[2, 3]))), (2, Some(0.0), Some(vec![0.0; 3]), 3, Some(1.0)));
}

#[test]
fn features_of_another_width_are_refused() {
    let mut counts = Sparsity::new(5).unwrap();
    let wide = SparseFeatures::from_dense(&zeros(&[2, 6])).unwrap();
    refused(counts.add(&wide), &["5", "6", "latents"]);
    refused(counts.merge(&Sparsity::new(4).unwrap()), &["5", "4", "latents", "can't be merged"]);
    assert_eq!(told(&counts), (0, None, None, 5, None));
}
