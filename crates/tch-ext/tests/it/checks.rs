//! The checks at the public edge, and the names of dtypes and devices.

use proptest::prelude::*;
use tch::{Device, Kind, Tensor};
use tch_ext::{expect_finite, expect_kind, expect_shape, kind_name, parse_device};

use crate::common::{cases, counting, refused};

#[test]
fn a_wrong_shape_names_the_tensor_and_the_axes() {
    let w = counting(&[24, 96], Kind::Float, 0);
    expect_shape("W_enc", &w, &[("d_in", 24), ("d_sae", 96)]).unwrap();
    let axes = [("d_in", 24), ("d_sae", 97)];
    let text = refused(expect_shape("W_enc", &w, &axes), &["`W_enc`", "[d_in=24, d_sae=97]", "[24, 96]"]);
    assert_eq!(text, "`W_enc` must have shape [d_in=24, d_sae=97], but has [24, 96]");
    // The same number of elements in other axes is another shape.
    refused(expect_shape("b", &w, &[("d_sae", 24 * 96)]), &["`b`", "[d_sae=2304]"]);
    refused(expect_shape("b", &w, &[("one", 1), ("d_in", 24), ("d_sae", 96)]), &["`b`"]);
    refused(expect_shape("b", &w, &[]), &["`b`", "[]"]);
    expect_shape("a number", &Tensor::from(1.0), &[]).unwrap();
}

#[test]
fn a_wrong_dtype_names_what_would_do() {
    let x = counting(&[3], Kind::Int64, 0);
    expect_kind("x", &x, &[Kind::Float, Kind::Int64]).unwrap();
    refused(expect_kind("x", &x, &[Kind::Float, Kind::BFloat16]), &["`x`", "F32 or BF16", "I64"]);
}

#[test]
fn what_is_not_finite_is_counted() {
    let x = |values: &[f32]| Tensor::from_slice(values);
    expect_finite("x", &x(&[0.0, -1.0, f32::MIN_POSITIVE])).unwrap();
    refused(expect_finite("x", &x(&[0.0, f32::NAN])), &["`x`", "1 NaN or infinite value"]);
    // Infinities of both signs cancel to NaN, which is not finite either.
    refused(
        expect_finite("x", &x(&[f32::INFINITY, f32::NEG_INFINITY, 1.0])),
        &["`x`", "2 NaN or infinite values"],
    );
    // The sum overflows, the entries are finite.
    expect_finite("x", &x(&[f32::MAX, f32::MAX])).unwrap();
    expect_finite("x", &Tensor::from_slice(&[f64::MAX, 1.0])).unwrap();
    refused(expect_finite("x", &Tensor::from_slice(&[f64::MAX, f64::NAN])), &["1 NaN"]);
    for kind in [Kind::Half, Kind::BFloat16] {
        expect_finite("x", &Tensor::full([70_000], 60_000.0, (kind, Device::Cpu))).unwrap();
        refused(expect_finite("x", &x(&[f32::NAN; 3]).to_kind(kind)), &["3 NaN"]);
    }
    expect_finite("nothing", &x(&[])).unwrap();
}

#[test]
fn dtypes_have_the_names_of_safetensors() {
    let names = [
        Kind::Float,
        Kind::BFloat16,
        Kind::Half,
        Kind::Double,
        Kind::Int64,
        Kind::Int,
        Kind::Bool,
        Kind::Uint8,
    ]
    .map(kind_name);
    assert_eq!(names, ["F32", "BF16", "F16", "F64", "I64", "I32", "BOOL", "U8"]);
    assert_eq!([Kind::Int16, Kind::Int8].map(kind_name), ["I16", "I8"]);
}

#[test]
fn devices_have_three_forms() {
    assert_eq!(parse_device("cpu").unwrap(), Device::Cpu);
    assert_eq!(parse_device("cuda").unwrap(), Device::Cuda(0));
    assert_eq!(parse_device("cuda:0").unwrap(), Device::Cuda(0));
    assert_eq!(parse_device("cuda:3").unwrap(), Device::Cuda(3));
    // libtorch counts devices in a signed byte: a larger index would name another device than the one asked for.
    let others = [
        "",
        "CPU",
        " cpu",
        "cuda:",
        "cuda:x",
        "cuda:-1",
        "cuda:+1",
        "cuda:1 ",
        "cuda:256",
        "gpu",
        "mps",
        "cuda:99999999999",
    ];
    for text in others {
        refused(parse_device(text), &[&format!("`{text}`"), "`cuda:N`"]);
    }
    refused(parse_device("cuda\n:1"), &["`cuda:N`"]);
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn any_other_text_is_no_device(text in "[a-z:0-9 ]{0,8}|cuda:.{1,3}|\\PC{0,6}") {
        let index = text.strip_prefix("cuda:").filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
        let known = text == "cpu" || text == "cuda" || index.is_some_and(|n| n.parse::<i8>().is_ok());
        prop_assert_eq!(parse_device(&text).is_ok(), known, "{}", text);
    }
}
