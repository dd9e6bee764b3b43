//! Bad input of every kind: one sentence that names it, exit 1; a wrong command line: exit 2.

use std::{fs, path::Path};

use crate::command::{finish, fixture, gemma_scope, refuse, run};

/// A copy of a golden checkpoint that a test may damage.
fn copied(case: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(&format!("gemma2/{case}"))).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

/// Runs a damaged checkpoint.
#[track_caller]
fn refuse_model(folder: &Path, parts: &[&str]) {
    let out = folder.join("out.safetensors").display().to_string();
    let tokens = fixture("gemma2/mini-2b/tokens.json");
    let model = folder.display().to_string();
    refuse(
        &["activations", "--model", &model, "--tokens", &tokens, "--hooks", "logits", "--out", &out],
        parts,
    );
    assert!(!Path::new(&out).exists(), "nothing is left behind");
}

#[test]
fn truncated_weights() {
    let folder = copied("mini-2b");
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    refuse_model(folder.path(), &["model.safetensors", "truncated"]);
    fs::write(&path, &bytes[..5]).unwrap();
    refuse_model(folder.path(), &["model.safetensors"]);
}

#[test]
fn weights_that_do_not_fit_the_configuration() {
    let folder = copied("mini-2b");
    let path = folder.path().join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    let with = |from: &str, to: &str| fs::write(&path, config.replace(from, to)).unwrap();
    with("\"intermediate_size\": 160", "\"intermediate_size\": 161");
    refuse_model(folder.path(), &["gate_proj", "d_mlp=161", "160"]);
    with("\"num_hidden_layers\": 4", "\"num_hidden_layers\": 3");
    refuse_model(folder.path(), &["config.json", "layer_types"]);
    with("\"vocab_size\"", "\"quantum\": 3, \"vocab_size\"");
    refuse_model(folder.path(), &["config.json", "quantum"]);
    fs::write(&path, "{").unwrap();
    refuse_model(folder.path(), &["config.json", "JSON"]);
    fs::remove_file(&path).unwrap();
    refuse_model(folder.path(), &["config.json"]);
}

#[test]
fn a_missing_shard() {
    let folder = copied("mini-sharded");
    fs::remove_file(folder.path().join("model-00003-of-00007.safetensors")).unwrap();
    refuse_model(folder.path(), &["model-00003-of-00007.safetensors"]);
}

#[test]
fn hooks_and_tokens_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("o.safetensors").display().to_string();
    let activations = |hooks: &str, rest: &[&str], parts: &[&str]| {
        refuse(&[&["activations", "--hooks", hooks, "--out", &out], rest].concat(), parts);
    };
    let text = ["--text", "Hello."];
    activations("blocks.2.hook_resid_pots", &text, &["blocks.2.hook_resid_pots", "blocks.2.hook_resid_post"]);
    activations("blocks.6.hook_resid_post", &text, &["blocks.6.hook_resid_post", "0 to 5"]);
    activations(" , ", &text, &["--hooks"]);
    activations("logits", &["--text", ""], &["empty"]);
    activations("logits", &[], &["--text"]);
    let tokens = folder.path().join("t.json");
    let path = tokens.display().to_string();
    for (json, parts) in [
        (r#"{"input_ids": [[2, 4096]]}"#, &["4096", "vocabulary"][..]),
        (r#"{"input_ids": [[2, -1]]}"#, &["-1"]),
        (r#"{"input_ids": []}"#, &["at least one sequence"]),
        (r#"{"input_ids": [[2, 3], [2]], "attention_mask": [[1, 1]]}"#, &["sequence 1"]),
        (r#"{"input_ids": [[2, 3]], "attention_mask": [[1]]}"#, &["mask"]),
        (r#"{"input_ids": [[2, 3]], "atention_mask": [[1, 1]]}"#, &["atention_mask"]),
        ("[", &["t.json"]),
    ] {
        fs::write(&tokens, json).unwrap();
        activations("logits", &["--tokens", &path], parts);
    }
    let long = "word ".repeat(2000);
    activations("logits", &["--text", &long], &["context of 256"]);
}

#[test]
fn saes_that_are_none() {
    refuse(&["analyze", "--text", "a", "--sae", "tiny/layer_9"], &["tiny/layer_9"]);
    refuse(&["analyze", "--text", "a", "--sae", "/no/such.npz"], &["/no/such.npz"]);
    refuse(&["analyze", "--text", "a", "--sae", "/no/*.npz"], &["/no/*.npz"]);
    let misfit = fixture("sae/gemma-scope/stored");
    refuse(&["analyze", "--text", "a", "--sae", &misfit], &["hook point"]);
    refuse(
        &["analyze", "--text", "a", "--sae", &misfit, "--hook", "blocks.1.hook_resid_post"],
        &["24", "256"],
    );
    refuse(
        &["eval", "--text", "a b c", "--sae", &misfit, "--hook", "blocks.1.hook_resid_post"],
        &["24", "256"],
    );
    refuse(&["analyze", "--text", "a", "--model", &fixture("gemma2/mini-2b")], &["--sae"]);
    let folder = tempfile::tempdir().unwrap();
    let damaged = folder.path().join("params.npz");
    let bytes = fs::read(fixture("sae/gemma-scope/stored/params.npz")).unwrap();
    for cut in [0, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&damaged, &bytes[..cut]).unwrap();
        refuse(&["inspect", &damaged.display().to_string()], &["params.npz"]);
    }
}

#[test]
fn encode_wants_one_tensor_of_the_right_width() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("o.safetensors").display().to_string();
    let input = fixture("sae/gemma-scope/stored/expected.safetensors");
    let sae = fixture("sae/gemma-scope/stored");
    let encode = |input: &str, parts: &[&str]| {
        refuse(&["encode", "--sae", &sae, "--input", input, "--out", &out], parts);
        assert!(!Path::new(&out).exists());
    };
    encode(&input, &["choose one"]);
    encode(&format!("{input}:y"), &["`y`"]);
    encode(&format!("{input}:feature_acts"), &["d_in = 24"]);
    encode("/no/file.safetensors", &["/no/file.safetensors"]);
}

#[test]
fn folders_without_rights() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let locked = folder.path().join("locked");
    fs::create_dir(&locked).unwrap();
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o500)).unwrap();
    let out = locked.join("page.html").display().to_string();
    let mut command = gemma_scope();
    command.args(["analyze", "--text", "Hello.", "--html", &out]);
    let run = finish(command);
    // Root may write everywhere; anybody else gets a sentence.
    if fs::write(locked.join("probe"), "").is_err() {
        assert_eq!(run.code, 1, "{}", run.stderr);
        assert!(run.stderr.contains("page.html") && run.stderr.contains("ermission"), "{}", run.stderr);
    }
    // Not even root may make a folder under a file.
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let below = file.join("page.html").display().to_string();
    let mut command = gemma_scope();
    command.args(["analyze", "--text", "Hello.", "--html", &below]);
    let run = finish(command);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("page.html"), "{}", run.stderr);
}

#[test]
fn numbers_out_of_range() {
    refuse(&["analyze", "--text", "a", "--top", "0"], &["--top"]);
    refuse(&["eval", "--text", "a b c", "--ctx", "257"], &["--ctx", "256"]);
    refuse(&["eval", "--text", "a b c", "--batch", "0"], &["--batch"]);
    refuse(&["eval", "--text", "a b c", "--positions", "40:50"], &["40:50"]);
    refuse(&["analyze", "--text", "a", "--threads", "0"], &["--threads"]);
    refuse(&["analyze", "--text", "a", "--device", "cuda"], &["cuda"]);
    refuse(&["analyze", "--text", "a", "--device", "tpu"], &["tpu"]);
}

#[test]
fn a_wrong_command_line_is_exit_2() {
    for args in [
        &["no-such-command"][..],
        &["analyze", "--no-such-flag"],
        &["eval", "--text", "a", "--positions", "x"],
        &["analyze", "--text", "a", "--hook", "blocks.0.nonsense"],
        &["activations", "--text", "a"],
        &["analyze", "--demo", "--text", "a"],
        &[],
    ] {
        let mut command = gemma_scope();
        command.args(args);
        assert_eq!(finish(command).code, 2, "{args:?}");
    }
}

#[test]
fn every_command_shows_an_example() {
    for command in ["analyze", "activations", "encode", "eval", "eval-merge", "inspect"] {
        let help = run(&[command, "--help"]).stdout;
        assert!(help.contains("Example:\n  gemma-scope"), "{command}");
    }
}
