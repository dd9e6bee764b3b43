//! Gemma 2's own tokenizer, against what Python's `tokenizers` makes of the same texts (`tools/golden/tokenizer_golden.py`):
//! many scripts, code, emoji, bytes, whitespace. `cargo xtask test` fetches it and says where it is.

use std::{fs, path::PathBuf};

use gemma_model::{Role, Tokenizer, Turn};
use serde_json::Value;
use testkit::fixture;

/// The folder, or `None` with a word on stdout.
fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("GEMMA_SCOPE_TOKENIZER").map(PathBuf::from);
    if folder.is_none() {
        println!("skipped: GEMMA_SCOPE_TOKENIZER names no folder with Gemma 2's tokenizer.json");
    }
    folder
}

fn expected() -> Value {
    let text = fs::read_to_string(fixture("tokenizer/gemma2_expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn ids(value: &Value) -> Vec<i64> {
    value["ids"].as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
}

#[test]
fn every_text_of_the_list() {
    let Some(folder) = folder() else { return };
    let tokenizer = Tokenizer::load(&folder).unwrap();
    assert_eq!(tokenizer.d_vocab(), 256_000);
    let expected = expected();
    let texts = expected["texts"].as_array().unwrap();
    assert!(texts.len() > 100);
    for case in texts {
        let text = case["text"].as_str().unwrap();
        let got = tokenizer.encode_plain(text).unwrap();
        assert_eq!(got, ids(case), "{text:?}");
        let decoded = case["decoded"].as_str().unwrap();
        assert_eq!(tokenizer.decode(&got).unwrap(), decoded, "{text:?}");
        let mut stream = tokenizer.stream();
        let pieces: String = got.iter().map(|id| stream.push(*id).unwrap()).collect();
        assert_eq!(pieces + &stream.finish(), decoded, "{text:?}, streamed");
    }
}

#[test]
fn every_conversation_of_the_list() {
    let Some(folder) = folder() else { return };
    let tokenizer = Tokenizer::load(&folder).unwrap();
    for case in expected()["chat"].as_array().unwrap() {
        let turns: Vec<Turn<'_>> = case["messages"].as_array().unwrap().iter().map(turn).collect();
        assert_eq!(tokenizer.encode_chat(&turns).unwrap(), ids(case), "{}", case["text"]);
    }
}

fn turn(message: &Value) -> Turn<'_> {
    let role = match message["role"].as_str().unwrap() {
        "user" => Role::User,
        _ => Role::Model,
    };
    Turn { role, text: message["content"].as_str().unwrap() }
}
