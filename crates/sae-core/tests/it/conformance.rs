//! The conformance suite: a JumpReLU SAE of any kind passes it, and what breaks a law is refused by that law's name.

use sae_core::{Sae, SparseAutoencoder, conformance::check};
use tch::{Device, Kind, Tensor};
use testkit::normal;

use crate::{
    broken::{Broken, Fault},
    common::{random_sae, refused, with_threshold},
};

/// No pre-activation of these tests comes near it.
const OUT_OF_REACH: f64 = 1e6;

fn everywhere(d_sae: i64, threshold: f64) -> Tensor {
    Tensor::full([d_sae], threshold, (Kind::Float, Device::Cpu))
}

fn sound() -> Vec<(&'static str, Sae)> {
    vec![
        ("random", random_sae(24, 96, 24, 1)),
        ("zero thresholds", with_threshold(24, 96, 24, 2, everywhere(96, 0.0))),
        ("never active", with_threshold(24, 96, 24, 3, everywhere(96, OUT_OF_REACH))),
        ("a transcoder, wider", random_sae(24, 96, 40, 4)),
        ("a transcoder, narrower", random_sae(24, 96, 7, 5)),
        ("fewer latents than inputs", random_sae(24, 5, 24, 6)),
        ("one latent, one input", random_sae(1, 1, 1, 7)),
    ]
}

#[test]
fn jumprelu_passes() {
    for (name, sae) in sound() {
        for rows in [2, 34] {
            let x = normal(&[rows, sae.d_in()], 20) * 1.7;
            check(&sae, &x).unwrap_or_else(|e| panic!("{name}, {rows} rows: {e}"));
        }
    }
}

#[test]
fn jumprelu_passes_behind_a_box() {
    for (name, sae) in sound() {
        let x = normal(&[34, sae.d_in()], 21) * 1.7;
        let boxed: Box<dyn SparseAutoencoder> = Box::new(sae);
        check(boxed.as_ref(), &x).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn the_suite_leaves_the_gradient_mode_alone() {
    let x = normal(&[4, 24], 22);
    check(&random_sae(24, 96, 24, 1), &x).unwrap();
    assert!((x.set_requires_grad(true) * 2.0).requires_grad());
    let _no_grad = tch::no_grad_guard();
    check(&random_sae(24, 96, 24, 1), &x.detach()).unwrap();
    assert!(!(&x * 2.0).requires_grad());
}

#[test]
fn each_broken_law_is_named() {
    let laws = [
        (Fault::LatentsLost, "encode gives [n, d_sae]"),
        (Fault::OutputTooWide, "decode gives [n, d_out]"),
        (Fault::WDecTransposed, "W_dec is [d_sae, d_out]"),
        (Fault::WDecScaled, "row f of W_dec is what latent f writes"),
        (Fault::Negative, "features are never negative"),
        (Fault::EncodeByAxes, "[batch, pos, d_in] is encoded as [batch·pos, d_in] is"),
        (Fault::DecodeByAxes, "[batch, pos, d_sae] is decoded as [batch·pos, d_sae] is"),
        (Fault::EncodeCentres, "a row is encoded whatever the others are"),
        (Fault::EncodeLooksBack, "a row is encoded whatever the others are"),
        (Fault::DecodeCentres, "a row is decoded whatever the others are"),
        (Fault::SparseValues, "encode_sparse is encode's non-zeros"),
        (Fault::SparseMisses, "encode_sparse is encode's non-zeros"),
        (Fault::SparseInvents, "encode_sparse finds the same latents"),
        (Fault::SparseBias, "decode_sparse is decode"),
        (Fault::Forgetful, "reconstruct is finish after decode after encode"),
        (Fault::NoRows, "no rows give no features"),
        (Fault::AnyInput, "an input of another width is an error"),
        (Fault::AnyFeatures, "features of another width are an error"),
        (Fault::AnySparse, "sparse features of another width are an error"),
        (Fault::Detached, "gradients reach the input"),
    ];
    let x = normal(&[34, 24], 23) * 1.7;
    for (fault, law) in laws {
        let broken = Broken::new(random_sae(24, 96, 24, 8), fault);
        let text = refused(check(&broken, &x), &["conformance: "]);
        assert_eq!(text, format!("conformance: {law}"), "{fault:?}");
    }
}

#[test]
fn the_rows_must_be_even_in_number() {
    for rows in [0, 1, 3] {
        refused(check(&random_sae(24, 96, 24, 9), &normal(&[rows, 24], 24)), &["even number of rows"]);
    }
}
