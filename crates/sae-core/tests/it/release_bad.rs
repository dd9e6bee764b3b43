//! Texts that name no SAE: the error says which part is wrong, and what would do.

use proptest::{prelude::*, sample::Index};
use sae_core::SaeId;

use crate::common::{cases, refused};

#[track_caller]
fn bad(text: &str, at_fault: &[&str]) {
    refused(text.parse::<SaeId>(), &[&["is no Gemma Scope SAE"], at_fault].concat());
}

const GOOD: &str = "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71";

#[test]
fn too_few_or_too_many_parts() {
    for text in [
        "",
        " ",
        "/",
        "gemma-scope-2b-pt-res",
        "gemma-scope-2b-pt-res/layer_20",
        "gemma-scope-2b-pt-res/layer_20/width_16k",
        "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/",
        "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/other.npz",
        "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz/params.npz",
        "google/google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71",
        "/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71",
    ] {
        bad(text, &["should read like", GOOD]);
    }
}

#[test]
fn a_release_that_is_not_there() {
    for release in ["gemma-scope-2b-pt-foo", "gemma-scope-2-4b-pt-res", "Gemma-Scope-2b-pt-res", "", ".."] {
        bad(
            &format!("{release}/layer_20/width_16k/average_l0_71"),
            &[&format!("no release `{release}`"), "gemma-scope-2b-pt-res"],
        );
    }
    bad("other/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", &["should read like"]);
}

#[test]
fn a_layer_that_is_not_there() {
    for (release, last) in [
        ("gemma-scope-2b-pt-res", 25),
        ("gemma-scope-2b-pt-att", 25),
        ("gemma-scope-2b-pt-mlp", 25),
        ("gemma-scope-2b-pt-transcoders", 25),
        ("gemma-scope-9b-pt-res", 41),
        ("gemma-scope-9b-pt-att", 41),
        ("gemma-scope-9b-pt-mlp", 41),
        ("gemma-scope-9b-it-res", 41),
        ("gemma-scope-27b-pt-res", 45),
    ] {
        let text = |layer: usize| format!("{release}/layer_{layer}/width_16k/average_l0_71");
        text(last).parse::<SaeId>().unwrap();
        let (layer, known) = (format!("`layer_{}`", last + 1), format!("layer_0 to layer_{last}"));
        bad(&text(last + 1), &[&layer, &known]);
        bad(&text(usize::MAX), &[&known]);
    }
    for layer in ["layer_", "layer_-1", "layer_+2", "layer_02", "layer_1.0", "layer_two", "layer_2 "] {
        bad(
            &format!("gemma-scope-2b-pt-res/{layer}/width_16k/average_l0_71"),
            &[&format!("`{layer}`"), "layer_25"],
        );
    }
    for layer in ["20", "Layer_20", "layer20", "", "..", "embeddings"] {
        bad(
            &format!("gemma-scope-2b-pt-res/{layer}/width_16k/average_l0_71"),
            &[&format!("`{layer}`"), "layer_20"],
        );
    }
}

#[test]
fn an_embedding_where_there_is_none() {
    "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_111".parse::<SaeId>().unwrap();
    for kind in ["att", "mlp", "transcoders"] {
        bad(
            &format!("gemma-scope-2b-pt-{kind}/embedding/width_4k/average_l0_111"),
            &["`embedding`", "layer_20"],
        );
    }
}

#[test]
fn a_width_that_is_not_there() {
    for width in ["width_8k", "width_16K", "width_16384", "width_", "16k", "width_1M", "", "..", "width_16k "]
    {
        bad(
            &format!("gemma-scope-2b-pt-res/layer_20/{width}/average_l0_71"),
            &[&format!("`{width}`"), "width_16k", "width_1m"],
        );
    }
}

#[test]
fn an_l0_that_is_none() {
    for l0 in [
        "average_l0_",
        "average_l0_-1",
        "average_l0_07",
        "average_l0_7.5",
        "average_l0_99999999999",
        "average_l0",
        "71",
        "",
        "..",
        "Canonical",
    ] {
        bad(
            &format!("gemma-scope-2b-pt-res/layer_20/width_16k/{l0}"),
            &[&format!("`{l0}`"), "average_l0_71"],
        );
    }
}

#[test]
fn canonical_where_none_is_named() {
    for key in
        ["gemma-scope-2b-pt-transcoders/layer_20/width_16k", "gemma-scope-27b-pt-res/layer_11/width_131k"]
    {
        bad(&format!("{key}/canonical"), &["canonical", key]);
    }
}

#[test]
fn a_path_that_leaves_the_repository() {
    for text in [
        "../../../etc/passwd",
        "gemma-scope-2b-pt-res/../../width_16k/average_l0_71",
        "gemma-scope-2b-pt-res/layer_20/../average_l0_71",
        "gemma-scope-2b-pt-res/layer_20/width_16k/../params.npz",
        "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/../../x",
        "gemma-scope-2b-pt-res\\layer_20\\width_16k\\average_l0_71",
        "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71\0",
        "gemma-scope-2b-pt-res/layer_20\n/width_16k/average_l0_71",
    ] {
        bad(text, &[]);
    }
}

#[test]
fn json_is_as_strict() {
    refused(serde_json::from_str::<SaeId>("\"layer_20\""), &["`layer_20` is no Gemma Scope SAE"]);
}

/// Either the text is an id, whose own text it then is again, or the error is one sentence.
fn parse_or_refuse(text: &str) {
    match text.parse::<SaeId>() {
        Ok(id) => assert_eq!(id.to_string().parse::<SaeId>().unwrap(), id),
        Err(_) => bad(text, &[]),
    }
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn no_text_panics(text in any::<String>()) {
        parse_or_refuse(&text);
    }

    #[test]
    fn no_text_of_the_same_letters_panics(
        text in "(google/)?(gemma-scope-2b-pt-res(-canonical)?|[a-z./-]*)(/[a-z0-9_.]{0,12}){0,5}",
    ) {
        parse_or_refuse(&text);
    }

    #[test]
    fn no_slip_of_the_pen_panics(at in any::<Index>(), letter in any::<char>(), what in 0..3) {
        let mut letters: Vec<char> = GOOD.chars().collect();
        let at = at.index(letters.len());
        match what {
            0 => letters.insert(at, letter),
            1 => letters[at] = letter,
            _ => { letters.remove(at); }
        }
        parse_or_refuse(&letters.into_iter().collect::<String>());
    }
}
