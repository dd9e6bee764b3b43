//! A harvest that is killed goes on, and the folder ends up the same to the last byte.

use std::{
    env,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use activations::{Manifest, Store};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use crate::common::{harvested, live, options, toy};
use crate::harvests::contents;

const FOLDER: &str = "ACTIVATIONS_TEST_FOLDER";

/// What the child does, in the folder that the test names; nothing in a plain run of all tests.
#[test]
#[ignore = "run by `killed_at_random_moments`, which kills it"]
fn child() {
    let Ok(folder) = env::var(FOLDER) else { return };
    tch::set_num_threads(1);
    let store = Store::folder(folder.as_ref()).unwrap();
    let manifest = harvested(&mut live(&toy(), 60, Some(3)), &store, &options(16)).unwrap();
    assert!(manifest.complete);
}

#[test]
fn killed_at_random_moments() {
    let straight = tempfile::tempdir().unwrap();
    let want = Store::folder(straight.path()).unwrap();
    let want = harvested(&mut live(&toy(), 60, Some(3)), &want, &options(16)).unwrap();
    let mut rng = StdRng::seed_from_u64(4);
    let (mut killed, mut half_way) = (0, 0);
    // Rounds of kills until enough were in the midst of the work: how fast that is depends on the machine.
    while half_way < 10 && killed < 200 {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::folder(folder.path()).unwrap();
        for patience in (0..).step_by(10) {
            let mut child = Command::new(env::current_exe().unwrap())
                .args(["--exact", "kill::child", "--ignored", "--test-threads=1"])
                .env(FOLDER, folder.path())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            // Rising, so that it comes to an end on a slow machine.
            thread::sleep(Duration::from_millis(rng.random_range(0..120) + patience));
            let ended = child.try_wait().unwrap();
            child.kill().unwrap();
            let status = child.wait().unwrap();
            if ended.is_some() {
                assert!(status.success(), "{status}");
                break;
            }
            killed += 1;
            if let Ok(listed) = Manifest::read(&store) {
                half_way += usize::from(!listed.complete && !listed.shards.is_empty());
                assert_eq!(listed.shards[..], want.shards[..listed.shards.len()]);
            }
        }
        assert_eq!(Manifest::read(&store).unwrap(), want);
        // A kill may leave a file that was never given its name.
        let mut found = contents(folder.path());
        found.retain(|(name, _)| !name.contains('#'));
        assert_eq!(found, contents(straight.path()));
    }
    assert!(half_way >= 10, "{half_way} of {killed} kills fell into the work");
}
