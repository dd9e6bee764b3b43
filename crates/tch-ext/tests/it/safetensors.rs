//! What is written comes back, and is what the format's own reader sees.

use std::collections::HashMap;

use proptest::prelude::*;
use safetensors::SafeTensors;
use tch::{Kind, Tensor};
use tch_ext::{SafetensorsFile, write_safetensors};

use crate::common::{assert_same, bytes, cases, counting, forever, kept_out, listing, refused};

/// Every dtype that both the format and libtorch have, with the format's name for it.
const KINDS: [(Kind, &str); 10] = [
    (Kind::Float, "F32"),
    (Kind::BFloat16, "BF16"),
    (Kind::Half, "F16"),
    (Kind::Double, "F64"),
    (Kind::Int64, "I64"),
    (Kind::Int, "I32"),
    (Kind::Int16, "I16"),
    (Kind::Int8, "I8"),
    (Kind::Uint8, "U8"),
    (Kind::Bool, "BOOL"),
];

const SHAPES: [&[i64]; 5] = [&[], &[3], &[2, 3], &[2, 0, 3], &[1, 2, 1, 2]];

#[test]
fn every_dtype_and_rank_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.safetensors");
    let tensors: Vec<(String, Tensor)> = KINDS
        .iter()
        .flat_map(|&(kind, name)| {
            SHAPES.map(|shape| (format!("{name}-{}", shape.len()), counting(shape, kind, -1)))
        })
        .collect();
    let text =
        HashMap::from([("format".to_owned(), "pt".to_owned()), ("note".to_owned(), "é \"\n".to_owned())]);
    write_safetensors(&path, tensors.iter().map(|(n, t)| (n.clone(), t)), text.clone()).unwrap();

    let mut file = SafetensorsFile::open(&path).unwrap();
    assert_eq!(file.name(), path.display().to_string());
    assert_eq!(file.text(), Some(&text));
    let mut names: Vec<_> = tensors.iter().map(|(n, _)| n.clone()).collect();
    names.sort();
    let mut listed = file.names();
    listed.sort();
    assert_eq!(listed, names);
    for (name, want) in &tensors {
        let info = file.info(name).unwrap();
        assert_eq!((info.kind, info.shape), (want.kind(), want.size()), "{name}");
        assert_same(name, &file.read(name).unwrap(), want);
    }
}

#[test]
fn the_formats_own_reader_agrees() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.safetensors");
    let tensors: Vec<_> = KINDS.iter().map(|&(kind, name)| (name, counting(&[2, 3], kind, -2))).collect();
    write_safetensors(&path, tensors.iter().map(|(n, t)| (*n, t)), HashMap::new()).unwrap();
    let file = std::fs::read(&path).unwrap();
    let reference = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(reference.len(), KINDS.len());
    for (name, want) in &tensors {
        let view = reference.tensor(name).unwrap();
        assert_eq!(format!("{:?}", view.dtype()), *name);
        assert_eq!(view.shape(), [2, 3]);
        assert_eq!(view.data(), bytes(want), "{name}");
    }
    // The format asks for data aligned to eight bytes.
    let header = u64::from_le_bytes(file[..8].try_into().unwrap());
    assert_eq!(header % 8, 0);
}

#[test]
fn a_file_written_by_hand_is_read() {
    let header = br#"{"b":{"dtype":"I32","shape":[],"data_offsets":[8,12]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend([1.5f32, -2.0].map(f32::to_le_bytes).concat());
    file.extend(7i32.to_le_bytes());
    let mut file = SafetensorsFile::from_bytes("by hand", forever(file)).unwrap();
    assert_eq!(file.names(), ["a", "b"]);
    assert_eq!(file.text(), None);
    assert_same("a", &file.read("a").unwrap(), &Tensor::from_slice(&[1.5f32, -2.0]));
    assert_same("b", &file.read("b").unwrap(), &Tensor::from(7i32));
    refused(file.read("c"), &["by hand", "`c`", "missing"]);
    refused(file.info("c"), &["by hand", "`c`", "missing"]);
}

#[test]
fn strides_and_gradients_are_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    let base = counting(&[4, 6], Kind::Float, 0);
    let views = [base.transpose(0, 1), base.narrow(1, 2, 3), base.copy().set_requires_grad(true)];
    let names = ["transposed", "narrowed", "trained"];
    write_safetensors(&path, names.into_iter().zip(&views), HashMap::new()).unwrap();
    let mut file = SafetensorsFile::open(&path).unwrap();
    for (name, want) in names.into_iter().zip(&views) {
        let got = file.read(name).unwrap();
        assert!(!got.requires_grad());
        assert_same(name, &got, &want.detach());
    }
}

#[test]
fn the_same_tensors_give_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let tensors: Vec<_> = (0..20).map(|i| (format!("t{i}"), counting(&[i], Kind::Float, i))).collect();
    let text =
        |order: [&str; 2]| order.map(|k| (k.to_owned(), k.to_owned())).into_iter().collect::<HashMap<_, _>>();
    let write = |name: &str, text| {
        let path = folder.path().join(name);
        write_safetensors(&path, tensors.iter().map(|(n, t)| (n.clone(), t)), text).unwrap();
        std::fs::read(path).unwrap()
    };
    assert_eq!(write("one", text(["a", "b"])), write("two", text(["b", "a"])));
}

#[test]
fn what_the_format_cannot_hold_is_refused_before_the_old_file_is_touched() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    std::fs::write(&path, b"old").unwrap();
    let w = counting(&[2], Kind::Float, 0);
    let complex = counting(&[2], Kind::ComplexFloat, 0);
    refused(write_safetensors(&path, [("phase", &complex)], HashMap::new()), &["phase"]);
    refused(write_safetensors(&path, [("w", &w), ("w", &w)], HashMap::new()), &["w.safetensors", "`w`"]);
    refused(
        write_safetensors(&path, [("__metadata__", &w)], HashMap::new()),
        &["w.safetensors", "`__metadata__`"],
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(listing(folder.path()), ["w.safetensors"]);
}

#[test]
fn a_file_that_cannot_be_opened_is_named() {
    let folder = tempfile::tempdir().unwrap();
    refused(SafetensorsFile::open(&folder.path().join("none.safetensors")), &["none.safetensors"]);
    let is_folder = folder.path().join("folder.safetensors");
    std::fs::create_dir(&is_folder).unwrap();
    refused(SafetensorsFile::open(&is_folder), &["folder.safetensors"]);
}

#[cfg(unix)]
#[test]
fn a_file_without_rights_is_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("locked.safetensors");
    std::fs::write(&path, b"").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    if kept_out(&path) {
        refused(SafetensorsFile::open(&path), &["locked.safetensors", "ermission"]);
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn any_shape_and_any_bits_come_back(
        shape in prop::collection::vec(0i64..5, 0..5),
        kind in prop::sample::select(&[Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double][..]),
        seed in any::<u64>(),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let count = shape.iter().product::<i64>() as usize * kind.elt_size_in_bytes();
        // Any bits at all, NaN with a payload among them.
        let bits: Vec<u8> =
            (0..count as u64).map(|i| (seed ^ i).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()[5]).collect();
        let want = Tensor::from_data_size(&bits, &shape, kind);
        write_safetensors(&path, [("w", &want)], HashMap::new()).unwrap();
        assert_same("w", &SafetensorsFile::open(&path).unwrap().read("w").unwrap(), &want);
    }
}
