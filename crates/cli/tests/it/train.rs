//! Training as a user meets it: a configuration in, a folder with a trained SAE out; stopped, killed, gone on with, refused.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use crate::command::{Run, expect_refusal, finish, gemma_scope, refuse, run};

/// Two paragraphs and more of plain text, different in every line.
fn text(path: &Path, from: usize) {
    let words =
        ["river", "stone", "the", "captain", "of", "seven", "letters", "and", "a", "window", "was", "open"];
    let line = |i: usize| {
        let word = |j: usize| words[(i * 7 + j * j * 3 + i * j) % words.len()];
        (0..40).map(word).collect::<Vec<_>>().join(" ")
    };
    let all: Vec<String> = (from..from + 120).map(|i| format!("{}.\n", line(i))).collect();
    fs::write(path, all.join("\n")).unwrap();
}

/// A folder with text and a configuration of two SAEs of the embedded model.
fn prepare() -> (TempDir, PathBuf) {
    let folder = TempDir::new().unwrap();
    text(&folder.path().join("corpus.txt"), 0);
    text(&folder.path().join("heldout.txt"), 1000);
    let config = folder.path().join("two.toml");
    let (corpus, heldout) = (folder.path().join("corpus.txt"), folder.path().join("heldout.txt"));
    fs::write(
        &config,
        format!(
            "[data]\ntext = [{corpus:?}]\nctx = 64\n\n[run]\nsteps = 24\nbatch = 128\nbuffer = 2048\nlog_every = 4\n\
             checkpoint_every = 3\nscale_rows = 1000\n\n[eval]\ntext = {heldout:?}\nevery = 12\nrows = 4\n\n\
             [[sae]]\nname = 'jump'\nhook = 'blocks.3.hook_resid_post'\nd_sae = 256\nrecipe = 'gemma-scope'\n\
             objective.lambda = 0.01\nobjective.lambda_warmup = 0.5\nobjective.bandwidth = 0.05\n\
             objective.initial_threshold = 0.05\noptimizer.lr = 0.003\noptimizer.lr_warmup = 2\n\n\
             [[sae]]\nname = 'top'\nhook = 'blocks.2.hook_mlp_out'\nd_sae = 192\nrecipe = 'topk'\nobjective.k = 8\n\
             optimizer.lr = 0.003\ndead_after = 512\n"
        ),
    )
    .unwrap();
    (folder, config)
}

/// The program with a configuration and a folder for the run, on one thread.
fn train(config: &Path, out: &Path, more: &[&str]) -> Command {
    let mut command = gemma_scope();
    command.arg("train").arg(config).arg("--out").arg(out).args(["--threads", "1"]).args(more);
    command
}

fn resume(config: &Path, out: &Path) -> Command {
    let mut command = gemma_scope();
    command.arg("train").arg(config).arg("--resume").arg(out).args(["--threads", "1"]);
    command
}

/// One sentence, behind the remark that work begins.
#[track_caller]
fn expect_stop(mut run: Run, parts: &[&str]) {
    if let Some((first, rest)) = run.stderr.split_once('\n')
        && first.starts_with("measuring scales")
    {
        run.stderr = rest.to_owned();
    }
    expect_refusal(&run, parts);
}

#[track_caller]
fn succeed(command: Command) -> String {
    let run = finish(command);
    assert_eq!(run.code, 0, "{}", run.stderr);
    run.stdout
}

/// The bytes of every exported file.
fn exported(out: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    let mut folders = vec![out.join("saes")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                files.push((path.strip_prefix(out).unwrap().to_owned(), fs::read(&path).unwrap()));
            }
        }
    }
    files.sort();
    files
}

/// Waits until a run has a checkpoint.
fn wait_for_a_checkpoint(out: &Path, child: &mut Child) {
    while !out.join("checkpoints/step-000000000003").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended too soon");
        thread::sleep(Duration::from_millis(2));
    }
}

fn metrics(out: &Path) -> Vec<Value> {
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_run_leaves_saes_that_every_command_reads() {
    let (folder, config) = prepare();
    let out = folder.path().join("run");
    let said = succeed(train(&config, &out, &[]));
    assert!(said.contains("24 steps"), "{said}");

    let lines = metrics(&out);
    let of = |sae: &str| lines.iter().filter(|line| line["sae"] == sae).collect::<Vec<_>>();
    let steps: Vec<u64> = of("jump").iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [4, 8, 12, 16, 20, 24]);
    for line in &lines {
        for key in
            ["loss", "l0", "fvu", "dead", "lr", "lambda", "tokens_per_second", "seconds_left", "wait_share"]
        {
            assert!(line[key].is_number(), "{key} in {line}");
        }
        let parts = line.as_object().unwrap().iter().filter(|(key, _)| key.starts_with("loss/"));
        let sum: f64 = parts.map(|(_, part)| part.as_f64().unwrap()).sum();
        assert!((sum - line["loss"].as_f64().unwrap()).abs() < 1e-9 * sum.abs(), "{line}");
        let measured = line["step"].as_u64().unwrap().is_multiple_of(12);
        assert_eq!(line["eval/delta_loss"].is_number(), measured, "{line}");
    }
    let (first, last) = (of("jump")[0], of("jump")[5]);
    assert!(last["fvu"].as_f64() < first["fvu"].as_f64(), "it learns: {first} {last}");
    assert_eq!(of("top")[5]["l0"], 8.0);

    // The exported SAEs: three formats' readers, the same function, the same quality on the run's held-out text.
    for sae in ["saes/jump/saelens", "saes/top/saelens"] {
        let said = run(&["inspect", &out.join(sae).display().to_string(), "--json"]).stdout;
        assert!(said.contains("hook_"), "it says what it reads: {said}");
    }
    let layout = glob::glob(&format!(
        "{}/saes/jump/gemma-scope/resid_post/layer_3/width_256/*/params.npz",
        out.display()
    ));
    let npz = layout.unwrap().next().expect("a params.npz in its place").unwrap();
    let heldout = folder.path().join("heldout.txt").display().to_string();
    let report = folder.path().join("report.json").display().to_string();
    let lens = out.join("saes/jump/saelens").display().to_string();
    let (npz, threads) = (npz.display().to_string(), ["--threads", "1", "--ctx", "64"]);
    let args = ["eval", "--text-file", &heldout, "--json", &report, "--sae", &lens, "--sae", &npz];
    run(&[&args[..], &threads].concat());
    let reports: Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    let (a, b) = (&reports[0]["metrics"], &reports[1]["metrics"]);
    for metric in ["l0", "fvu", "delta_loss"] {
        let (a, b) = (a[metric].as_f64().unwrap(), b[metric].as_f64().unwrap());
        assert!((a - b).abs() <= 1e-5 * a.abs().max(1e-3), "{metric}: {a} {b}");
    }
    assert!(out.join("tensorboard/jump").read_dir().unwrap().next().is_some());
}

#[test]
fn killed_again_and_again_it_ends_with_the_same_weights() {
    let (folder, config) = prepare();
    let whole = folder.path().join("whole");
    succeed(train(&config, &whole, &[]));
    let out = folder.path().join("killed");
    let checkpoints =
        || out.join("checkpoints").read_dir().into_iter().flatten().flatten().map(|e| e.path()).max();
    let mut killed_at = Vec::new();
    // At once, then some time after each new checkpoint: in a step, an evaluation, the next checkpoint.
    for milliseconds in [40, 0, 7, 60, 200] {
        let begun = out.join("settings.json").exists();
        let mut command = if begun { resume(&config, &out) } else { train(&config, &out, &[]) };
        let before = checkpoints();
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while milliseconds != 40 && checkpoints() == before && child.try_wait().unwrap().is_none() {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_millis(milliseconds));
        if child.try_wait().unwrap().is_none() {
            child.kill().unwrap();
            killed_at.push(checkpoints());
        }
        child.wait().unwrap();
    }
    let halfway = |at: &Option<PathBuf>| at.as_ref().is_some_and(|at| !at.ends_with("step-000000000024"));
    assert!(
        killed_at.iter().any(halfway),
        "no run was killed between its first checkpoint and its last: {killed_at:?}"
    );
    let last =
        if out.join("settings.json").exists() { resume(&config, &out) } else { train(&config, &out, &[]) };
    succeed(last);
    assert_eq!(exported(&whole), exported(&out));
    let steps =
        |out: &Path| metrics(out).iter().map(|l| (l["step"].clone(), l["loss"].clone())).collect::<Vec<_>>();
    assert_eq!(steps(&whole), steps(&out), "each logged step once, with the same loss");
}

#[test]
fn interrupted_it_stops_after_a_step_and_its_folder_is_enough_to_go_on() {
    let (folder, config) = prepare();
    let whole = folder.path().join("whole");
    succeed(train(&config, &whole, &["--set", "run.checkpoint_every=1000"]));
    let out = folder.path().join("stopped");
    let mut command = train(&config, &out, &["--set", "run.checkpoint_every=1000"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while !out.join("metrics.jsonl").exists() {
        assert!(child.try_wait().unwrap().is_none(), "it ended too soon");
        thread::sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let ended = child.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    assert!(said.contains("again to stop at once") && said.contains("error: stopped after step "), "{said}");
    let mut command = gemma_scope();
    command.args(["train", "--threads", "1", "--resume"]).arg(&out);
    succeed(command);
    assert_eq!(exported(&whole), exported(&out));
}

#[test]
fn a_folder_that_vanishes_and_a_damaged_checkpoint_are_reported() {
    let (folder, config) = prepare();
    let out = folder.path().join("run");
    let more = ["--set", "run.steps=100000", "--set", "run.log_every=1"];
    let mut child = train(&config, &out, &more).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_a_checkpoint(&out, &mut child);
    fs::rename(&out, folder.path().join("elsewhere")).unwrap();
    let said = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    assert!(said.contains("error: ") && said.contains("run/"), "{said}");

    // One bit of a trainer's file, in the run that was moved.
    let moved = folder.path().join("elsewhere");
    let last = moved.join("checkpoints").read_dir().unwrap().map(|e| e.unwrap().path()).max().unwrap();
    let file = last.join("jump.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 64;
    fs::write(&file, bytes).unwrap();
    let mut command = gemma_scope();
    command.args(["train", "--threads", "1", "--resume"]).arg(&moved);
    let refused = finish(command);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("jump.safetensors: is damaged"), "{}", refused.stderr);
}

#[test]
fn harvested_activations_train_as_live_ones() {
    let (folder, config) = prepare();
    let corpus = folder.path().join("corpus.txt").display().to_string();
    let acts = folder.path().join("acts").display().to_string();
    let hooks = "blocks.3.hook_resid_post,blocks.2.hook_mlp_out";
    let harvest = [
        "harvest",
        "--text-file",
        &corpus,
        "--hooks",
        hooks,
        "--out",
        &acts,
        "--ctx",
        "64",
        "--threads",
        "1",
    ];
    run(&[&harvest[..], &["--shard-rows", "500"]].concat());
    refuse(&harvest, &["--out", "--resume"]);
    let more = ["--set", "sae.scale=none", "--set", "run.steps=8"];
    let live = folder.path().join("live");
    succeed(train(&config, &live, &more));
    let stored = folder.path().join("stored");
    let shards = format!("data={{ shards = {acts:?} }}");
    succeed(train(&config, &stored, &[&more[..], &["--set", &shards]].concat()));
    assert_eq!(exported(&live), exported(&stored));

    // A harvest that was not ended.
    let manifest = Path::new(&acts).join("manifest.json");
    let whole = fs::read_to_string(&manifest).unwrap();
    let mut half: Value = serde_json::from_str(&whole).unwrap();
    half["complete"] = false.into();
    fs::write(&manifest, half.to_string()).unwrap();
    let again = folder.path().join("again");
    let refused = || finish(train(&config, &again, &[&more[..], &["--set", &shards]].concat()));
    expect_stop(refused(), &["half a harvest", "harvest --resume"]);
    fs::write(&manifest, whole).unwrap();

    // One bit of one shard.
    let shard = glob::glob(&format!("{acts}/blocks.3.hook_resid_post/*")).unwrap().nth(1).unwrap().unwrap();
    let mut bytes = fs::read(&shard).unwrap();
    bytes[12345] ^= 4;
    fs::write(&shard, bytes).unwrap();
    let name = shard.file_name().unwrap().to_string_lossy().into_owned();
    let refused = refused();
    assert!(refused.code == 1 && refused.stderr.contains(&name), "{}", refused.stderr);
}

#[test]
fn a_sweep_trains_every_combination_from_one_stream() {
    let (folder, config) = prepare();
    let out = folder.path().join("run");
    let more =
        ["--set", "run.steps=3", "--set", "sae.1.d_sae=64", "--sweep", "seed=1,2", "--sweep", "d_sae=32,48"];
    let said = succeed(train(&config, &out, &more));
    for sae in ["jump", "top"] {
        for suffix in ["d_sae=32-seed=1", "d_sae=32-seed=2", "d_sae=48-seed=1", "d_sae=48-seed=2"] {
            assert!(said.contains(&format!("{sae}-{suffix}: ")), "{said}");
            assert!(out.join(format!("saes/{sae}-{suffix}/saelens/cfg.json")).is_file());
        }
    }
    let files = exported(&out);
    let weights: Vec<_> =
        files.iter().filter(|(p, _)| p.ends_with("sae_weights.safetensors")).map(|(_, b)| b).collect();
    assert_eq!(weights.len(), 8);
    assert!((1..8).all(|i| !weights[..i].contains(&weights[i])), "no two are the same");

    let out = folder.path().join("one");
    let said = succeed(train(
        &config,
        &out,
        &["--set", "run.steps=2", "--sweep", "sae.0.objective.lambda=1e-3,1e-2"],
    ));
    for sae in ["jump-lambda=0.001", "jump-lambda=0.01", "top"] {
        assert!(said.contains(&format!("{sae}: ")), "{said}");
    }
}

#[test]
fn what_can_not_be_is_refused_and_loses_nothing() {
    let (folder, config) = prepare();
    let out = folder.path().join("run");
    let no = |more: &[&str], parts: &[&str]| {
        expect_stop(finish(train(&config, &out, more)), parts);
        assert!(!out.join("metrics.jsonl").exists(), "nothing was trained");
    };
    no(&["--set", "run.stepz=3"], &["two.toml", "stepz"]);
    no(&["--set", "run.tokens=3"], &["run.tokens", "run.steps"]);
    no(&["--set", "sae.0.hook=blocks.3.hook_resid_pots"], &["jump", "hook_resid_pots"]);
    no(&["--set", "sae.0.hook=blocks.33.hook_resid_post"], &["blocks.33"]);
    no(&["--set", "sae.0.recipe=gema-scope"], &["jump", "gema-scope", "gemma-scope"]);
    no(&["--set", "sae.0.objective.lambda=-1"], &["jump", "objective.lambda", "-1"]);
    no(&["--set", "sae.1.objective.k=500"], &["top", "objective.k", "192"]);
    no(&["--set", "sae.0.objective.lamda=1"], &["jump", "lamda"]);
    no(&["--set", "sae.7.d_sae=1"], &["sae.7.d_sae", "only 2"]);
    no(&["--set", "sae.name=one"], &["one"]);
    no(&["--set", "data.text=['nowhere.txt']"], &["nowhere.txt"]);
    no(&["--set", "data.ctx=1"], &["ctx"]);
    no(&["--set", "run.buffer=0"], &["buffer"]);
    no(&["--set", "data.shards=nowhere"], &["data.text", "data.shards"]);
    no(&["--set", "data={ shards = 'nowhere/acts' }"], &["nowhere/acts"]);
    no(&["--set", "eval.text='gone.txt'"], &["gone.txt"]);
    no(&["--sweep", "objective.lambda="], &["sweep.objective.lambda"]);
    refuse(&["train", "gone.toml"], &["gone.toml"]);
    let mut gone = gemma_scope();
    gone.arg("train").arg(&config).args(["--resume", "gone"]);
    expect_stop(finish(gone), &["gone", "no run"]);
    refuse(&["train", "--resume", "gone"], &["gone/config.toml"]);
    let broken = folder.path().join("broken.toml");
    fs::write(&broken, "[run]\nsteps = \n").unwrap();
    refuse(&["train", &broken.display().to_string()], &["broken.toml", "line 2"]);

    // Too little text for one epoch: the SAEs are written as they stand.
    let few = ["--set", "data.epochs=1", "--set", "run.steps=100000"];
    let run = finish(train(&config, &out, &few));
    assert_eq!(run.code, 1, "{}", run.stderr);
    assert!(
        run.stderr.contains("the data ended at step ") && run.stderr.contains(" of 100000"),
        "{}",
        run.stderr
    );
    assert!(out.join("saes/top/saelens/cfg.json").is_file() && out.join("checkpoints").is_dir());
    // The folder is taken, by a run with other settings.
    expect_stop(finish(train(&config, &out, &[])), &["--resume"]);
    expect_stop(finish(resume(&config, &out)), &["another", "epochs"]);
}
