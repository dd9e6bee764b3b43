//! Conversations in the template of the -it models.

use std::fs;

use gemma_model::{Role, Tokenizer, Turn};
use proptest::prelude::*;
use serde_json::{Value, json};
use testkit::fixture;

use crate::common::{cases, refused};

/// The tiny tokenizer with the two tokens that chat models have besides.
fn tokenizer() -> Tokenizer {
    let text = fs::read_to_string(fixture("tokenizer/tokenizer.json")).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    let added = json["added_tokens"].as_array_mut().unwrap();
    for (id, content) in [(START, "<start_of_turn>"), (END, "<end_of_turn>")] {
        added.push(json!({
            "id": id, "content": content, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        }));
    }
    Tokenizer::from_bytes("tokenizer.json", json.to_string().as_bytes()).unwrap()
}

const BOS: i64 = 2;
const START: i64 = 4096;
const END: i64 = 4097;

fn user(text: &str) -> Turn<'_> {
    Turn { role: Role::User, text }
}

fn model(text: &str) -> Turn<'_> {
    Turn { role: Role::Model, text }
}

/// The template by hand: `<start_of_turn>`, role and text, `<end_of_turn>` and a line's end, turn by turn.
fn by_hand(tokenizer: &Tokenizer, turns: &[(&str, &str)]) -> Vec<i64> {
    let plain = |text: &str| tokenizer.encode_plain(text).unwrap();
    let mut ids = vec![BOS];
    for (role, text) in turns {
        ids.push(START);
        ids.extend(plain(&format!("{role}\n{text}")));
        ids.push(END);
        ids.extend(plain("\n"));
    }
    ids.push(START);
    ids.extend(plain("model\n"));
    ids
}

#[test]
fn turns_follow_each_other_up_to_the_models_next() {
    let tokenizer = tokenizer();
    let turns = [user("What is 2 + 2?"), model("4."), user("And 3?"), model("Three is 3."), user("Thanks!")];
    let want = [
        ("user", "What is 2 + 2?"),
        ("model", "4."),
        ("user", "And 3?"),
        ("model", "Three is 3."),
        ("user", "Thanks!"),
    ];
    for n in [1, 3, 5] {
        assert_eq!(tokenizer.encode_chat(&turns[..n]).unwrap(), by_hand(&tokenizer, &want[..n]), "{n} turns");
    }
}

#[test]
fn space_around_a_turn_is_left_out_and_space_within_stays() {
    let tokenizer = tokenizer();
    let turns = [user("  \n\tHello,  you\n\nthere \n"), model("\nYes? "), user(" Go on")];
    let got = tokenizer.encode_chat(&turns);
    let want = [("user", "Hello,  you\n\nthere"), ("model", "Yes?"), ("user", "Go on")];
    assert_eq!(got.unwrap(), by_hand(&tokenizer, &want));
}

#[test]
fn turns_that_make_no_conversation_are_refused() {
    let tokenizer = tokenizer();
    let with = |turns: &[Turn<'_>]| tokenizer.encode_chat(turns);
    refused(with(&[user("a"), user("b")]), &["alternate"]);
    refused(with(&[user("a"), model("b"), model("c"), user("d")]), &["alternate"]);
    refused(with(&[model("a")]), &["user"]);
    refused(with(&[model("a"), user("b")]), &["user"]);
    refused(with(&[user("a"), model("b")]), &["end", "user"]);
    refused(with(&[]), &["user"]);
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn a_conversation_begins_once_and_marks_every_turn(
        texts in prop::collection::vec("[a-zA-Z ,.\n]{0,20}", 1..6),
    ) {
        let tokenizer = tokenizer();
        let odd = texts.len() - (texts.len() + 1) % 2;
        let texts = &texts[..odd];
        let turns: Vec<_> =
            texts.iter().enumerate().map(|(i, t)| if i % 2 == 0 { user(t) } else { model(t) }).collect();
        let ids = tokenizer.encode_chat(&turns).unwrap();
        let count = |of: i64| ids.iter().filter(|id| **id == of).count();
        prop_assert_eq!((ids[0], count(BOS)), (BOS, 1));
        prop_assert_eq!((count(START), count(END)), (turns.len() + 1, turns.len()));
        let want: String = turns
            .iter()
            .map(|t| format!("{}\n{}\n", if t.role == Role::User { "user" } else { "model" }, t.text.trim()))
            .collect();
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), want + "model\n");
    }
}
