//! `generate`: what it writes is what the library generates, edits act, and bad input is refused.

use std::{fs, path::Path};

use gemma_scope::{
    hooks::HookSet,
    model::{GenerateOptions, LoadOptions, generate},
    tiny,
};
use serde_json::Value;

use crate::command::{finish, fixture, gemma_scope, refuse, run};

const PROMPT: &str = "The captain of the ship";

fn json(args: &[&str]) -> Value {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.json").display().to_string();
    let _run = run(&[&["generate", "--max-tokens", "12", "--json", &path], args].concat());
    serde_json::from_str(&fs::read_to_string(Path::new(&path)).unwrap()).unwrap()
}

fn texts(args: &[&str]) -> Vec<String> {
    let rows = json(args)["rows"].as_array().unwrap().clone();
    rows.iter().map(|row| row["text"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn greedy_is_what_the_library_generates() {
    let (model, tokenizer) = (tiny::model(&LoadOptions::default()).unwrap(), tiny::tokenizer().unwrap());
    let prompt = tokenizer.encode(PROMPT).unwrap();
    let ids = generate(&model, &[prompt], GenerateOptions::greedy(12), HookSet::new(), |_| ()).unwrap();
    let text = tokenizer.decode(&ids[0]).unwrap();
    assert_eq!(texts(&["--prompt", PROMPT])[0], text);
    // What is streamed is the prompt, then the text.
    let shown = run(&["generate", "--prompt", PROMPT, "--max-tokens", "12"]).stdout;
    assert_eq!(shown, format!("{PROMPT}{text}\n"));
}

#[test]
fn prompts_side_by_side_are_what_they_are_alone() {
    let other = "Elizabeth was";
    let together = texts(&["--prompt", PROMPT, "--prompt", other]);
    assert_eq!(together, [texts(&["--prompt", PROMPT]), texts(&["--prompt", other])].concat());
}

#[test]
fn a_seed_draws_the_same_and_another_does_not() {
    let draw = |seed| texts(&["--prompt", PROMPT, "--temperature", "1", "--top-p", "0.95", "--seed", seed]);
    assert_eq!(draw("1"), draw("1"));
    assert_ne!(draw("1"), draw("2"));
}

#[test]
fn latents_are_steered_and_ablated() {
    let plain = texts(&["--prompt", PROMPT]);
    assert_ne!(texts(&["--prompt", PROMPT, "--steer", "tiny:120:40"]), plain);
    assert_eq!(texts(&["--prompt", PROMPT, "--steer", "tiny:120:0"]), plain, "a strength of zero");
    // Latent 422 is active on nearly every token.
    assert_ne!(texts(&["--prompt", PROMPT, "--ablate", "tiny:422"]), plain);
    // From a position that only generation reaches: the first words are the plain ones.
    let late = texts(&["--prompt", PROMPT, "--steer", "tiny:120:40", "--positions", "12:"]);
    assert_ne!(late, plain);
    let common = late[0].bytes().zip(plain[0].bytes()).take_while(|(a, b)| a == b).count();
    assert!(common > 10, "{late:?} parts from {plain:?} at once");
}

#[test]
fn bfloat16_generates_too() {
    assert!(!texts(&["--prompt", PROMPT, "--dtype", "bf16"])[0].is_empty());
}

#[test]
fn bad_input_is_refused() {
    let generate =
        |args: &[&str], parts: &[&str]| refuse(&[&["generate", "--prompt", "A"], args].concat(), parts);
    generate(&["--top-p", "0.9"], &["--top-p", "temperature"]);
    generate(&["--temperature", "1", "--top-p", "1.5"], &["top-p", "1.5"]);
    generate(&["--temperature", "-1"], &["temperature", "-1"]);
    generate(&["--max-tokens", "100000"], &["100000", "context"]);
    generate(&["--steer", "tiny:99999:1"], &["99999"]);
    generate(&["--steer", "nowhere/none:1:1"], &["nowhere/none"]);
    let narrow = format!("{}:1", fixture("eval/attn_z/layer_1/width_64/average_l0_27"));
    generate(&["--steer", &format!("{narrow}:8")], &["--steer", "has 64 numbers", "blocks.1.attn.hook_z"]);
    generate(&["--ablate", &narrow], &["--ablate", "has 64 numbers", "blocks.1.attn.hook_z"]);
    generate(&["--chat"], &["<end_of_turn>"]);
    generate(&["--stop", "several words"], &["--stop", "several words"]);
    generate(&["--device", "cuda:7"], &["--device", "cuda:7", "not available"]);
    let case = fixture("gemma2/mini-2b");
    generate(&["--model", &case], &["tokenizer.json"]);
    refuse(&["generate", "--prompt", ""], &["--prompt", "empty"]);
    // What does not even parse is a wrong command line.
    for wrong in
        [&["--steer", "tiny:x:1"][..], &["--steer", "tiny"], &["--dtype", "f64"], &["--temperature", "hot"]]
    {
        let mut command = gemma_scope();
        command.args(["generate", "--prompt", "A"]).args(wrong);
        assert_eq!(finish(command).code, 2, "{wrong:?}");
    }
}
