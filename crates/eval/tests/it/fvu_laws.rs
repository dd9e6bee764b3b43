//! The laws of FVU on random data.

use eval::Fvu;
use proptest::prelude::*;
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

    fn fvu(&self) -> Fvu {
        let mut fvu = Fvu::new(self.x.size()[1]);
        fvu.add(&self.x, &self.x_hat).unwrap();
        fvu
    }

    fn value(&self) -> f64 {
        self.fvu().value().unwrap()
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

#[track_caller]
fn same(got: Option<f64>, want: f64) {
    let got = got.unwrap();
    assert!((got - want).abs() <= FLOAT64 * want.abs().max(1.0), "{got} and {want}");
}

fn mean(x: &Tensor) -> Tensor {
    x.mean_dim(Some([0].as_slice()), true, Kind::Double)
}

proptest! {
    #![proptest_config(cases(96))]

    #[test]
    fn as_defined(data in data()) {
        let square = |t: Tensor| t.square().sum(Kind::Double).double_value(&[]);
        let (error, variance) = (square(&data.x - &data.x_hat), square(&data.x - mean(&data.x)));
        same(Some(data.value()), error / variance);
        same(Some(data.fvu().total_variance() / variance), 1.0);
    }

    #[test]
    fn perfect_is_zero_and_the_mean_is_one(data in data()) {
        let perfect = Data { x: data.x.copy(), x_hat: data.x.copy() };
        prop_assert_eq!(perfect.value(), 0.0);
        let average = Data { x: data.x.copy(), x_hat: mean(&data.x).expand_as(&data.x) };
        same(average.fvu().value(), 1.0);
    }

    #[test]
    fn scale_does_not_matter(data in data(), exponent in -6.0..6.0, negative in any::<bool>()) {
        let scale = 10f64.powf(exponent) * if negative { -1.0 } else { 1.0 };
        same(data.map(|t| t * scale).fvu().value(), data.value());
    }

    #[test]
    fn a_common_shift_does_not_matter(data in data(), shift in -1e4..1e4, seed in 0u64..100) {
        same(data.map(|t| t + shift).fvu().value(), data.value());
        let by = normal(&[1, data.x.size()[1]], seed).to_kind(Kind::Double) * shift;
        same(data.map(|t| t + &by).fvu().value(), data.value());
    }

    #[test]
    fn splitting_does_not_matter(data in data(), size in 1i64..8) {
        let mut fvu = Fvu::new(data.x.size()[1]);
        for start in (0..data.n()).step_by(size as usize) {
            let part = data.rows(start, size.min(data.n() - start));
            fvu.add(&part.x, &part.x_hat).unwrap();
        }
        same(fvu.value(), data.value());
    }

    #[test]
    fn merging_does_not_matter(data in data(), cut in 0.0..=1.0, apart in -1e4..1e4) {
        let cut = (data.n() as f64 * cut) as i64;
        // The halves may lie far from each other.
        let far = data.map(|t| {
            let rest = t.narrow(0, cut, data.n() - cut) + apart;
            Tensor::cat(&[&t.narrow(0, 0, cut), &rest], 0)
        });
        let [mut ours, mut theirs] = [far.rows(0, cut).fvu(), far.rows(cut, data.n() - cut).fvu()];
        let alone = ours.clone();
        ours.merge(&theirs).unwrap();
        same(ours.value(), far.value());
        theirs.merge(&alone).unwrap();
        same(theirs.value(), far.value());
    }

    #[test]
    fn order_does_not_matter(data in data(), seed in 0i64..1000) {
        let order = normal(&[data.n()], seed as u64).argsort(0, false);
        same(data.map(|t| t.index_select(0, &order)).fvu().value(), data.value());
    }

    /// One row far from all others, as BOS is in Gemma, first or last.
    #[test]
    fn an_outlier_may_come_first_or_last(data in data(), far in 1e2..1e6) {
        let outlier = data.rows(0, 1).map(|t| t + far);
        let join = |a: &Data, b: &Data| {
            Data { x: Tensor::cat(&[&a.x, &b.x], 0), x_hat: Tensor::cat(&[&a.x_hat, &b.x_hat], 0) }
        };
        same(join(&outlier, &data).fvu().value(), join(&data, &outlier).value());
    }
}
