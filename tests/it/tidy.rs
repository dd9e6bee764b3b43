//! Which crate may depend on which, and what every crate must have: the table of ARCHITECTURE.md, held by a test.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// A crate of ours and those of ours that it may depend on; nothing else is allowed. `testkit` is for tests alone.
const ARROWS: &[(&str, &[&str])] = &[
    ("native", &[]),
    ("tch-ext", &["native"]),
    ("hub", &[]),
    ("hooks", &["tch-ext"]),
    ("corpus", &["hooks"]),
    ("activations", &["tch-ext", "hooks"]),
    ("gemma-model", &["tch-ext", "hooks"]),
    ("sae-core", &["native", "tch-ext", "hooks"]),
    ("eval", &["tch-ext", "hooks", "sae-core"]),
    ("train", &["native", "tch-ext", "hooks", "activations", "sae-core", "eval"]),
    ("dashboard", &["tch-ext", "hooks", "sae-core", "eval"]),
    (
        "gemma-scope",
        &[
            "tch-ext",
            "hub",
            "hooks",
            "corpus",
            "activations",
            "gemma-model",
            "sae-core",
            "eval",
            "train",
            "dashboard",
        ],
    ),
    ("gemma-scope-cli", &["gemma-scope"]),
    ("testkit", &["tch-ext", "hooks", "sae-core"]),
    ("tiny-gemma2", &["tch-ext", "hooks", "gemma-model", "sae-core", "eval", "train"]),
    ("xtask", &[]),
];

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .no_deps()
        .exec()
        .expect("cargo metadata")
}

#[test]
fn every_arrow_is_in_the_table() {
    let metadata = metadata();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let ours: BTreeSet<&str> = metadata.packages.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(ours, allowed.keys().copied().collect(), "the table and the workspace list the same crates");
    for package in &metadata.packages {
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            // Dev-dependencies may point anywhere: they make no cycle that a user would build.
            if !ours.contains(name) || dependency.kind == DependencyKind::Development {
                continue;
            }
            let from = package.name.as_str();
            assert!(allowed[from].contains(&name), "{from} must not depend on {name}: see ARCHITECTURE.md");
        }
    }
}

#[test]
fn only_tests_use_the_testkit() {
    for package in &metadata().packages {
        for dependency in package.dependencies.iter().filter(|d| d.name == "testkit") {
            assert_eq!(dependency.kind, DependencyKind::Development, "{}", package.name);
        }
    }
}

#[test]
fn libtorch_stays_out_of_the_light_crates() {
    for package in metadata().packages.iter().filter(|p| matches!(p.name.as_str(), "hub" | "xtask")) {
        assert!(
            package.dependencies.iter().all(|d| d.name != "tch"),
            "{} must build without libtorch",
            package.name
        );
    }
}

#[test]
fn every_crate_inherits_the_lints_and_has_a_readme() {
    for package in &metadata().packages {
        let manifest = std::fs::read_to_string(&package.manifest_path).unwrap();
        // `native` is the one crate where `unsafe` may stand, and must be argued for block by block.
        let lints = match package.name.as_str() {
            "native" => "undocumented_unsafe_blocks = \"deny\"",
            _ => "[lints]\nworkspace = true",
        };
        assert!(manifest.contains(lints), "{}: {lints}", package.name);
        let readme = package.manifest_path.with_file_name("README.md");
        assert!(readme.exists(), "{} has no README.md", package.name);
    }
}
