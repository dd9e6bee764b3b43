//! The laws of reconstructions on random data.

use eval::Reconstruction;
use proptest::{collection::vec, prelude::*, sample::Index};
use tch::{Kind, Tensor};
use testkit::normal;

use crate::common::{FLOAT64, cases};

#[derive(Debug)]
struct Data {
    x: Tensor,
    x_hat: Tensor,
}

impl Data {
    fn n(&self) -> i64 {
        self.x.size()[0]
    }

    /// About the first row.
    fn quality(&self) -> Reconstruction {
        let mut quality = Reconstruction::new(self.x.size()[1]);
        quality.add(&self.x, &self.x_hat).unwrap();
        quality
    }

    /// About the mean.
    fn about_mean(&self) -> Reconstruction {
        self.about(&floats(&mean(&self.x).squeeze_dim(0)))
    }

    fn about(&self, centre: &[f64]) -> Reconstruction {
        let mut quality = Reconstruction::about(centre);
        quality.add(&self.x, &self.x_hat).unwrap();
        quality
    }

    fn value(&self) -> f64 {
        self.quality().fvu().unwrap()
    }

    fn map(&self, f: impl Fn(&Tensor) -> Tensor) -> Self {
        Self { x: f(&self.x), x_hat: f(&self.x_hat) }
    }

    fn rows(&self, start: i64, length: i64) -> Self {
        self.map(|t| t.narrow(0, start, length))
    }
}

prop_compose! {
    /// Correlated and off centre, in float64 so that shifting it rounds little.
    fn data()(n in 2i64..40, d in 1i64..8, noise in 0.0..2.0, seed in 0u64..10_000) -> Data {
        let x = (normal(&[n, d], seed) + normal(&[1, d], seed + 1) * 3.0).to_kind(Kind::Double);
        let x_hat = &x + normal(&[n, d], seed + 2).to_kind(Kind::Double) * noise;
        Data { x, x_hat }
    }
}

type Named = (&'static str, fn(&Reconstruction) -> Option<f64>);

/// Unchanged by a common scale.
const RATIOS: [Named; 7] = [
    ("fvu", Reconstruction::fvu),
    ("frac_variance_explained", Reconstruction::frac_variance_explained),
    ("explained_variance_legacy", Reconstruction::explained_variance_legacy),
    ("normalized_mse", Reconstruction::normalized_mse),
    ("cosine", Reconstruction::cosine),
    ("l2_ratio", Reconstruction::l2_ratio),
    ("relative_reconstruction_bias", Reconstruction::relative_reconstruction_bias),
];
/// Units of x.
const LENGTHS: [Named; 3] = [
    ("l2_loss", Reconstruction::l2_loss),
    ("l2_norm_in", Reconstruction::l2_norm_in),
    ("l2_norm_out", Reconstruction::l2_norm_out),
];
/// Squared units of x.
const SQUARES: [Named; 2] =
    [("mse", Reconstruction::mse), ("total_variance", |quality| Some(quality.total_variance()))];

fn every() -> impl Iterator<Item = Named> {
    RATIOS.into_iter().chain(LENGTHS).chain(SQUARES)
}

fn floats(t: &Tensor) -> Vec<f64> {
    Vec::<f64>::try_from(t).unwrap()
}

fn mean(x: &Tensor) -> Tensor {
    x.mean_dim(Some([0].as_slice()), true, Kind::Double)
}

#[track_caller]
fn same(got: Option<f64>, want: f64) {
    within("fvu", got, want, FLOAT64);
}

#[track_caller]
fn within(name: &str, got: Option<f64>, want: f64, tolerance: f64) {
    let got = got.unwrap();
    assert!((got - want).abs() <= tolerance * want.abs().max(1.0), "{name}: {got} and {want}");
}

/// How much the rounding of a sum may show in a metric of the data: the bias divides by one that may nearly cancel, and a mean of
/// ratios by what may be small.
fn condition(data: &Data) -> f64 {
    let norms = |t: &Tensor| floats(&t.square().sum_dim_intlist(-1, false, Kind::Double).sqrt());
    let dot = (&data.x * &data.x_hat).sum(Kind::Double).double_value(&[]).abs();
    let (own, theirs) = (norms(&data.x), norms(&data.x_hat));
    let gross: f64 = own.iter().zip(&theirs).map(|(a, b)| a * b).sum();
    let from_mean = norms(&(&data.x - mean(&data.x)));
    let largest = theirs.iter().chain(&own).copied().fold(1.0, f64::max);
    let smallest = own.iter().chain(&from_mean).copied().fold(1.0, f64::min);
    (gross / dot).max((largest / smallest).powi(2))
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn as_defined(data in data()) {
        let row = |t: Tensor| floats(&t.sum_dim_intlist(-1, false, Kind::Double));
        let squares = |t: &Tensor| row(t.square());
        let (error, own, theirs) = (squares(&(&data.x - &data.x_hat)), squares(&data.x), squares(&data.x_hat));
        let (spread, dot) = (squares(&(&data.x - mean(&data.x))), row(&data.x * &data.x_hat));
        let difference = &data.x - &data.x_hat;
        let spread_of_error = squares(&(&difference - mean(&difference)));
        let n = error.len();
        let sum = |of: &[f64]| of.iter().sum::<f64>();
        let average = |of: &dyn Fn(usize) -> f64| (0..n).map(of).sum::<f64>() / n as f64;
        let got = data.about_mean();
        let wants = [
            ("fvu", sum(&error) / sum(&spread)),
            ("frac_variance_explained", 1.0 - sum(&spread_of_error) / sum(&spread)),
            ("explained_variance_legacy", average(&|i| 1.0 - error[i] / spread[i])),
            ("normalized_mse", average(&|i| error[i] / own[i])),
            ("cosine", average(&|i| dot[i] / (own[i] * theirs[i]).sqrt())),
            ("l2_ratio", average(&|i| (theirs[i] / own[i]).sqrt())),
            ("relative_reconstruction_bias", sum(&theirs) / sum(&dot)),
            ("l2_loss", average(&|i| error[i].sqrt())),
            ("l2_norm_in", average(&|i| own[i].sqrt())),
            ("l2_norm_out", average(&|i| theirs[i].sqrt())),
            ("mse", average(&|i| error[i])),
            ("total_variance", sum(&spread)),
        ];
        for ((name, metric), (same_name, want)) in every().zip(wants) {
            prop_assert_eq!(name, same_name);
            within(name, metric(&got), want, FLOAT64);
        }
        // The centre is only where digits are kept, but for the ratio of each row.
        for (name, metric) in every().filter(|(name, _)| *name != "explained_variance_legacy") {
            within(name, metric(&data.quality()), metric(&got).unwrap(), FLOAT64);
        }
    }

    #[test]
    fn perfect_reconstructions(data in data()) {
        let perfect = Data { x: data.x.copy(), x_hat: data.x.copy() };
        let got = perfect.about_mean();
        for zero in [got.fvu(), got.mse(), got.l2_loss(), got.normalized_mse()] {
            prop_assert_eq!(zero, Some(0.0));
        }
        for one in [got.frac_variance_explained(), got.explained_variance_legacy(), got.l2_ratio()] {
            prop_assert_eq!(one, Some(1.0));
        }
        prop_assert_eq!(got.relative_reconstruction_bias(), Some(1.0));
        within("cosine", got.cosine(), 1.0, 1e-14);
    }

    #[test]
    fn predicting_the_mean(data in data()) {
        let average = Data { x: data.x.copy(), x_hat: mean(&data.x).expand_as(&data.x) };
        let got = average.about_mean();
        same(got.fvu(), 1.0);
        within("explained_variance_legacy", got.explained_variance_legacy(), 0.0, FLOAT64);
        within("frac_variance_explained", got.frac_variance_explained(), 0.0, FLOAT64);
        same(average.quality().fvu(), 1.0);
    }

    #[test]
    fn scale(data in data(), exponent in -6.0..6.0, negative in any::<bool>()) {
        let scale = 10f64.powf(exponent) * if negative { -1.0 } else { 1.0 };
        let (scaled, plain) = (data.map(|t| t * scale).about_mean(), data.about_mean());
        let power = |of: &[Named], by: f64| {
            for (name, metric) in of {
                within(name, metric(&scaled).map(|value| value / by), metric(&plain).unwrap(), FLOAT64);
            }
        };
        power(&RATIOS, 1.0);
        power(&LENGTHS, scale.abs());
        power(&SQUARES, scale * scale);
    }

    #[test]
    fn a_common_shift(data in data(), shift in -1e4..1e4, seed in 0u64..100) {
        let by = normal(&[1, data.x.size()[1]], seed).to_kind(Kind::Double) * shift;
        let everywhere = Tensor::full([1, 1], shift, (Kind::Double, tch::Device::Cpu));
        for by in [by, everywhere] {
            let shifted = data.map(|t| t + &by);
            for got in [shifted.quality(), shifted.about_mean()] {
                same(got.fvu(), data.value());
                let plain = data.quality();
                within("variance", got.frac_variance_explained(), plain.frac_variance_explained().unwrap(), FLOAT64);
                within("mse", got.mse(), plain.mse().unwrap(), FLOAT64);
                within("l2_loss", got.l2_loss(), plain.l2_loss().unwrap(), FLOAT64);
            }
        }
    }

    /// A constant error costs nothing in the one, and its square in the other.
    #[test]
    fn a_constant_error(data in data(), seed in 0u64..100, size in 0.0..10.0) {
        let by = normal(&[1, data.x.size()[1]], seed).to_kind(Kind::Double) * size;
        let off = Data { x: data.x.copy(), x_hat: &data.x_hat + &by };
        let (plain, got) = (data.quality(), off.quality());
        within("variance", got.frac_variance_explained(), plain.frac_variance_explained().unwrap(), FLOAT64);
        // Σ‖e + c‖² = Σ‖e‖² + 2 c · Σe + n ‖c‖².
        let twice = 2.0 * ((&data.x_hat - &data.x) * &by).sum(Kind::Double).double_value(&[]);
        let more = twice + data.n() as f64 * by.square().sum(Kind::Double).double_value(&[]);
        same(got.fvu(), plain.fvu().unwrap() + more / plain.total_variance());
    }

    /// To the last digit: whole calls in any order, in any division among several that are merged in any order.
    #[test]
    fn splitting_and_merging(
        data in data(),
        size in 1i64..8,
        order in vec(any::<Index>(), 40),
        owners in vec(0usize..4, 40),
        rotate in 0usize..4,
    ) {
        let centre = floats(&mean(&data.x).squeeze_dim(0));
        let parts: Vec<Data> = (0..data.n())
            .step_by(size as usize)
            .map(|start| data.rows(start, size.min(data.n() - start)))
            .collect();
        let mut whole = Reconstruction::about(&centre);
        parts.iter().for_each(|part| whole.add(&part.x, &part.x_hat).unwrap());
        let mut places: Vec<usize> = (0..parts.len()).collect();
        for (i, other) in order.iter().enumerate().take(parts.len()) {
            places.swap(i, other.index(parts.len()));
        }
        let mut shards = vec![Reconstruction::about(&centre); 4];
        for place in places {
            shards[owners[place]].add(&parts[place].x, &parts[place].x_hat).unwrap();
        }
        shards.rotate_left(rotate);
        let (first, rest) = shards.split_first_mut().unwrap();
        for shard in rest {
            let read: Reconstruction = serde_json::from_str(&serde_json::to_string(shard).unwrap()).unwrap();
            first.merge(&read).unwrap();
        }
        prop_assert_eq!(&*first, &whole);
        for (name, metric) in every() {
            prop_assert_eq!(metric(first), metric(&whole), "{}", name);
        }
        // Divided otherwise, all but the last digits.
        for (name, metric) in every() {
            within(name, metric(first), metric(&data.about(&centre)).unwrap(), 1e-12 * condition(&data));
        }
    }

    /// As [`splitting_and_merging`] where each has a centre of its own, and they may lie far from each other.
    #[test]
    fn merging_about_other_centres(data in data(), cut in 0.0..=1.0, apart in -1e4..1e4) {
        let cut = (data.n() as f64 * cut) as i64;
        let far = data.map(|t| {
            let rest = t.narrow(0, cut, data.n() - cut) + apart;
            Tensor::cat(&[&t.narrow(0, 0, cut), &rest], 0)
        });
        let [mut ours, mut theirs] = [far.rows(0, cut).quality(), far.rows(cut, data.n() - cut).quality()];
        let alone = ours.clone();
        ours.merge(&theirs).unwrap();
        theirs.merge(&alone).unwrap();
        let whole = far.quality();
        for got in [ours, theirs] {
            same(got.fvu(), whole.fvu().unwrap());
            prop_assert_eq!(got.rows(), whole.rows());
            for (name, metric) in every().filter(|(name, _)| *name != "explained_variance_legacy") {
                within(name, metric(&got), metric(&whole).unwrap(), FLOAT64);
            }
        }
    }

    #[test]
    fn order_of_rows(data in data(), seed in 0i64..1000) {
        let order = normal(&[data.n()], seed as u64).argsort(0, false);
        let centre = floats(&mean(&data.x).squeeze_dim(0));
        let permuted = data.map(|t| t.index_select(0, &order)).about(&centre);
        for (name, metric) in every() {
            within(name, metric(&permuted), metric(&data.about(&centre)).unwrap(), 1e-12 * condition(&data));
        }
    }

    /// One row far from all others, as BOS is in Gemma, first or last.
    #[test]
    fn an_outlier_may_come_first_or_last(data in data(), far in 1e2..1e6) {
        let outlier = data.rows(0, 1).map(|t| t + far);
        let join = |a: &Data, b: &Data| {
            Data { x: Tensor::cat(&[&a.x, &b.x], 0), x_hat: Tensor::cat(&[&a.x_hat, &b.x_hat], 0) }
        };
        same(join(&outlier, &data).quality().fvu(), join(&data, &outlier).value());
    }
}
