//! Parts that make no SAE, and inputs that are none: one sentence that names what is at fault.

use sae_core::{
    Activation, FeatureId, Normalize, Sae, SaeExt as _, SaeParts, SparseAutoencoder as _, SparseFeatures,
};
use tch::{Device, Kind, Tensor};
use testkit::normal;

use crate::{
    common::refused,
    reference::{RULES, plain},
};

const SIZES: [i64; 3] = [6, 12, 6];

fn zeros(size: &[i64]) -> Tensor {
    Tensor::zeros(size, (Kind::Float, Device::Cpu))
}

fn good(rule: &str) -> SaeParts {
    SaeParts { w_skip: Some(normal(&[6, 6], 9)), ..plain(rule, SIZES, 1) }
}

/// The names under which an SAE of this rule knows its tensors.
fn names(rule: &str) -> Vec<&'static str> {
    Sae::new(good(rule)).unwrap().parameters().unwrap().into_iter().map(|(name, _)| name).collect()
}

fn named(rule: &str, name: &str) -> Tensor {
    let sae = Sae::new(good(rule)).unwrap();
    sae.parameters().unwrap().into_iter().find(|(n, _)| *n == name).unwrap().1
}

/// Good parts, but for one tensor.
fn with(rule: &str, name: &str, tensor: Tensor) -> SaeParts {
    let parts = good(rule);
    match (name, parts.activation) {
        ("W_enc", activation) => SaeParts { w_enc: tensor.into(), activation, ..parts },
        ("W_dec", activation) => SaeParts { w_dec: tensor.into(), activation, ..parts },
        ("b_enc" | "b_gate", activation) => SaeParts { b_enc: tensor, activation, ..parts },
        ("b_dec", activation) => SaeParts { b_dec: tensor, activation, ..parts },
        ("W_skip", activation) => SaeParts { w_skip: Some(tensor), activation, ..parts },
        ("threshold", _) => SaeParts { activation: Activation::JumpRelu { threshold: tensor }, ..parts },
        ("r_mag", Activation::Gated { b_mag, .. }) => {
            SaeParts { activation: Activation::Gated { r_mag: tensor, b_mag }, ..parts }
        }
        ("b_mag", Activation::Gated { r_mag, .. }) => {
            SaeParts { activation: Activation::Gated { r_mag, b_mag: tensor }, ..parts }
        }
        (other, _) => panic!("no part is called {other}"),
    }
}

#[test]
fn each_shape_but_the_right_one() {
    for rule in RULES {
        for name in names(rule) {
            let right = named(rule, name).size();
            let mut wrong = vec![vec![], [&right[..], &[1]].concat(), [&[1], &right[..]].concat()];
            for axis in 0..right.len() {
                for size in [0, 1, right[axis] - 1, right[axis] + 1] {
                    let mut other = right.clone();
                    other[axis] = size;
                    wrong.push(other);
                }
            }
            if right.len() == 2 {
                wrong.push(vec![right[0] * right[1]]);
                wrong.push(vec![5, 13]);
            }
            for size in wrong {
                let text = refused(Sae::new(with(rule, name, zeros(&size))), &[]);
                // The width of the input is the encoder's to say: where it alone says so, the others disagree.
                let others = name == "W_enc" && (size.len() != 2 || size[0] != 6);
                assert!(text.contains(&format!("`{name}`")) || others, "{rule}: {name} of {size:?}: {text}");
                assert!(!text.contains("-1"), "speaks of a size that no tensor has: {text}");
            }
        }
    }
}

#[test]
fn each_dtype_but_the_right_one() {
    for rule in RULES {
        for name in names(rule) {
            for (kind, said) in [
                (Kind::Double, "F64"),
                (Kind::Half, "F16"),
                (Kind::BFloat16, "BF16"),
                (Kind::Int64, "I64"),
                (Kind::Bool, "BOOL"),
            ] {
                let tensor = named(rule, name).to_kind(kind);
                refused(Sae::new(with(rule, name, tensor)), &[&format!("`{name}`"), "F32", said]);
            }
        }
    }
}

#[test]
fn each_value_that_is_none() {
    for rule in RULES {
        for name in names(rule) {
            for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                for at in [0, -1] {
                    let tensor = named(rule, name).copy();
                    let _ = tensor.view(-1).get(at).fill_(bad);
                    let told = [&format!("`{name}`"), "holds 1 NaN or infinite value"];
                    refused(Sae::new(with(rule, name, tensor)), &told.map(|s: &str| s));
                }
            }
        }
    }
}

#[test]
fn numbers_of_latents() {
    let of = |activation: Activation| Sae::new(SaeParts { activation, ..plain("relu", SIZES, 1) });
    for k in [i64::MIN, -1, 0, 13, i64::MAX] {
        refused(of(Activation::TopK { k }), &["between 1 and d_sae = 12", &k.to_string()]);
    }
    for k in [i64::MIN, -12, -1, 0, 5, 7, 8, 13, 24, i64::MAX] {
        refused(of(Activation::GroupMax { k }), &["divide d_sae = 12", &k.to_string()]);
    }
    for k in [1, 11, 12] {
        assert!(of(Activation::TopK { k }).is_ok());
    }
    for k in [1, 2, 3, 4, 6, 12] {
        assert!(of(Activation::GroupMax { k }).is_ok());
    }
}

#[test]
fn widths_that_do_not_go_together() {
    for rule in RULES {
        let wide = || plain(rule, [6, 12, 8], 1);
        refused(Sae::new(SaeParts { transcoder: false, ..wide() }), &["d_in is 6", "d_out 8", "transcoder"]);
        let subtracts = Sae::new(SaeParts { subtract_b_dec: true, ..wide() });
        refused(subtracts, &["b_dec", "d_out = 8", "d_in = 6"]);
        let skip = Sae::new(SaeParts { w_skip: Some(zeros(&[8, 6])), ..wide() });
        refused(skip, &["`W_skip`", "d_in=6", "d_out=8", "[8, 6]"]);
        assert!(Sae::new(wide()).is_ok());
    }
}

#[test]
fn thresholds_tell_the_widths_of_gemma_scopes_form() {
    let of = |d_out: i64| {
        let one = |size: &[i64]| normal(size, 2);
        Sae::jumprelu(one(&[6, 12]), one(&[12]), one(&[12, d_out]), one(&[d_out]), one(&[12]))
    };
    assert!(!of(6).unwrap().is_transcoder());
    assert!(of(5).unwrap().is_transcoder());
}

#[test]
fn inputs_that_are_none() {
    for rule in RULES {
        for normalize in [Normalize::None, Normalize::LayerNorm, Normalize::ConstantNorm] {
            let parts = plain(rule, SIZES, 1);
            let sae = Sae::new(SaeParts { normalize, subtract_b_dec: true, ..parts }).unwrap();
            for (kind, name) in [
                (Kind::Double, "F64"),
                (Kind::Half, "F16"),
                (Kind::BFloat16, "BF16"),
                (Kind::Int64, "I64"),
                (Kind::Bool, "BOOL"),
            ] {
                let x = zeros(&[3, 6]).to_kind(kind);
                let told = ["the input", "F32", name];
                refused(sae.encode(&x), &told);
                refused(sae.encode_sparse(&x), &told);
                refused(sae.reconstruct(&x), &told);
                refused(sae.finish(&zeros(&[3, 6]), &x), &told);
            }
            for size in [vec![], vec![0], vec![5], vec![6, 5], vec![2, 3, 7], vec![6, 0]] {
                let (x, got) = (zeros(&size), format!("{size:?}"));
                let told = ["the input", "d_in = 6", &got];
                refused(sae.encode(&x), &told);
                refused(sae.encode_sparse(&x), &told);
                refused(sae.reconstruct(&x), &told);
                refused(sae.finish(&zeros(&[3, 6]), &x), &told);
            }
            for size in [vec![6], vec![2, 3, 6]] {
                refused(sae.encode_sparse(&zeros(&size)), &["two axes", &format!("{size:?}")]);
            }
        }
    }
}

#[test]
fn features_and_outputs_that_are_none() {
    let sae = Sae::new(plain("relu", [6, 12, 8], 1)).unwrap();
    for size in [vec![], vec![11], vec![12, 6], vec![2, 3, 13]] {
        refused(sae.decode(&zeros(&size)), &["the features", "d_sae = 12", &format!("{size:?}")]);
    }
    for kind in [Kind::Double, Kind::Int64, Kind::Half] {
        refused(sae.decode(&zeros(&[2, 12]).to_kind(kind)), &[]);
    }
    for width in [11, 13] {
        let features = SparseFeatures::from_dense(&zeros(&[2, width])).unwrap();
        refused(sae.decode_sparse(&features), &["sparse features", &width.to_string(), "12"]);
    }
    for size in [vec![], vec![3, 6], vec![2, 8], vec![3, 1, 8], vec![8]] {
        let finish = sae.finish(&zeros(&size), &zeros(&[3, 6]));
        refused(finish, &["the decoded output", "d_out = 8", &format!("{size:?}")]);
    }
    for (start, end) in [(-1, 2), (0, 13), (13, 13), (5, 4)] {
        let told = format!("{start}..{end} is out of range");
        refused(sae.w_enc(start..end), &[&told, "12"]);
        refused(sae.w_dec(start..end), &[&told, "12"]);
    }
    for feature in [12, usize::MAX] {
        refused(sae.direction(FeatureId(feature)), &[&format!("latent {feature}"), "12"]);
    }
}

#[test]
fn an_sae_of_no_latents_or_no_width() {
    for (d_in, d_sae, named) in [(8, 0, "d_sae"), (0, 8, "d_in"), (0, 0, "d_in")] {
        let parts =
            [zeros(&[d_in, d_sae]), zeros(&[d_sae]), zeros(&[d_sae, d_in]), zeros(&[d_in]), zeros(&[d_sae])];
        let [w_enc, b_enc, w_dec, b_dec, threshold] = parts;
        refused(Sae::jumprelu(w_enc, b_enc, w_dec, b_dec, threshold), &[named, "at least 1"]);
    }
}
