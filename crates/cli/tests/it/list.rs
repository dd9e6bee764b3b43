//! The catalogue at the terminal: `list`, and globs of released SAEs.

use std::fs;

use serde_json::Value;

use crate::command::{Run, expect_refusal, finish, gemma_scope, refuse, run};

const OF_20: [&str; 9] = ["list", "--model", "2b", "--site", "res", "--layer", "20", "--width", "16k"];

fn json(args: &[&str]) -> Vec<Value> {
    let run = run(&[args, &["--json"]].concat());
    serde_json::from_str(&run.stdout).unwrap()
}

fn names(entries: &[Value]) -> Vec<&str> {
    entries.iter().map(|entry| entry["name"].as_str().unwrap()).collect()
}

/// Runs with a cache of these files and without a network.
fn with_cached(files: &[&str], args: &[&str]) -> (tempfile::TempDir, Run) {
    let home = tempfile::tempdir().unwrap();
    let commit = "0123456789012345678901234567890123456789";
    for file in files {
        let (repo, path) = file.split_at(file.match_indices('/').nth(1).unwrap().0);
        let repo = home.path().join("hub").join(format!("models--{}", repo.replace('/', "--")));
        let path = repo.join("snapshots").join(commit).join(&path[1..]);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "").unwrap();
        fs::create_dir_all(repo.join("refs")).unwrap();
        fs::write(repo.join("refs/main"), commit).unwrap();
    }
    let mut command = gemma_scope();
    command.env("HF_HOME", home.path()).args(args);
    let run = finish(command);
    (home, run)
}

#[test]
fn a_table() {
    let table = run(&[&OF_20[..], &["--l0", "50:150"]].concat()).stdout;
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    let name = |l0: &str| format!("gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_{l0}");
    assert_eq!(lines[0], ["sae", "model", "site", "layer", "width", "l0"]);
    assert_eq!(lines[1], [&name("71"), "google/gemma-2-2b", "res", "20", "16k", "71", "canonical"]);
    assert_eq!(lines[2], [&name("139"), "google/gemma-2-2b", "res", "20", "16k", "139"]);
    assert_eq!(lines.len(), 3);
}

#[test]
fn everything() {
    assert_eq!(run(&["list"]).stdout.lines().count(), 1 + 2430 + 8784);
    assert_eq!(json(&["list", "--model", "2b", "--site", "att"]).len(), 260);
    assert_eq!(json(&["list", "--model", "9b-it"]).len(), 30);
    assert_eq!(json(&["list", "--canonical"]).len(), 429);
}

#[test]
fn as_json() {
    let canonical = json(&[&OF_20[..], &["--canonical"]].concat());
    assert_eq!(names(&canonical), ["gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71"]);
    assert_eq!(canonical[0]["neuronpedia"], "gemma-2-2b/20-gemmascope-res-16k");
    assert_eq!((&canonical[0]["layer"], &canonical[0]["d_sae"]), (&20.into(), &16_384.into()));
}

#[test]
fn ranges_count_both_ends() {
    let layers = |range: &str| {
        let of = ["list", "gemma-scope-2b-pt-res/*/width_16k/canonical", "--layer", range];
        json(&of).iter().map(|entry| entry["layer"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(layers("5:12"), (5..=12).collect::<Vec<_>>());
    assert_eq!(layers(":2"), [0, 1, 2]);
    assert_eq!(layers("24:"), [24, 25]);
    assert_eq!(layers("7"), [7]);
}

#[test]
fn nothing_fits() {
    refuse(
        &["list", "--model", "2b", "--site", "res", "--layer", "21", "--width", "262k"],
        &["no released SAE fits", "the widths of those that otherwise do are 16k, 65k"],
    );
    refuse(&["list", "--model", "3b"], &["the models", "google/gemma-2-2b"]);
    refuse(&["list", "gemma-scope-2b-pt-res/layer_20/width_17k/*"], &["width_16k, width_65k"]);
}

#[test]
fn words_that_are_none() {
    for (args, at_fault) in [
        (["--layer", "x"], "'x'"),
        (["--layer", "12:5"], "ends before it begins"),
        (["--l0", "1:2:3"], "expected a number"),
        (["--site", "resid"], "the sites are res, att"),
        (["--width", "17k"], "the widths are 4k, 16k"),
    ] {
        let mut command = gemma_scope();
        command.arg("list").args(args);
        let run = finish(command);
        assert_eq!(run.code, 2, "{}", run.stderr);
        assert!(run.stderr.contains(at_fault), "{}", run.stderr);
    }
}

#[test]
fn a_glob_after_sae() {
    let analyze = |sae: &str| finish_analyze(sae, &[]).1;
    // The first of those that it names is asked for.
    expect_refusal(
        &analyze("gemma-scope-2b-pt-res/layer_20/width_16k/*"),
        &["layer_20/width_16k/average_l0_22/params.npz", "offline"],
    );
    expect_refusal(
        &analyze("gemma-scope-2b-pt-res/layer_2?/width_17k/*"),
        &[
            "--sae",
            "no file fits, and no released SAE fits",
            "`gemma-scope-2b-pt-res/layer_2?` there are width_16k",
        ],
    );
    expect_refusal(&analyze("saes/*.npz"), &["`saes/*.npz`", "the releases are"]);
    expect_refusal(&analyze("tiny/*_9"), &["no embedded SAE fits `tiny/*_9`", "tiny/layer_3/"]);
    expect_refusal(&analyze("./*.npz"), &["no file fits `./*.npz`"]);
    assert_eq!(analyze("tiny/layer_*/*/*").code, 0);
}

fn finish_analyze(sae: &str, cached: &[&str]) -> (tempfile::TempDir, Run) {
    with_cached(cached, &["analyze", "--text", "The ship", "--sae", sae])
}

#[test]
fn gemma_scope_2_by_release_and_id() {
    expect_refusal(
        &finish_analyze("gemma-scope-2-1b-pt-res/layer_13_width_16k_l0_medium", &[]).1,
        &["resid_post/layer_13_width_16k_l0_medium/params", "google/gemma-scope-2-1b-pt"],
    );
}

#[test]
fn fetch_says_where() {
    let sae = "google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz";
    let args = ["fetch", "gemma-scope-2b-pt-res/layer_2[0]/width_16k/canonical"];
    let (home, run) = with_cached(&[sae], &args);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(
        run.stdout.trim_end().ends_with("/layer_20/width_16k/average_l0_71/params.npz"),
        "{}",
        run.stdout
    );
    assert!(run.stdout.starts_with(&home.path().display().to_string()), "{}", run.stdout);
}

#[test]
fn fetch_refuses() {
    expect_refusal(&with_cached(&[], &["fetch", "google/gemma-2-2b"]).1, &["google/gemma-2-2b", "offline"]);
    expect_refusal(&with_cached(&[], &["fetch", "tiny/layer_*/**"]).1, &["`tiny/layer_3/", "is embedded"]);
    expect_refusal(&with_cached(&[], &["fetch", "gemma-scope-2b-pt-rex/**"]).1, &["the releases are"]);
}
