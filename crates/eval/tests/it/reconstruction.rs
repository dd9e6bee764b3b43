//! Reconstructions on numbers that can be worked out by hand, and what they refuse.

use eval::Reconstruction;
use tch::{Device, Kind, Tensor};
use testkit::normal;

use crate::common::{FLOAT64, refused};

fn of(x: &Tensor, x_hat: &Tensor) -> Reconstruction {
    let mut quality = Reconstruction::new(x.size()[1]);
    quality.add(x, x_hat).unwrap();
    quality
}

fn fvu(x: &Tensor, x_hat: &Tensor) -> Option<f64> {
    of(x, x_hat).fvu()
}

#[test]
fn by_hand() {
    // x̄ = (2, 0): Σ‖x − x̄‖² = 4 + 4 + 4 + 4 = 16; Σ‖x − x̂‖² = 1 + 0 + 0 + 1 = 2.
    let x = Tensor::from_slice(&[4.0f32, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0, -2.0]).reshape([4, 2]);
    let x_hat = Tensor::from_slice(&[3.0f32, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0, -1.0]).reshape([4, 2]);
    let got = of(&x, &x_hat);
    assert_eq!((got.rows(), got.fvu(), got.total_variance()), (4, Some(2.0 / 16.0), 16.0));
    // x − x̂ = (1, 0), 0, 0, (0, −1): its mean is (¼, −¼), so Σ‖·‖² about it is 2 − 4 · ⅛ = 1.5.
    assert_eq!(got.frac_variance_explained(), Some(1.0 - 1.5 / 16.0));
    assert_eq!((got.mse(), got.l2_loss()), (Some(0.5), Some(0.5)));
    // Rows that are not zero: 1 / 16, 0 and 1 / 8.
    assert_eq!(got.normalized_mse(), Some((1.0 / 16.0 + 1.0 / 8.0) / 3.0));
    let close = |got: Option<f64>, want: f64| assert!((got.unwrap() - want).abs() <= 1e-15, "{got:?} {want}");
    let root = f64::sqrt;
    close(got.l2_ratio(), (3.0 / 4.0 + 1.0 + root(5.0) / root(8.0)) / 3.0);
    // The cosine of the row of zeros is 0; of the last, 6 / (√8 √5).
    close(got.cosine(), (1.0 + 0.0 + 1.0 + 6.0 / root(40.0)) / 4.0);
    close(got.l2_norm_in(), (4.0 + 0.0 + root(8.0) + root(8.0)) / 4.0);
    close(got.l2_norm_out(), (3.0 + 0.0 + root(8.0) + root(5.0)) / 4.0);
    // (9 + 8 + 5) / (12 + 8 + 6).
    close(got.relative_reconstruction_bias(), 22.0 / 26.0);
    let mut about = Reconstruction::about(&[2.0, 0.0]);
    about.add(&x, &x_hat).unwrap();
    // 1 − ¼, 1, 1, 1 − ¼.
    assert_eq!(about.explained_variance_legacy(), Some(0.875));
    assert_eq!(about.fvu(), got.fvu());
}

#[test]
fn without_variance_there_is_no_fraction() {
    for value in [0.0, 1.0, 1e-20, 0.1, 12_345.678] {
        for rows in [1, 2, 1000] {
            let x = Tensor::full([rows, 5], value, (Kind::Float, Device::Cpu));
            let got = of(&x, &(&x + 1.0));
            assert_eq!((got.fvu(), got.frac_variance_explained()), (None, None), "{rows} times {value}");
            assert_eq!(got.explained_variance_legacy(), None, "{rows} times {value}");
        }
    }
    let before = Reconstruction::new(3);
    assert_eq!((before.fvu(), before.mse(), before.cosine(), before.l2_ratio()), (None, None, None, None));
    assert_eq!((before.total_variance(), before.rows()), (0.0, 0), "before the first row");
    assert_eq!(fvu(&normal(&[0, 3], 1), &normal(&[0, 3], 1)), None, "no rows");
    assert_eq!(fvu(&normal(&[1, 3], 1), &normal(&[1, 3], 2)), None, "one row");
    let nothing = of(&(normal(&[4, 3], 1) * 0.0), &normal(&[4, 3], 2));
    assert_eq!((nothing.normalized_mse(), nothing.l2_ratio(), nothing.cosine()), (None, None, Some(0.0)));
    assert_eq!(nothing.relative_reconstruction_bias(), None);
}

/// Two constants that differ in the last bit of float32 vary, however little.
#[test]
fn the_least_variance_counts() {
    let x = Tensor::from_slice(&[1.0f32, 1.0f32.next_up(), 1.0, 1.0]).reshape([4, 1]);
    let fraction = fvu(&x, &x.ones_like()).unwrap();
    assert!((fraction - 4.0 / 3.0).abs() <= FLOAT64, "{fraction}");
}

#[test]
fn halves_of_one_constant_each_do_vary() {
    let full = |value: f64| Tensor::full([10, 2], value, (Kind::Float, Device::Cpu));
    let (mut ours, mut theirs) = (Reconstruction::new(2), Reconstruction::new(2));
    ours.add(&full(1.0), &full(1.0)).unwrap();
    theirs.add(&full(3.0), &full(2.0)).unwrap();
    assert_eq!((ours.fvu(), theirs.fvu()), (None, None));
    ours.merge(&theirs).unwrap();
    // The mean is 2: 20 rows of ‖(1, 1)‖² = 2; the error is 10 rows of 2.
    assert_eq!(ours.fvu(), Some(0.5));
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let mut got = Reconstruction::new(3);
    refused(got.add(&normal(&[2, 4], 1), &normal(&[2, 4], 1)), &["`x`", "d=3", "[2, 4]"]);
    refused(got.add(&normal(&[2, 3], 1), &normal(&[1, 3], 1)), &["`x_hat`", "n=2", "[1, 3]"]);
    refused(got.add(&normal(&[2, 3], 1), &normal(&[2, 4], 1)), &["`x_hat`", "d=3", "[2, 4]"]);
    refused(got.add(&normal(&[2, 2, 3], 1), &normal(&[2, 2, 3], 1)), &["`x`", "[2, 2, 3]"]);
    refused(got.add(&normal(&[3], 1), &normal(&[3], 1)), &["`x`", "[3]"]);
    refused(got.merge(&Reconstruction::new(4)), &["reconstructions", "3", "4", "can't be merged"]);
    assert_eq!(got, Reconstruction::new(3), "what was refused left a trace");
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    let x = normal(&[4, 3], 1);
    let mut got = of(&x, &normal(&[4, 3], 2));
    let before = got.clone();
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let broken = normal(&[4, 3], 3);
        let _ = broken.get(2).get(1).fill_(bad);
        refused(got.add(&x, &broken), &["reconstruction", "not finite"]);
        refused(got.add(&broken, &x), &["activation", "not finite"]);
        // Nor is a first batch.
        let mut fresh = Reconstruction::new(3);
        refused(fresh.add(&broken, &x), &["not finite"]);
        assert_eq!(fresh, Reconstruction::new(3));
    }
    assert_eq!(got, before, "what was refused left a trace");
}
