//! Files that are not quite a `params.npz`: each is refused in a sentence that names the file and the member at fault.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use sae_core::{OpenOptions, Result, Sae, open};
use tch::{Kind, Tensor};
use tch_ext::write_npz;
use tempfile::TempDir;
use testkit::{fixture, normal, uniform};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use crate::common::refused;

const FILE: &str = "params.npz";

/// A sound set of members: d_in 3, d_sae 5, d_out 4.
fn members() -> Vec<(&'static str, Tensor)> {
    vec![
        ("W_enc", normal(&[3, 5], 1)),
        ("W_dec", normal(&[5, 4], 2)),
        ("b_enc", normal(&[5], 3)),
        ("b_dec", normal(&[4], 4)),
        ("threshold", uniform(&[5], 0.1, 1.0, 5)),
    ]
}

fn with(name: &str, tensor: Tensor) -> Vec<(&'static str, Tensor)> {
    let mut all = members();
    all.iter_mut().find(|(n, _)| *n == name).unwrap().1 = tensor;
    all
}

fn write(members: &[(&str, Tensor)]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    write_npz(&path, members.iter().map(|(name, t)| (*name, t))).unwrap();
    (folder, path)
}

fn load(path: &Path) -> Result<Sae> {
    Ok(open(path, &OpenOptions::default())?.sae)
}

#[track_caller]
fn refused_as_file(members: &[(&str, Tensor)], at_fault: &[&str]) {
    let (_folder, path) = write(members);
    refused(load(&path), &[&[FILE], at_fault].concat());
}

#[test]
fn the_sound_one_loads() {
    let (_folder, path) = write(&members());
    load(&path).unwrap();
}

#[test]
fn a_member_too_few() {
    for (missing, _) in members() {
        let rest: Vec<_> = members().into_iter().filter(|(name, _)| *name != missing).collect();
        refused_as_file(&rest, &[&format!("`{missing}`"), "missing"]);
    }
}

#[test]
fn a_member_too_many() {
    for extra in ["log_threshold", "w_enc", "W_enc2", "sub/W_enc"] {
        let mut all = members();
        all.push((extra, normal(&[2], 9)));
        refused_as_file(&all, &["unexpected", &format!("`{extra}`")]);
    }
}

#[test]
fn a_member_twice() {
    let mut all = members();
    all.push(("B_ENC", normal(&[5], 9)));
    let (_folder, path) = write(&all);
    let mut bytes = fs::read(&path).unwrap();
    let renamed: Vec<usize> = (0..bytes.len() - 5).filter(|&i| bytes[i..].starts_with(b"B_ENC")).collect();
    assert_eq!(renamed.len(), 2, "in the local record and in the directory");
    for at in renamed {
        bytes[at..at + 5].copy_from_slice(b"b_enc");
    }
    fs::write(&path, bytes).unwrap();
    refused(load(&path), &[FILE, "doubled"]);
}

#[test]
fn members_of_other_shapes() {
    for (name, size) in [
        ("W_enc", vec![3, 6]),
        ("W_enc", vec![5, 3]), // transposed
        ("W_enc", vec![15]),
        ("W_dec", vec![4, 5]),
        ("W_dec", vec![6, 4]),
        ("W_dec", vec![5, 4, 1]),
        ("b_enc", vec![6]),
        ("b_enc", vec![1, 5]),
        ("b_dec", vec![4, 1]),
        ("b_dec", vec![]),
        ("threshold", vec![1]),
        ("threshold", vec![]),
        ("threshold", vec![0]),
    ] {
        refused_as_file(&with(name, uniform(&size, 0.1, 1.0, 9)), &[name, &format!("{size:?}")]);
    }
}

#[test]
fn an_output_bias_of_another_width() {
    // No other member of a transcoder says which of the two is wrong: the sentence shows both numbers.
    refused_as_file(&with("b_dec", normal(&[6], 9)), &["b_dec", "d_out=4", "[6]"]);
}

#[test]
fn members_of_other_dtypes() {
    for (name, tensor) in members() {
        refused_as_file(&with(name, tensor.to_kind(Kind::Double)), &[name, "F32 or F16", "F64"]);
        refused_as_file(&with(name, tensor.ones_like().to_kind(Kind::Int64)), &[name, "F32 or F16", "I64"]);
    }
}

#[test]
fn values_that_are_not_finite() {
    for (name, tensor) in members() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let tensor = tensor.copy();
            let _ = tensor.flatten(0, -1).get(1).fill_(bad);
            refused_as_file(&with(name, tensor), &[name, "1 NaN or infinite value"]);
        }
    }
}

#[test]
fn a_negative_threshold() {
    let threshold = uniform(&[5], 0.1, 1.0, 5);
    let _ = threshold.get(3).fill_(-1e-6);
    refused_as_file(&with("threshold", threshold), &["threshold", "negative"]);
}

#[test]
fn a_file_that_ends_early() {
    for case in ["stored", "deflated"] {
        let whole = fs::read(fixture(&format!("sae/gemma-scope/{case}/params.npz"))).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let n = whole.len();
        // Everywhere by big steps, and byte by byte where the zip directory lies.
        for length in (0..n).step_by(211).chain(n - 400..n) {
            fs::write(&path, &whole[..length]).unwrap();
            refused(load(&path), &[FILE]);
        }
    }
}

#[test]
fn a_byte_turned_over() {
    for case in ["stored", "deflated"] {
        let whole = fs::read(fixture(&format!("sae/gemma-scope/{case}/params.npz"))).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        // From behind the first local record on: weights, and their checksum shows it.
        for at in (200..8000).step_by(379) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&path, &bytes).unwrap();
            refused(load(&path), &[FILE, "W_enc"]);
        }
    }
}

#[test]
fn a_zip_bomb() {
    /// Just more than what the reader takes unasked.
    const SIZE: usize = (64 << 20) + 1;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    let mut archive = ZipWriter::new(File::create(&path).unwrap());
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Deflated);
    for (name, _) in members() {
        archive.start_file(format!("{name}.npy"), options).unwrap();
        archive.write_all(&vec![0; if name == "b_enc" { SIZE } else { 1 }]).unwrap();
    }
    archive.finish().unwrap();
    assert!(fs::metadata(&path).unwrap().len() < 1 << 20);
    refused(load(&path), &[FILE, "b_enc", "zip bomb"]);
}

#[test]
fn what_is_no_archive() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    for bytes in [b"".as_slice(), b"PK", b"not an archive", b"\x93NUMPY\x01\x00"] {
        fs::write(&path, bytes).unwrap();
        refused(load(&path), &[FILE, "npz"]);
    }
}

#[test]
fn no_file_and_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(FILE);
    refused(load(&path), &[FILE, "No such file"]);
    fs::create_dir(&path).unwrap();
    refused(load(&path), &[FILE, "no file in this folder is one of an SAE"]);
}

#[cfg(unix)]
#[test]
fn a_file_without_rights() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_folder, path) = write(&members());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    // Root is not kept out.
    if File::open(&path).is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied) {
        refused(load(&path), &[FILE, "denied"]);
    }
}
