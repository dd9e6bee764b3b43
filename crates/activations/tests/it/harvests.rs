//! Harvests: what is written, what is said of it, and how they go on.

use std::{fs, ops::ControlFlow, time::Duration};

use activations::{
    Cursor, Dtype, HarvestOptions, Manifest, Shards, ShardsOptions, Source as _, Store, harvest,
};
use tch::{Kind, Tensor};
use testkit::assert_close;

use crate::common::{Numbered, all, counted, harvested, live, options, refused, sites, toy};

/// Every file of a folder, by name.
fn files(folder: &std::path::Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// The same, by their names inside the folder.
pub(crate) fn contents(folder: &std::path::Path) -> Vec<(String, Vec<u8>)> {
    let root = folder.display().to_string();
    files(folder).into_iter().map(|(name, bytes)| (name.replacen(&root, "", 1), bytes)).collect()
}

#[test]
fn the_files_are_plain_rows_and_the_manifest_says_all() {
    let (model, folder) = (toy(), tempfile::tempdir().unwrap());
    let store = Store::folder(&folder.path().join("new/harvest")).unwrap();
    let manifest = harvested(&mut live(&model, 9, Some(1)), &store, &options(16)).unwrap();
    let want = all(&mut live(&model, 9, Some(1)));
    let rows: i64 = counted(9).iter().sum();
    assert_eq!((manifest.stored_rows() as i64, manifest.stored_bytes() as i64), (rows, rows * 3 * 6 * 4));
    assert!(manifest.complete && manifest.shards.len() as i64 == (rows + 15) / 16);
    assert_eq!(manifest, Manifest::read(&store).unwrap());
    let mut bytes = Vec::new();
    for number in 0..manifest.shards.len() {
        let file = format!("new/harvest/blocks.1.hook_resid_post/{number:08}.f32");
        bytes.extend(fs::read(folder.path().join(file)).unwrap());
    }
    let numbers: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    assert_eq!(numbers, Vec::<f32>::try_from(want[0].reshape(-1)).unwrap());
    // Nothing else is left there.
    assert_eq!(contents(folder.path()).len(), 1 + 3 * manifest.shards.len());
    let json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(folder.path().join("new/harvest/manifest.json")).unwrap())
            .unwrap();
    assert_eq!(json["format"], 1);
    assert_eq!(json["dtype"], "f32");
    assert_eq!(json["sites"][1]["hook"], "hook_embed");
    assert_eq!(json["text_fingerprint"], "the batches of common.rs");
}

#[test]
fn checksums_are_those_of_xxhsum() {
    // What the reference implementation (xxhash of Python) says of four zero bytes.
    let store = Store::memory().unwrap();
    let mut source = Numbered::new(&[1]);
    let manifest = harvested(&mut source, &store, &options(4)).unwrap();
    assert_eq!(manifest.shards[0].files[0].bytes, 4);
    assert_eq!(manifest.shards[0].files[0].xxh3, "2a33816ed7e0c373dbe563c737220b65");
}

#[test]
fn sums_are_exact_over_what_is_stored() {
    let model = toy();
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let store = Store::memory().unwrap();
        let options = HarvestOptions { dtype, ..options(16) };
        let manifest = harvested(&mut live(&model, 9, Some(1)), &store, &options).unwrap();
        let stored = all(&mut Shards::open(&store, &ShardsOptions::default()).unwrap());
        for (hook, rows) in sites().into_iter().zip(stored) {
            let sums = manifest.moments(hook).unwrap();
            let norms = rows.to_kind(Kind::Double).square().sum_dim_intlist(1, false, Kind::Double).sqrt();
            let want =
                [norms.square().sum(Kind::Double), norms.sum(Kind::Double)].map(|t| t.double_value(&[]));
            assert_eq!(sums.rows as i64, rows.size()[0]);
            // The order of a sum in float64.
            let close =
                |got: f64, want: f64| assert_close("sum", &Tensor::from(got), &Tensor::from(want), 1e-14);
            close(sums.square, want[0]);
            close(sums.norm, want[1]);
        }
    }
}

#[test]
fn a_number_of_rows_can_be_asked_for() {
    let model = toy();
    let whole = all(&mut live(&model, 9, Some(1)));
    for rows in [1, 16, 23, 32, 100] {
        let store = Store::memory().unwrap();
        let options = HarvestOptions { rows: Some(rows), ..options(16) };
        // For ever: the number alone ends it.
        let manifest = harvested(&mut live(&model, 9, None), &store, &options).unwrap();
        assert_eq!((manifest.stored_rows(), manifest.complete), (rows, true));
        let got = all(&mut Shards::open(&store, &ShardsOptions::default()).unwrap());
        let whole = Tensor::cat(&[&whole[0], &whole[0]], 0);
        assert!(got[0].equal(&whole.narrow(0, 0, rows as i64)));
    }
}

#[test]
fn a_stopped_harvest_goes_on_with_the_same_bytes() {
    let model = toy();
    let straight = tempfile::tempdir().unwrap();
    let want =
        harvested(&mut live(&model, 9, Some(2)), &Store::folder(straight.path()).unwrap(), &options(10));
    let want = want.unwrap();
    for stop in 1..12 {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::folder(folder.path()).unwrap();
        let mut manifests = Vec::new();
        // Stopped after every few chunks, each time with a new stream.
        loop {
            let mut chunks = 0;
            let manifest = harvest(&mut live(&model, 9, Some(2)), &store, &options(10), |progress| {
                chunks += 1;
                assert!(progress.rows <= want.stored_rows() && progress.waited < Duration::from_secs(60));
                if chunks == stop + manifests.len() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
            .unwrap();
            assert_eq!(manifest.shards[..], want.shards[..manifest.shards.len()]);
            if manifest.complete {
                break;
            }
            manifests.push(manifest);
        }
        assert!(!manifests.is_empty());
        assert_eq!(contents(folder.path()), contents(straight.path()));
        // What is whole is not made again.
        let mut source = live(&model, 9, Some(2));
        assert_eq!(harvested(&mut source, &store, &options(10)).unwrap(), want);
        assert_eq!(source.cursor(), Cursor::default());
    }
}

#[test]
fn a_storage_that_can_not_be_written_is_named_before_the_model_runs() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "no folder").unwrap();
    let mut source = Numbered::new(&[7; 10]);
    let said = harvested(&mut source, &Store::folder(&file).unwrap(), &options(10));
    refused(said, &[&file.join("manifest.json").display().to_string()]);
    assert_eq!(source.cursor(), Cursor::default());
}

#[test]
fn a_source_that_fails_loses_nothing_that_was_made() {
    let store = Store::memory().unwrap();
    let mut source = Numbered::new(&[7; 10]);
    source.fails = vec![6];
    refused(harvested(&mut source, &store, &options(10)), &["chunk 6 failed"]);
    let manifest = Manifest::read(&store).unwrap();
    assert_eq!((manifest.shards.len(), manifest.complete), (4, false));
    let mut again = Numbered::new(&[7; 10]);
    let manifest = harvested(&mut again, &store, &options(10)).unwrap();
    assert_eq!((manifest.stored_rows(), manifest.complete), (70, true));
    let rows = all(&mut Shards::open(&store, &ShardsOptions::default()).unwrap());
    assert_eq!(
        Vec::<f32>::try_from(rows[0].reshape(-1)).unwrap(),
        (0..70).map(|n| n as f32).collect::<Vec<_>>()
    );
}

#[test]
fn other_settings_are_refused_by_name() {
    let model = toy();
    let store = Store::memory().unwrap();
    harvest(&mut live(&model, 9, None), &store, &options(5), |_| ControlFlow::Break(())).unwrap();
    let same = options(5);
    for (other, setting) in [
        (HarvestOptions { model: "other".to_owned(), ..same.clone() }, "model"),
        (HarvestOptions { model_fingerprint: "6".to_owned(), ..same.clone() }, "model_fingerprint"),
        (HarvestOptions { text_fingerprint: "line\nbreak".to_owned(), ..same.clone() }, "text_fingerprint"),
        (HarvestOptions { dtype: Dtype::Bf16, ..same.clone() }, "dtype"),
        (HarvestOptions { shard_rows: 6, ..same.clone() }, "shard_rows"),
        (HarvestOptions { rows: Some(7), ..same.clone() }, "rows"),
    ] {
        let setting = format!("another `{setting}`");
        refused(harvested(&mut live(&model, 9, None), &store, &other), &["memory", &setting]);
    }
    let mut other_sites = Numbered::new(&[1]);
    refused(harvested(&mut other_sites, &store, &same), &["another `sites`", "hook_embed (6)"]);
    refused(harvested(&mut other_sites, &Store::memory().unwrap(), &options(0)), &["0 rows"]);
}

#[test]
fn numbers_that_are_not_finite_are_not_written() {
    struct Broken(Numbered);
    impl activations::Source for Broken {
        fn sites(&self) -> &[activations::Site] {
            self.0.sites()
        }
        fn next(&mut self) -> activations::Result<Option<activations::Rows>> {
            let rows = self.0.next()?;
            Ok(rows.map(|rows| activations::Rows { at: rows.at.into_iter().map(|t| t / 0.0).collect() }))
        }
        fn seek(&mut self, at: Cursor) -> activations::Result<()> {
            self.0.seek(at)
        }
        fn cursor(&self) -> Cursor {
            self.0.cursor()
        }
    }
    let store = Store::memory().unwrap();
    let mut source = Broken(Numbered::new(&[5; 5]));
    refused(harvested(&mut source, &store, &options(4)), &["`blocks.0.hook_resid_post`", "NaN", "shard 0"]);
    assert!(Manifest::read(&store).unwrap().shards.is_empty());
}
