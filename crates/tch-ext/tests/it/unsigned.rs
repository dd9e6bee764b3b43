//! Integers that tch can't name: written from int64, read into it.

use std::collections::HashMap;

use tch::{Kind, Tensor};
use tch_ext::{Member, SafetensorsFile, Unsigned, write_safetensors};

use crate::common::{assert_same, refused};

fn written(values: &Tensor, unsigned: Unsigned) -> tch_ext::Result<(tempfile::TempDir, SafetensorsFile)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.safetensors");
    let result = write_safetensors(&path, [("t", Member::Unsigned(values, unsigned))], HashMap::new());
    assert_eq!(result.is_ok(), path.exists());
    result?;
    Ok((folder, SafetensorsFile::open(&path)?))
}

#[test]
fn what_is_written_comes_back() {
    let (u16, u32) = (i64::from(u16::MAX), i64::from(u32::MAX));
    for (unsigned, bytes, values) in [
        (Unsigned::U16, 2, [0, 1, 255, 256, 32768, u16]),
        (Unsigned::U32, 4, [0, 65535, 65536, 1 << 31, u32 - 1, u32]),
    ] {
        let values = Tensor::from_slice(&values).reshape([2, 3]);
        // Also of what is not contiguous, and of nothing.
        for tensor in [values.shallow_clone(), values.tr(), values.narrow(0, 0, 0)] {
            let (_folder, mut file) = written(&tensor, unsigned).unwrap();
            assert_eq!(file.bytes(), tensor.numel() as u64 * bytes);
            assert_same("t", &file.read_integers("t").unwrap(), &tensor);
            refused(file.read("t"), &["t.safetensors", "a dtype that libtorch has"]);
            refused(file.read_integers("other"), &["`other` is missing"]);
        }
    }
}

#[test]
fn more_than_one_piece() {
    let values = Tensor::arange((1 << 21) + 3, (Kind::Int64, tch::Device::Cpu)).remainder(65_536);
    let (_folder, mut file) = written(&values, Unsigned::U16).unwrap();
    assert_same("t", &file.read_integers("t").unwrap(), &values);
}

#[test]
fn what_does_not_fit_is_refused() {
    for (unsigned, value) in
        [(Unsigned::U16, 65_536i64), (Unsigned::U32, 1i64 << 32), (Unsigned::U16, -1), (Unsigned::U32, -1)]
    {
        let name = format!("{unsigned:?}");
        refused(written(&Tensor::from_slice(&[0, value]), unsigned), &["t:", &value.to_string(), &name]);
    }
    refused(written(&Tensor::from_slice(&[1i32]), Unsigned::U16), &["`t` must be I64", "I32"]);
}

#[test]
fn other_dtypes() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.safetensors");
    let (long, float) = (Tensor::from_slice(&[-1i64, 5]), Tensor::from_slice(&[1f32]));
    write_safetensors(&path, [("long", &long), ("float", &float)], HashMap::new()).unwrap();
    let mut file = SafetensorsFile::open(&path).unwrap();
    assert_same("t", &file.read_integers("long").unwrap(), &long);
    refused(file.read_integers("float"), &["t.safetensors: float", "U16, U32 or I64", "F32"]);
}
