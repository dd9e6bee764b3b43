//! The golden files, through the command line.

use std::path::Path;

use gemma_scope::{
    hooks::HookPoint,
    tch::{Kind, Tensor},
    tensors::SafetensorsFile,
};
use serde_json::Value;

use crate::command::{fixture, run};

/// Of a tensor's largest magnitude; see `crates/gemma-model/tests/it/golden.rs`.
const TOLERANCE: f64 = 3e-5;

#[track_caller]
fn assert_close(what: &str, got: &Tensor, want: &Tensor) {
    assert_eq!(got.size(), want.size(), "{what}");
    let want = want.to_kind(Kind::Double);
    let error = (got.to_kind(Kind::Double) - &want).abs().max() / want.abs().max();
    assert!(error.double_value(&[]) <= TOLERANCE, "{what}: off by {error:?}");
}

#[test]
fn activations_of_a_golden_model() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("acts.safetensors").display().to_string();
    let case = fixture("gemma2/mini-27b");
    let mut golden = SafetensorsFile::open(Path::new(&format!("{case}/expected.safetensors"))).unwrap();
    let names: Vec<String> = golden.names().into_iter().filter(|n| n != "logits_bf16").collect();
    let tokens = format!("{case}/tokens.json");
    run(&["activations", "--model", &case, "--tokens", &tokens, "--hooks", &names.join(","), "--out", &out]);
    let mut got = SafetensorsFile::open(Path::new(&out)).unwrap();
    assert_eq!(got.names().len(), names.len());
    for name in names {
        assert_close(&name, &got.read(&name).unwrap(), &golden.read(&name).unwrap());
    }
}

#[test]
fn a_star_stands_for_every_layer() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("acts.safetensors").display().to_string();
    run(&[
        "activations",
        "--text",
        "Hello there.",
        "--hooks",
        "blocks.*.attn.hook_z,ln_final.hook_scale",
        "--out",
        &out,
    ]);
    let names = SafetensorsFile::open(Path::new(&out)).unwrap().names();
    assert_eq!(names.len(), 6 + 1, "{names:?}");
    assert!(names.iter().all(|n| n.parse::<HookPoint>().is_ok()), "{names:?}");
}

#[test]
fn encode_a_golden_sae() {
    let folder = tempfile::tempdir().unwrap();
    for case in ["stored", "deflated"] {
        let expected = fixture(&format!("sae/gemma-scope/{case}/expected.safetensors"));
        let out = folder.path().join("f.safetensors").display().to_string();
        let sae = fixture(&format!("sae/gemma-scope/{case}"));
        let input = format!("{expected}:x");
        let mut golden = SafetensorsFile::open(Path::new(&expected)).unwrap();
        run(&["encode", "--sae", &sae, "--input", &input, "--out", &out]);
        let mut dense = SafetensorsFile::open(Path::new(&out)).unwrap();
        for name in ["feature_acts", "recon"] {
            assert_close(name, &dense.read(name).unwrap(), &golden.read(name).unwrap());
        }
        run(&["encode", "--sae", &sae, "--input", &input, "--out", &out, "--sparse"]);
        let mut sparse = SafetensorsFile::open(Path::new(&out)).unwrap();
        let acts = golden.read("feature_acts").unwrap();
        let active = acts.ne(0.0);
        assert!(sparse.read("indices").unwrap().equal(&active.nonzero().select(1, 1)), "the same latents");
        assert_close("values", &sparse.read("values").unwrap(), &acts.masked_select(&active));
        assert_eq!(sparse.read("indptr").unwrap().size(), [acts.size()[0] + 1]);
    }
}

#[test]
fn eval_of_the_golden_saes() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json").display().to_string();
    let mut expected: Value = read_json(&fixture("eval/expected.json"));
    for (name, more) in read_json(&fixture("eval/more.json")).as_object().unwrap() {
        let metrics = more["metrics"].as_object().unwrap().clone();
        match expected.get_mut(name).and_then(Value::as_object_mut) {
            Some(all) => all.extend(metrics),
            None => expected[name] = metrics.into(),
        }
        expected[name]["latents"] = more["latents"].clone();
    }
    let tokens = fixture("eval/tokens.json");
    // The checkpoint whose vocabulary and width fit; see `tools/golden/eval_golden.py`.
    let glob = fixture("eval/*/layer_*/width_64/*/params.npz");
    for batch in ["1", "5", "12"] {
        let model = fixture("gemma2/mini-2b");
        run(&[
            "eval",
            "--model",
            &model,
            "--tokens",
            &tokens,
            "--sae",
            &glob,
            "--batch",
            batch,
            "--json",
            &json,
            "--uniformity",
            "99",
            "--neighbours",
        ]);
        let found = read_json(&json);
        let found = found.as_array().unwrap();
        assert_eq!(found.len(), 4, "one object an SAE");
        for object in found {
            let id = object["id"].as_str().unwrap().replace('\\', "/");
            let (_, want) = expected.as_object().unwrap().iter().find(|(key, _)| id.contains(*key)).unwrap();
            for (name, value) in object["metrics"].as_object().unwrap() {
                // Those of the distribution of L0 have tests of their own; of the weights, the reference has each latent's.
                let of_latents = want["latents"].get(name).filter(|_| want.get(name).is_none());
                if ["tokens", "l0_median", "l0_max"].contains(&name.as_str()) {
                    continue;
                }
                if let Some(each) = of_latents {
                    if name != "frequency" {
                        compare(name, &object["latents"][name], each);
                    } else {
                        compare(name, value, each);
                    }
                    continue;
                }
                let want = want.get(name).unwrap_or_else(|| panic!("{name} is not in the golden file"));
                compare(name, value, want);
                assert!(
                    name == "frequency" || object["definitions"].get(name).is_some(),
                    "{name} is defined"
                );
            }
        }
    }
}

#[track_caller]
fn compare(name: &str, got: &Value, want: &Value) {
    if let (Some(got), Some(want)) = (got.as_array(), want.as_array()) {
        assert_eq!(got.len(), want.len(), "{name}");
        got.iter().zip(want).for_each(|(g, w)| compare(name, g, w));
        return;
    }
    let (got, want) = (got.as_f64().unwrap(), want.as_f64().unwrap());
    // Losses to 2e-5 nats; what is made of differences of losses inherits that; the rest to 1e-5 of itself.
    let allowed = match name {
        n if n.starts_with("ce_") || n.starts_with("kl") => 2e-5,
        "delta_loss" => 4e-5,
        "loss_recovered_zero" => 1e-4,
        _ => 1e-5 * want.abs().max(1e-9),
    };
    assert!((got - want).abs() <= allowed, "{name}: {got} is not {want}");
}

fn read_json(path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn analyze_writes_json_and_a_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (json, html) = (path("a.json"), path("deep/er/a.html"));
    let text = "The whale and the ship";
    let hostile = "<b>whale</b></script>";
    let out =
        run(&["analyze", "--text", text, "--text", hostile, "--top", "2", "--json", &json, "--html", &html]);
    assert!(out.stdout.contains("variance explained"), "{}", out.stdout);
    let analysis = read_json(&json);
    let tokens = analysis["prompts"][0]["tokens"].as_array().unwrap();
    let whole: String = tokens.iter().skip(1).map(|t| t.as_str().unwrap()).collect();
    assert_eq!(whole, text, "the tokens are the text");
    assert_eq!(analysis["prompts"].as_array().unwrap().len(), 2);
    let page = std::fs::read_to_string(html).unwrap();
    assert!(!page.contains("<b>whale"), "texts are escaped");
    assert!(!page.contains("http://") && !page.contains("https://"), "the page needs nothing else");
}

#[test]
fn the_demo_reads_its_own_sentences() {
    let out = run(&["analyze", "--demo"]);
    assert!(out.stdout.contains("Darcy") && out.stdout.contains("·king"), "{}", out.stdout);
}

#[test]
fn inspect_tells_models_from_saes() {
    let of = |path: &str| serde_json::from_str::<Value>(&run(&["inspect", path, "--json"]).stdout).unwrap();
    let model = of(&fixture("gemma2/mini-9b"));
    assert_eq!((model["kind"].as_str(), model["dims"]["d_model"].as_i64()), (Some("model"), Some(56)));
    let sae = of(&fixture("sae/gemma-scope/stored"));
    assert_eq!((sae["kind"].as_str(), sae["d_sae"].as_i64()), (Some("sae"), Some(96)));
    assert_eq!(sae["hook"], Value::Null, "its path does not tell");
    assert_eq!(of("tiny")["architecture"], "gemma2");
}

#[test]
fn analyze_reads_padded_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(
        path("t.json"),
        r#"{"input_ids": [[2, 1155, 1451, 0], [2, 700, 800, 900]], "attention_mask": [[1, 1, 1, 0], [1, 1, 1, 1]]}"#,
    )
    .unwrap();
    run(&["analyze", "--tokens", &path("t.json"), "--json", &path("a.json")]);
    let analysis = read_json(&path("a.json"));
    let lengths = [0, 1].map(|i| analysis["prompts"][i]["tokens"].as_array().unwrap().len());
    assert_eq!(lengths, [3, 4], "padding is no part of a prompt");
}

#[test]
fn no_set_of_positions_depends_on_the_batch() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("r.json").display().to_string();
    let texts =
        ["The ship.", "The captain of the ship looked at the sea.", "They went to the king and to his sons."];
    for positions in ["all", "2:", "counted"] {
        let mut found = Vec::new();
        for batch in ["1", "2", "3"] {
            let mut args = vec!["eval", "--positions", positions, "--batch", batch, "--json", &json];
            texts.iter().for_each(|text| args.extend(["--text", text]));
            run(&args);
            let report = read_json(&json);
            found.push((
                report[0]["tokens"].as_i64().unwrap(),
                report[0]["metrics"]["ce_spliced"].as_f64().unwrap(),
            ));
        }
        for (tokens, ce) in &found {
            assert_eq!(*tokens, found[0].0, "{positions}");
            assert!((ce - found[0].1).abs() < 2e-5, "{positions}: {found:?}");
        }
    }
}

#[test]
fn a_link_is_followed_and_a_pipe_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("real.json"), "old").unwrap();
    std::os::unix::fs::symlink(path("real.json"), path("link.json")).unwrap();
    run(&["analyze", "--text", "Amen.", "--json", &path("link.json")]);
    assert!(std::fs::symlink_metadata(path("link.json")).unwrap().is_symlink());
    assert!(read_json(&path("real.json"))["prompts"].is_array());
    let made = std::process::Command::new("mkfifo").arg(path("pipe")).status();
    if made.is_ok_and(|status| status.success()) {
        crate::command::refuse(
            &["analyze", "--text", "Amen.", "--json", &path("pipe")],
            &["pipe", "ordinary"],
        );
    }
}
