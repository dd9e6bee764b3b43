//! What the weights alone tell.

use eval::weight_metrics;
use sae_core::{Sae, SparseAutoencoder as _};
use tch::{Device, Kind, Tensor};
use testkit::normal;

use crate::common::{FLOAT64, random_sae, zeros};

/// Cosines of float32 rows.
const COSINE: f64 = 1e-6;

fn rows(t: &Tensor) -> Vec<Vec<f64>> {
    Vec::<Vec<f64>>::try_from(t.to_kind(Kind::Double)).unwrap()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let norms = norm(a) * norm(b);
    if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
}

#[track_caller]
fn close(name: &str, got: &[f64], want: impl Iterator<Item = f64>, tolerance: f64) {
    let want: Vec<f64> = want.collect();
    assert_eq!(got.len(), want.len(), "{name}");
    for (j, (got, want)) in got.iter().zip(&want).enumerate() {
        assert!((got - want).abs() <= tolerance, "{name} of latent {j}: {got} and {want}");
    }
}

#[track_caller]
fn assert_naive(sae: &Sae) {
    let d_sae = sae.d_sae();
    let enc = rows(&sae.w_enc(0..d_sae).unwrap().unwrap().tr());
    let dec = rows(&sae.w_dec(0..d_sae).unwrap());
    let b_enc = Vec::<f64>::try_from(sae.b_enc(0..d_sae).unwrap().unwrap().to_kind(Kind::Double)).unwrap();
    let got = weight_metrics(sae, true).unwrap();
    close("encoder_norm", &got["encoder_norm"], enc.iter().map(|row| norm(row)), FLOAT64);
    close("decoder_norm", &got["decoder_norm"], dec.iter().map(|row| norm(row)), FLOAT64);
    close("encoder_bias", &got["encoder_bias"], b_enc.into_iter(), 0.0);
    if sae.d_in() == sae.d_out() {
        let cosines = enc.iter().zip(&dec).map(|(a, b)| cosine(a, b));
        close("encoder_decoder_cosine", &got["encoder_decoder_cosine"], cosines, COSINE);
    } else {
        assert!(!got.contains_key("encoder_decoder_cosine"));
    }
    for (name, rows) in [("max_encoder_cosine", &enc), ("max_decoder_cosine", &dec)] {
        let nearest = rows.iter().enumerate().map(|(i, own)| {
            let others = rows.iter().enumerate().filter(|(j, _)| *j != i);
            others.map(|(_, other)| cosine(own, other)).fold(f64::NEG_INFINITY, f64::max)
        });
        close(name, &got[name], nearest, COSINE);
    }
    let mut without = got;
    without.retain(|name, _| !name.starts_with("max_"));
    assert_eq!(weight_metrics(sae, false).unwrap(), without);
}

#[test]
fn as_defined() {
    for (d_in, d_sae, d_out) in [(8, 2, 8), (8, 64, 8), (5, 64, 7), (3, 1000, 3)] {
        assert_naive(&random_sae(d_in, d_sae, d_out, 5));
    }
}

/// More latents than are looked at side by side; the nearest may lie in another part.
#[test]
fn more_latents_than_a_tile() {
    let (d, d_sae) = (8, 2500);
    assert_naive(&random_sae(d, d_sae, d, 5));
    let (w_enc, w_dec) = (normal(&[d, d_sae], 1), normal(&[d_sae, d], 2));
    let copy = |rows: &Tensor, from: i64, to: i64| rows.get(to).copy_(&rows.get(from));
    copy(&w_dec, 7, 2300);
    copy(&w_dec, 2047, 2048);
    copy(&w_enc.tr(), 2499, 0);
    let sae = Sae::jumprelu(w_enc, normal(&[d_sae], 3), w_dec, zeros(&[d]), zeros(&[d_sae])).unwrap();
    let got = weight_metrics(&sae, true).unwrap();
    let is_one = |value: f64| (value - 1.0).abs() <= COSINE;
    for (name, latents) in
        [("max_decoder_cosine", vec![7, 2047, 2048, 2300]), ("max_encoder_cosine", vec![0, 2499])]
    {
        let ones: Vec<usize> = (0..2500).filter(|j| is_one(got[name][*j])).collect();
        assert_eq!(ones, latents, "{name}");
    }
}

/// A row of zeros has no direction: its cosines are 0, and it is nobody's nearest but for want of a better.
#[test]
fn rows_of_zeros() {
    let w_dec = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 0.0, -1.0, 0.0]).reshape([3, 2]);
    let w_enc = Tensor::eye(2, (Kind::Float, Device::Cpu));
    let w_enc = Tensor::cat(&[&w_enc, &zeros(&[2, 1])], 1);
    let sae = Sae::jumprelu(w_enc, zeros(&[3]), w_dec, zeros(&[2]), zeros(&[3])).unwrap();
    let got = weight_metrics(&sae, true).unwrap();
    assert_eq!(got["decoder_norm"], [1.0, 0.0, 1.0]);
    assert_eq!(got["max_decoder_cosine"], [0.0, 0.0, 0.0]);
    assert_eq!(got["encoder_decoder_cosine"], [1.0, 0.0, 0.0]);
}

#[test]
fn a_single_latent_has_no_neighbours() {
    let sae = random_sae(4, 1, 4, 1);
    let got = weight_metrics(&sae, true).unwrap();
    assert!(got.keys().all(|name| !name.starts_with("max_")) && got["decoder_norm"].len() == 1);
}
