//! What several files of these tests use.

use std::{
    fmt::Display,
    fs::{self, File},
    io,
    path::Path,
};

use proptest::test_runner::{Config, RngAlgorithm};
use tch::{Kind, Tensor};

/// Asserts that something was refused in one sentence that names what is at fault, and returns the sentence.
#[track_caller]
pub(crate) fn refused<T>(result: Result<T, impl Display>, at_fault: &[&str]) -> String {
    let text = match result {
        Ok(_) => panic!("was taken, but should have been refused for {at_fault:?}"),
        Err(error) => error.to_string(),
    };
    let one_sentence = !text.is_empty() && !text.contains(char::is_control) && !text.ends_with('.');
    assert!(one_sentence, "not one sentence: {text:?}");
    for part in at_fault {
        assert!(text.contains(part), "does not say `{part}`: {text}");
    }
    text
}

/// Cases from a fixed seed: a run that fails fails again.
pub(crate) fn cases(cases: u32) -> Config {
    Config {
        cases,
        failure_persistence: None,
        rng_algorithm: RngAlgorithm::ChaCha,
        rng_seed: proptest::test_runner::RngSeed::Fixed(20),
        ..Config::default()
    }
}

/// Bytes for the readers that take them from memory. They are few, and a test's process is short.
pub(crate) fn forever(bytes: Vec<u8>) -> &'static [u8] {
    bytes.leak()
}

/// The bytes of a tensor's elements, for comparisons that take NaN as it is.
pub(crate) fn bytes(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.contiguous();
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

/// Shape, dtype and every bit.
#[track_caller]
pub(crate) fn assert_same(what: &str, got: &Tensor, want: &Tensor) {
    assert_eq!((got.size(), got.kind()), (want.size(), want.kind()), "{what}");
    assert_eq!(bytes(got), bytes(want), "{what}");
}

/// A tensor of some dtype whose values count up from `first`.
pub(crate) fn counting(size: &[i64], kind: Kind, first: i64) -> Tensor {
    let n: i64 = size.iter().product();
    Tensor::arange_start(first, first + n, (Kind::Int64, tch::Device::Cpu)).reshape(size).to_kind(kind)
}

/// float32 values between -1 and 1 without a pattern; the same seed gives the same values.
pub(crate) fn noise(size: &[i64], seed: u64) -> Tensor {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    // xorshift64.
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..size.iter().product()).map(|_: i64| next()).collect();
    Tensor::from_slice(&values).reshape(size)
}

/// Whether the system keeps this process out of a file without rights: it does not keep out root.
pub(crate) fn kept_out(path: &Path) -> bool {
    File::open(path).is_err_and(|e| e.kind() == io::ErrorKind::PermissionDenied)
}

/// The names in a folder, sorted.
pub(crate) fn listing(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
