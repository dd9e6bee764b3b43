//! L0, L1, frequencies, dead latents, histograms: all from one count.

use eval::{DensityHistogram, L0Histogram, Sparsity};
use proptest::{collection::vec, prelude::*};
use sae_core::SparseFeatures;
use tch::{Kind, Tensor};

use crate::common::{FLOAT64, cases, refused, zeros};

/// Latents of some positions, and the sequence that each belongs to.
#[derive(Debug)]
struct Data {
    features: Tensor,
    sequences: Vec<u32>,
}

impl Data {
    fn n(&self) -> i64 {
        self.features.size()[0]
    }

    fn rows(&self, range: std::ops::Range<usize>) -> Self {
        let features = self.features.narrow(0, range.start as i64, range.len() as i64);
        Self { features, sequences: self.sequences[range].to_vec() }
    }

    fn add_to(&self, sparsity: &mut Sparsity) {
        let features = SparseFeatures::from_dense(&self.features).unwrap();
        sparsity.add(&features, Some(&self.sequences)).unwrap();
    }

    fn sparsity(&self) -> Sparsity {
        let mut sparsity = Sparsity::new(self.features.size()[1]);
        self.add_to(&mut sparsity);
        sparsity
    }

    /// Whether a latent is on at a position.
    fn on(&self, row: i64, latent: i64) -> bool {
        self.features.double_value(&[row, latent]) > 0.0
    }

    fn active(&self) -> Vec<u64> {
        let d = self.features.size()[1];
        (0..self.n()).map(|i| (0..d).filter(|j| self.on(i, *j)).count() as u64).collect()
    }
}

fn data() -> impl Strategy<Value = Data> {
    (1usize..20, 1usize..12).prop_flat_map(|(n, d)| {
        let values = vec(prop_oneof![3 => Just(0.0f32), 1 => 0.1f32..5.0], n * d);
        (values, vec(0u32..3, n)).prop_map(move |(values, steps)| Data {
            features: Tensor::from_slice(&values).reshape([n as i64, d as i64]),
            sequences: steps
                .iter()
                .scan(0, |at, step| {
                    *at += step;
                    Some(*at)
                })
                .collect(),
        })
    })
}

fn each_its_own(features: &Tensor) -> Sparsity {
    let mut sparsity = Sparsity::new(features.size()[1]);
    sparsity.add(&SparseFeatures::from_dense(features).unwrap(), None).unwrap();
    sparsity
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn as_defined(data in data()) {
        let (n, d) = data.features.size2().unwrap();
        let sparsity = data.sparsity();
        let frequency: Vec<f64> =
            (0..d).map(|j| (0..n).filter(|i| data.on(*i, j)).count() as f64 / n as f64).collect();
        let active = data.active();
        let mean = active.iter().sum::<u64>() as f64 / n as f64;
        let variance = active.iter().map(|l0| (*l0 as f64 - mean).powi(2)).sum::<f64>() / n as f64;
        let dead = frequency.iter().filter(|f| **f == 0.0).count();
        prop_assert_eq!(sparsity.tokens(), n as u64);
        prop_assert_eq!(sparsity.l0(), Some(mean));
        prop_assert!((sparsity.l0_std().unwrap() - variance.sqrt()).abs() <= FLOAT64);
        prop_assert_eq!(sparsity.frequency(), Some(frequency));
        prop_assert_eq!(sparsity.dead(), dead as u64);
        prop_assert_eq!(sparsity.dead_fraction(), Some(dead as f64 / d as f64));
        let l1 = data.features.to_kind(Kind::Double).abs().sum(Kind::Double).double_value(&[]) / n as f64;
        prop_assert!((sparsity.l1().unwrap() - l1).abs() <= FLOAT64 * (1.0 + l1));
    }

    #[test]
    fn quantiles(data in data(), q in 0.001f64..=1.0) {
        let mut active = data.active();
        active.sort_unstable();
        let n = active.len();
        let sparsity = data.sparsity();
        // The least that is at or below in a share of q.
        let least = active.iter().find(|l0| {
            active.iter().filter(|other| other <= l0).count() as f64 >= q * n as f64
        });
        prop_assert_eq!(sparsity.l0_quantile(q), least.copied());
        prop_assert_eq!(sparsity.l0_quantile(0.5), Some(active[(n - 1) / 2]));
        prop_assert_eq!(sparsity.l0_quantile(1.0), active.last().copied());
        prop_assert_eq!(sparsity.l0_quantile(0.0), active.first().copied());
    }

    #[test]
    fn l0_is_the_sum_of_the_frequencies(data in data()) {
        let sparsity = data.sparsity();
        let sum: f64 = sparsity.frequency().unwrap().iter().sum();
        prop_assert!((sparsity.l0().unwrap() - sum).abs() <= FLOAT64);
    }

    #[test]
    fn every_latent_is_dead_or_alive_and_in_one_bin(data in data()) {
        let sparsity = data.sparsity();
        let frequency = sparsity.frequency().unwrap();
        let alive: Vec<f64> = frequency.into_iter().filter(|f| *f > 0.0).collect();
        let d = data.features.size()[1] as u64;
        prop_assert_eq!(sparsity.dead() + alive.len() as u64, d);
        let DensityHistogram { log10_edges: edges, latents, dead } = sparsity.density_histogram();
        prop_assert_eq!(dead, sparsity.dead());
        prop_assert_eq!(latents.iter().sum::<u64>() + dead, d);
        prop_assert_eq!(edges.len(), latents.len() + 1);
        prop_assert!(edges.windows(2).all(|e| e[0] < e[1]));
        prop_assert_eq!(edges.last(), Some(&0.0));
        // The lowest frequency that the data can show lies in the first bin.
        let lowest = -(data.n() as f64).log10();
        prop_assert!(edges[0] <= lowest && (lowest < edges[1] || data.n() == 1));
        let bins = latents.len();
        for (i, n) in latents.iter().enumerate() {
            let inside = |f: &&f64| {
                let log = f.log10();
                edges[i] <= log && (log < edges[i + 1] || i + 1 == bins)
            };
            prop_assert_eq!(alive.iter().filter(inside).count() as u64, *n, "bin {}", i);
        }
    }

    #[test]
    fn every_position_is_in_the_histogram(data in data()) {
        let L0Histogram { l0, tokens } = data.sparsity().l0_histogram();
        prop_assert!(l0.windows(2).all(|pair| pair[0] < pair[1]) && tokens.iter().all(|n| *n > 0));
        let active = data.active();
        prop_assert_eq!(tokens.iter().sum::<u64>(), active.len() as u64);
        for (l0, n) in l0.iter().zip(&tokens) {
            prop_assert_eq!(active.iter().filter(|own| *own == l0).count() as u64, *n);
        }
    }

    #[test]
    fn shares_above_a_limit(data in data(), limit in 0.0f64..1.0) {
        let sparsity = data.sparsity();
        let frequency = sparsity.frequency().unwrap();
        let over: Vec<f64> = frequency.iter().copied().filter(|f| *f > limit).collect();
        let (share, mass) = sparsity.above(limit).unwrap();
        prop_assert_eq!(share, over.len() as f64 / frequency.len() as f64);
        let all: f64 = frequency.iter().sum();
        prop_assert_eq!(mass.is_some(), all > 0.0);
        if let Some(mass) = mass {
            prop_assert!((mass - over.iter().sum::<f64>() / all).abs() <= FLOAT64);
        }
    }

    #[test]
    fn how_latents_keep_to_sequences(data in data()) {
        let d = data.features.size()[1];
        let want: Vec<Option<f64>> = (0..d)
            .map(|j| {
                let of: Vec<u32> =
                    (0..data.n()).filter(|i| data.on(*i, j)).map(|i| data.sequences[i as usize]).collect();
                let mut sequences = of.clone();
                sequences.dedup();
                (!of.is_empty()).then(|| of.len() as f64 / sequences.len() as f64)
            })
            .collect();
        prop_assert_eq!(data.sparsity().consistent_activation(), want.clone());
        // Each position a sequence of its own: one each.
        let alone = each_its_own(&data.features).consistent_activation();
        prop_assert!(alone.iter().zip(&want).all(|(alone, want)| *alone == want.map(|_| 1.0)));
        let alive: Vec<f64> = want.into_iter().flatten().collect();
        let mean = data.sparsity().mean_consistent_activation();
        prop_assert_eq!(mean.is_some(), !alive.is_empty());
        let naive = alive.iter().sum::<f64>() / alive.len() as f64;
        prop_assert!(mean.is_none_or(|mean| (mean - naive).abs() <= FLOAT64));
    }

    /// Sequences are never divided.
    #[test]
    fn splitting_and_merging_do_not_matter(data in data(), cut in 0.0..=1.0) {
        let n = data.n() as usize;
        let mut cut = (n as f64 * cut) as usize;
        while cut > 0 && cut < n && data.sequences[cut] == data.sequences[cut - 1] {
            cut += 1;
        }
        let (first, second) = (data.rows(0..cut), data.rows(cut..n));
        let whole = {
            let mut whole = first.sparsity();
            second.add_to(&mut whole);
            whole
        };
        let mut merged = second.sparsity();
        merged.merge(&first.sparsity()).unwrap();
        prop_assert_eq!(&merged, &whole);
        // At once: all but L1, which is summed plainly within a call.
        let at_once = data.sparsity();
        prop_assert_eq!(at_once.l0_histogram(), whole.l0_histogram());
        prop_assert_eq!(at_once.frequency(), whole.frequency());
        prop_assert_eq!(at_once.consistent_activation(), whole.consistent_activation());
        prop_assert!((at_once.l1().unwrap() - whole.l1().unwrap()).abs() <= FLOAT64);
        let text = serde_json::to_string(&whole).unwrap();
        prop_assert_eq!(serde_json::from_str::<Sparsity>(&text).unwrap(), whole);
    }
}

#[test]
fn by_hand() {
    // Latent 0 on three positions of one sequence and one of another, latent 1 on one, latent 2 on none.
    let on = [[1.0f32, 0.0, 0.0], [2.0, 0.0, 0.0], [3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [5.0, 0.0, 0.0]];
    let features = SparseFeatures::from_dense(&Tensor::from_slice2(&on)).unwrap();
    let mut got = Sparsity::new(3);
    got.add(&features, Some(&[0, 0, 0, 7, 7])).unwrap();
    assert_eq!(got.consistent_activation(), [Some(2.0), Some(1.0), None]);
    assert_eq!(got.mean_consistent_activation(), Some(1.5));
    assert_eq!((got.l0(), got.l0_quantile(0.5), got.l1()), (Some(1.0), Some(1), Some(3.0)));
    assert_eq!(got.l0_histogram(), L0Histogram { l0: vec![0, 1, 2], tokens: vec![1, 3, 1] });
    assert_eq!(got.above(0.5), Some((1.0 / 3.0, Some(0.8))));
    // The same numbers in the next call are other sequences.
    got.add(&features, Some(&[0, 0, 0, 7, 7])).unwrap();
    assert_eq!(got.consistent_activation(), [Some(2.0), Some(1.0), None]);
    got.add(&features, None).unwrap();
    assert_eq!(got.consistent_activation(), [Some(12.0 / 8.0), Some(1.0), None]);
}

/// A frequency that is an edge belongs to the bin above it, but for 1.
#[test]
fn the_edges_of_the_bins() {
    // 1000 positions: latents on 1, 10, 100 and all of them.
    let column = |n: i64| Tensor::arange(1000, (Kind::Int64, tch::Device::Cpu)).lt(n).to_kind(Kind::Float);
    let got = each_its_own(&Tensor::stack(&[column(1), column(10), column(100), column(1000)], 1));
    let DensityHistogram { log10_edges: edges, latents, dead } = got.density_histogram();
    assert_eq!((edges.len(), edges[0], edges[12], dead), (13, -3.0, 0.0, 0));
    assert_eq!(latents, [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1]);
}

#[test]
fn before_the_first_token_there_is_nothing_to_tell() {
    for got in [Sparsity::new(5), each_its_own(&zeros(&[0, 5]))] {
        assert_eq!((got.tokens(), got.l0(), got.l0_std(), got.l0_quantile(0.5)), (0, None, None, None));
        assert_eq!((got.frequency(), got.dead(), got.dead_fraction(), got.l1()), (None, 5, None, None));
        assert_eq!((got.above(0.01), got.mean_consistent_activation()), (None, None));
        assert_eq!(got.density_histogram(), DensityHistogram { dead: 5, ..DensityHistogram::default() });
        assert_eq!(got.l0_histogram(), L0Histogram::default());
    }
    let off = each_its_own(&zeros(&[2, 3]));
    assert_eq!((off.tokens(), off.l0(), off.l0_std(), off.l1()), (2, Some(0.0), Some(0.0), Some(0.0)));
    assert_eq!((off.frequency(), off.dead_fraction()), (Some(vec![0.0; 3]), Some(1.0)));
    assert_eq!((off.above(0.0), off.mean_consistent_activation()), (Some((0.0, None)), None));
}

#[test]
fn what_does_not_fit_is_refused() {
    let mut counts = Sparsity::new(5);
    let sparse = |t: &Tensor| SparseFeatures::from_dense(t).unwrap();
    refused(counts.add(&sparse(&zeros(&[2, 6])), None), &["5", "6", "latents"]);
    refused(counts.merge(&Sparsity::new(4)), &["5", "4", "latents", "can't be merged"]);
    refused(counts.add(&sparse(&zeros(&[2, 5])), Some(&[0])), &["sequences", "2"]);
    assert_eq!(counts, Sparsity::new(5));
}
