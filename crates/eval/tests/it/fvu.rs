//! FVU on numbers that can be worked out by hand, and what it refuses.

use eval::Fvu;
use tch::{Device, Kind, Tensor};
use testkit::normal;

use crate::common::refused;

fn fvu(x: &Tensor, x_hat: &Tensor) -> Option<f64> {
    let mut fvu = Fvu::new(x.size()[1]);
    fvu.add(x, x_hat).unwrap();
    fvu.value()
}

#[test]
fn by_hand() {
    // x̄ = (2, 0): Σ‖x − x̄‖² = 4 + 4 + 4 + 4 = 16; Σ‖x − x̂‖² = 1 + 0 + 0 + 1 = 2.
    let x = Tensor::from_slice(&[4.0f32, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0, -2.0]).reshape([4, 2]);
    let x_hat = Tensor::from_slice(&[3.0f32, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0, -1.0]).reshape([4, 2]);
    assert_eq!(fvu(&x, &x_hat), Some(2.0 / 16.0));
}

#[test]
fn without_variance_there_is_no_fraction() {
    for value in [0.0, 1.0, 1e-20, 0.1, 12_345.678] {
        for rows in [1, 2, 1000] {
            let x = Tensor::full([rows, 5], value, (Kind::Float, Device::Cpu));
            assert_eq!(fvu(&x, &(&x + 1.0)), None, "{rows} times {value}");
        }
    }
    assert_eq!(Fvu::new(3).value(), None, "before the first row");
    assert_eq!(Fvu::new(3).total_variance(), 0.0);
    assert_eq!(fvu(&normal(&[0, 3], 1), &normal(&[0, 3], 1)), None, "no rows");
    assert_eq!(fvu(&normal(&[1, 3], 1), &normal(&[1, 3], 2)), None, "one row");
}

/// Two constants that differ in the last bit of float32 vary, however little.
#[test]
fn the_least_variance_counts() {
    let x = Tensor::from_slice(&[1.0f32, 1.0f32.next_up(), 1.0, 1.0]).reshape([4, 1]);
    let fraction = fvu(&x, &x.ones_like()).unwrap();
    assert!((fraction - 4.0 / 3.0).abs() <= 1e-9, "{fraction}");
}

#[test]
fn halves_of_one_constant_each_do_vary() {
    let of = |value: f64| Tensor::full([10, 2], value, (Kind::Float, Device::Cpu));
    let (mut ours, mut theirs) = (Fvu::new(2), Fvu::new(2));
    ours.add(&of(1.0), &of(1.0)).unwrap();
    theirs.add(&of(3.0), &of(2.0)).unwrap();
    assert_eq!((ours.value(), theirs.value()), (None, None));
    ours.merge(&theirs).unwrap();
    // The mean is 2: 20 rows of ‖(1, 1)‖² = 2; the error is 10 rows of 2.
    assert_eq!(ours.value(), Some(0.5));
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let mut fvu = Fvu::new(3);
    refused(fvu.add(&normal(&[2, 4], 1), &normal(&[2, 4], 1)), &["`x`", "d=3", "[2, 4]"]);
    refused(fvu.add(&normal(&[2, 3], 1), &normal(&[1, 3], 1)), &["`x_hat`", "n=2", "[1, 3]"]);
    refused(fvu.add(&normal(&[2, 3], 1), &normal(&[2, 4], 1)), &["`x_hat`", "d=3", "[2, 4]"]);
    refused(fvu.add(&normal(&[2, 2, 3], 1), &normal(&[2, 2, 3], 1)), &["`x`", "[2, 2, 3]"]);
    refused(fvu.add(&normal(&[3], 1), &normal(&[3], 1)), &["`x`", "[3]"]);
    refused(fvu.merge(&Fvu::new(4)), &["FVU", "3", "4", "can't be merged"]);
    assert_eq!(fvu, Fvu::new(3), "what was refused left a trace");
}
