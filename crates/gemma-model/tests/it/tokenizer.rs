//! Text to ids and back, with the tokenizer of the tiny model.

use std::fs;

use gemma_model::{Role, Tokenizer, Turn};
use proptest::prelude::*;
use serde_json::{Value, json};
use testkit::fixture;

use crate::common::{cases, refused};

fn tokenizer() -> Tokenizer {
    Tokenizer::load(&fixture("tokenizer")).unwrap()
}

/// The file, to be changed and read again.
fn file() -> Value {
    serde_json::from_str(&fs::read_to_string(fixture("tokenizer/tokenizer.json")).unwrap()).unwrap()
}

fn read(json: &Value) -> gemma_model::Result<Tokenizer> {
    Tokenizer::from_bytes("here/tokenizer.json", json.to_string().as_bytes())
}

const TEXTS: [&str; 16] = [
    "The capital of France is Paris.",
    "a",
    " ",
    "  two spaces, and a trailing one ",
    "\n",
    "line\n\nparagraph\r\n\ttab",
    "fn main() { println!(\"{}\", 0x1F & !mask); } // 100 % code_like",
    "def f(x):\n    return x ** 2  # def\n",
    "ÀÉîõü ß ñ ø œ",
    "Ελληνικά, русский, עברית, العربية",
    "日本語の文章と中文字符、한국어",
    "हिन्दी தமிழ் ไทย",
    "🦀🔥👩‍👩‍👧‍👦🏳️‍🌈 e\u{301} \u{200d}",
    "\u{0}\u{1}\u{7f}\u{10ffff}",
    "<0x41> <|endoftext|> <start_of_turn> [UNK] </s>",
    "3.14159 1,000,000 2026-01-01T00:00:00Z",
];

#[test]
fn bos_comes_first_and_once() {
    let tokenizer = tokenizer();
    assert_eq!((tokenizer.pad(), tokenizer.eos(), tokenizer.bos()), (0, 1, 2));
    assert_eq!(tokenizer.special(), [2, 1, 0]);
    assert_eq!(tokenizer.d_vocab(), 4096);
    for text in TEXTS {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(ids.iter().position(|id| *id == 2), Some(0), "{text:?}");
        assert_eq!(ids.iter().filter(|id| **id == 2).count(), 1, "{text:?}");
        assert!(!ids.contains(&1), "no end is added to {text:?}");
        assert_eq!(tokenizer.encode_plain(text).unwrap(), ids[1..], "{text:?}");
    }
}

#[test]
fn a_text_that_begins_with_bos_gets_no_second() {
    let tokenizer = tokenizer();
    assert_eq!(tokenizer.encode("<bos>Hello").unwrap(), tokenizer.encode("Hello").unwrap());
    // One further in is the user's own.
    let ids = tokenizer.encode("Hello<bos>").unwrap();
    assert_eq!((ids.first(), ids.last()), (Some(&2), Some(&2)));
}

#[test]
fn an_empty_text_is_refused() {
    for text in ["", "<bos>"] {
        refused(tokenizer().encode(text), &["empty"]);
    }
    refused(tokenizer().batch(&["good", ""]), &["empty"]);
    refused(tokenizer().batch(&[""; 0]), &["at least one sequence"]);
    assert_eq!(tokenizer().encode_plain("").unwrap(), Vec::<i64>::new());
}

#[test]
fn texts_come_back() {
    let tokenizer = tokenizer();
    for text in TEXTS {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert_eq!(tokenizer.decode(&ids[1..]).unwrap(), text, "without BOS");
    }
}

/// What does not come back is what the format gives a meaning of its own: the sign for a space, which reads as one, and
/// the special tokens, which are left out.
fn as_read(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some(next) = rest.chars().next() {
        match ["<pad>", "<eos>", "<bos>", "<unk>"].iter().find_map(|special| rest.strip_prefix(special)) {
            Some(after) => rest = after,
            None => {
                out.push(if next == '▁' { ' ' } else { next });
                rest = &rest[next.len_utf8()..];
            }
        }
    }
    out
}

#[test]
fn signs_with_a_meaning_of_their_own_are_read_by_it() {
    let tokenizer = tokenizer();
    for (text, back) in [("a▁b", "a b"), ("▁", " "), ("a<eos>b", "ab"), ("<unk>x", "x"), ("x<pad>", "x")]
    {
        assert_eq!(tokenizer.decode(&tokenizer.encode(text).unwrap()).unwrap(), back);
        assert_eq!(as_read(text), back);
    }
    assert_eq!(tokenizer.encode("a<eos>").unwrap().last(), Some(&1), "a special token in the text is one");
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn decoding_what_was_encoded_gives_the_text(
        text in prop_oneof![
            prop::collection::vec(any::<char>(), 1..24).prop_map(String::from_iter),
            "\\PC{1,40}",
            "[ \n\t a-zA-Z0-9_.<>/▁éλ日🦀]{1,40}",
            "(the|The| |\n|'s|[0-9]|<bos>|<eo|s>|<0x0A>|▁|é){1,12}",
        ],
    ) {
        let tokenizer = Shared::get();
        let ids = tokenizer.encode_plain(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids).unwrap(), as_read(&text));
        // Every id is one of the vocabulary, and byte fallback leaves no token unknown but the one spelt out.
        prop_assert!(ids.iter().all(|id| (0..4096).contains(id)));
        prop_assert_eq!(ids.contains(&3), text.contains("<unk>"));
    }

    #[test]
    fn a_text_is_its_pieces(text in "[a-zA-Z0-9 .,;!?'-]{1,40}") {
        // In plain English no token is a byte, so the pieces spell the text.
        let tokenizer = Shared::get();
        let ids = tokenizer.encode_plain(&text).unwrap();
        prop_assert_eq!(ids.iter().map(|id| tokenizer.piece(*id)).collect::<String>(), text);
    }

    #[test]
    fn any_ids_decode_or_are_named(ids in prop::collection::vec(prop_oneof![0i64..4096, any::<i64>()], 0..12)) {
        let decoded = Shared::get().decode(&ids);
        match ids.iter().find(|id| !(0..4096).contains(*id)) {
            None => drop(decoded.unwrap()),
            Some(id) => drop(refused(decoded, &[&id.to_string()])),
        }
    }
}

/// Parsed once for all cases.
struct Shared;

impl Shared {
    fn get() -> &'static Tokenizer {
        static TOKENIZER: std::sync::OnceLock<Tokenizer> = std::sync::OnceLock::new();
        TOKENIZER.get_or_init(tokenizer)
    }
}

#[test]
fn digits_are_split() {
    // As in Gemma's own tokenizer.
    assert_eq!(tokenizer().encode_plain("2026").unwrap().len(), 4);
}

#[test]
fn pieces_read_as_text() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode_plain("the cat").unwrap();
    assert!(tokenizer.piece(*ids.last().unwrap()).contains("at"));
    assert_eq!(tokenizer.piece(2), "<bos>");
    assert_eq!(tokenizer.piece(4), "<0x00>");
    for none in [-1, 4096, i64::MAX, i64::MIN] {
        assert_eq!(tokenizer.piece(none), format!("<{none}>"));
    }
}

#[test]
fn a_batch_is_padded_on_the_right() {
    let tokenizer = tokenizer();
    let texts = ["The capital of France is", "Hi", "日本"];
    let batch = tokenizer.batch(&texts).unwrap();
    let longest = texts.map(|t| tokenizer.encode(t).unwrap().len()).into_iter().max().unwrap();
    assert_eq!((batch.batch(), batch.pos()), (3, longest as i64));
    for (text, row) in texts.iter().zip(batch.rows()) {
        let own = tokenizer.encode(text).unwrap();
        assert_eq!(row[..own.len()], own);
        assert!(row[own.len()..].iter().all(|id| *id == 0), "{text}");
    }
    // BOS and padding never count.
    let counted = batch.counted().sum(tch::Kind::Int64).int64_value(&[]);
    let tokens: usize = texts.iter().map(|t| tokenizer.encode_plain(t).unwrap().len()).sum();
    assert_eq!(counted, tokens as i64);
    // Texts of one length need no mask, and owned strings are texts too.
    assert!(tokenizer.batch(&["Hi".to_owned(), "Hi".to_owned()]).unwrap().attended().is_none());
}

#[test]
fn a_text_is_never_cut_or_padded_in_silence() {
    let mut json = file();
    json["truncation"] =
        json!({"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"});
    let long = "one two three four five six seven eight nine ten";
    assert_eq!(read(&json).unwrap().encode(long).unwrap(), tokenizer().encode(long).unwrap());
}

#[test]
fn a_chat_needs_the_tokens_of_one() {
    refused(tokenizer().encode_chat(&[Turn { role: Role::User, text: "Hello" }]), &["<end_of_turn>"]);
    // With them, the message stands in Gemma's template.
    let mut json = file();
    let added = json["added_tokens"].as_array_mut().unwrap();
    for (id, content) in [(4096, "<start_of_turn>"), (4097, "<end_of_turn>")] {
        added.push(json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}));
    }
    let chat = read(&json).unwrap();
    let ids = chat.encode_chat(&[Turn { role: Role::User, text: "Hello" }]).unwrap();
    let plain = |text: &str| chat.encode_plain(text).unwrap();
    let want =
        [vec![2, 4096], plain("user\nHello"), vec![4097], plain("\n"), vec![4096], plain("model\n")].concat();
    assert_eq!(ids, want);
}

#[test]
fn a_file_without_a_special_token_names_it() {
    for token in ["<bos>", "<eos>", "<pad>"] {
        let mut json = file();
        json["added_tokens"].as_array_mut().unwrap().retain(|t| t["content"] != token);
        let vocab = json["model"]["vocab"].as_object_mut().unwrap();
        let id = vocab.remove(token).unwrap();
        vocab.insert("a name of its own".to_owned(), id);
        json["post_processor"] = Value::Null;
        refused(read(&json), &["here/tokenizer.json", &format!("`{token}`")]);
    }
}

#[test]
fn a_damaged_file_is_named() {
    let whole = fs::read(fixture("tokenizer/tokenizer.json")).unwrap();
    let from = |bytes: &[u8]| Tokenizer::from_bytes("here/tokenizer.json", bytes);
    for length in [0, 1, 100, whole.len() / 2, whole.len() - 1] {
        refused(from(&whole[..length]), &["here/tokenizer.json"]);
    }
    for text in [
        "",
        "{}",
        "[]",
        "null",
        "not json",
        "{\"model\": {}}",
        "{\"version\":\"1.0\",\"model\":{\"type\":\"Magic\"}}",
    ] {
        refused(from(text.as_bytes()), &["here/tokenizer.json"]);
    }
    refused(from(&[0xFF, 0xFE, 0x00]), &["here/tokenizer.json"]);
    refused(from(br#"{"version":"1.0","model":{"type":"Ma\ngic"}}"#), &["here/tokenizer.json"]);
}

#[test]
fn a_missing_file_is_named() {
    refused(Tokenizer::load(&fixture("tokenizer/none")), &["none", "tokenizer.json"]);
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("tokenizer.json")).unwrap();
    refused(Tokenizer::load(folder.path()), &["tokenizer.json"]);
}
