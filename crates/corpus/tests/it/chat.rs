//! Conversations in Gemma 2's template, held against its text written out.

use corpus::{BoxError, Document, Encode, Label, Packing, Row, Rows};

use crate::common::{
    BOS, Bytes, END, EOS, PAD, START, bytes, chat, ends_with_error, model, plain, refused, spelled, stream,
    user,
};

fn row(document: Document) -> (Row, Vec<String>) {
    let mut rows = Rows::new(stream(&[document]), Bytes, 1000, Packing::Packed).unwrap();
    let row = rows.next().unwrap().unwrap();
    assert!(rows.next().is_none());
    (row, rows.groups().names().to_vec())
}

/// What of a row is in a group, as text.
fn group(row: &Row, group: u32) -> String {
    let mut ids = row.ids.iter().zip(&row.labels);
    spelled(
        &ids.by_ref()
            .filter(|(_, label)| label.group() == Some(group))
            .map(|(id, _)| *id)
            .collect::<Vec<_>>(),
    )
}

#[test]
fn the_template_by_hand() {
    let (row, groups) = row(chat(&[user("Hello!\n\nWho?"), model("I am Gemma.")]));
    let expected = "<bos><start_of_turn>user\nHello!\n\nWho?<end_of_turn>\n<start_of_turn>model\nI am Gemma.<end_of_turn>\n";
    assert_eq!(spelled(&row.ids), expected);
    assert_eq!(groups, ["user", "model"]);
    assert_eq!((group(&row, 0), group(&row, 1)), ("Hello!\n\nWho?".to_owned(), "I am Gemma.".to_owned()));
    let others = row.labels.iter().filter(|label| label.group().is_none());
    assert!(others.into_iter().all(|label| *label == Label::Control));
}

#[test]
fn every_id_and_every_label() {
    let (row, _) = row(chat(&[user("a"), model("b")]));
    let ids = [
        vec![BOS, START],
        bytes("user\n"),
        bytes("a"),
        vec![END],
        bytes("\n"),
        vec![START],
        bytes("model\n"),
        bytes("b"),
        vec![END],
        bytes("\n"),
    ];
    assert_eq!(row.ids, ids.concat());
    use Label::{Control as C, Group as G};
    let labels = [&[C; 7][..], &[G(0)], &[C; 9], &[G(1)], &[C; 2]];
    assert_eq!(row.labels, labels.concat());
}

#[test]
fn a_conversation_may_end_with_either_and_say_nothing() {
    assert_eq!(spelled(&row(chat(&[user("a")])).0.ids), "<bos><start_of_turn>user\na<end_of_turn>\n");
    let (silent, _) = row(chat(&[user("a"), model(" \n")]));
    let expected = "<bos><start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\n<end_of_turn>\n";
    assert_eq!(spelled(&silent.ids), expected);
}

#[test]
fn space_around_a_turn_is_left_off_as_python_does() {
    for around in [" ", "\n", "\t\r\n", "\u{a0}", "\u{3000}", "\u{1c}", "\u{1f}", "\u{85}", "\u{2028}"] {
        let (row, _) = row(chat(&[user(&format!("{around}a b{around}"))]));
        assert_eq!(spelled(&row.ids), "<bos><start_of_turn>user\na b<end_of_turn>\n", "{around:?}");
    }
    // Which is no space to Python: the zero width one.
    let (row, _) = row(chat(&[user("\u{200b}a")]));
    assert_eq!(group(&row, 0), "\u{200b}a");
}

#[test]
fn conversations_follow_one_another_as_texts_do() {
    let documents = [chat(&[user("a")]), plain("b"), chat(&[]), chat(&[user("c")])];
    let mut rows = Rows::new(stream(&documents), Bytes, 1000, Packing::Packed).unwrap();
    let row = rows.next().unwrap().unwrap();
    let expected =
        "<bos><start_of_turn>user\na<end_of_turn>\n<eos>b<eos><start_of_turn>user\nc<end_of_turn>\n";
    assert_eq!(spelled(&row.ids), expected);
    assert_eq!((rows.summary().documents, rows.summary().skipped, rows.summary().counted), (3, 1, 3));
}

#[test]
fn a_subset_and_a_role_are_one_group() {
    let of = |subset: &str, document: Document| Document { subset: Some(subset.to_owned()), ..document };
    let documents =
        [of("x", chat(&[user("a"), model("b")])), of("y", chat(&[user("c")])), of("x", plain("d"))];
    let mut rows = Rows::new(stream(&documents), Bytes, 1000, Packing::Packed).unwrap();
    let row = rows.next().unwrap().unwrap();
    assert_eq!(rows.groups().names(), ["x/user", "x/model", "y/user", "x"]);
    assert_eq!([0, 1, 2, 3].map(|i| group(&row, i)), ["a", "b", "c", "d"]);
}

#[test]
fn turns_out_of_order_are_refused() {
    for (turns, at_fault) in [
        (vec![model("a")], ["first turn", "model's"]),
        (vec![user("a"), user("b")], ["alternate", "turn 2"]),
        (vec![user("a"), model("b"), model("c")], ["alternate", "turn 3"]),
    ] {
        let rows = Rows::new(stream(&[plain("x"), chat(&turns)]), Bytes, 9, Packing::Packed).unwrap();
        let text = refused(Err::<(), _>(ends_with_error(rows)), &at_fault);
        assert!(text.contains("document 2"), "{text}");
    }
}

/// A tokenizer in which a line break is one token with the letter behind it, and which may lack the marks.
struct Merging {
    marks: bool,
}

const MERGED: i64 = 1000;

impl Encode for Merging {
    fn encode(&self, text: &str) -> Result<Vec<i64>, BoxError> {
        let mut ids = Vec::new();
        for id in Bytes.encode(text)? {
            match ids.last_mut() {
                Some(last) if *last == bytes("\n")[0] => *last = MERGED + id,
                _ => ids.push(id),
            }
        }
        Ok(ids)
    }
    fn bos(&self) -> i64 {
        BOS
    }
    fn eos(&self) -> i64 {
        EOS
    }
    fn pad(&self) -> i64 {
        PAD
    }
    fn token(&self, text: &str) -> Option<i64> {
        Bytes.token(text).filter(|_| self.marks)
    }
}

#[test]
fn a_token_of_mark_and_text_is_the_text_s() {
    let mut rows =
        Rows::new(stream(&[chat(&[user("ab")])]), Merging { marks: true }, 99, Packing::Packed).unwrap();
    let row = rows.next().unwrap().unwrap();
    let merged = MERGED + bytes("a")[0];
    assert_eq!(
        row.ids,
        [vec![BOS, START], bytes("user"), vec![merged], bytes("b"), vec![END], bytes("\n")].concat()
    );
    use Label::{Control as C, Group as G};
    assert_eq!(row.labels, [&[C; 6][..], &[G(0); 2], &[C; 2]].concat());
}

#[test]
fn a_tokenizer_without_turns_is_refused() {
    let rows =
        Rows::new(stream(&[chat(&[user("a")])]), Merging { marks: false }, 99, Packing::Packed).unwrap();
    refused(Err::<(), _>(ends_with_error(rows)), &["document 1", "<start_of_turn>", "no chat model's"]);
}
