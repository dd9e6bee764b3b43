//! Weights that are views of something else: the product is the same, whichever route takes the view.

use tch::{Kind, Tensor};
use tch_ext::linear;

use crate::{
    common::noise,
    linear::{assert_product, exact},
};

/// Rows on both sides of every boundary between routes.
const ROWS: [i64; 6] = [1, 8, 9, 23, 24, 40];

/// `[d_out, d_in]`, large enough for the fast routes.
const WEIGHTS: [[i64; 2]; 2] = [[512, 300], [451, 301]];

/// As flat as can be.
const FLAT: [[i64; 2]; 2] = [[1, 140_000], [140_000, 1]];

/// The same `[d_out, d_in]` in memory in many ways.
fn views([d_out, d_in]: [i64; 2], of: impl Fn(&[i64]) -> Tensor) -> Vec<(&'static str, Tensor)> {
    vec![
        ("turned around", of(&[d_in, d_out]).tr()),
        ("some columns, turned around", of(&[d_in, d_out + 9]).narrow(1, 4, d_out).tr()),
        ("the last columns, turned around", of(&[d_in, d_out + 9]).narrow(1, 9, d_out).tr()),
        ("some rows, turned around", of(&[d_in + 5, d_out]).narrow(0, 3, d_in).tr()),
        ("some columns", of(&[d_out, d_in + 9]).narrow(1, 4, d_in)),
        ("some rows", of(&[d_out + 5, d_in]).narrow(0, 3, d_out)),
        ("every other column", of(&[d_out, 2 * d_in]).slice(1, 1, None::<i64>, 2)),
        ("every other row", of(&[2 * d_out, d_in]).slice(0, 1, None::<i64>, 2)),
        ("every other row, turned around", of(&[2 * d_in, d_out]).slice(0, 0, None::<i64>, 2).tr()),
        ("every other column, turned around", of(&[d_in, 2 * d_out]).slice(1, 0, None::<i64>, 2).tr()),
        ("one row again and again", of(&[1, d_in]).expand([d_out, d_in], false)),
        ("one column again and again", of(&[d_out, 1]).expand([d_out, d_in], false)),
        ("windows that overlap", of(&[d_out + d_in]).unfold(0, d_in, 1).narrow(0, 0, d_out)),
        ("one slice of three axes", of(&[d_out, 3, d_in]).select(1, 1)),
    ]
}

#[test]
fn weights_of_any_stride() {
    for [d_out, d_in] in WEIGHTS {
        for (name, w) in views([d_out, d_in], |size| noise(size, 7)) {
            assert_eq!(w.size(), [d_out, d_in], "{name}");
            for rows in ROWS {
                assert_product(
                    &format!("{name}, {rows} rows by {:?}", w.size()),
                    &noise(&[rows, d_in], 2),
                    &w,
                );
            }
        }
    }
}

/// Small whole numbers, whose sums float32 holds in any order.
#[test]
fn flat_weights_of_any_stride() {
    let whole = |size: &[i64], seed: u64| (noise(size, seed) * 4.0).round();
    for [d_out, d_in] in FLAT {
        for (name, w) in views([d_out, d_in], |size| whole(size, 7)) {
            for rows in [1, 24] {
                let x = whole(&[rows, d_in], 2);
                let got = linear(&x, &w).unwrap().to_kind(Kind::Double);
                assert!(got.equal(&exact(&x, &w)), "{name}, {rows} rows by {:?}", w.size());
            }
        }
    }
}

#[test]
fn weights_of_any_stride_in_bfloat16() {
    for (name, w) in views([512, 300], |size| noise(size, 7).to_kind(Kind::BFloat16)) {
        for rows in [1, 2, 3, 30] {
            let x = noise(&[rows, 300], 2).to_kind(Kind::BFloat16);
            assert_product(&format!("{name}, {rows} rows"), &x, &w);
        }
    }
}

/// Both operands are views, as when a block of rows meets a tile of latents.
#[test]
fn two_views() {
    let x = noise(&[70, 303], 1);
    let w = noise(&[300, 1200], 2);
    for (start, len) in [(0, 512), (600, 600), (1, 501)] {
        let tile = w.narrow(1, start, len).tr();
        for (first, rows) in [(0, 9), (3, 24), (1, 64)] {
            let block = x.narrow(0, first, rows).narrow(1, 3, 300);
            assert_product(&format!("{rows} rows, {len} columns"), &block, &tile);
            let cube = x.narrow(0, 0, 64).narrow(1, 3, 300).reshape([4, 16, 300]);
            assert_product("three axes", &cube.transpose(0, 1), &tile);
        }
    }
}

/// A view as large as is copied back slice by slice.
#[test]
fn a_large_view() {
    let w = noise(&[8, 300_007], 1).narrow(1, 7, 300_000).tr();
    assert_product("64 rows", &noise(&[64, 8], 2), &w);
}

#[test]
fn what_surrounds_a_view_is_not_read() {
    for rows in [1, 9, 30] {
        let whole = Tensor::full([302, 530], f64::NAN, (Kind::Float, tch::Device::Cpu));
        let mut inner = whole.narrow(0, 1, 300).narrow(1, 9, 512);
        inner.copy_(&noise(&[300, 512], 3));
        let product = linear(&noise(&[rows, 300], 4), &inner.tr()).unwrap();
        assert_eq!(product.isnan().any().int64_value(&[]), 0, "{rows} rows");
        assert_product("inside", &noise(&[rows, 300], 4), &inner.tr());
    }
}
