//! NaN and infinity are found wherever in a large tensor they stand, and nothing finite is taken for them.

use tch::{Device, Kind, Tensor};
use tch_ext::expect_finite;

use crate::common::refused;

/// The check goes through a tensor in pieces of this many entries.
const PIECE: i64 = 1 << 22;

const KINDS: [Kind; 3] = [Kind::Float, Kind::BFloat16, Kind::Half];

fn full(n: i64, value: f64, kind: Kind) -> Tensor {
    Tensor::full([n], value, (kind, Device::Cpu))
}

#[test]
fn one_entry_of_the_last_piece() {
    for kind in KINDS {
        let x = full(2 * PIECE + 3, 0.25, kind);
        expect_finite("x", &x).unwrap();
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let _ = x.narrow(0, 2 * PIECE + 2, 1).fill_(bad);
            refused(expect_finite("x", &x), &["`x`", "1 NaN or infinite value"]);
        }
    }
}

#[test]
fn entries_of_all_pieces_are_counted_together() {
    for kind in KINDS {
        let x = full(3 * PIECE, 0.0, kind);
        // The borders of the pieces, and one entry within.
        for at in [0, PIECE - 1, PIECE, 2 * PIECE - 1, 2 * PIECE, 2 * PIECE + 9, 3 * PIECE - 1] {
            let _ = x.narrow(0, at, 1).fill_(f64::NAN);
        }
        refused(expect_finite("x", &x), &["`x`", "7 NaN or infinite values"]);
    }
}

#[test]
fn a_sum_that_overflows_is_no_entry() {
    let largest = [(Kind::Float, 3e38), (Kind::BFloat16, 3e38), (Kind::Half, 65504.0), (Kind::Double, 1e308)];
    for (kind, largest) in largest {
        let x = full(PIECE + 5, largest, kind);
        expect_finite("x", &x).unwrap();
        let _ = x.narrow(0, PIECE, 1).fill_(f64::NAN);
        refused(expect_finite("x", &x), &["1 NaN"]);
    }
}

#[test]
fn strides_and_axes_do_not_matter() {
    let x = full(PIECE + 6, 1.0, Kind::Float).reshape([2, -1]);
    let _ = x.get(1).narrow(0, 7, 1).fill_(f64::INFINITY);
    refused(expect_finite("x", &x.tr()), &["`x`", "1 NaN or infinite value"]);
    refused(expect_finite("x", &x.narrow(1, 5, 9)), &["1 NaN"]);
    expect_finite("x", &x.narrow(1, 8, PIECE / 2 - 9)).unwrap();
    // The same entry a thousand times.
    refused(expect_finite("x", &x.narrow(1, 7, 1).expand([2, 1000], false)), &["1000 NaN"]);
}

#[test]
fn whole_numbers_are_finite() {
    expect_finite("x", &Tensor::full([9], i64::MAX, (Kind::Int64, Device::Cpu))).unwrap();
}
