//! Every architecture against its formula, written out in float64, and against the laws of the conformance suite.

use sae_core::{Sae, SaeExt as _, SaeParts, SparseAutoencoder, conformance::check};
use tch::Tensor;
use testkit::{assert_close, assert_same, normal};

use crate::{
    common::ROUNDING,
    reference::{Latents, RULES, Reference, all, assert_latents, plain, rows, table},
};

const D_IN: i64 = 10;
const D_SAE: i64 = 40;

/// All of them with their formulas.
fn made(seed: u64) -> Vec<(String, Sae, Reference)> {
    let make = |(name, parts): (String, SaeParts)| {
        let reference = Reference::of(&parts);
        let sae = Sae::new(parts).unwrap_or_else(|e| panic!("{name}: {e}"));
        (name, sae, reference)
    };
    all(D_IN, D_SAE, seed).into_iter().map(make).collect()
}

fn encoded(reference: &Reference, x: &Tensor) -> Vec<Latents> {
    rows(x).iter().map(|x| reference.encode(x)).collect()
}

/// By rows; the latents are given, so that one which is about to switch is no matter.
fn decoded(reference: &Reference, latents: &Tensor) -> Tensor {
    let out: Vec<_> = rows(latents).iter().map(|row| reference.decode(row)).collect();
    table(&out, reference.d_out)
}

fn finished(reference: &Reference, latents: &Tensor, x: &Tensor) -> Tensor {
    let both = rows(latents).into_iter().zip(rows(x));
    let out: Vec<_> = both.map(|(latents, x)| reference.finish(&reference.decode(&latents), &x)).collect();
    table(&out, reference.d_out)
}

/// Everything that an SAE does to some rows.
fn assert_formula(name: &str, sae: &dyn SparseAutoencoder, reference: &Reference, x: &Tensor) {
    let what = |of: &str| format!("{name}, {} rows: {of}", x.size()[0]);
    let latents = sae.encode(x).unwrap();
    assert_latents(&what("encode"), &latents, &encoded(reference, x), ROUNDING);
    let sparse = sae.encode_sparse(x).unwrap();
    assert_same(&what("encode_sparse"), &sparse.to_dense().unwrap(), &latents);
    let out = decoded(reference, &latents);
    assert_close(&what("decode"), &sae.decode(&latents).unwrap(), &out, ROUNDING);
    assert_close(&what("decode_sparse"), &sae.decode_sparse(&sparse).unwrap(), &out, ROUNDING);
    let whole = finished(reference, &latents, x);
    let finish = sae.finish(&sae.decode(&latents).unwrap(), x).unwrap();
    assert_close(&what("finish"), &finish, &whole, ROUNDING);
    assert_close(&what("reconstruct"), &sae.reconstruct(x).unwrap(), &whole, ROUNDING);
}

#[test]
fn they_are_their_formulas() {
    for (name, sae, reference) in made(1) {
        for n in [0, 1, 9, 34] {
            assert_formula(&name, &sae, &reference, &(normal(&[n, D_IN], 20) * 1.7 + 0.3));
        }
    }
}

#[test]
fn they_are_their_formulas_behind_a_box() {
    for (name, sae, reference) in made(2) {
        let boxed: Box<dyn SparseAutoencoder> = Box::new(sae);
        assert_formula(&name, boxed.as_ref(), &reference, &(normal(&[12, D_IN], 21) * 1.7 + 0.3));
    }
}

/// What a gradient flows through is computed in another way.
#[test]
fn they_are_their_formulas_where_gradients_flow() {
    for (name, sae, reference) in made(3) {
        let x = (normal(&[12, D_IN], 22) * 1.7 + 0.3).set_requires_grad(true);
        assert!(sae.encode(&x).unwrap().requires_grad(), "{name}");
        assert_formula(&name, &sae, &reference, &x);
    }
}

#[test]
fn they_keep_the_laws() {
    for (name, sae, _) in made(4) {
        check(&sae, &(normal(&[4, D_IN], 23) * 1.7)).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn they_keep_the_laws_behind_a_box() {
    for rule in RULES {
        let sae = Sae::new(plain(rule, [D_IN, D_SAE, D_IN], 5)).unwrap();
        let boxed: Box<dyn SparseAutoencoder> = Box::new(sae);
        check(boxed.as_ref(), &(normal(&[2, D_IN], 24) * 1.7)).unwrap_or_else(|e| panic!("{rule}: {e}"));
    }
}

#[test]
fn batch_and_pos_are_rows() {
    for (name, sae, _) in made(6) {
        let cube = normal(&[3, 4, D_IN], 25) * 1.7;
        let flat = cube.reshape([12, D_IN]);
        let latents = sae.encode(&flat).unwrap();
        assert_same(&name, &sae.encode(&cube).unwrap(), &latents.reshape([3, 4, D_SAE]));
        let out = sae.decode(&latents).unwrap();
        let by_cube = sae.decode(&latents.reshape([3, 4, D_SAE])).unwrap();
        assert_same(&name, &by_cube, &out.reshape([3, 4, sae.d_out()]));
        let whole = sae.reconstruct(&flat).unwrap().reshape([3, 4, sae.d_out()]);
        assert_same(&name, &sae.reconstruct(&cube).unwrap(), &whole);
        assert_close(&name, &sae.finish(&by_cube, &cube).unwrap(), &whole, ROUNDING);
        let alone = sae.encode(&cube.get(0).get(0)).unwrap();
        assert_close(&name, &alone, &latents.get(0), ROUNDING);
        for size in [vec![0, D_IN], vec![2, 0, D_IN]] {
            let none = normal(&size, 26);
            let want = |last: i64| [&size[..size.len() - 1], &[last]].concat();
            assert_eq!(sae.encode(&none).unwrap().size(), want(D_SAE), "{name}");
            assert_eq!(sae.reconstruct(&none).unwrap().size(), want(sae.d_out()), "{name}");
        }
    }
}

/// More rows than are encoded side by side: the seam must not show.
#[test]
fn five_thousand_rows() {
    for rule in RULES {
        let parts = plain(rule, [6, 64, 6], 7);
        let reference = Reference::of(&parts);
        let sae = Sae::new(parts).unwrap();
        assert_formula(rule, &sae, &reference, &(normal(&[5000, 6], 27) * 1.7));
    }
}

/// Views with strides of their own are inputs like others.
#[test]
fn inputs_that_are_views() {
    for rule in RULES {
        let sae = Sae::new(plain(rule, [D_IN, D_SAE, D_IN], 8)).unwrap();
        let across = normal(&[D_IN, 9], 28).tr();
        let cut = normal(&[9, D_IN + 4], 29).narrow(1, 3, D_IN);
        let repeated = normal(&[1, D_IN], 30).expand([9, D_IN], false);
        for view in [across, cut, repeated] {
            let whole = view.copy().contiguous();
            assert_close(rule, &sae.encode(&view).unwrap(), &sae.encode(&whole).unwrap(), ROUNDING);
            assert_close(rule, &sae.reconstruct(&view).unwrap(), &sae.reconstruct(&whole).unwrap(), ROUNDING);
        }
    }
}

/// An encoder or decoder that is a view of its transpose.
#[test]
fn weights_that_are_views() {
    for rule in RULES {
        let parts = plain(rule, [D_IN, D_SAE, D_IN + 1], 9);
        let reference = Reference::of(&parts);
        let turned = |m: &sae_core::Matrix| m.held().unwrap().tr().contiguous().tr();
        let (w_enc, w_dec) = (turned(&parts.w_enc), turned(&parts.w_dec));
        assert!(!w_enc.is_contiguous() && !w_dec.is_contiguous());
        let sae = Sae::new(SaeParts { w_enc: w_enc.into(), w_dec: w_dec.into(), ..parts }).unwrap();
        assert_formula(rule, &sae, &reference, &normal(&[12, D_IN], 31));
    }
}

#[test]
fn they_are_named_as_saelens_names_them() {
    let name = |rule: &str, transcoder: bool, skip: bool| {
        let parts = plain(rule, [4, 8, 4], 10);
        let w_skip = skip.then(|| normal(&[4, 4], 11));
        Sae::new(SaeParts { transcoder, w_skip, ..parts }).unwrap().architecture()
    };
    // SAELens, `saes/__init__.py`: the names under which architectures are registered.
    for (rule, plain_name) in
        [("relu", "standard"), ("jumprelu", "jumprelu"), ("topk of five", "topk"), ("gated", "gated")]
    {
        assert_eq!(name(rule, false, false), plain_name);
    }
    assert_eq!(name("relu", true, false), "transcoder");
    assert_eq!(name("relu", true, true), "skip_transcoder");
    assert_eq!(name("jumprelu", true, false), "jumprelu_transcoder");
    assert_eq!(name("jumprelu", true, true), "jumprelu_skip_transcoder");
}
