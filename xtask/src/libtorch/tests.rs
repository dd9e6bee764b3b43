//! The whole way from a download to `.libtorch`, with a wheel of a few bytes and a stand-in for pip.
#![cfg(unix)]

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::link::{self, Link};
use super::pip::Pip;
use super::store::{State, Store};
use super::wheels::{Release, Wheel};
use super::{Libtorch, place, unpack};

const WHEEL: &str = "torch-2.11.0-cp312-cp312-manylinux_2_28_x86_64.whl";

/// What the stand-in for `python3` does when it is asked for a download.
const DOWNLOADS: &str = "cp \"$INDEX\"/*.whl \"$dest\"";

/// A project, a cache folder, an index with one wheel, and a stand-in for pip that copies from there.
struct World {
    folder: TempDir,
    sha256: String,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["project", "index"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let wheel = folder.path().join("index").join(WHEEL);
        let mut zip = ZipWriter::new(File::create(&wheel).unwrap());
        for (name, text) in [
            ("torch/__init__.py", "import this"),
            ("torch/version.py", "__version__ = '2.11.0+cu130'\n"),
            ("torch/include/torch/script.h", "#pragma once\n"),
            ("torch/lib/libtorch_cpu.so", "machine code"),
            ("torch/lib/libtorch_cuda.so", "more of it"),
        ] {
            zip.start_file(name, SimpleFileOptions::default()).unwrap();
            zip.write_all(text.as_bytes()).unwrap();
        }
        zip.finish().unwrap();
        let sha256 = unpack::sha256(&wheel).unwrap();
        let world = Self { folder, sha256 };
        world.pip_does(DOWNLOADS);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder in the cache, or one of those beside it.
    fn kept(&self, suffix: &str) -> PathBuf {
        self.path(&format!("cache/gemma-scope/libtorch-2.11.0-linux-test{suffix}"))
    }

    /// Gives the stand-in other commands for `-m pip download … --dest FOLDER …`. Each is counted.
    fn pip_does(&self, commands: &str) {
        let script = format!(
            "[ \"$1 $2\" = '-m pip' ] || exit 9\n[ \"$3\" = --version ] && exit 0\n\
             echo >> '{}'\nINDEX='{}'\nwhile [ \"$1\" != --dest ]; do shift; done; dest=$2\n{commands}\n",
            self.path("downloads").display(),
            self.path("index").display()
        );
        self.python_is(&script);
    }

    fn python_is(&self, script: &str) {
        fs::write(self.path("python3"), script).unwrap();
    }

    fn downloads(&self) -> usize {
        fs::read_to_string(self.path("downloads")).unwrap_or_default().lines().count()
    }

    fn release(&self) -> Release {
        let sha256 = self.sha256.clone().leak();
        let wheel = Wheel {
            requirement: "torch==2.11.0",
            tag: "manylinux_2_28_x86_64",
            file: WHEEL,
            sha256,
            bytes: 1,
            keep: &["torch/include/", "torch/lib/", "torch/version.py"],
            leave_out: &["torch/lib/libtorch_cuda"],
        };
        Release { platform: "linux-test", wheels: Box::leak(Box::new([wheel])) }
    }

    fn store(&self) -> Store {
        // By way of sh: a script that was just written may still be open for writing in another test's child.
        let pip = Pip::from_words(["sh".into(), self.path("python3").into()]);
        Store::new(self.path("cache/gemma-scope"), self.release(), pip)
    }

    fn place(&self) -> anyhow::Result<Libtorch> {
        place(&self.path("project"), || Ok(self.store()))
    }

    fn error(&self) -> String {
        format!("{:#}", self.place().unwrap_err())
    }

    #[track_caller]
    fn assert_good(&self) {
        assert_eq!(self.store().state(), State::Good);
        let lib = self.path("project/.libtorch/torch/lib");
        assert_eq!(fs::read(lib.join("libtorch_cpu.so")).unwrap(), b"machine code");
        assert!(!lib.join("libtorch_cuda.so").exists());
        for suffix in [".part", ".wheels", ".old"] {
            assert!(!self.kept(suffix).exists(), "{suffix} is left");
        }
    }
}

fn link_to(target: &Path, path: &Path) {
    std::os::unix::fs::symlink(target, path).unwrap();
}

#[test]
fn it_is_put_in_place_once() {
    let world = World::new();
    let libtorch = world.place().unwrap();
    assert_eq!(libtorch.lib(), world.path("project/.libtorch/torch/lib"));
    assert!(libtorch.is_the_projects());
    world.assert_good();
    world.python_is("exit 1");
    world.place().unwrap();
    world.assert_good();
    assert_eq!(world.downloads(), 1);
}

#[test]
fn a_second_checkout_links_to_the_same() {
    let world = World::new();
    world.place().unwrap();
    let second = tempfile::tempdir().unwrap();
    place(second.path(), || Ok(world.store())).unwrap();
    assert_eq!(link::look(&second.path().join(".libtorch")).unwrap(), Link::Ours(world.kept("")));
    assert_eq!(world.downloads(), 1);
}

#[test]
fn two_at_once_download_once() {
    let world = World::new();
    world.pip_does(&format!("sleep 0.1; {DOWNLOADS}"));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| world.store().ensure().map(drop).unwrap());
        }
    });
    world.place().unwrap();
    world.assert_good();
    assert_eq!(world.downloads(), 1);
}

#[test]
fn damage_is_repaired() {
    let world = World::new();
    world.place().unwrap();
    let damages: [fn(&Path); 4] = [
        |kept| fs::write(kept.join("torch/lib/libtorch_cpu.so"), "mach").unwrap(),
        |kept| fs::remove_file(kept.join("torch/include/torch/script.h")).unwrap(),
        |kept| fs::remove_file(kept.join("MANIFEST")).unwrap(),
        |kept| fs::write(kept.join("torch/version.py"), "__version__ = '2.10.0+cu130'\n").unwrap(),
    ];
    for (i, damage) in damages.iter().enumerate() {
        damage(&world.kept(""));
        assert!(matches!(world.store().state(), State::Bad(_)), "damage {i}");
        world.place().unwrap();
        world.assert_good();
        assert_eq!(world.downloads(), i + 2);
    }
}

#[test]
fn what_an_interrupted_run_leaves_is_cleared() {
    let world = World::new();
    fs::create_dir_all(world.kept(".part/torch")).unwrap();
    fs::create_dir_all(world.kept(".old/torch")).unwrap();
    fs::create_dir_all(world.kept(".wheels/scratch")).unwrap();
    fs::write(world.kept(".wheels/scratch/half"), "PK").unwrap();
    fs::write(world.kept(".wheels").join(WHEEL), "PK").unwrap();
    world.place().unwrap();
    world.assert_good();
    assert_eq!(world.downloads(), 1);
}

#[test]
fn a_whole_wheel_is_not_downloaded_again() {
    let world = World::new();
    fs::create_dir_all(world.kept(".wheels")).unwrap();
    fs::copy(world.path("index").join(WHEEL), world.kept(".wheels").join(WHEEL)).unwrap();
    world.place().unwrap();
    world.assert_good();
    assert_eq!(world.downloads(), 0);
}

#[test]
fn a_wheel_with_another_hash_is_refused() {
    let world = World::new();
    world.pip_does(&format!("printf PK > \"$dest/{WHEEL}\""));
    let error = world.error();
    assert!(
        error.starts_with(WHEEL) && error.contains("instead of") && error.contains(&world.sha256),
        "{error}"
    );
    assert_eq!(world.store().state(), State::Absent);
    assert!(!world.kept(".wheels").exists(), "the wrong wheel is gone");
    world.pip_does(DOWNLOADS);
    world.place().unwrap();
    world.assert_good();
}

#[test]
fn without_python_or_pip_it_says_what_to_install() {
    let world = World::new();
    let absent = world.path("no-such-python").into();
    let store = Store::new(world.path("cache"), world.release(), Pip::from_words([absent]));
    let error = store.ensure().unwrap_err().to_string();
    assert!(error.starts_with("there is no python3") && error.contains("set LIBTORCH"), "{error}");
    world.python_is("echo 'python3: No module named pip' >&2; exit 1");
    let error = world.error();
    assert!(error.starts_with("python3 has no pip") && error.contains("ensurepip"), "{error}");
    world.python_is("echo 'pyenv: python3: command not found' >&2; exit 127");
    let error = world.error();
    assert!(error.contains("fails (pyenv: python3: command not found)"), "{error}");
}

#[test]
fn a_failed_download_hands_on_pips_last_error() {
    let world = World::new();
    world.pip_does("echo 'ERROR: Could not find' >&2; echo 'ERROR: No matching' >&2; echo bye >&2; exit 1");
    let error = world.error();
    assert!(error.starts_with("pip could not download torch==2.11.0 (No matching)"), "{error}");
    assert!(error.contains("check the network"), "{error}");
    world.pip_does("echo 'OSError: [Errno 28] No space left on device' >&2; exit 2");
    assert!(world.error().starts_with("the disk is full at"), "{}", world.error());
    world.pip_does("exit 0");
    assert!(world.error().contains("left no torch-2.11.0"), "{}", world.error());
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let world = World::new();
    fs::write(world.path("cache"), "a file").unwrap();
    let error = world.error();
    assert!(error.contains("cache") && error.contains("set GEMMA_SCOPE_CACHE"), "{error}");
}

#[test]
fn a_good_folder_of_the_users_is_left_alone() {
    let world = World::new();
    world.place().unwrap();
    let place = world.path("project/.libtorch");
    let theirs = world.path("theirs");
    fs::rename(world.kept(""), &theirs).unwrap();
    fs::remove_file(&place).unwrap();
    link_to(&theirs, &place);
    world.place().unwrap();
    assert_eq!(fs::read_link(&place).unwrap(), theirs);
    fs::remove_file(&place).unwrap();
    fs::rename(&theirs, &place).unwrap();
    world.place().unwrap();
    assert_eq!(link::look(&place).unwrap(), Link::Theirs);
    assert_eq!(world.downloads(), 1);
}

#[test]
fn a_bad_folder_of_the_users_is_an_error() {
    let world = World::new();
    let place = world.path("project/.libtorch");
    for (version, said) in [("2.10.0", "is version 2.10.0 where 2.11.0 is needed"), ("", "tells no version")]
    {
        fs::create_dir_all(place.join("torch/lib")).unwrap();
        fs::create_dir_all(place.join("torch/include")).unwrap();
        fs::write(
            place.join("torch/version.py"),
            format!("__version__ = '{version}'\n").repeat(version.len().min(1)),
        )
        .unwrap();
        let error = world.error();
        assert!(error.contains(".libtorch is not ours to replace") && error.contains(said), "{error}");
    }
    fs::remove_dir_all(&place).unwrap();
    link_to(&world.path("nowhere"), &place);
    assert!(world.error().contains("there is no folder"), "{}", world.error());
    assert_eq!(world.downloads(), 0);
}

#[test]
fn a_link_of_ours_follows_the_cache() {
    let world = World::new();
    let place = world.path("project/.libtorch");
    link_to(&world.path("gone/gemma-scope/libtorch-2.10.0-linux-test"), &place);
    world.place().unwrap();
    assert_eq!(fs::read_link(&place).unwrap(), world.kept(""));
    // One that leads to another cache folder stays while that is good.
    let other = world.path("other/gemma-scope/libtorch-2.11.0-linux-test");
    fs::create_dir_all(other.parent().unwrap()).unwrap();
    fs::rename(world.kept(""), &other).unwrap();
    fs::remove_file(&place).unwrap();
    link_to(&other, &place);
    world.place().unwrap();
    assert_eq!(fs::read_link(&place).unwrap(), other);
    assert_eq!(world.downloads(), 1);
}
