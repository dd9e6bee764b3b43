//! Products so large that their copy out of oneDNN is made slice by slice.

use crate::{common::noise, linear::assert_product};

#[test]
fn a_product_of_several_slices() {
    // 19.2 million outputs, in slices of 262 144 columns; the second is a part of one.
    let w = noise(&[300_000, 8], 1);
    assert_product("64 rows", &noise(&[64, 8], 2), &w);
    assert_product("4 by 16 rows", &noise(&[4, 16, 8], 3), &w);
}

#[test]
fn a_product_at_the_edge_of_one_slice() {
    for d_out in [(1 << 24) / 64, (1 << 24) / 64 + 1] {
        assert_product(&format!("{d_out} outputs"), &noise(&[64, 8], 2), &noise(&[d_out, 8], 1));
    }
}
