//! Damaged, cut and vanished shards: named, and none of their rows given out.

use std::{fs, path::Path};

use activations::{Shards, ShardsOptions, Source as _, Store};
use proptest::prelude::*;
use testkit::assert_same;

use crate::common::{all, cases, harvested, live, options, refused, toy};

/// A harvest of shards of 10 rows.
fn a_harvest(folder: &Path) -> Store {
    let store = Store::folder(folder).unwrap();
    harvested(&mut live(&toy(), 9, Some(1)), &store, &options(10)).unwrap();
    store
}

/// Reads until something is said, and how many shards were given out before.
fn read(store: &Store) -> (usize, activations::Result<()>) {
    let mut source = match Shards::open(store, &ShardsOptions::default()) {
        Ok(source) => source,
        Err(error) => return (0, Err(error)),
    };
    let mut given = 0;
    loop {
        match source.next() {
            Ok(Some(_)) => given += 1,
            Ok(None) => return (given, Ok(())),
            Err(error) => return (given, Err(error)),
        }
    }
}

const SHARD: &str = "hook_embed/00000002.f32";

proptest! {
    #![proptest_config(cases(40))]

    #[test]
    fn a_flipped_bit_anywhere_is_found(byte in 0_usize..240, bit in 0_u8..8) {
        let folder = tempfile::tempdir().unwrap();
        let store = a_harvest(folder.path());
        let path = folder.path().join(SHARD);
        let mut bytes = fs::read(&path).unwrap();
        bytes[byte] ^= 1 << bit;
        fs::write(&path, bytes).unwrap();
        let (given, said) = read(&store);
        prop_assert_eq!(given, 2, "the shards before are given out");
        refused(said, &[&path.display().to_string(), "damaged", "checksum"]);
    }
}

#[test]
fn a_damaged_shard_that_is_mended_can_be_read_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = a_harvest(folder.path());
    let want = all(&mut Shards::open(&store, &ShardsOptions::default()).unwrap());
    let path = folder.path().join(SHARD);
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[17] ^= 4;
    let mut source =
        Shards::open(&store, &ShardsOptions { read_ahead: 0, ..ShardsOptions::default() }).unwrap();
    fs::write(&path, bad).unwrap();
    let mut rows = vec![source.next().unwrap().unwrap(), source.next().unwrap().unwrap()];
    for _ in 0..3 {
        refused(source.next(), &[SHARD, "damaged"]);
        assert_eq!(source.cursor().chunk, 2);
    }
    fs::write(&path, good).unwrap();
    while let Some(next) = source.next().unwrap() {
        rows.push(next);
    }
    let got: Vec<_> = rows.iter().map(|rows| &rows.at[1]).collect();
    assert_same("all rows", &tch::Tensor::cat(&got, 0), &want[1]);
}

#[test]
fn a_shard_cut_short_is_named_before_anything_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let store = a_harvest(folder.path());
    let path = folder.path().join(SHARD);
    let good = fs::read(&path).unwrap();
    for length in [0, 1, 239] {
        fs::write(&path, &good[..length]).unwrap();
        let (given, said) = read(&store);
        assert_eq!(given, 0);
        refused(said, &[&path.display().to_string(), "damaged", &format!("{length} bytes"), "240"]);
        refused(harvested(&mut live(&toy(), 9, Some(1)), &store, &options(10)), &[SHARD, "damaged"]);
    }
}

#[test]
fn a_vanished_shard_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = a_harvest(folder.path());
    let path = folder.path().join(SHARD);
    // Vanished after it was opened.
    let mut source =
        Shards::open(&store, &ShardsOptions { read_ahead: 0, ..ShardsOptions::default() }).unwrap();
    fs::remove_file(&path).unwrap();
    let said = std::iter::repeat_with(|| source.next()).find_map(Result::err).unwrap();
    refused(Err::<(), _>(said), &[&path.display().to_string(), "not there"]);
    // And before.
    refused(read(&store).1, &[&path.display().to_string(), "not there"]);
    refused(harvested(&mut live(&toy(), 9, Some(1)), &store, &options(10)), &[SHARD, "not there"]);
}

#[test]
fn a_vanished_folder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("harvest");
    let store = a_harvest(&place);
    let mut source =
        Shards::open(&store, &ShardsOptions { read_ahead: 0, ..ShardsOptions::default() }).unwrap();
    let _rows = source.next().unwrap().unwrap();
    fs::rename(&place, folder.path().join("elsewhere")).unwrap();
    let said = std::iter::repeat_with(|| source.next()).find_map(Result::err).unwrap();
    refused(Err::<(), _>(said), &[&place.display().to_string(), "not there"]);
    refused(read(&store).1, &[&place.join("manifest.json").display().to_string(), "not there"]);
    // Nothing was made there by looking.
    assert!(!place.exists());
}

#[test]
fn a_folder_that_vanishes_while_it_is_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("harvest");
    let store = a_harvest(&place);
    // A file stands where the folder was.
    fs::remove_dir_all(&place).unwrap();
    fs::write(&place, "no folder").unwrap();
    let said = harvested(&mut live(&toy(), 9, Some(1)), &store, &options(10));
    refused(said, &[&place.display().to_string()]);
}

#[test]
fn damaged_manifests_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = a_harvest(folder.path());
    let path = folder.path().join("manifest.json");
    let good = fs::read_to_string(&path).unwrap();
    for (from, to, says) in [
        ("{", "", "no sound manifest"),
        ("\"format\": 1", "\"format\": 2", "format 2"),
        ("\"model\": \"toy\"", "\"modal\": \"toy\"", "modal"),
        ("\"rows\": 10,", "\"rows\": 11,", "11 rows"),
        ("\"rows\": 10,", "\"rows\": 9,", "240 bytes for 9 rows"),
        ("\"width\": 6", "\"width\": -6", "width"),
        ("hook_embed", "hook_embad", "hook_embad"),
        (
            "\"shards\": [",
            "\"shards\": [{\"rows\":1,\"from\":{\"chunk\":0,\"row\":0},\"next\":{\"chunk\":0,\"row\":1},\"files\":[]},",
            "0 files",
        ),
    ] {
        assert!(good.contains(from), "{from}");
        fs::write(&path, good.replacen(from, to, 1)).unwrap();
        refused(read(&store).1, &[&path.display().to_string(), says]);
        refused(harvested(&mut live(&toy(), 9, Some(1)), &store, &options(10)), &["manifest.json", says]);
    }
    let empty = good.replacen("\"complete\": true", "\"complete\": false", 1);
    let start = empty.find("\"shards\": [").unwrap();
    fs::write(&path, format!("{}\"shards\": []}}", &empty[..start])).unwrap();
    refused(read(&store).1, &["nothing to stream"]);
}
