//! JSON lines: fields by name and path, and what each line can do wrong.

use corpus::{Content, Document, Field, ReadOptions, open};

use crate::common::{
    chat, ends_with_error, file, model, of, read, refused, subsets, texts, user, with_chat, with_subset,
};

fn documents(content: &str, options: &ReadOptions) -> corpus::Result<Vec<Document>> {
    let (_folder, path) = file("a.jsonl", content);
    read(&path, options)
}

#[track_caller]
fn fails(content: &str, options: &ReadOptions, at_fault: &[&str]) {
    let (_folder, path) = file("a.jsonl", content);
    let error = ends_with_error(open(&path, options).unwrap());
    refused(Err::<(), _>(error), at_fault);
}

#[test]
fn a_text_a_line() {
    let content =
        "\u{feff}{\"text\": \"a\\nb\", \"id\": 1}\r\n\r\n  \n{\"text\": \"\"}\n{\"id\": [], \"text\": \"é\"}";
    let found = documents(content, &ReadOptions::default()).unwrap();
    // An empty text is a document, for the packer to skip and to count.
    assert_eq!(texts(&found), ["a\nb", "", "é"]);
    assert!(found.iter().all(|document| document.subset.is_none()));
    assert!(documents("", &ReadOptions::default()).unwrap().is_empty());
}

#[test]
fn fields_by_name_and_by_path() {
    let content = r#"{"body": {"raw": "a"}, "meta": {"pile_set_name": "Books3"}}"#;
    let options =
        ReadOptions { content: Field::Text("body.raw".to_owned()), ..with_subset("meta.pile_set_name") };
    assert_eq!(documents(content, &options).unwrap(), [of("Books3", "a")]);
    // A name with a dot in it goes before the path.
    let content = r#"{"text": "a", "meta.set": "flat", "meta": {"set": "nested"}}"#;
    assert_eq!(subsets(&documents(content, &with_subset("meta.set")).unwrap()), ["flat"]);
    let content = r#"{"text": "a", "a": {"b": {"c": "deep"}}}"#;
    assert_eq!(subsets(&documents(content, &with_subset("a.b.c")).unwrap()), ["deep"]);
    let content = r#"{"text": "a", "a": {"b.c": "dotted"}}"#;
    assert_eq!(subsets(&documents(content, &with_subset("a.b.c")).unwrap()), ["dotted"]);
}

#[test]
fn the_line_at_fault_is_named() {
    let text = ReadOptions::default();
    fails("{\"text\": \"a\"}\n\n{}", &text, &["a.jsonl, line 3", "no field `text`"]);
    fails("{\"text\": \"a\"}\n{\"text\": ", &text, &["a.jsonl, line 2", "not JSON", "column"]);
    fails("{\"text\": \"a\"} {}", &text, &["a.jsonl, line 1", "not JSON"]);
    fails("[\"text\"]", &text, &["a.jsonl, line 1", "a list"]);
    fails("\"text\"", &text, &["line 1", "an object", "a text"]);
    for (value, kind) in [
        ("null", "null"),
        ("3", "a number"),
        ("true", "a truth value"),
        ("[]", "a list"),
        ("{}", "an object"),
    ] {
        fails(&format!("{{\"text\": {value}}}"), &text, &["a.jsonl, line 1", "`text`", kind]);
    }
}

#[test]
fn a_subset_that_was_asked_for_must_be_there() {
    let options = with_subset("meta.set");
    fails("{\"text\": \"a\"}", &options, &["line 1", "no field `meta.set`"]);
    fails("{\"text\": \"a\", \"meta\": null}", &options, &["line 1", "no field `meta.set`"]);
    fails("{\"text\": \"a\", \"meta\": {\"set\": 4}}", &options, &["line 1", "`meta.set`", "a number"]);
    fails("{\"text\": \"a\", \"meta\": {\"set\": \"\"}}", &options, &["line 1", "`meta.set`", "empty"]);
}

#[test]
fn conversations() {
    let content = concat!(
        r#"{"messages": [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Ho", "id": 3}]}"#,
        "\n",
        r#"{"messages": [{"content": "a", "role": "user"}, {"role": "model", "content": ""}, {"role": "user", "content": "c"}]}"#,
        "\n",
        r#"{"messages": []}"#,
    );
    let found = documents(content, &with_chat("messages")).unwrap();
    assert_eq!(
        found,
        [chat(&[user(" Hi "), model("Ho")]), chat(&[user("a"), model(""), user("c")]), chat(&[])]
    );
}

#[test]
fn a_conversation_in_a_subset() {
    let content = r#"{"turns": [{"role": "user", "content": "a"}], "source": "lmsys"}"#;
    let options = ReadOptions { content: Field::Chat("turns".to_owned()), ..with_subset("source") };
    let found = documents(content, &options).unwrap();
    assert_eq!(
        found,
        [Document { content: Content::Chat(vec![user("a")]), subset: Some("lmsys".to_owned()) }]
    );
}

#[test]
fn what_is_no_conversation_is_refused() {
    let options = with_chat("messages");
    for (messages, at_fault) in [
        (r#""Hi""#, &["`messages`", "a list of turns", "a text"][..]),
        (r#"["Hi"]"#, &["`messages`", "no field `role`"]),
        (r#"[{"content": "Hi"}]"#, &["`messages`", "no field `role`"]),
        (r#"[{"role": "user"}]"#, &["`messages`", "no field `content`"]),
        (r#"[{"role": "user", "content": [{"type": "text"}]}]"#, &["`content`", "a list"]),
        (r#"[{"role": "system", "content": "Be"}]"#, &["`system`", "template"]),
        (r#"[{"role": "to\nol", "content": "Be"}]"#, &["`to\u{fffd}ol`", "`user`, `assistant` or `model`"]),
        (r#"[{"role": "assistant", "content": "Hi"}]"#, &["first turn", "user's", "model's"]),
        (
            r#"[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]"#,
            &["alternate", "turn 2", "user's"],
        ),
    ] {
        let at_fault: Vec<&str> = at_fault.iter().copied().chain(["a.jsonl, line 2"]).collect();
        fails(&format!("\n{{\"messages\": {messages}}}"), &options, &at_fault);
    }
    fails(r#"{"text": "a"}"#, &options, &["line 1", "no field `messages`"]);
}
