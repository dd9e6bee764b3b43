//! `SaeId` against the index of all Gemma Scope SAEs that SAELens knows: `fixtures/gemma_scope_index.tsv` holds its rows
//! for Gemma 2, with the columns release, `repo_id`, `sae_id`, path and model.

use std::{collections::BTreeSet, fs};

use hooks::{HookPoint, LayerIdx};
use sae_core::SaeId;
use testkit::fixture;

struct Row {
    release: String,
    repo: String,
    sae_id: String,
    path: String,
    model: String,
}

/// How many SAEs Gemma Scope released for Gemma 2, each under its L0, and some again as canonical.
const ROWS: usize = 2859;

fn index() -> Vec<Row> {
    let text = fs::read_to_string(fixture("gemma_scope_index.tsv")).unwrap();
    let rows: Vec<Row> = text
        .lines()
        .skip(1)
        .map(|line| {
            let columns: Vec<String> = line.split('\t').map(str::to_owned).collect();
            let [release, repo, sae_id, path, model] = columns.try_into().unwrap();
            Row { release, repo, sae_id, path, model }
        })
        .collect();
    assert_eq!(rows.len(), ROWS);
    rows
}

fn parse(text: &str) -> SaeId {
    text.parse().unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn every_row_parses_by_its_path() {
    for row in index() {
        let id = parse(&format!("{}/{}", row.repo, row.path));
        assert_eq!(id.repo(), row.repo);
        assert_eq!(id.params_path(), format!("{}/params.npz", row.path));
        // The index gives the base model for the rows of 9b-it by L0, and the right one for the same files as canonical.
        let model = if row.repo.ends_with("-9b-it-res") { "gemma-2-9b-it" } else { &row.model };
        assert_eq!(id.model(), format!("google/{model}"));
    }
}

#[test]
fn every_row_parses_by_its_release() {
    let mut canonical = 0;
    for row in index() {
        let id = parse(&format!("{}/{}", row.release, row.sae_id));
        assert_eq!(id.params_path(), format!("{}/params.npz", row.path), "{}/{}", row.release, row.sae_id);
        assert_eq!(id.repo(), row.repo);
        canonical += usize::from(row.sae_id.ends_with("/canonical"));
    }
    assert_eq!(canonical, 429);
}

#[test]
fn every_id_is_what_it_displays() {
    for row in index() {
        let id = parse(&format!("{}/{}", row.repo, row.path));
        let text = id.to_string();
        assert_eq!(format!("google/{text}"), format!("{}/{}", row.repo, row.path));
        assert_eq!(parse(&text), id);
        assert_eq!(parse(&format!("google/{text}/params.npz")), id);
        assert_eq!(parse(&format!("{}/{}", id.repo(), id.params_path())), id);
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, format!("\"{text}\""));
        assert_eq!(serde_json::from_str::<SaeId>(&json).unwrap(), id);
    }
}

#[test]
fn numbers_are_those_of_the_name() {
    for row in index() {
        let id = parse(&format!("{}/{}", row.repo, row.path));
        let (_, l0) = row.path.rsplit_once("/average_l0_").unwrap();
        assert_eq!(id.l0().to_string(), l0);
        let label = row.path.split_once("width_").unwrap().1.split_once('/').unwrap().0;
        let (digits, unit) = label.split_at(label.len() - 1);
        let unit = if unit == "m" { 1_000_000.0 } else { 1000.0 };
        // A label is a power of two, rounded down to thousands: 16k is 16,384, 1m is 1,048,576.
        let (about, d_sae) = (digits.parse::<f64>().unwrap() * unit, id.d_sae());
        assert_eq!(d_sae.count_ones(), 1, "{label}");
        assert!((0.0..0.05).contains(&(d_sae as f64 / about - 1.0)), "{label} is not {d_sae}");
    }
}

#[test]
fn sites_are_those_of_the_repositories() {
    for row in index() {
        let id = parse(&format!("{}/{}", row.repo, row.path));
        let layer = row.path.strip_prefix("layer_").map(|rest| rest.split_once('/').unwrap().0);
        let want = match (layer, row.repo.rsplit('-').next().unwrap()) {
            (None, "res") => "hook_embed".to_owned(),
            (Some(l), "res") => format!("blocks.{l}.hook_resid_post"),
            (Some(l), "att") => format!("blocks.{l}.attn.hook_z"),
            (Some(l), "mlp") => format!("blocks.{l}.hook_mlp_out"),
            (Some(l), "transcoders") => format!("blocks.{l}.ln2.hook_normalized"),
            other => panic!("{other:?}"),
        };
        assert_eq!(id.hook_point().to_string(), want, "{}", row.path);
    }
}

/// Widths of the models' activations (Gemma 2, table 1): 26 layers of 2304 with 8 heads of 256; 42 of 3584 with 16 of 256;
/// 46 of 4608.
#[test]
fn inputs_are_as_wide_as_the_sites() {
    for row in index() {
        let want = match (row.model.as_str(), row.repo.ends_with("-att")) {
            ("gemma-2-2b", false) => 2304,
            ("gemma-2-2b", true) => 8 * 256,
            ("gemma-2-9b" | "gemma-2-9b-it", false) => 3584,
            ("gemma-2-9b", true) => 16 * 256,
            ("gemma-2-27b", false) => 4608,
            other => panic!("{other:?}"),
        };
        assert_eq!(parse(&format!("{}/{}", row.repo, row.path)).d_in(), want);
    }
}

#[test]
fn ids_are_as_different_as_their_files() {
    let rows = index();
    let files: BTreeSet<String> = rows.iter().map(|r| format!("{}/{}", r.repo, r.path)).collect();
    let ids: BTreeSet<SaeId> = files.iter().map(|file| parse(file)).collect();
    assert_eq!(files.len(), ids.len());
}

#[test]
fn an_example_by_hand() {
    let id = parse("gemma-scope-2b-pt-res/layer_20/width_16k/canonical");
    assert_eq!(id.to_string(), "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71");
    assert_eq!((id.d_in(), id.d_sae(), id.l0()), (2304, 16_384, 71));
    assert_eq!(id.hook_point(), HookPoint::ResidPost(LayerIdx(20)));
}
