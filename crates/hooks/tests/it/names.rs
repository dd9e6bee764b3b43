//! A name is a site or an error: a misspelt hook cannot exist.

use std::collections::BTreeSet;

use hooks::{HookPoint, LayerIdx};
use proptest::prelude::*;

use crate::common::{any_point, cases, refused};

/// What the next test of names does to a name.
fn mutated() -> impl Strategy<Value = String> {
    (any_point(), any::<prop::sample::Index>(), 0..5, "[a-z_.0-9 *A-Z\n]").prop_map(
        |(point, at, how, put)| {
            let mut name = point.to_string();
            let at = at.index(name.len());
            match how {
                0 => name.replace_range(at..=at, &put),
                1 => name.insert_str(at, &put),
                2 => drop(name.remove(at)),
                3 => name.truncate(at),
                _ => name += &put,
            }
            name
        },
    )
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn reading_what_was_written_gives_the_point(point in any_point()) {
        prop_assert_eq!(point.to_string().parse::<HookPoint>().unwrap(), point);
    }

    #[test]
    fn reading_accepts_nothing_but_what_is_written(text in prop_oneof![mutated(), "\\PC{0,40}", "blocks\\.[0-9+ -]{0,3}\\.[a-z_.]{0,20}"]) {
        match text.parse::<HookPoint>() {
            Ok(point) => prop_assert_eq!(point.to_string(), text),
            Err(error) => {
                let shown = format!("`{}`", text.replace(char::is_control, "\u{FFFD}"));
                refused(Err::<(), _>(error), &[&shown, "no hook point"]);
            }
        }
    }

    #[test]
    fn serde_speaks_the_same_names(point in any_point()) {
        let json = serde_json::to_string(&point).unwrap();
        prop_assert_eq!(&json, &format!("\"{point}\""));
        prop_assert_eq!(serde_json::from_str::<HookPoint>(&json).unwrap(), point);
    }
}

#[test]
fn every_name_of_a_deep_model_comes_back() {
    let all: Vec<HookPoint> = HookPoint::all(46).collect();
    for point in &all {
        assert_eq!(point.to_string().parse::<HookPoint>().unwrap(), *point);
    }
    // No two sites share a name.
    assert_eq!(all.iter().map(ToString::to_string).collect::<BTreeSet<_>>().len(), all.len());
}

#[test]
fn the_nearest_name_is_offered() {
    for (wrong, right) in [
        ("blocks.20.hook_resid_pots", "blocks.20.hook_resid_post"),
        ("blocks.20.hook_residpost", "blocks.20.hook_resid_post"),
        ("block.20.hook_resid_post", "blocks.20.hook_resid_post"),
        ("blocks.20.attn.hook_Z", "blocks.20.attn.hook_z"),
        ("blocks.3.mlp_out", "blocks.3.hook_mlp_out"),
        ("hook_embd", "hook_embed"),
        ("ln_final.hook_normalised", "ln_final.hook_normalized"),
        ("blocks.7.attn.hook_score", "blocks.7.attn.hook_attn_scores"),
        ("blocks.12.ln2.hook_normalised", "blocks.12.ln2.hook_normalized"),
    ] {
        refused(wrong.parse::<HookPoint>(), &[&format!("`{wrong}`"), &format!("`{right}`")]);
    }
    for text in ["", "x", "blocks..", "blocks.1", "resid"] {
        refused(text.parse::<HookPoint>(), &["nearest"]);
    }
}

#[test]
fn a_layer_has_one_spelling() {
    for text in [
        "blocks.01.hook_resid_pre",
        "blocks.+1.hook_resid_pre",
        "blocks.-1.hook_resid_pre",
        "blocks. 1.hook_resid_pre",
        "blocks.1e0.hook_resid_pre",
        "blocks.x.hook_resid_pre",
        "blocks..hook_resid_pre",
        "blocks.*.hook_resid_pre",
        "blocks.99999999999999999999999999.hook_resid_pre",
        "blocks.1.hook_resid_pre ",
        " blocks.1.hook_resid_pre",
        "blocks.1.hook_embed",
        "blocks.1.ln_final.hook_scale",
        "hook_resid_pre",
        "blocks.1.HOOK_RESID_PRE",
        "model.blocks.1.hook_resid_pre",
    ] {
        refused(text.parse::<HookPoint>(), &["no hook point"]);
    }
}

#[test]
fn text_that_would_break_the_line_stays_on_it() {
    refused("blocks.0\n.hook_resid_pre\u{1b}[31m".parse::<HookPoint>(), &["no hook point"]);
    refused(HookPoint::parse_list("hook_embed,hook\nembed", 2), &["no hook point"]);
}

#[test]
fn serde_refuses_what_parsing_refuses() {
    for json in ["\"blocks.0.hook_resid_pots\"", "3", "null", "{\"ResidPost\":0}", "\"ResidPost\""] {
        assert!(serde_json::from_str::<HookPoint>(json).is_err(), "{json}");
    }
    let error = serde_json::from_str::<HookPoint>("\"blocks.0.hook_resid_pots\"");
    refused(error, &["blocks.0.hook_resid_pots", "blocks.0.hook_resid_post"]);
}

#[test]
fn lists_with_stars_and_commas() {
    let list = |text: &str| {
        HookPoint::parse_list(text, 3).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(list("hook_embed"), ["hook_embed"]);
    assert_eq!(
        list("blocks.*.hook_resid_post"),
        ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.2.hook_resid_post"]
    );
    assert_eq!(
        list(" ln_final.hook_scale , blocks.*.attn.hook_z,,blocks.2.hook_mlp_out,"),
        [
            "ln_final.hook_scale",
            "blocks.0.attn.hook_z",
            "blocks.1.attn.hook_z",
            "blocks.2.attn.hook_z",
            "blocks.2.hook_mlp_out"
        ]
    );
    // Every site of a model, by star.
    let stars: BTreeSet<String> =
        HookPoint::all(1).map(|p| p.to_string().replacen(".0.", ".*.", 1)).collect();
    let every: BTreeSet<HookPoint> =
        HookPoint::parse_list(&stars.into_iter().collect::<Vec<_>>().join(","), 3)
            .unwrap()
            .into_iter()
            .collect();
    assert_eq!(every, HookPoint::all(3).collect());
}

#[test]
fn lists_that_are_none() {
    for (text, at_fault) in [
        ("blocks.*.hook_resid_pots", ["`blocks.*.hook_resid_pots`", "`blocks.*.hook_resid_post`"]),
        ("hook_embed,blocks.0.hook_nothing", ["`blocks.0.hook_nothing`", "nearest"]),
        ("hook_embed hook_embed", ["`hook_embed hook_embed`", "nearest"]),
        ("blocks.*", ["`blocks.*`", "nearest"]),
        ("blocks.*.*", ["`blocks.*.*`", "nearest"]),
        ("*", ["`*`", "nearest"]),
        ("", ["``", "blocks.20.hook_resid_post"]),
        (" , ,", ["no hook point", "blocks.20.hook_resid_post"]),
        ("blocks.3.hook_resid_post", ["`blocks.3.hook_resid_post`", "layers 0 to 2"]),
        ("blocks.0.hook_resid_post,blocks.18446744073709551615.hook_z", ["no hook point", "nearest"]),
        ("blocks.18446744073709551615.attn.hook_z", ["out of range", "layers 0 to 2"]),
    ] {
        refused(HookPoint::parse_list(text, 3), &at_fault);
    }
    // A model without blocks has no layer that a site could be in.
    refused(
        HookPoint::parse_list("blocks.0.hook_resid_post", 0),
        &["`blocks.0.hook_resid_post`", "no layers"],
    );
    refused(HookPoint::parse_list("blocks.*.hook_resid_post", 0), &["no hook point"]);
    assert_eq!(HookPoint::parse_list("hook_embed", 0).unwrap(), [HookPoint::Embed]);
}

#[test]
fn sites_sort_by_kind_and_layer() {
    assert!(HookPoint::ResidPost(LayerIdx(2)) < HookPoint::ResidPost(LayerIdx(10)));
    assert_eq!(LayerIdx(7).to_string(), "7");
}
