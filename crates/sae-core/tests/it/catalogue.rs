//! The catalogue against SAELens' index: the rows of the first Gemma Scope one by one, those of the second by counts that
//! `tools/catalogue/check.py` took from it (and that script compares all rows).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use hooks::LayerIdx;
use sae_core::{
    SaeError, SaeId,
    catalogue::{self, Entry, Filter, Site, Width},
};
use testkit::fixture;

use crate::common::refused;

fn names(glob: &str) -> Vec<String> {
    catalogue::matching(glob).unwrap().iter().map(Entry::to_string).collect()
}

fn count(filter: &Filter) -> usize {
    filter.choose(catalogue::all()).unwrap().len()
}

fn find(name: &str) -> Entry {
    catalogue::find(name).unwrap_or_else(|| panic!("{name} is not in the catalogue"))
}

/// SAEs by release, as files (canonical rows are the same files again).
const COUNTS: [(&str, usize); 9] = [
    ("gemma-scope-2b-pt-res", 316),
    ("gemma-scope-2b-pt-att", 260),
    ("gemma-scope-2b-pt-mlp", 260),
    ("gemma-scope-2b-pt-transcoders", 26),
    ("gemma-scope-9b-pt-res", 536),
    ("gemma-scope-9b-pt-att", 492),
    ("gemma-scope-9b-pt-mlp", 492),
    ("gemma-scope-27b-pt-res", 18),
    ("gemma-scope-9b-it-res", 30),
];

/// The same of Gemma Scope 2, repository by repository and site by site: `res att mlp transcoders`, each for some layers and
/// for all.
const COUNTS_2: [(&str, [usize; 8]); 10] = [
    ("270m-pt", [52, 72, 36, 72, 36, 72, 2, 144]),
    ("270m-it", [52, 72, 36, 72, 36, 72, 72, 144]),
    ("1b-pt", [52, 104, 36, 104, 48, 104, 72, 208]),
    ("1b-it", [52, 104, 36, 104, 48, 104, 72, 208]),
    ("4b-pt", [52, 136, 36, 136, 36, 136, 72, 272]),
    ("4b-it", [52, 136, 36, 136, 36, 136, 72, 272]),
    ("12b-pt", [52, 192, 36, 192, 36, 192, 72, 384]),
    ("12b-it", [52, 192, 36, 192, 36, 192, 72, 384]),
    ("27b-pt", [52, 248, 0, 0, 0, 0, 0, 491]),
    ("27b-it", [52, 248, 36, 248, 36, 248, 72, 491]),
];

#[test]
fn releases_are_as_large_as_the_index_says() {
    let mut want: BTreeMap<String, usize> = COUNTS.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
    for (which, counts) in COUNTS_2 {
        let kinds = ["res", "res-all", "att", "att-all", "mlp", "mlp-all", "transcoders", "transcoders-all"];
        let release = |kind| format!("gemma-scope-2-{which}-{kind}");
        want.extend(kinds.into_iter().zip(counts).filter(|(_, n)| *n > 0).map(|(k, n)| (release(k), n)));
    }
    let mut found = BTreeMap::new();
    for entry in catalogue::all() {
        *found.entry(entry.release.to_owned()).or_insert(0_usize) += 1;
    }
    assert_eq!(found, want);
    assert_eq!(catalogue::all().count(), 2430 + 8784);
}

#[test]
fn every_row_of_the_first_gemma_scope() {
    let text = fs::read_to_string(fixture("gemma_scope_index.tsv")).unwrap();
    let mut rows = BTreeSet::new();
    let mut canonical = BTreeSet::new();
    for line in text.lines().skip(1) {
        let [release, repo, sae_id, path, _] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
        let file = format!("{repo}/{path}");
        if release.ends_with("-canonical") {
            // By the id in SAELens, and by the project's own.
            let entry = find(&format!("{release}/{sae_id}"));
            assert_eq!(entry, find(&format!("{}/{sae_id}", release.trim_end_matches("-canonical"))));
            assert_eq!(format!("{}/{}", entry.repo, entry.path()), file);
            canonical.insert(file);
        } else {
            rows.insert(file);
        }
    }
    let first = || catalogue::all().filter(|e| e.repo.trim_start_matches("google/") == e.release);
    let files = |entries: &mut dyn Iterator<Item = Entry>| -> BTreeSet<String> {
        entries.map(|e| format!("{}/{}", e.repo, e.path())).collect()
    };
    assert_eq!(files(&mut first()), rows);
    assert_eq!(files(&mut first().filter(|e| e.canonical)), canonical);
    for entry in first() {
        let id: SaeId = entry.to_string().parse().unwrap();
        assert_eq!((id.repo(), id.model(), id.l0()), (entry.repo.to_owned(), entry.model, entry.l0));
        assert_eq!(id.params_path(), format!("{}/params.npz", entry.path()));
        assert_eq!(id.d_sae(), entry.width.d_sae());
    }
}

#[test]
fn canonical_is_what_it_was() {
    for (layer, l0) in [(5, 68), (12, 82), (20, 71)] {
        let entry = find(&format!("gemma-scope-2b-pt-res/layer_{layer}/width_16k/canonical"));
        assert_eq!((entry.layer, entry.l0, entry.canonical), (Some(LayerIdx(layer)), l0, true));
        assert_eq!(entry.neuronpedia().unwrap(), format!("gemma-2-2b/{layer}-gemmascope-res-16k"));
    }
}

/// Rows of the index, by hand.
#[test]
fn what_is_known_of_some() {
    let entry = find("google/gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_medium");
    assert_eq!(entry.to_string(), "google/gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_medium");
    assert_eq!(entry, find("gemma-scope-2-1b-pt-res/layer_13_width_16k_l0_medium"));
    assert_eq!((entry.repo, entry.model), ("google/gemma-scope-2-1b-pt", "google/gemma-3-1b-pt"));
    assert_eq!(
        (entry.site, entry.width.d_sae(), entry.l0, entry.canonical),
        (Site::Residual, 16_384, 60, false)
    );
    assert_eq!(entry.neuronpedia().unwrap(), "gemma-3-1b/13-gemmascope-2-res-16k");

    let entry = find("gemma-scope-2-27b-it-transcoders-all/layer_9_width_262k_l0_small_affine");
    assert_eq!(entry.path(), "transcoder_all/layer_9_width_262k_l0_small_affine");
    assert_eq!((entry.model, entry.site, entry.l0), ("google/gemma-3-27b-it", Site::Transcoder, 14));
    assert_eq!(entry.neuronpedia().unwrap(), "gemma-3-27b-it/9-gemmascope-2-transcoder-262k");

    let entry = find("gemma-scope-2-270m-pt-transcoders/transcoder/layer_15_width_262k_l0_big_affine");
    assert_eq!((entry.model, entry.l0), ("google/gemma-3-270m", 150));
    assert_eq!(entry.neuronpedia(), None);

    let entry = find("gemma-scope-9b-pt-res/layer_9/width_1m/average_l0_41");
    assert_eq!(entry.neuronpedia().unwrap(), "gemma-2-9b/9-gemmascope-res-1m__l0-41");

    let entry = find("gemma-scope-9b-pt-res/embedding/width_4k/average_l0_14");
    assert_eq!((entry.site, entry.layer, entry.neuronpedia()), (Site::Embedding, None, None));

    let entry = find("gemma-scope-9b-it-res/layer_20/width_16k/canonical/params.npz");
    assert_eq!((entry.model, entry.l0), ("google/gemma-2-9b-it", 91));
    assert_eq!(catalogue::find("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_70"), None);
}

#[test]
fn names_are_names_of_one() {
    let all: BTreeSet<String> = catalogue::all().map(|entry| entry.to_string()).collect();
    assert_eq!(all.len(), catalogue::all().count());
}

#[test]
fn a_glob_yields_names_in_the_order_of_their_numbers() {
    assert_eq!(
        names("gemma-scope-2b-pt-res/layer_20/width_16k/*"),
        ["22", "38", "71", "139", "294"]
            .map(|l0| format!("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_{l0}"))
    );
    let canonical = names("google/gemma-scope-2b-pt-res/layer_*/width_16k/canonical");
    let layers: Vec<usize> = catalogue::matching("gemma-scope-2b-pt-res/layer_*/width_16k/canonical")
        .unwrap()
        .iter()
        .map(|entry| entry.layer.unwrap().0)
        .collect();
    assert_eq!(layers, (0..26).collect::<Vec<_>>());
    assert_eq!(canonical[20], "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71");
    let widths: BTreeSet<_> = catalogue::matching("gemma-scope-2b-pt-res/layer_12/width_*/canonical")
        .unwrap()
        .iter()
        .map(|entry| entry.width.d_sae())
        .collect();
    let in_order: Vec<i64> = catalogue::matching("gemma-scope-2b-pt-res/layer_12/width_*/canonical")
        .unwrap()
        .iter()
        .map(|entry| entry.width.d_sae())
        .collect();
    assert_eq!(in_order, widths.into_iter().collect::<Vec<_>>());
}

#[test]
fn globs_in_every_form() {
    assert_eq!(names("gemma-scope-2b-pt-res/**").len(), 316);
    assert_eq!(names("gemma-scope-2b-pt-res/*/*/*").len(), 316);
    assert_eq!(names("gemma-scope-2b-pt-res-canonical/**").len(), 58);
    assert_eq!(names("gemma-scope-2b-pt-???/layer_[01]/width_16k/canonical").len(), 6);
    assert_eq!(names("gemma-scope-2b-pt-res/layer_20/width_16k/*/params.npz").len(), 5);
    assert_eq!(
        names("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"),
        ["gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"]
    );
    let by_path = names("google/gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_*");
    assert_eq!(by_path, names("gemma-scope-2-1b-pt-res/layer_13_width_16k_l0_*"));
    let of = |size: &str| format!("google/gemma-scope-2-1b-pt/resid_post/layer_13_width_16k_l0_{size}");
    assert_eq!(by_path, ["small", "medium", "big"].map(of));
}

#[test]
fn a_glob_that_nothing_fits() {
    for (glob, near) in [
        (
            "gemma-scope-2b-pt-res/layer_20/width_17k/*",
            &["below `gemma-scope-2b-pt-res/layer_20` there are width_16k, "][..],
        ),
        ("gemma-scope-2b-pt-res/layer_2?/width_32k/*", &["width_16k, width_65k"]),
        ("gemma-scope-2b-pt-res/layer_99/*/*", &["below `gemma-scope-2b-pt-res` there are ", "layer_25"]),
        (
            "gemma-scope-2b-pt-rex/*/*/*",
            &["the releases are gemma-scope-2b-pt-res, ", "gemma-scope-2-27b-it"],
        ),
        ("gemma-scope-2b-pt-res/layer_2*", &["below `gemma-scope-2b-pt-res/layer_2*` there are width_16k"]),
        ("gemma-scope-2b-pt-res/*/*/*/*", &["nothing lies below `gemma-scope-2b-pt-res/*/*/*`"]),
        ("gemma-scope-2b-pt-res/**/width_17k/*", &["below `gemma-scope-2b-pt-res` there are "]),
        ("saes/*.npz", &["`saes/*.npz`", "the releases are"]),
        ("google/gemma-scope-2-1b-pt/resid_mid/*", &["below `gemma-scope-2-1b-pt` there are resid_post, "]),
        ("a\nb*", &["`a\\nb*`"]),
        ("", &["the releases are"]),
    ] {
        refused(catalogue::matching(glob), &[&["no released SAE fits"], near].concat());
    }
    refused(catalogue::matching("gemma-scope-2b-pt-res/[/*"), &["is no glob"]);
    refused(catalogue::matching("gemma-scope-2b-pt-res/***"), &["is no glob"]);
}

#[test]
fn filters() {
    let all = Filter::default;
    let model = |m: &str| Filter { model: Some(m.to_owned()), ..all() };
    for name in ["2b", "gemma-2-2b", "google/gemma-2-2b"] {
        assert_eq!(count(&model(name)), 316 + 260 + 260 + 26, "{name}");
    }
    for name in ["1b", "1b-pt", "gemma-3-1b", "gemma-3-1b-pt", "google/gemma-3-1b-pt"] {
        assert_eq!(count(&model(name)), 728, "{name}");
    }
    assert_eq!(count(&model("9b-it")), 30);
    assert_eq!(count(&model("270m")), 486);
    assert_eq!(count(&Filter { site: Some(Site::Embedding), ..all() }), 8);
    assert_eq!(count(&Filter { site: Some(Site::Residual), ..model("2b") }), 316 - 4);
    assert_eq!(count(&Filter { canonical: true, ..all() }), 429);
    assert_eq!(count(&Filter { release: Some("gemma-scope-27b-pt-res".to_owned()), ..all() }), 18);
    let of_20 = Filter {
        site: Some(Site::Residual),
        layers: Some(20..=20),
        width: Some("16k".parse().unwrap()),
        ..model("2b")
    };
    assert_eq!(count(&of_20), 5);
    // Both ends count.
    assert_eq!(count(&Filter { l0: Some(71..=294), ..of_20.clone() }), 3);
    assert_eq!(count(&Filter { layers: Some(5..=12), canonical: true, ..of_20.clone() }), 8);
    assert_eq!(count(&Filter { canonical: true, ..of_20 }), 1);
}

#[test]
fn a_filter_that_nothing_fits() {
    let query = Filter {
        model: Some("2b".to_owned()),
        site: Some(Site::Residual),
        layers: Some(21..=21),
        width: Some("262k".parse().unwrap()),
        ..Filter::default()
    };
    let choose = |filter: &Filter| filter.choose(catalogue::all());
    refused(
        choose(&query),
        &["no released SAE fits", "the widths of those that otherwise do are 16k, 65k", "layers", "12"],
    );
    let model = Filter { model: Some("3b".to_owned()), ..Filter::default() };
    refused(choose(&model), &["the models", "google/gemma-2-2b", "google/gemma-3-27b-it"]);
    let two = Filter { model: Some("3b".to_owned()), layers: Some(99..=99), ..Filter::default() };
    refused(choose(&two), &["nor would any with one of the conditions left out"]);
    let canonical = Filter { canonical: true, model: Some("1b".to_owned()), ..Filter::default() };
    refused(choose(&canonical), &["the models", "the names"]);
}

#[test]
fn words_that_are_none() {
    refused("resid".parse::<Site>(), &["`resid` is no site", "res, att, mlp, transcoder, embedding"]);
    refused("17k".parse::<Width>(), &["`17k` is no width", "4k, 16k"]);
    assert_eq!("16384".parse::<Width>().unwrap(), "16k".parse().unwrap());
    assert!(matches!("".parse::<Width>(), Err(SaeError::Catalogue(_))));
    for site in ["res", "att", "mlp", "transcoder", "embedding"] {
        assert_eq!(site.parse::<Site>().unwrap().to_string(), site);
    }
}

#[test]
fn json_says_all_of_it() {
    let entry = find("gemma-scope-2b-pt-res/layer_20/width_16k/canonical");
    let want = serde_json::json!({
        "name": "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71", "release": "gemma-scope-2b-pt-res",
        "repo": "google/gemma-scope-2b-pt-res", "path": "layer_20/width_16k/average_l0_71",
        "model": "google/gemma-2-2b", "site": "res", "layer": 20, "width": "16k", "d_sae": 16_384, "l0": 71,
        "canonical": true, "neuronpedia": "gemma-2-2b/20-gemmascope-res-16k",
    });
    assert_eq!(serde_json::to_value(entry).unwrap(), want);
}
