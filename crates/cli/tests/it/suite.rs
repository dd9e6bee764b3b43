//! Evaluations that are divided, killed, gone on with, merged.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command::{fixture, gemma_scope, refuse, run};

/// The sites of the golden SAEs, all judged together, and the model that they belong to.
pub(crate) fn suite(tokens: &str) -> Vec<String> {
    let saes = ["resid_post/*/*/*", "mlp_out/*/*/*", "attn_z/*/*/*", "transcoder/*/*/*"];
    let mut args = vec!["eval".to_owned(), "--model".to_owned(), fixture("gemma2/mini-2b")];
    args.extend(["--tokens", tokens, "--threads", "1", "--uniformity", "1"].map(str::to_owned));
    for sae in saes {
        args.extend(["--sae".to_owned(), fixture(&format!("eval/{sae}/params.npz"))]);
    }
    args
}

/// Runs a suite with more arguments.
#[track_caller]
fn judge(tokens: &str, more: &[&str]) {
    let mut args = suite(tokens);
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    run(&args.iter().map(String::as_str).collect::<Vec<_>>());
}

#[track_caller]
fn refuse_suite(tokens: &str, more: &[&str], parts: &[&str]) {
    let mut args = suite(tokens);
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    refuse(&args.iter().map(String::as_str).collect::<Vec<_>>(), parts);
}

pub(crate) fn path(folder: &TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

fn read(path: &str) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Many sequences, so that a run takes a while.
pub(crate) fn many_tokens(folder: &TempDir) -> String {
    let golden: Value = read(&fixture("eval/tokens.json"));
    let rows: Vec<Vec<i64>> = serde_json::from_value(golden["input_ids"].clone()).unwrap();
    let shifted = |by: usize| {
        rows.iter().map(move |row| row.iter().map(|id| shift(*id, by as i64)).collect::<Vec<_>>())
    };
    let all: Vec<Vec<i64>> = (0..8).flat_map(shifted).collect();
    let file = path(folder, "tokens.json");
    fs::write(&file, json!({ "input_ids": all }).to_string()).unwrap();
    file
}

/// Another token, special ones apart.
fn shift(id: i64, by: i64) -> i64 {
    if id < 3 { id } else { 3 + (id - 3 + by * 37) % 300 }
}

#[test]
fn shards_merged_are_the_whole_to_the_last_digit() {
    let folder = TempDir::new().unwrap();
    let tokens = fixture("eval/tokens.json");
    let whole = path(&folder, "whole.json");
    judge(&tokens, &["--batch", "2", "--json", &whole]);
    let parts: Vec<String> = (1..=3).map(|i| path(&folder, &format!("part-{i}.json"))).collect();
    for (i, part) in parts.iter().enumerate() {
        judge(&tokens, &["--batch", "2", "--shard", &format!("{}/3", i + 1), "--json", part]);
    }
    let merged = path(&folder, "merged.json");
    let (csv, html) = (path(&folder, "merged.csv"), path(&folder, "merged.html"));
    run(&["eval-merge", &parts[2], &parts[0], &parts[1], "--json", &merged, "--csv", &csv, "--html", &html]);
    assert_eq!(fs::read(&whole).unwrap(), fs::read(&merged).unwrap(), "the same digits");
    assert_eq!(read(&merged).as_array().unwrap().len(), 4);

    // What is not the whole of one evaluation is none.
    refuse(&["eval-merge", &parts[0], &parts[2]], &["2/3"]);
    refuse(&["eval-merge", &parts[0], &parts[1], &parts[0]], &["1/3", "twice"]);
    let other = path(&folder, "other.json");
    judge(&tokens, &["--batch", "3", "--shard", "3/3", "--json", &other]);
    refuse(&["eval-merge", &parts[0], &parts[1], &other], &["batch"]);
    refuse(&["eval-merge", &parts[0], &fixture("eval/tokens.json")], &["tokens.json"]);
    refuse(&["eval-merge", &parts[0], &parts[1], &parts[2], "--json", &parts[2]], &["part-3.json", "read"]);
    // Reports of other evaluations are put side by side.
    refuse(&["eval-merge", &whole, &merged], &["merged.json", "already"]);
    let other = path(&folder, "all.json");
    judge(&tokens, &["--batch", "2", "--positions", "all", "--json", &other]);
    run(&["eval-merge", &whole, &other, "--json", &path(&folder, "both.json")]);
    assert_eq!(read(&path(&folder, "both.json")).as_array().unwrap().len(), 8);
}

#[test]
fn csv_says_what_json_says() {
    let folder = TempDir::new().unwrap();
    let (json, csv) = (path(&folder, "r.json"), path(&folder, "r.csv"));
    judge(&fixture("eval/tokens.json"), &["--json", &json, "--csv", &csv, "--neighbours"]);
    let text = fs::read_to_string(&csv).unwrap();
    let mut lines = text.lines().map(|line| line.split(',').map(str::to_owned).collect::<Vec<_>>());
    let header = lines.next().unwrap();
    let mut compared = 0;
    for (line, report) in lines.zip(read(&json).as_array().unwrap()) {
        assert_eq!(line.len(), header.len());
        assert_eq!(line[0], report["id"].as_str().unwrap());
        for (name, value) in header.iter().zip(&line) {
            if let Some(want) = report["metrics"].get(name).filter(|_| name != "tokens") {
                assert_eq!(value.parse::<f64>().unwrap(), want.as_f64().unwrap(), "{name}");
                compared += 1;
            }
        }
    }
    // All but none of four SAEs: the names of METRICS.
    assert!(compared > 4 * 35, "{compared}");
}

/// Kills a run with SIGKILL once its folder says that some batches of a pass are done.
pub(crate) fn kill_after(tokens: &str, more: &[&str], state: &Path, batches: usize) {
    let mut command = gemma_scope();
    command.args(suite(tokens)).args(more);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut child = command.spawn().unwrap();
    let start = Instant::now();
    while upto(state) < batches {
        assert!(start.elapsed() < Duration::from_secs(120), "no batch was done");
        assert!(child.try_wait().unwrap().is_none(), "the run was over before it could be killed");
        thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    let _ = child.wait().unwrap();
}

/// How many batches a file says are done.
fn upto(state: &Path) -> usize {
    let Ok(bytes) = fs::read(state) else { return 0 };
    // Written whole or not at all: it can always be read.
    let value: Value = serde_json::from_slice(&bytes).unwrap();
    value["batches"].as_u64().unwrap() as usize
}

#[test]
fn a_killed_suite_goes_on_and_ends_the_same() {
    let folder = TempDir::new().unwrap();
    let tokens = many_tokens(&folder);
    let whole = path(&folder, "whole.json");
    judge(&tokens, &["--batch", "2", "--json", &whole]);

    let (state, json) = (path(&folder, "state"), path(&folder, "resumed.json"));
    let args = ["--batch", "2", "--json", &json, "--resume", &state];
    let own = PathBuf::from(&state).join("shard-1-of-1");
    kill_after(&tokens, &args, &own.join("means.json"), 7);
    let before = upto(&own.join("means.json"));
    for batches in [3, 11, 30] {
        kill_after(&tokens, &args, &own.join("group-0000.json"), batches);
        let now = upto(&own.join("group-0000.json"));
        assert!((batches..48).contains(&now), "killed in the middle: {now}");
    }
    assert!(before >= 7 && !Path::new(&json).exists());

    // Another evaluation can't go on from there, and harms nothing.
    refuse_suite(&tokens, &["--batch", "3", "--resume", &state], &["batch", "setting.json"]);
    refuse_suite(&fixture("eval/tokens.json"), &["--batch", "2", "--resume", &state], &["setting.json"]);
    let kept = fs::read(own.join("group-0000.json")).unwrap();

    judge(&tokens, &args);
    assert_ne!(kept, fs::read(own.join("group-0000.json")).unwrap());
    assert_eq!(fs::read(&whole).unwrap(), fs::read(&json).unwrap(), "the same digits");
    let lines = fs::read_to_string(own.join("results.jsonl")).unwrap();
    let results: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids = |all: &[Value]| {
        let mut ids: Vec<String> = all.iter().map(|r| r["id"].as_str().unwrap().to_owned()).collect();
        ids.sort();
        ids
    };
    assert_eq!(ids(&results), ids(read(&json).as_array().unwrap()));
    // What is done is not done again.
    judge(&tokens, &args);
    assert_eq!(fs::read(&whole).unwrap(), fs::read(&json).unwrap());

    // A state that was damaged is named, not trusted.
    fs::write(own.join("group-0000.json"), "{\"batches\": 3").unwrap();
    refuse_suite(&tokens, &args, &["group-0000.json"]);
}

#[test]
fn passes_of_a_few_saes_find_what_one_pass_finds() {
    let folder = TempDir::new().unwrap();
    let tokens = fixture("eval/tokens.json");
    let (one, many, state) = (path(&folder, "one.json"), path(&folder, "many.json"), path(&folder, "state"));
    judge(&tokens, &["--json", &one]);
    // Two SAEs of 64 latents fit at a time.
    judge(&tokens, &["--json", &many, "--hold", "0.00005", "--resume", &state]);
    assert!(Path::new(&state).join("shard-1-of-1/group-0001.json").exists(), "several passes");
    let (one, many) = (read(&one), read(&many));
    for (a, b) in one.as_array().unwrap().iter().zip(many.as_array().unwrap()) {
        assert_eq!(a["id"], b["id"]);
        for (name, value) in a["metrics"].as_object().unwrap() {
            let Some(value) = value.as_f64() else { continue };
            let other = b["metrics"][name].as_f64().unwrap();
            assert!((value - other).abs() <= 1e-4 * value.abs().max(0.1), "{name}: {value} and {other}");
        }
    }
}

#[test]
fn shards_share_the_means() {
    let folder = TempDir::new().unwrap();
    let (tokens, state) = (fixture("eval/tokens.json"), path(&folder, "state"));
    judge(&tokens, &["--batch", "2", "--resume", &state, "--means-only"]);
    let means = Path::new(&state).join("means.json");
    let before = fs::metadata(&means).unwrap().modified().unwrap();
    let parts: Vec<String> = (1..=2).map(|i| path(&folder, &format!("{i}.json"))).collect();
    for (i, part) in parts.iter().enumerate() {
        let shard = format!("{}/2", i + 1);
        judge(&tokens, &["--batch", "2", "--resume", &state, "--shard", &shard, "--json", part]);
        assert!(!Path::new(&state).join(format!("shard-{}-of-2/means.json", i + 1)).exists());
    }
    assert_eq!(before, fs::metadata(&means).unwrap().modified().unwrap(), "taken once");
    let (whole, merged) = (path(&folder, "whole.json"), path(&folder, "merged.json"));
    judge(&tokens, &["--batch", "2", "--json", &whole]);
    run(&["eval-merge", &parts[0], &parts[1], "--json", &merged]);
    assert_eq!(fs::read(&whole).unwrap(), fs::read(&merged).unwrap());
}

#[test]
fn bfloat16_saes_stand_beside_their_float32_selves() {
    let folder = TempDir::new().unwrap();
    let json = path(&folder, "r.json");
    judge(&fixture("eval/tokens.json"), &["--sae-dtype", "f32,bf16", "--json", &json]);
    let more = read(&fixture("eval/more.json"));
    let found = read(&json);
    let mut compared = 0;
    for (name, wanted) in more.as_object().unwrap() {
        let Some(wanted) = wanted.get("bf16") else { continue };
        let is_it = |r: &&Value| {
            r["id"].as_str().is_some_and(|id| id.contains(name.as_str()) && id.ends_with("#bf16"))
        };
        let report = found.as_array().unwrap().iter().find(is_it).unwrap();
        assert_eq!(report["provenance"]["sae_dtype"], "bf16");
        for (metric, want) in wanted.as_object().unwrap() {
            let (got, want) = (report["metrics"][metric].as_f64().unwrap(), want.as_f64().unwrap());
            // A rounding of the input that falls the other way moves a loss by 2e-5.
            let allowed = if metric == "l0" { 1e-9 } else { 1e-4 };
            assert!((got - want).abs() <= allowed, "{name}: {metric} is {got}, not {want}");
            compared += 1;
        }
    }
    assert!(compared >= 12, "{compared}");
}

#[test]
fn subsets_and_their_parts() {
    let folder = TempDir::new().unwrap();
    let (text, json) = (path(&folder, "t.jsonl"), path(&folder, "r.json"));
    let lines = [
        ("law", "The court finds the contract void."),
        ("poems", "O rose, thou art sick."),
        ("law", "So ordered."),
    ];
    let lines = lines.map(|(name, text)| json!({"text": text, "meta": {"pile_set_name": name}}).to_string());
    fs::write(&text, lines.join("\n")).unwrap();
    run(&["eval", "--text-file", &text, "--subset-field", "meta.pile_set_name", "--json", &json]);
    let report = &read(&json)[0];
    let parts = report["by_subset"].as_object().unwrap();
    assert_eq!(parts.keys().collect::<Vec<_>>(), ["law", "poems"]);
    let tokens: u64 = parts.values().map(|part| part["tokens"].as_u64().unwrap()).sum();
    assert_eq!(tokens, report["tokens"].as_u64().unwrap());
    refuse(&["eval", "--text-file", &text, "--subset-field", "meta.name"], &["t.jsonl", "meta.name"]);
    refuse(&["eval", "--text-file", &text, "--chat"], &["t.jsonl", "messages"]);
    refuse(&["eval", "--text", "a b", "--subset-field", "x"], &["--subset-field"]);
    // Shards with nothing to do are parts too.
    let parts: Vec<String> = (1..=2).map(|i| path(&folder, &format!("{i}.json"))).collect();
    for (i, part) in parts.iter().enumerate() {
        run(&["eval", "--text", "a b c", "--shard", &format!("{}/2", i + 1), "--json", part]);
    }
    let (merged, whole) = (path(&folder, "merged.json"), path(&folder, "whole.json"));
    run(&["eval-merge", &parts[0], &parts[1], "--json", &merged]);
    run(&["eval", "--text", "a b c", "--json", &whole]);
    assert_eq!(fs::read(&whole).unwrap(), fs::read(&merged).unwrap());
    refuse(&["eval", "--text", "a b c", "--shard", "1/2", "--html", "x.html"], &["eval-merge"]);
}

#[test]
fn nothing_that_is_read_is_written_and_nothing_twice() {
    let folder = TempDir::new().unwrap();
    let text = path(&folder, "t.txt");
    fs::write(&text, "The captain looked at the sea.").unwrap();
    let same = path(&folder, "same");
    refuse(&["eval", "--text-file", &text, "--json", &text], &["--json", "t.txt", "read"]);
    refuse(&["eval", "--text-file", &text, "--json", &same, "--csv", &same], &["--csv", "--json"]);
    let folder_itself = folder.path().display().to_string();
    refuse(&["eval", "--text-file", &text, "--html", &folder_itself], &["--html", "folder"]);
    let sae = path(&folder, "layer_3/width_64/average_l0_9");
    fs::create_dir_all(&sae).unwrap();
    let params = format!("{sae}/params.npz");
    fs::copy(fixture("eval/mlp_out/layer_1/width_64/average_l0_19/params.npz"), &params).unwrap();
    let before = fs::read(&params).unwrap();
    let hook = ["--hook", "blocks.1.hook_mlp_out"];
    refuse(
        &[&["eval", "--text", "a b", "--sae", &sae, "--json", &params], &hook[..]].concat(),
        &["--json", "read"],
    );
    assert_eq!((fs::read(&params).unwrap(), fs::read_to_string(&text).unwrap().len()), (before, 30));
    refuse(
        &["eval", "--text", "a b c", "--sae", "tiny", "--hook", "blocks.2.hook_resid_post"],
        &["tiny", "blocks.3.hook_resid_post", "blocks.2.hook_resid_post"],
    );
}

#[test]
fn a_range_of_positions_may_reach_beyond_the_last_rows() {
    let folder = TempDir::new().unwrap();
    let (text, json) = (path(&folder, "t.txt"), path(&folder, "r.json"));
    fs::write(&text, "The captain of the ship looked at the sea, and the sea looked at him. ".repeat(3))
        .unwrap();
    // Rows of 8 tokens one at a time: the last is shorter than the range.
    run(&["eval", "--text-file", &text, "--ctx", "8", "--batch", "1", "--positions", "1:8", "--json", &json]);
    let report = &read(&json)[0];
    let summary = &report["provenance"]["text"];
    let rows = summary["sequences"].as_u64().unwrap();
    assert_eq!(report["tokens"].as_u64().unwrap(), summary["tokens"].as_u64().unwrap() - rows, "all but BOS");
    assert_ne!(summary["tokens"].as_u64().unwrap() % 8, 0, "the last row is a short one");
}

#[test]
fn another_sae_of_the_same_name_is_noticed() {
    let folder = TempDir::new().unwrap();
    let tokens = fixture("eval/tokens.json");
    let sae = folder.path().join("sae/layer_1/width_64/average_l0_19");
    fs::create_dir_all(&sae).unwrap();
    let params = sae.join("params.npz");
    fs::copy(fixture("eval/mlp_out/layer_1/width_64/average_l0_19/params.npz"), &params).unwrap();
    let (name, state) = (sae.display().to_string(), path(&folder, "state"));
    // Behind the four of the suite, so that it is not the first thing in the list.
    let part = |i: usize| path(&folder, &format!("{i}.json"));
    let more = |shard: &'static str, json: &str| {
        [
            "--sae",
            &name,
            "--hook",
            "blocks.1.hook_mlp_out",
            "--resume",
            &state,
            "--shard",
            shard,
            "--json",
            json,
        ]
        .map(str::to_owned)
    };
    let alone = |shard, json: &str| {
        let model = fixture("gemma2/mini-2b");
        let mut args: Vec<String> = ["eval", "--threads", "1", "--batch", "2"].map(str::to_owned).to_vec();
        args.extend(["--model".to_owned(), model, "--tokens".to_owned(), tokens.clone()]);
        args.extend(["--sae".to_owned(), fixture("eval/mlp_out/layer_1/width_64/average_l0_19/params.npz")]);
        args.extend(more(shard, json));
        args
    };
    let text = |args: &[String]| args.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
    let first = alone("1/2", &part(1));
    run(&text(&first).split('\n').collect::<Vec<_>>());
    // The same shape, other weights.
    fs::copy(fixture("eval/resid_post/layer_2/width_64/average_l0_37/params.npz"), &params).unwrap();
    refuse(&text(&first).split('\n').collect::<Vec<_>>(), &["setting.json", "saes"]);
    fs::remove_dir_all(&state).unwrap();
    run(&text(&alone("2/2", &part(2))).split('\n').collect::<Vec<_>>());
    refuse(&["eval-merge", &part(1), &part(2)], &["saes", "fingerprint"]);
}
