//! What the tests of the formats share: the golden cases of `fixtures/sae/formats` (see `sae_formats_golden.py`), and copies
//! of them that are damaged.

use std::{
    collections::HashMap,
    fs,
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
};

use sae_core::{OpenOptions, Opened, SaeExt as _, SparseAutoencoder, SparseFeatures, conformance, open};
use serde_json::Value;
use tch::{Kind, Tensor};
use tch_ext::{SafetensorsFile, write_safetensors};
use tempfile::TempDir;
use testkit::{Golden, assert_close, assert_same, fixture};

use crate::common::ROUNDING;

/// What a peer computed.
pub(crate) struct Expected {
    pub(crate) x: Tensor,
    pub(crate) features: Tensor,
    pub(crate) recon: Tensor,
}

/// `file` within `fixtures/sae/formats`; `features` is the tensor's name.
pub(crate) fn expected(file: &str, features: &str) -> Expected {
    let mut golden = Golden::open(&format!("sae/formats/{file}"));
    let [x, features, recon] = ["x", features, "recon"].map(|name| golden.get(name));
    Expected { x, features, recon }
}

pub(crate) fn case(path: &str) -> PathBuf {
    fixture(&format!("sae/formats/{path}"))
}

pub(crate) fn opened(path: &str) -> Opened {
    open(&case(path), &OpenOptions::default()).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// Opens a folder's case and holds it against its `expected.safetensors`, held and left in its file.
pub(crate) fn golden(path: &str) -> Opened {
    let expected = expected(&format!("{path}/expected.safetensors"), "feature_acts");
    let in_file = OpenOptions { hold_up_to: 0, ..OpenOptions::default() };
    assert_computes(path, Box::new(open(&case(path), &in_file).unwrap().sae), &expected);
    let it = opened(path);
    assert_computes(path, Box::new(opened(path).sae), &expected);
    it
}

/// Asserts that an SAE does what the peer does, along every way, and keeps the laws.
#[track_caller]
pub(crate) fn assert_computes(what: &str, sae: Box<dyn SparseAutoencoder>, expected: &Expected) {
    let Expected { x, features, recon } = expected;
    for got in [sae.encode(x).unwrap(), sae.encode_sparse(x).unwrap().to_dense().unwrap()] {
        assert_same(&format!("{what}: active"), &got.ne(0.0), &features.ne(0.0));
        assert_close(what, &got, features, ROUNDING);
    }
    // Of the peer's features, then of our own.
    let sparse = SparseFeatures::from_dense(features).unwrap();
    for decoded in [sae.decode(features).unwrap(), sae.decode_sparse(&sparse).unwrap()] {
        assert_close(what, &sae.finish(&decoded, x).unwrap(), recon, ROUNDING);
    }
    assert_close(what, &sae.reconstruct(x).unwrap(), recon, ROUNDING);
    let rows = x.size()[0];
    conformance::check(sae.as_ref(), &x.narrow(0, 0, rows - rows % 2))
        .unwrap_or_else(|e| panic!("{what}: {e}"));
}

/// A copy of a case's folder, without what is expected of it, to be damaged.
pub(crate) fn copy(path: &str) -> TempDir {
    let to = TempDir::new().unwrap();
    copy_into(&case(path), to.path());
    to
}

fn copy_into(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        if entry.path().is_dir() {
            copy_into(&entry.path(), &to.join(name));
        } else if !name.to_str().unwrap().starts_with("expected") {
            fs::copy(entry.path(), to.join(name)).unwrap();
        }
    }
}

/// Why a path is refused.
#[track_caller]
pub(crate) fn refused(path: &Path, at_fault: &[&str]) -> String {
    crate::common::refused(open(path, &OpenOptions::default()), at_fault)
}

/// Changes the JSON object of a file.
pub(crate) fn edit_json(file: &Path, edit: impl FnOnce(&mut Value)) {
    let mut json = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    edit(&mut json);
    fs::write(file, json.to_string()).unwrap();
}

/// Writes a safetensors file again with other tensors.
pub(crate) fn edit_tensors(file: &Path, edit: impl FnOnce(&mut HashMap<String, Tensor>)) {
    let mut source = SafetensorsFile::open(file).unwrap();
    let names = source.names();
    let mut tensors: HashMap<String, Tensor> = names
        .into_iter()
        .map(|n| {
            let t = source.read(&n).unwrap();
            (n, t)
        })
        .collect();
    edit(&mut tensors);
    write_safetensors(file, tensors.iter().map(|(n, t)| (n.as_str(), t)), HashMap::new()).unwrap();
}

/// Each way to damage the tensors of a safetensors file is refused with its name: without it, with one too many, with another
/// shape, with NaN, as integers, and truncated.
#[track_caller]
pub(crate) fn assert_strict(folder: impl Fn() -> TempDir, file: &str, path: &str) {
    let probe = folder();
    let names = SafetensorsFile::open(&probe.path().join(file)).unwrap().names();
    let try_with = |name: &str, edit: &dyn Fn(&mut HashMap<String, Tensor>)| {
        let copy = folder();
        edit_tensors(&copy.path().join(file), edit);
        let file = file.rsplit('/').next().unwrap();
        refused(&copy.path().join(path), &[name, file]);
    };
    for name in names.iter().map(String::as_str) {
        try_with(name, &|t| drop(t.remove(name)));
        try_with(name, &|t| {
            drop(t.insert(name.to_owned(), Tensor::zeros([3, 2], (Kind::Float, tch::Device::Cpu))))
        });
        try_with(name, &|t| drop(t.insert(name.to_owned(), &t[name] * f64::NAN)));
        try_with(name, &|t| drop(t.insert(name.to_owned(), t[name].to_kind(Kind::Int64))));
    }
    try_with("b_extra", &|t| drop(t.insert("b_extra".to_owned(), Tensor::from(1.0))));
    let copy = folder();
    let damaged = copy.path().join(file);
    let bytes = fs::read(&damaged).unwrap();
    fs::write(&damaged, &bytes[..bytes.len() - 3]).unwrap();
    refused(&copy.path().join(path), &[file.rsplit('/').next().unwrap(), "truncated"]);
}

/// Writes a `.pt` again with other bytes in its members.
pub(crate) fn edit_torch(file: &Path, edit: impl Fn(&str, Vec<u8>) -> Vec<u8>) {
    let mut from = zip::ZipArchive::new(fs::File::open(file).unwrap()).unwrap();
    let members: Vec<(String, Vec<u8>)> = (0..from.len())
        .map(|i| {
            let mut member = from.by_index(i).unwrap();
            let mut bytes = Vec::new();
            member.read_to_end(&mut bytes).unwrap();
            (member.name().to_owned(), edit(member.name(), bytes))
        })
        .collect();
    write_torch(file, &members);
}

fn write_torch(file: &Path, members: &[(String, Vec<u8>)]) {
    let mut to = zip::ZipWriter::new(fs::File::create(file).unwrap());
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in members {
        to.start_file(name, stored).unwrap();
        to.write_all(bytes).unwrap();
    }
    to.finish().unwrap();
}

/// A `.pt` whose pickle is `os.system("true")`.
pub(crate) fn write_code(file: &Path) {
    let pickle = b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.".to_vec();
    write_torch(
        file,
        &[("archive/data.pkl".to_owned(), pickle), ("archive/version".to_owned(), b"3\n".to_vec())],
    );
}

/// Puts one text of a pickle in the place of another of the same length.
pub(crate) fn rename(file: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    edit_torch(file, |name, bytes| {
        if !name.ends_with("data.pkl") {
            return bytes;
        }
        let mut bytes = bytes;
        // With the length before it, so that it is the whole text.
        let text = |t: &str| [&[b'X'][..], &(t.len() as u32).to_le_bytes(), t.as_bytes()].concat();
        let (from, to) = (text(from), text(to));
        let at = bytes.windows(from.len()).position(|w| w == from).expect("no such text");
        bytes[at..at + to.len()].copy_from_slice(&to);
        bytes
    });
}

/// Makes the first value of each float storage NaN, one storage at a time, and says which storages there were.
pub(crate) fn with_nan(file: &Path, storage: usize) {
    edit_torch(file, |name, mut bytes| {
        if name.ends_with(&format!("/data/{storage}")) {
            bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        bytes
    });
}
