//! Text that appears id by id is the text of all ids.

use std::sync::OnceLock;

use gemma_model::Tokenizer;
use proptest::prelude::*;
use testkit::fixture;

use crate::common::{cases, refused};

/// Parsed once for all cases.
fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| Tokenizer::load(&fixture("tokenizer")).unwrap())
}

/// What each push gives, and what is left in the end.
fn streamed(ids: &[i64]) -> (Vec<String>, String) {
    let mut stream = tokenizer().stream();
    let pieces = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
    (pieces, stream.finish())
}

/// The id of a byte's token.
fn byte(byte: u8) -> i64 {
    let id = 4 + i64::from(byte);
    assert_eq!(tokenizer().piece(id), format!("<0x{byte:02X}>"));
    id
}

fn bytes(text: &str) -> Vec<i64> {
    text.bytes().map(byte).collect()
}

fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::collection::vec(any::<char>(), 1..24).prop_map(String::from_iter),
        "\\PC{1,40}",
        "[ \n\t a-zA-Z0-9_.<>/éλ日🦀]{1,40}",
        "(🦀|👩‍👩‍👧‍👦|🏳️‍🌈|e\u{301}|日本|The| |  |\n|<bos>){1,12}",
    ]
}

proptest! {
    #![proptest_config(cases(384))]

    #[test]
    fn pieces_are_the_text_of_all_ids(text in texts(), begins in any::<bool>()) {
        let ids = if begins { tokenizer().encode(&text) } else { tokenizer().encode_plain(&text) }.unwrap();
        let (pieces, rest) = streamed(&ids);
        prop_assert_eq!(pieces.concat() + &rest, tokenizer().decode(&ids).unwrap());
        if !text.contains('\u{FFFD}') {
            // Every character was whole in the end, and none was shown before.
            prop_assert_eq!(rest, "");
            prop_assert!(!pieces.concat().contains('\u{FFFD}'), "{:?}", pieces);
        }
    }

    #[test]
    fn a_text_of_bytes_appears_character_by_character(text in "[a-zéλ日🦀\n ]{1,20}") {
        let (pieces, rest) = streamed(&bytes(&text));
        prop_assert_eq!(rest, "");
        let whole: Vec<String> = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
        prop_assert_eq!(whole, text.chars().map(String::from).collect::<Vec<_>>());
    }

    #[test]
    fn words_behind_any_bytes_are_not_lost(noise in prop::collection::vec(any::<u8>(), 0..8)) {
        // A model may say bytes that are no text. Whatever is made of them, words that follow are whole.
        let words = tokenizer().encode_plain(" the cat and the dog").unwrap();
        let ids: Vec<i64> = noise.iter().map(|b| byte(*b)).chain(words).collect();
        let (pieces, rest) = streamed(&ids);
        let text = pieces.concat() + &rest;
        prop_assert!(text.ends_with(" the cat and the dog"), "{:?} reads {:?}", noise, text);
    }

    #[test]
    fn any_ids_stream(ids in prop::collection::vec(0i64..4096, 0..16)) {
        let (pieces, rest) = streamed(&ids);
        // Bytes that are no text read as U+FFFD, and how many of them depends on what was seen together.
        if !ids.iter().any(|id| (4 + 0x80..4 + 0x100).contains(id)) {
            prop_assert_eq!(pieces.concat() + &rest, tokenizer().decode(&ids).unwrap());
        }
    }
}

#[test]
fn text_appears_as_soon_as_it_is_whole() {
    let (pieces, rest) = streamed(&tokenizer().encode("The capital of France").unwrap());
    assert_eq!((pieces[0].as_str(), rest.as_str()), ("", ""), "BOS says nothing");
    assert!(pieces[1..].iter().all(|piece| !piece.is_empty()), "{pieces:?}");
}

#[test]
fn a_character_of_four_bytes_appears_with_its_last() {
    let (pieces, rest) = streamed(&bytes("a🦀é"));
    assert_eq!(pieces, ["a", "", "", "", "🦀", "", "é"]);
    assert_eq!(rest, "");
}

/// What is left of a crab whose last byte never came, behind some ids that were shown as `shown`.
fn unfinished_behind(ids: Vec<i64>, shown: &str) {
    let (pieces, rest) = streamed(&[&ids[..], &bytes("🦀")[..3]].concat());
    assert_eq!(pieces.concat(), shown);
    assert!(!rest.is_empty() && rest.chars().all(|c| c == '\u{FFFD}'), "{rest:?}");
}

#[test]
fn a_character_that_never_ends_is_shown_in_the_end() {
    unfinished_behind(vec![], "");
    unfinished_behind(tokenizer().encode("The cat").unwrap(), "The cat");
}

#[test]
fn a_character_that_never_ends_is_shown_behind_one_of_bytes_too() {
    unfinished_behind(bytes("日"), "日");
    unfinished_behind(bytes("🦀🦀"), "🦀🦀");
}

#[test]
fn a_replacement_character_of_the_texts_own_comes_through() {
    let text = "a\u{FFFD}b\u{FFFD}";
    let ids = tokenizer().encode(text).unwrap();
    let (pieces, rest) = streamed(&ids);
    assert_eq!(pieces.concat() + &rest, text);
}

#[test]
fn nothing_streams_as_nothing() {
    assert_eq!(streamed(&[]), (vec![], String::new()));
    assert_eq!(streamed(&[2, 2, 0, 1]), (vec![String::new(); 4], String::new()));
}

#[test]
fn an_id_that_is_none_is_refused() {
    for none in [-1, 4096, i64::MAX] {
        refused(tokenizer().stream().push(none), &[&none.to_string(), "vocabulary"]);
    }
}

#[test]
fn after_an_id_that_is_none_the_stream_goes_on() {
    let mut stream = tokenizer().stream();
    assert_eq!(stream.push(byte(b'a')).unwrap(), "a");
    refused(stream.push(4096), &["4096"]);
    assert_eq!(stream.push(byte(b'b')).unwrap(), "b");
    assert_eq!(stream.finish(), "");
}
