//! The examples of docs/cluster, run as they stand: what they name is small and lies in a cache, and the cluster is this machine.

use std::{
    env,
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use gemma_scope::sae::catalogue;
use saphyr::{LoadableYamlNode as _, Yaml};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    command::{Run, finish, gemma_scope},
    small::{write_model, write_sae},
};

/// What both examples judge.
const MODEL: &str = "google/gemma-2-2b";
const SAES: &str = "gemma-scope-2b-pt-res/layer_*/width_16k/canonical";
const TEXT: &str = "pile-heldout.jsonl";

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/cluster").join(name)
}

/// Writes a home of the hub's that holds a model and its SAEs under the names of the released ones.
fn write_hub(home: &Path) {
    let snapshot = |repo: &str| {
        let commit = "0123456789012345678901234567890123456789";
        let folder = home.join("hub").join(format!("models--{}", repo.replace('/', "--")));
        fs::create_dir_all(folder.join("refs")).unwrap();
        fs::write(folder.join("refs/main"), commit).unwrap();
        folder.join("snapshots").join(commit)
    };
    write_model(&snapshot(MODEL), 26, 16);
    let found = catalogue::matching(SAES).unwrap();
    assert_eq!(found.len(), 26, "a canonical SAE for each layer");
    for (seed, entry) in (0..).zip(&found) {
        write_sae(&snapshot(entry.repo).join(entry.path()), 10 * seed);
    }
}

/// Writes texts for some more batches than there are shards, so that some of these have several.
fn write_text(folder: &Path) {
    let words = ["the ship ", "sailed at ", "dawn and ", "nobody saw ", "it come ", "back to ", "port. "];
    let text = |i: usize| (0..24).map(|j| words[(i * i + j * (i + 2)) % words.len()]).collect::<String>();
    let subset = |i: usize| if i.is_multiple_of(3) { "Books" } else { "Letters" };
    let line = |i: usize| json!({"text": text(i), "meta": {"pile_set_name": subset(i)}}).to_string();
    fs::write(folder.join(TEXT), (0..28).map(line).collect::<Vec<_>>().join("\n")).unwrap();
}

/// A program that finds the built one by its name, and in `home` what the hub would give.
fn on_a_node(mut command: Command, folder: &Path, home: &Path, more: Option<&Path>) -> Command {
    let built = Path::new(env!("CARGO_BIN_EXE_gemma-scope")).parent().unwrap().to_owned();
    let known = env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    let paths = more.map(Path::to_owned).into_iter().chain([built]).chain(env::split_paths(&known));
    for name in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_ENDPOINT", "RUN"] {
        command.env_remove(name);
    }
    command.env("PATH", env::join_paths(paths).unwrap()).env("HF_HOME", home);
    command.env("HF_HUB_OFFLINE", "1").current_dir(folder);
    command
}

#[track_caller]
fn succeed(command: Command) -> Run {
    let what = format!("{command:?}");
    let run = finish(command);
    assert_eq!(run.code, 0, "{what}: {}{}", run.stdout, run.stderr);
    run
}

/// The report of one run of all of it.
fn whole(folder: &Path, home: &Path) -> Vec<u8> {
    let mut command = gemma_scope();
    command.args(["eval", "--model", MODEL, "--text-file", TEXT, "--sae", SAES, "--json", "whole.json"]);
    command.args(["--subset-field", "meta.pile_set_name", "--offline", "--threads", "1"]);
    succeed(on_a_node(command, folder, home, None));
    let bytes = fs::read(folder.join("whole.json")).unwrap();
    let reports: Value = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(reports.as_array().unwrap().len(), 26);
    assert_eq!(reports[3]["by_subset"].as_object().unwrap().len(), 2);
    let rows = reports[0]["provenance"]["text"]["sequences"].as_u64().unwrap();
    assert!((17 * 8..40 * 8).contains(&rows), "{rows} rows are 8 a batch for 16 shards");
    bytes
}

/// Slurm's `sbatch` on a cluster of one node: the options that the example gives and no others; a job is done when this returns, the tasks of an
/// array last first and two at a time; a job after one that failed is refused.
const SBATCH: &str = r#"#!/bin/bash
set -euo pipefail
state=$(dirname "$0")
array= parsable=
while [[ $1 == --* ]]; do
    case $1 in
    --parsable) parsable=1 ;;
    --array=*) array=${1#*=} ;;
    --dependency=afterok:*) grep -qx "${1##*:}" "$state/done" || { echo "sbatch: ${1##*:} has not succeeded" >&2; exit 1; } ;;
    --cpus-per-task=* | --mem=* | --time=*) ;;
    *) echo "sbatch: unrecognized option '$1'" >&2; exit 1 ;;
    esac
    shift
done
id=101
while [[ -e $state/script-$id ]]; do id=$((id + 1)); done
cp "$1" "$state/script-$id"
shift
grep -q '^#SBATCH --cpus-per-task=' "$state/script-$id"
export SLURM_JOB_ID=$id SLURM_CPUS_PER_TASK=1
if [[ $array ]]; then
    export SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_COUNT=$((${array#*-} - ${array%-*} + 1))
    seq "${array#*-}" -1 "${array%-*}" |
        xargs -P 2 -I{} env SLURM_ARRAY_TASK_ID={} bash "$state/script-$id" "$@" >"$state/log-$id" 2>&1 ||
        { cat "$state/log-$id" >&2; exit 1; }
else
    bash "$state/script-$id" "$@" >"$state/log-$id" 2>&1 || { cat "$state/log-$id" >&2; exit 1; }
fi
echo "$id" >>"$state/done"
if [[ $parsable ]]; then echo "$id"; else echo "Submitted batch job $id"; fi
"#;

#[test]
fn the_slurm_example_writes_what_one_run_writes() {
    let folder = TempDir::new().unwrap();
    let (home, cluster) = (folder.path().join("home"), folder.path().join("cluster"));
    write_hub(&home);
    write_text(folder.path());
    fs::create_dir(&cluster).unwrap();
    let sbatch = cluster.join("sbatch");
    fs::write(&sbatch, SBATCH).unwrap();
    fs::set_permissions(&sbatch, fs::Permissions::from_mode(0o755)).unwrap();

    let mut command = Command::new("bash");
    command.arg(example("eval.slurm")).arg("submit");
    let run = succeed(on_a_node(command, folder.path(), &home, Some(&cluster)));
    assert!(run.stdout.ends_with("Submitted batch job 103\n"), "means, shards, merge: {}", run.stdout);
    let out = folder.path().join("runs/2b-res-16k");
    assert!(out.join("part-16.json").exists() && !out.join("part-17.json").exists());
    assert!(!out.join("shard-16-of-16/means.json").exists(), "the means are taken once");
    assert!(fs::read_to_string(out.join("report.html")).unwrap().contains("</html>"));
    let whole = whole(folder.path(), &home);
    assert!(fs::read(out.join("report.json")).unwrap() == whole, "the same bytes");

    // What Slurm reads of the script stands before its first command.
    let script = fs::read_to_string(example("eval.slurm")).unwrap();
    let mut commands = script.lines().skip_while(|line| line.starts_with('#'));
    assert!(commands.all(|line| !line.starts_with("#SBATCH")), "what Slurm would not see");
    // Called otherwise, it says how.
    let mut command = Command::new("bash");
    command.arg(example("eval.slurm"));
    let run = finish(on_a_node(command, folder.path(), &home, None));
    assert_eq!((run.code, run.stderr.starts_with("usage: ")), (2, true), "{}", run.stderr);
}

/// The one text, or texts, at a key of YAML.
fn texts<'y>(yaml: &'y Yaml<'_>, key: &str) -> Vec<&'y str> {
    let value = yaml.as_mapping_get(key).unwrap_or_else(|| panic!("there is no `{key}`"));
    match value.as_vec() {
        Some(list) => list.iter().map(|text| text.as_str().unwrap()).collect(),
        None => vec![value.as_str().unwrap()],
    }
}

#[test]
fn the_kubernetes_example_writes_what_one_run_writes() {
    let folder = TempDir::new().unwrap();
    let source = fs::read_to_string(example("eval-job.yaml")).unwrap();
    let documents = Yaml::load_from_str(&source).unwrap();
    let [job] = &documents[..] else { panic!("one job, not {}", documents.len()) };
    assert_eq!((texts(job, "apiVersion"), texts(job, "kind")), (vec!["batch/v1"], vec!["Job"]));
    let spec = &job["spec"];
    assert_eq!(texts(spec, "completionMode"), ["Indexed"]);
    let completions = usize::try_from(spec["completions"].as_integer().unwrap()).unwrap();
    let pod = &spec["template"]["spec"];
    assert_eq!(pod["containers"].as_vec().unwrap().len(), 1);
    let container = &pod["containers"][0];
    let mounts = container["volumeMounts"].as_vec().unwrap();
    assert_eq!(mounts.len(), 1);
    assert_eq!(texts(&mounts[0], "name"), texts(&pod["volumes"][0], "name"));
    let mount = texts(&mounts[0], "mountPath")[0];

    // The volume is the folder of this test.
    let inside = |path: &str| folder.path().join(path.strip_prefix(mount).unwrap().trim_start_matches('/'));
    let variable = |variable: &'_ Yaml<'_>| {
        let name = texts(variable, "name")[0].to_owned();
        let Some(value) = variable.as_mapping_get("value") else {
            // This node has one CPU for each pod.
            let field = &variable["valueFrom"]["resourceFieldRef"];
            assert_eq!(texts(field, "resource"), ["requests.cpu"]);
            assert!(container["resources"]["requests"].as_mapping_get("cpu").is_some());
            return (name, PathBuf::from("1"));
        };
        (name, inside(value.as_str().unwrap()))
    };
    let variables: Vec<(String, PathBuf)> = container["env"].as_vec().unwrap().iter().map(variable).collect();
    let home = &variables.iter().find(|(name, _)| name == "HF_HOME").unwrap().1;
    write_hub(home);
    write_text(folder.path());
    let directory = inside(texts(container, "workingDir")[0]);
    let words = [texts(container, "command"), texts(container, "args")].concat();
    let pod = |index: usize| {
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        let mut command = on_a_node(command, &directory, home, None);
        command.envs(variables.iter().cloned()).env("JOB_COMPLETION_INDEX", index.to_string());
        succeed(command);
    };
    // Two pods at a time, as a cluster would run more.
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(index) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).filter(|i| *i < completions)
                {
                    pod(index);
                }
            });
        }
    });
    // The merge, as the comment has it.
    let merge = source.lines().find_map(|line| line.strip_prefix("#   ")).unwrap();
    assert!(merge.starts_with("gemma-scope eval-merge "), "{merge}");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", merge]);
    succeed(on_a_node(command, &directory, home, None));
    let whole = whole(folder.path(), home);
    assert!(fs::read(folder.path().join("report.json")).unwrap() == whole, "the same bytes");
}
