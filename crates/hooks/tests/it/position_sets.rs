//! Sets of positions that go on where the prompt ends.

use hooks::{PositionSet, Positions, TokenBatch};
use proptest::prelude::*;
use tch::Tensor;

use crate::common::{bools, cases, refused};

const PROMPT: i64 = 5;

/// BOS and four tokens, the last of the second row padding.
fn prompt() -> TokenBatch {
    TokenBatch::padded(&[vec![2, 7, 8, 9, 5], vec![2, 7, 8, 9]], 0, &[0, 1, 2]).unwrap()
}

/// The columns as 0 and 1, a text a row.
fn columns(positions: &str, first: i64, len: i64) -> Vec<String> {
    let set = positions.parse::<Positions>().unwrap().over(&prompt()).unwrap();
    let digit = |on: &bool| if *on { '1' } else { '0' };
    bools(&set.columns(first, len).unwrap()).iter().map(|row| row.iter().map(digit).collect()).collect()
}

fn any_positions() -> impl Strategy<Value = Positions> {
    let range = (0i64..12, prop::option::of(1i64..12));
    prop_oneof![
        Just(Positions::Counted),
        Just(Positions::All),
        range.prop_map(|(start, n)| Positions::Range { start, end: n.map(|n| start + n) }),
    ]
}

#[test]
fn generated_columns_count() {
    assert_eq!(columns("counted", 0, 8), ["01111111", "01110111"]);
    assert_eq!(columns("all", 0, 8), ["11111111", "11110111"]);
    assert_eq!(columns("counted", 5, 1), ["1", "1"]);
    assert_eq!(columns("all", 1 << 40, 3), ["111", "111"]);
}

#[test]
fn a_range_reaches_beyond_the_prompt() {
    assert_eq!(columns("3:7", 0, 9), ["000111100", "000101100"]);
    assert_eq!(columns("3:", 0, 9), ["000111111", "000101111"]);
    assert_eq!(columns("6:8", 0, 9), ["000000110", "000000110"]);
    assert_eq!(columns("7:", 0, 9), ["000000011", "000000011"]);
    assert_eq!(columns("1:2", 0, 9), ["010000000", "010000000"]);
    assert_eq!(columns("0:5", 4, 2), ["10", "00"]);
    assert_eq!(columns("5:6", 4, 3), ["010", "010"]);
}

#[test]
fn no_columns_are_an_empty_set() {
    for first in [0, 3, PROMPT, 9] {
        assert_eq!(columns("all", first, 0), ["", ""]);
    }
}

#[test]
fn a_mask_ends_where_it_ends() {
    let mask = Positions::Counted.mask(&prompt()).unwrap();
    let set = PositionSet::from(mask.shallow_clone());
    assert!(set.columns(0, PROMPT).unwrap().equal(&mask));
    assert!(set.columns(3, 2).unwrap().equal(&mask.narrow(1, 3, 2)));
    refused(set.columns(0, 6), &["covers 5 positions", "goes on to 6"]);
    refused(set.columns(4, 2), &["covers 5 positions", "goes on to 6"]);
    refused(set.columns(5, 1), &["covers 5 positions", "goes on to 6"]);
    refused(set.columns(9, 1), &["covers 5 positions", "goes on to 10"]);
}

#[test]
fn what_is_no_range_is_refused() {
    for (start, end, text) in [
        (-1, None, "`-1:`"),
        (-3, Some(2), "`-3:2`"),
        (3, Some(3), "`3:3`"),
        (3, Some(2), "`3:2`"),
        (0, Some(0), "`0:0`"),
        (i64::MIN, Some(i64::MAX), "`-9223372036854775808:9223372036854775807`"),
    ] {
        refused(Positions::Range { start, end }.over(&prompt()), &[text, "no range of positions"]);
    }
}

#[test]
fn columns_before_the_first_are_refused() {
    let mask = Positions::All.mask(&prompt()).unwrap();
    for set in [PositionSet::from(mask), Positions::All.over(&prompt()).unwrap()] {
        // Counting from the end is not what a column says.
        refused(set.columns(-1, 1), &[]);
        refused(set.columns(-2, 2), &[]);
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn within_the_prompt_it_is_the_mask(positions in any_positions()) {
        let set = positions.over(&prompt()).unwrap();
        let columns = set.columns(0, PROMPT).unwrap();
        match positions.mask(&prompt()) {
            Ok(mask) => prop_assert!(columns.equal(&mask), "{}", positions),
            // A range that a text of fixed length does not have: what of it lies within still holds.
            Err(_) => {
                let Positions::Range { start, .. } = positions else { panic!("only a range is refused") };
                let rest = Positions::Range { start, end: None }.mask(&prompt()).ok();
                prop_assert!(columns.equal(&rest.unwrap_or_else(|| columns.zeros_like())), "{}", positions);
            }
        }
    }

    #[test]
    fn columns_of_pieces_are_columns_of_the_whole(
        positions in any_positions(),
        pieces in prop::collection::vec(0i64..5, 1..8),
    ) {
        let set = positions.over(&prompt()).unwrap();
        let mut first = 0;
        let mut parts = Vec::new();
        for len in pieces {
            parts.push(set.columns(first, len).unwrap());
            first += len;
        }
        prop_assert!(Tensor::cat(&parts, 1).equal(&set.columns(0, first).unwrap()));
    }
}
