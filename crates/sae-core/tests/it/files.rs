//! `params.npz`: what is saved is loaded.

use std::fs;

use proptest::prelude::*;
use sae_core::{OpenOptions, Sae, SparseAutoencoder as _, formats::gemma_scope, open};
use tch::{Device, Kind};
use tch_ext::NpzFile;
use testkit::{assert_same, fixture, normal, uniform};

use crate::common::{cases, random_sae, refused};

#[track_caller]
fn assert_equal(got: &Sae, want: &Sae) {
    for ((name, got), (other, want)) in got.parameters().unwrap().into_iter().zip(want.parameters().unwrap())
    {
        assert_eq!(name, other);
        assert_same(name, &got, &want);
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn float32_comes_back_bit_by_bit_and_byte_by_byte(
        d_in in 1i64..20, d_sae in 1i64..40, d_out in 1i64..20, seed in 0u64..1000,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["first.npz", "second.npz"].map(|name| folder.path().join(name));
        let sae = random_sae(d_in, d_sae, d_out, seed);
        gemma_scope::save(&sae, &first, Kind::Float).unwrap();
        let loaded = open(&first, &OpenOptions::default()).unwrap().sae;
        assert_equal(&loaded, &sae);
        gemma_scope::save(&loaded, &second, Kind::Float).unwrap();
        prop_assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap());
    }

    #[test]
    fn float16_comes_back_rounded(d_in in 1i64..20, d_sae in 1i64..40, seed in 0u64..1000) {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["first.npz", "second.npz"].map(|name| folder.path().join(name));
        let sae = random_sae(d_in, d_sae, d_in, seed);
        gemma_scope::save(&sae, &first, Kind::Half).unwrap();
        let loaded = open(&first, &OpenOptions::default()).unwrap().sae;
        for ((name, got), (_, whole)) in loaded.parameters().unwrap().into_iter().zip(sae.parameters().unwrap()) {
            assert_same(name, &got, &whole.to_kind(Kind::Half).to_kind(Kind::Float));
        }
        gemma_scope::save(&loaded, &second, Kind::Half).unwrap();
        prop_assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap());
    }
}

#[test]
fn the_references_files_come_back() {
    let folder = tempfile::tempdir().unwrap();
    for case in ["stored", "deflated"] {
        let sae = open(&fixture(&format!("sae/gemma-scope/{case}/params.npz")), &OpenOptions::default())
            .unwrap()
            .sae;
        let path = folder.path().join(case).join("params.npz"); // in a folder that is yet to be made
        gemma_scope::save(&sae, &path, Kind::Float).unwrap();
        assert_equal(&open(&path, &OpenOptions::default()).unwrap().sae, &sae);
    }
}

#[test]
fn an_open_archive_serves_as_well() {
    let path = fixture("sae/gemma-scope/stored/params.npz");
    let bytes: &'static [u8] = fs::read(&path).unwrap().leak();
    let sae = gemma_scope::read(NpzFile::from_bytes("memory", bytes).unwrap(), &OpenOptions::default())
        .unwrap()
        .sae;
    assert_equal(&sae, &open(&path, &OpenOptions::default()).unwrap().sae);
}

#[test]
fn the_members_are_those_of_gemma_scope() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("params.npz");
    gemma_scope::save(&random_sae(3, 5, 4, 1), &path, Kind::Float).unwrap();
    let mut npz = NpzFile::open(&path).unwrap();
    assert_eq!(npz.names(), ["W_dec", "W_enc", "b_dec", "b_enc", "threshold"]);
    for (name, size) in [
        ("W_enc", vec![3, 5]),
        ("W_dec", vec![5, 4]),
        ("b_enc", vec![5]),
        ("b_dec", vec![4]),
        ("threshold", vec![5]),
    ] {
        let tensor = npz.read(name).unwrap();
        assert_eq!((tensor.size(), tensor.kind()), (size, Kind::Float), "{name}");
    }
}

#[test]
fn an_sae_moves_with_its_weights() {
    let sae = random_sae(3, 5, 4, 1);
    assert_equal(&sae.to_device(Device::Cpu).unwrap(), &sae);
    assert_eq!((sae.d_in(), sae.d_sae(), sae.d_out()), (3, 5, 4));
}

#[test]
fn other_dtypes_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("params.npz");
    for (kind, name) in [(Kind::Double, "F64"), (Kind::BFloat16, "BF16"), (Kind::Int64, "I64")] {
        refused(gemma_scope::save(&random_sae(3, 5, 4, 1), &path, kind), &["F32 or F16", name]);
    }
    assert!(!path.exists());
}

/// float16 ends at 65,504: what it can't hold would be saved as infinity, and never load again.
#[test]
fn values_that_float16_can_not_hold_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("params.npz");
    let w_dec = normal(&[5, 4], 1);
    let _ = w_dec.get(2).fill_(70_000.0);
    let sae = Sae::jumprelu(
        normal(&[3, 5], 2),
        normal(&[5], 3),
        w_dec,
        normal(&[4], 4),
        uniform(&[5], 0.0, 1.0, 5),
    )
    .unwrap();
    refused(gemma_scope::save(&sae, &path, Kind::Half), &["W_dec", "4", "infinite"]);
    assert!(!path.exists());
    gemma_scope::save(&sae, &path, Kind::Float).unwrap();
    assert_equal(&open(&path, &OpenOptions::default()).unwrap().sae, &sae);
}

#[test]
fn a_place_that_can_not_be_written_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "text").unwrap();
    let path = folder.path().join("file/params.npz");
    refused(gemma_scope::save(&random_sae(3, 5, 4, 1), &path, Kind::Float), &["file/params.npz"]);
}
