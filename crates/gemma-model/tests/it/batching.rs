//! What else is in the batch does not matter: neither other sequences, nor padding on either side.

use hooks::{HookedModelExt as _, TokenBatch};
use proptest::prelude::*;
use tch::Tensor;
use testkit::assert_close;

use crate::common::{CASES, batch, cases, model, tokens};

/// Sums over other lengths, in another order.
const OTHER_ORDER: f64 = 1e-5;

/// Left padding moves a text to other positions: rotary angles of up to 64 radians, each rounded at 4e-6, make the same
/// differences of angles up to rounding.
const OTHER_ANGLES: f64 = 1e-4;

const SPECIAL: [i64; 3] = [0, 1, 2];

#[test]
fn a_row_alone_is_the_row_in_its_batch() {
    for case in CASES {
        let (model, tokens) = (model(case), tokens(case));
        let together = model.logits(&tokens).unwrap();
        for (i, row) in tokens.rows().iter().enumerate() {
            // Without the padding, where there is some.
            let length = tokens
                .attended()
                .map_or(row.len(), |mask| mask.get(i as i64).sum(tch::Kind::Int64).int64_value(&[]) as usize);
            let alone = model.logits(&batch(&[row[..length].to_vec()])).unwrap();
            let want = together.get(i as i64).narrow(0, 0, length as i64);
            assert_close(&format!("{case}: row {i}"), &alone.get(0), &want, OTHER_ORDER);
        }
    }
}

#[test]
fn the_order_of_rows_does_not_matter() {
    let (model, tokens) = (model("mini-9b"), tokens("mini-9b"));
    let mut rows = tokens.rows().to_vec();
    rows.reverse();
    let (forth, back) = (model.logits(&tokens).unwrap(), model.logits(&batch(&rows)).unwrap());
    assert_close("reversed", &back.flip([0]), &forth, OTHER_ORDER);
}

/// A text of `length` tokens with `left` and `right` tokens of padding.
fn surrounded(text: &[i64], left: usize, right: usize, pad: i64) -> TokenBatch {
    let of = |pad: i64, own: &dyn Fn(i64) -> i64| {
        let middle = text.iter().map(|&id| own(id));
        std::iter::repeat_n(pad, left)
            .chain(middle)
            .chain(std::iter::repeat_n(pad, right))
            .collect::<Vec<i64>>()
    };
    TokenBatch::with_mask(&[of(pad, &|id| id)], &[of(0, &|_| 1)], &SPECIAL).unwrap()
}

fn at_text(logits: &Tensor, left: usize, length: usize) -> Tensor {
    logits.get(0).narrow(0, left as i64, length as i64)
}

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn padding_on_either_side_changes_nothing_that_counts(
        text in prop::collection::vec(0i64..250, 1..14),
        left in 0usize..24,
        right in 0usize..24,
        pad in 0i64..250,
        case in prop::sample::select(&["mini-2b", "mini-9b", "mini-padded"][..]),
    ) {
        // Windows of 8, 5 and 6: padding reaches beyond all of them.
        let model = model(case);
        let plain = model.logits(&batch(std::slice::from_ref(&text))).unwrap().get(0);
        let padded = model.logits(&surrounded(&text, left, right, pad)).unwrap();
        prop_assert_eq!(padded.isnan().any().int64_value(&[]), 0, "padded positions mean nothing, but are no NaN");
        let tolerance = if left == 0 { OTHER_ORDER } else { OTHER_ANGLES };
        assert_close(case, &at_text(&padded, left, text.len()), &plain, tolerance);
    }

    #[test]
    fn rows_of_any_lengths_are_what_they_are_alone(
        rows in prop::collection::vec(prop::collection::vec(0i64..250, 1..20), 1..5),
    ) {
        let model = model("mini-padded");
        let together = model.logits(&TokenBatch::padded(&rows, 0, &SPECIAL).unwrap()).unwrap();
        for (i, row) in rows.iter().enumerate() {
            let alone = model.logits(&batch(std::slice::from_ref(row))).unwrap().get(0);
            assert_close("row", &together.get(i as i64).narrow(0, 0, row.len() as i64), &alone, OTHER_ORDER);
        }
    }
}

#[test]
fn holes_in_a_text_are_not_seen() {
    // Padding in the middle: what stands in the hole changes nothing after it.
    let model = model("mini-2b");
    let with = |id: i64| {
        let rows = [vec![2, 7, id, id, 9, 11]];
        model.logits(&TokenBatch::with_mask(&rows, &[vec![1, 1, 0, 0, 1, 1]], &SPECIAL).unwrap()).unwrap()
    };
    let (a, b) = (with(5), with(300));
    assert_close("after the hole", &at_text(&a, 4, 2), &at_text(&b, 4, 2), 0.0);
}
