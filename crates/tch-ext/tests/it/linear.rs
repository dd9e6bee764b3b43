//! `x Wᵀ` is the product, whichever route it takes: on both sides of every boundary between the routes.

use proptest::prelude::*;
use tch::{Kind, Tensor};
use tch_ext::{kind_name, linear};

use crate::common::{cases, noise, refused};

/// Sums of a few hundred float32 terms, in any order, are this close to the exact sum.
const FLOAT32: f64 = 1e-5;

/// bfloat16 has eight bits, and the result is rounded to them; libtorch may round a partial sum as well.
const BFLOAT16: f64 = 1.0 / 256.0;

/// The largest sums are a few dozen terms of float64.
const FLOAT64: f64 = 1e-12;

/// `[d_out, d_in]`: too small for the fast routes, large enough, and large with rows that fill no vector.
const WEIGHTS: [[i64; 2]; 4] = [[20, 30], [512, 300], [300, 640], [451, 301]];

/// The product in float64.
pub(crate) fn exact(x: &Tensor, w: &Tensor) -> Tensor {
    x.to_kind(Kind::Double).matmul(&w.to_kind(Kind::Double).tr())
}

/// Asserts shape, dtype, and that no entry is farther off than its dtype explains.
#[track_caller]
pub(crate) fn assert_product(what: &str, x: &Tensor, w: &Tensor) {
    let (got, want) = (linear(x, w).unwrap(), exact(x, w));
    assert_eq!((got.size(), got.kind()), (want.size(), x.kind()), "{what}");
    if want.numel() == 0 {
        return;
    }
    let tolerance = match x.kind() {
        Kind::BFloat16 => BFLOAT16,
        Kind::Double => FLOAT64,
        _ => FLOAT32,
    };
    let off = (got.to_kind(Kind::Double) - &want).abs().max().double_value(&[]);
    let allowed = tolerance * want.abs().max().double_value(&[]);
    assert!(off <= allowed, "{what}: off by {off:.2e}, allowed is {allowed:.2e}");
}

#[test]
fn any_number_of_rows() {
    for kind in [Kind::Float, Kind::BFloat16, Kind::Double] {
        for [d_out, d_in] in WEIGHTS {
            let w = noise(&[d_out, d_in], 1).to_kind(kind);
            for rows in 1..=12 {
                let x = noise(&[rows, d_in], 2).to_kind(kind);
                assert_product(&format!("{rows} rows of {} by {:?}", kind_name(kind), w.size()), &x, &w);
            }
        }
    }
}

#[test]
fn any_number_of_axes() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for [d_out, d_in] in WEIGHTS {
            let w = noise(&[d_out, d_in], 1).to_kind(kind);
            for outer in [&[][..], &[1], &[3], &[1, 1], &[2, 2], &[3, 5], &[2, 3, 4]] {
                let x = noise(&[outer, &[d_in]].concat(), 2).to_kind(kind);
                assert_product(&format!("{:?} by {:?}", x.size(), w.size()), &x, &w);
            }
        }
    }
}

#[test]
fn no_rows_give_no_rows() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for [d_out, d_in] in WEIGHTS {
            let w = noise(&[d_out, d_in], 1).to_kind(kind);
            for outer in [&[0][..], &[0, 3], &[2, 0]] {
                let x = noise(&[outer, &[d_in]].concat(), 2).to_kind(kind);
                assert_product(&format!("{:?}", x.size()), &x, &w);
            }
        }
    }
}

#[test]
fn strides_of_any_kind() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for [d_out, d_in] in WEIGHTS {
            for rows in [1, 2, 5, 11] {
                let of = |size: &[i64]| noise(size, 7).to_kind(kind);
                let (x, w) = (of(&[rows, d_in]), of(&[d_out, d_in]) * 0.5);
                let what = |name: &str| format!("{name}, {rows} rows by {:?}", w.size());
                assert_product(&what("x transposed"), &of(&[d_in, rows]).tr(), &w);
                assert_product(&what("x narrowed"), &of(&[rows, d_in + 3]).narrow(1, 2, d_in), &w);
                assert_product(&what("x repeated"), &of(&[1, d_in]).expand([rows, d_in], false), &w);
                assert_product(&what("x swapped"), &of(&[rows, 3, d_in]).transpose(0, 1), &w);
                assert_product(&what("w transposed"), &x, &of(&[d_in, d_out]).tr());
                assert_product(&what("w narrowed"), &x, &of(&[d_out, d_in + 1]).narrow(1, 1, d_in));
                assert_product(&what("w from its middle"), &x, &of(&[d_out + 3, d_in]).narrow(0, 3, d_out));
            }
        }
    }
}

#[test]
fn the_operands_stay_as_they_are() {
    for rows in [1, 8, 9] {
        let (x, w) = (noise(&[rows, 300], 1), noise(&[512, 300], 2));
        let _product = linear(&x, &w).unwrap();
        assert!(x.equal(&noise(&[rows, 300], 1)) && w.equal(&noise(&[512, 300], 2)));
    }
}

#[test]
fn what_is_not_finite_shows() {
    for (rows, kind) in [(1, Kind::Float), (9, Kind::Float), (1, Kind::BFloat16), (3, Kind::BFloat16)] {
        let (x, w) = (noise(&[rows, 300], 1).to_kind(kind), noise(&[512, 300], 2).to_kind(kind));
        let _ = w.get(7).narrow(0, 299, 1).fill_(f64::NAN);
        let nan = linear(&x, &w).unwrap().isnan();
        assert!(nan.select(-1, 7).all().int64_value(&[]) == 1, "{rows} rows of {kind:?}");
        assert_eq!(nan.sum(Kind::Int64).int64_value(&[]), rows, "{rows} rows of {kind:?}");
    }
}

#[test]
fn gradients_flow_as_through_libtorchs_own() {
    for [d_out, d_in] in WEIGHTS {
        for rows in [1, 4, 11] {
            let up = noise(&[rows, d_out], 5);
            for (x_trained, w_trained) in [(true, false), (false, true), (true, true)] {
                let gradients = |product: &dyn Fn(&Tensor, &Tensor) -> Tensor| {
                    let x = noise(&[rows, d_in], 1).set_requires_grad(x_trained);
                    let w = noise(&[d_out, d_in], 2).set_requires_grad(w_trained);
                    (product(&x, &w) * &up).sum(Kind::Float).backward();
                    [(x_trained, x), (w_trained, w)].map(|(trained, t)| trained.then(|| t.grad()))
                };
                let ours = gradients(&|x, w| linear(x, w).unwrap());
                let libtorchs = gradients(&|x, w| x.linear(w, None::<Tensor>));
                for (got, want) in ours.iter().zip(&libtorchs) {
                    assert_eq!(got.is_some(), want.is_some());
                    let same = got.iter().zip(want).all(|(got, want)| got.defined() && got.equal(want));
                    assert!(same, "{rows} rows by [{d_out}, {d_in}], trained {x_trained} and {w_trained}");
                }
            }
        }
    }
}

#[test]
fn a_gradient_flows_through_what_was_computed_from_a_trained_tensor() {
    let trained = noise(&[1, 300], 1).set_requires_grad(true);
    let product = linear(&(&trained * 2.0), &noise(&[512, 300], 2)).unwrap();
    assert!(product.requires_grad());
    product.sum(Kind::Float).backward();
    let want = noise(&[512, 300], 2).sum_dim_intlist(0, true, Kind::Float) * 2.0;
    let off = (trained.grad() - want).abs().max().double_value(&[]);
    // Sums of 512 values below 1 in magnitude.
    assert!(off < 1e-3, "off by {off:.2e}");
}

#[test]
fn what_does_not_fit_is_one_error() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for [d_out, d_in] in WEIGHTS {
            let w = noise(&[d_out, d_in], 1).to_kind(kind);
            for width in [d_in - 1, d_in + 1, 1] {
                for outer in [&[][..], &[1], &[9], &[2, 3]] {
                    let x = noise(&[outer, &[width]].concat(), 2).to_kind(kind);
                    refused(linear(&x, &w), &["libtorch: "]);
                }
            }
        }
    }
    // A weight of another dtype is none of ours to cast.
    for rows in [1, 9] {
        let w = noise(&[512, 300], 1).to_kind(Kind::BFloat16);
        refused(linear(&noise(&[rows, 300], 1), &w), &["libtorch: "]);
    }
    refused(linear(&noise(&[4, 300], 1), &noise(&[2, 512, 300], 2)), &["libtorch: "]);
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn any_shape(
        rows in 1i64..20,
        d_in in 1i64..700,
        d_out in 1i64..700,
        kind in prop::sample::select(&[Kind::Float, Kind::BFloat16][..]),
        seed in 0u64..99,
    ) {
        let x = noise(&[rows, d_in], seed).to_kind(kind);
        let w = noise(&[d_out, d_in], seed + 1).to_kind(kind);
        assert_product(&format!("{rows} rows of {kind:?} by [{d_out}, {d_in}]"), &x, &w);
    }
}
