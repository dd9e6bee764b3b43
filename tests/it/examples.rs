//! Every example runs, and says what it is there to say.

use std::{
    path::PathBuf,
    process::{Command, Output},
};

/// An example's program: beside the folder that this test runs from.
fn program(name: &str) -> PathBuf {
    let here = std::env::current_exe().unwrap();
    here.parent().unwrap().parent().unwrap().join("examples").join(name)
}

fn run(name: &str) -> String {
    let Output { status, stdout, stderr } = Command::new(program(name))
        .output()
        .unwrap_or_else(|e| panic!("{name}: {e}; `cargo test` builds examples"));
    assert!(status.success(), "{name}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8(stdout).unwrap()
}

/// The number after a text.
fn number_after(out: &str, text: &str) -> f64 {
    let rest = out.split(text).nth(1).unwrap_or_else(|| panic!("no {text:?} in:\n{out}"));
    rest.split_whitespace().next().unwrap().trim_end_matches([',', ';']).parse().unwrap()
}

#[test]
fn quickstart() {
    let out = run("quickstart");
    assert!(out.contains("blocks.3.hook_resid_post"), "{out}");
    let explained = number_after(&out, "variance explained without BOS:");
    assert!((0.5..1.0).contains(&explained), "{out}");
    assert!(number_after(&out, "reconstructions differ by") < 1e-3, "{out}");
}

#[test]
fn headlines() {
    let out = run("headlines");
    assert_eq!(out.matches("  latent ").count(), 25, "five headlines, five latents each:\n{out}");
    assert!(out.contains(" different latents among the five strongest"), "{out}");
}

#[test]
fn evaluate_suite() {
    let out = run("evaluate_suite");
    assert_eq!(out.matches("delta_loss").count(), 2, "a report for each dtype:\n{out}");
    assert!(out.contains("average_l0_40#bf16 at blocks.3.hook_resid_post"), "{out}");
}

#[test]
fn evaluate_sae() {
    let out = run("evaluate_sae");
    let value = |name: &str| number_after(&out, &format!("\n  {name} "));
    assert!(value("ce_clean") < value("ce_spliced") && value("ce_spliced") < value("ce_zero"), "{out}");
    assert!((value("fvu") + value("explained_variance") - 1.0).abs() < 1e-4, "{out}");
}

#[test]
fn generate() {
    let out = run("generate");
    let texts: Vec<&str> = out.lines().filter(|l| l.contains("The captain of the ship")).collect();
    assert_eq!(texts.len(), 2, "plain and steered:\n{out}");
    assert_ne!(texts[0], texts[1], "steering changes what is written:\n{out}");
    // The longer prompt and 23 of the 24 new tokens went through the model, in two rows.
    assert_eq!(out.matches("saw [2, ").count(), 2, "{out}");
}

#[test]
fn steer() {
    let out = run("steer");
    let line = |name: &str| {
        out.lines().find(|l| l.trim_start().starts_with(name)).unwrap().split_once(':').unwrap().1
    };
    assert_ne!(line("clean"), line("steered"), "steering moves the distribution:\n{out}");
}

#[test]
fn cache_activations() {
    let out = run("cache_activations");
    assert_eq!(out.matches("hook_resid_post ").count(), 6 + 1, "six layers and the spliced site:\n{out}");
}

#[test]
fn anatomy() {
    let out = run("anatomy");
    assert_eq!(out.matches("latent ").count(), 4, "{out}");
    assert_eq!(out.matches("  nearest ").count(), 4, "{out}");
    // Rows of the embedded SAE's decoder have unit norm, as its training keeps them (float16 rounds them).
    assert!((number_after(&out, "‖W_dec‖") - 1.0).abs() < 1e-3, "{out}");
}

#[test]
fn own_architecture() {
    let out = run("own_architecture");
    assert!(out.contains("unsigned keeps the laws"), "{out}");
    assert!(out.contains("fvu"), "{out}");
}

#[test]
fn train_saes() {
    let out = run("train_saes");
    assert_eq!(out.matches("step ").count(), 6, "two SAEs at three steps:\n{out}");
    let fvus: Vec<f64> = out.lines().filter_map(|l| l.split_once("FVU ")?.1.parse().ok()).collect();
    assert!(fvus[4] < fvus[0] && fvus[5] < fvus[1], "both learn:\n{out}");
    assert!(out.contains("jumprelu: jumprelu with 512 latents at blocks.3.hook_resid_post"), "{out}");
    assert!(out.contains("topk: topk with 512 latents at blocks.3.hook_resid_post"), "{out}");
}
