//! Dtypes by their names on the command line, and devices that are there or say why not.

use proptest::prelude::*;
use tch::{Device, Kind};
use tch_ext::{open_device, parse_kind};

use crate::common::{cases, refused};

#[test]
fn two_dtypes_have_names() {
    assert_eq!(parse_kind("f32").unwrap(), Kind::Float);
    assert_eq!(parse_kind("bf16").unwrap(), Kind::BFloat16);
    for text in ["", "F32", "BF16", " f32", "f32 ", "float32", "bfloat16", "f16", "f64", "f", "bf"] {
        refused(parse_kind(text), &[&format!("`{text}`"), "`f32` or `bf16`"]);
    }
    refused(parse_kind("f32\n"), &["`f32` or `bf16`"]);
}

#[test]
fn the_processor_is_always_there() {
    assert_eq!(open_device(Device::Cpu).unwrap(), Device::Cpu);
}

#[test]
fn cuda_is_there_or_says_why_not() {
    let opened = [open_device(Device::Cuda(0)), open_device(Device::Cuda(0))];
    if tch::Cuda::is_available() {
        assert_eq!(opened.map(Result::unwrap), [Device::Cuda(0); 2]);
        return;
    }
    // Asking again gives the same answer.
    let [first, second] = opened.map(|opened| refused(opened, &["cuda:0 is not available: "]));
    assert_eq!(first, second);
    let why = first.split_once("available: ").map_or("", |(_, why)| why);
    assert!(why.contains("cuda"), "gives no reason: {first}");
}

#[test]
fn an_index_that_no_machine_has_is_named() {
    refused(open_device(Device::Cuda(127)), &["cuda:127 is not available: "]);
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn any_other_text_is_no_dtype(text in "[bf0-9]{0,5}|\\PC{0,6}") {
        prop_assert_eq!(parse_kind(&text).is_ok(), text == "f32" || text == "bf16");
    }
}
