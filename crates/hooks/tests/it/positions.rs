//! Sets of positions, as text and as masks.

use hooks::{Positions, TokenBatch};
use proptest::prelude::*;
use tch::Tensor;

use crate::common::{cases, refused};

/// BOS and four tokens, the last of the second row padding.
fn batch() -> TokenBatch {
    TokenBatch::padded(&[vec![2, 7, 8, 9, 5], vec![2, 7, 8, 9]], 0, &[0, 1, 2]).unwrap()
}

fn mask(positions: Positions) -> Vec<Vec<i64>> {
    Vec::<Vec<i64>>::try_from(&positions.mask(&batch()).unwrap().to_kind(tch::Kind::Int64)).unwrap()
}

fn range(start: i64, end: Option<i64>) -> Positions {
    Positions::Range { start, end }
}

/// Padding is in no set of positions: whether there is any depends on the other rows of the batch.
#[test]
fn masks() {
    assert_eq!(mask(Positions::All), [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]);
    assert_eq!(mask(Positions::Counted), [[0, 1, 1, 1, 1], [0, 1, 1, 1, 0]]);
    assert_eq!(mask(Positions::default()), mask(Positions::Counted));
    assert_eq!(mask(range(1, Some(3))), [[0, 1, 1, 0, 0]; 2]);
    assert_eq!(mask(range(3, None)), [[0, 0, 0, 1, 1], [0, 0, 0, 1, 0]]);
    assert_eq!(mask(range(0, Some(5))), mask(Positions::All));
    assert_eq!(mask(range(4, Some(5))), [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]);
}

#[test]
fn a_mask_is_a_copy() {
    let batch = batch();
    let all = Positions::All.mask(&batch).unwrap();
    assert_eq!(all.size(), [2, 5]);
    assert_eq!(all.kind(), tch::Kind::Bool);
}

#[test]
fn ranges_beyond_the_text_are_refused() {
    for (positions, text) in [
        (range(0, Some(6)), "0:6"),
        (range(5, None), "5:"),
        (range(9, Some(12)), "9:12"),
        (range(3, Some(3)), "3:3"),
        (range(3, Some(2)), "3:2"),
        (range(0, Some(0)), "0:0"),
        (range(i64::MAX, None), "9223372036854775807:"),
        (range(0, Some(i64::MAX)), "0:9223372036854775807"),
        // Counting from the end is not what a range says, and must not come about by chance.
        (range(-1, None), "-1:"),
        (range(-5, Some(0)), "-5:0"),
        (range(-5, Some(-1)), "-5:-1"),
        (range(-2, Some(3)), "-2:3"),
        (range(i64::MIN, Some(2)), "-9223372036854775808:2"),
    ] {
        refused(positions.mask(&batch()), &[text, "within the 5"]);
    }
}

#[test]
fn text() {
    for (text, positions) in [
        ("counted", Positions::Counted),
        ("all", Positions::All),
        ("1:3", range(1, Some(3))),
        ("3:", range(3, None)),
        (":3", range(0, Some(3))),
        (":", range(0, None)),
        ("0:", range(0, None)),
    ] {
        assert_eq!(text.parse::<Positions>().unwrap(), positions, "{text}");
    }
    for text in [
        "",
        "1",
        "ALL",
        "1:2:3",
        "-1:",
        "1:-1",
        "2:2",
        "3:1",
        "a:b",
        "1 : 3",
        "1..3",
        "99999999999999999999:",
        ":0",
        "all ",
        "+1:3",
        "1\n:2",
    ] {
        refused(text.parse::<Positions>(), &["no set of positions", "`i:j`"]);
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn reading_what_was_written_gives_the_set(start in 0i64..1_000_000, length in prop::option::of(1i64..1_000_000)) {
        let positions = range(start, length.map(|n| start + n));
        prop_assert_eq!(positions.to_string().parse::<Positions>().unwrap(), positions);
    }

    #[test]
    fn any_other_text_is_refused(text in "[0-9:+-]{0,6}|\\PC{0,8}|all|counted") {
        if let Ok(positions) = text.parse::<Positions>() {
            // What is read is one of the four spellings, possibly with a side left out.
            let shown = positions.to_string();
            let same = |a: &str, b: &str| a.trim_start_matches('0') == b.trim_start_matches('0');
            let sides = |t: &str| t.split_once(':').map(|(a, b)| (a.to_owned(), b.to_owned()));
            match (sides(&shown), sides(&text)) {
                (Some((a, b)), Some((c, d))) => prop_assert!(same(&a, &c) && same(&b, &d), "{} as {}", text, shown),
                _ => prop_assert_eq!(shown, text),
            }
        }
    }

    #[test]
    fn a_range_holds_what_it_says(start in -8i64..8, end in prop::option::of(-8i64..8)) {
        let positions = range(start, end);
        let (from, to) = (start, end.unwrap_or(5));
        let sound = 0 <= from && from < to && to <= 5;
        match positions.mask(&batch()) {
            Ok(mask) => {
                prop_assert!(sound, "{}", positions);
                let held = |length: i64| (0..5).map(move |p| from <= p && p < to && p < length);
                let rows: Vec<bool> = held(5).chain(held(4)).collect();
                prop_assert!(mask.equal(&Tensor::from_slice(&rows).reshape([2, 5])));
            }
            Err(error) => {
                prop_assert!(!sound, "{}", positions);
                refused(Err::<(), _>(error), &[&positions.to_string()]);
            }
        }
    }
}
