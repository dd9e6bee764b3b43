//! Every public format through the command: what its own code computes, what converting keeps, what is refused.

use std::{fs, path::Path};

use gemma_scope::{tch::Tensor, tensors::SafetensorsFile};
use serde_json::Value;
use testkit::assert_close;

use crate::command::{expect_refusal, finish, fixture, gemma_scope, refuse, run};

/// float32 sums in another order, of the largest magnitude.
const ROUNDING: f64 = 1e-5;

fn cases() -> Vec<Value> {
    serde_json::from_str(&fs::read_to_string(fixture("sae/formats/index.json")).unwrap()).unwrap()
}

fn text<'v>(case: &'v Value, key: &str) -> &'v str {
    case[key].as_str().unwrap_or_default()
}

/// What `encode` writes for an SAE and the `x` of a file of expectations.
fn encoded(sae: &str, expected: &str, folder: &Path) -> [Tensor; 2] {
    let out = folder.join("out.safetensors").display().to_string();
    run(&["encode", "--sae", sae, "--input", &format!("{expected}:x"), "--out", &out]);
    read(&out)
}

fn read(path: &str) -> [Tensor; 2] {
    let mut file = SafetensorsFile::open(Path::new(path)).unwrap();
    ["feature_acts", "recon"].map(|name| file.read(name).unwrap())
}

/// One of each format; sae-core's tests go through all of them.
#[test]
fn encodes_and_inspects_every_format() {
    let folder = tempfile::tempdir().unwrap();
    let cases = cases();
    for (format, prefix, architecture) in [
        ("circuit-tracer", "circuit-tracer-jumprelu-skip", "jumprelu_skip_transcoder"),
        ("dictionary-learning", "dictionary-learning-gated", "gated"),
        ("gemma-scope-2", "gemma-scope-2-affine-transcoder", "jumprelu_skip_transcoder"),
        ("openai", "openai-topk", "topk"),
        ("openmoss", "openmoss-jumprelu", "jumprelu"),
        ("saelens", "saelens-pre6-layer-norm", "standard"),
        ("sparsify", "sparsify-transcoder", "topk_transcoder"),
    ] {
        let case = cases.iter().find(|case| text(case, "case").starts_with(prefix)).unwrap();
        let sae = fixture(&format!("sae/formats/{}", text(case, "path")));
        let expected = fixture(&format!("sae/formats/{}", text(case, "expected")));
        let [features, recon] = encoded(&sae, &expected, folder.path());
        let [want_features, want_recon] = read(&expected);
        assert_close(prefix, &features, &want_features, ROUNDING);
        assert_close(prefix, &recon, &want_recon, ROUNDING);
        let told: Value = serde_json::from_str(&run(&["inspect", &sae, "--json"]).stdout).unwrap();
        assert_eq!((&told["format"], &told["architecture"]), (&format.into(), &architecture.into()));
        assert_eq!(told["d_sae"], want_features.size()[1], "{format}");
    }
}

#[test]
fn refuses_by_name_what_it_can_not_compute() {
    for path in ["saelens-temporal", "openai-tied/5.pt", "openmoss-lorsa", "saelens-expected-average"] {
        refuse(&["inspect", &fixture(&format!("sae/formats/{path}"))], &[path]);
    }
}

/// Each SAE in each format that is written: the same function, or one sentence that says why not.
#[test]
fn converting_keeps_the_function() {
    let folder = tempfile::tempdir().unwrap();
    let mut written = Vec::new();
    let cases = [
        "saelens/standard",
        "saelens/standard-layer-norm",
        "saelens/standard-constant-norm",
        "saelens/topk",
        "saelens/topk-rescaled",
        "saelens/jumprelu",
        "saelens/gated",
        "saelens/transcoder",
        "saelens/skip-transcoder",
        "saelens/jumprelu-skip-transcoder",
        "formats/sparsify-groupmax/layers.5",
    ];
    for case in cases {
        let sae = fixture(&format!("sae/{case}"));
        let expected = if case.starts_with("formats/sparsify") {
            fixture("sae/formats/sparsify-groupmax/layers.5/expected.safetensors")
        } else {
            format!("{sae}/expected.safetensors")
        };
        let [_, want] = read(&expected);
        for format in ["gemma-scope", "gemma-scope-2", "saelens", "sparsify"] {
            let out = folder.path().join(format!("{}-{format}", case.replace('/', "-")));
            let out = out.display().to_string();
            let mut convert = gemma_scope();
            convert.args([
                "convert",
                "--sae",
                &sae,
                "--to",
                format,
                "--out",
                &out,
                "--model",
                "google/gemma-3-1b-pt",
            ]);
            let converted = finish(convert);
            if converted.code != 0 {
                expect_refusal(&converted, &[format]);
                assert!(!Path::new(&out).exists() || fs::read_dir(&out).unwrap().next().is_none(), "{out}");
                continue;
            }
            let [_, recon] = encoded(&out, &expected, folder.path());
            assert_close(&format!("{case} as {format}"), &recon, &want, ROUNDING);
            written.push(format!("{case} {format}"));
        }
    }
    let of = |format: &str| written.iter().filter(|w| w.ends_with(&format!(" {format}"))).count();
    // JumpReLU, ReLU and Gated without normalisation; all but groupmax; TopK and groupmax.
    assert_eq!(
        ["gemma-scope", "gemma-scope-2", "saelens", "sparsify"].map(of),
        [4, 6, 10, 3],
        "{written:#?}"
    );
}

#[test]
fn a_format_that_names_the_model_wants_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out").display().to_string();
    let sae = fixture("sae/saelens/jumprelu");
    refuse(
        &["convert", "--sae", &sae, "--to", "gemma-scope-2", "--out", &out],
        &["gemma-scope-2", "names the model"],
    );
}

#[test]
fn a_format_that_is_not_written_is_named_with_those_that_are() {
    let mut convert = gemma_scope();
    convert.args(["convert", "--sae", "tiny", "--to", "openai", "--out", "x"]);
    let refused = finish(convert);
    assert_eq!(refused.code, 2);
    assert!(refused.stderr.contains("gemma-scope, gemma-scope-2, saelens, sparsify"), "{}", refused.stderr);
}

#[test]
fn a_folder_of_another_format_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("mixed").display().to_string();
    let (sae, topk) = (fixture("sae/saelens/jumprelu"), fixture("sae/saelens/topk"));
    run(&["convert", "--sae", "tiny", "--to", "gemma-scope", "--out", &out]);
    refuse(&["convert", "--sae", &sae, "--to", "saelens", "--out", &out], &["mixed", "params.npz"]);
    // Of the same format it is replaced.
    run(&["convert", "--sae", &sae, "--to", "gemma-scope", "--out", &out]);
    assert!(run(&["inspect", &out]).stdout.contains("[24,96]"));

    let out = folder.path().join("shared").display().to_string();
    run(&["convert", "--sae", &topk, "--to", "sparsify", "--out", &out]);
    refuse(&["convert", "--sae", &sae, "--to", "saelens", "--out", &out], &["shared", "sae.safetensors"]);
    run(&["inspect", &out]);
    // A model's folder has a config.json that is none of an SAE's.
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("config.json"), "{}").unwrap();
    let out = model.display().to_string();
    refuse(&["convert", "--sae", "tiny", "--to", "gemma-scope-2", "--out", &out], &["config.json"]);
    // Two SAEs in a folder: neither is taken for the other.
    for file in ["cfg.json", "sae_weights.safetensors"] {
        fs::copy(Path::new(&sae).join(file), folder.path().join("mixed").join(file)).unwrap();
    }
    let mixed = folder.path().join("mixed").display().to_string();
    refuse(&["inspect", &mixed], &["params.npz", "sae_weights.safetensors"]);
    run(&["inspect", &format!("{mixed}/params.npz")]);
}

#[test]
fn what_is_read_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("sae");
    fs::create_dir(&copy).unwrap();
    for file in ["cfg.json", "sae_weights.safetensors", "expected.safetensors"] {
        fs::copy(fixture(&format!("sae/saelens/topk/{file}")), copy.join(file)).unwrap();
    }
    let sae = copy.display().to_string();
    let input = format!("{sae}/expected.safetensors:x");
    for out in [format!("{sae}/sae_weights.safetensors"), format!("{sae}/expected.safetensors")] {
        refuse(&["encode", "--sae", &sae, "--input", &input, "--out", &out], &["--out", "is read here"]);
    }
    run(&["encode", "--sae", &sae, "--input", &input, "--out", &format!("{sae}/new.safetensors")]);
    // A name after a colon, whatever the file is called.
    fs::copy(copy.join("expected.safetensors"), folder.path().join("acts.st")).unwrap();
    let input = format!("{}:x", folder.path().join("acts.st").display());
    run(&[
        "encode",
        "--sae",
        &sae,
        "--input",
        &input,
        "--out",
        &format!("{sae}/new.safetensors"),
        "--sparse",
    ]);
}

#[cfg(unix)]
#[test]
fn a_pipe_is_refused_and_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(fixture("sae/saelens/topk/cfg.json"), folder.path().join("cfg.json")).unwrap();
    let pipe = folder.path().join("sae_weights.safetensors");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    refuse(&["inspect", &folder.path().display().to_string()], &["sae_weights.safetensors", "ordinary"]);
}
