//! What weights say: by hand, and against the dense formulas in float64.

use std::ops::Range;

use proptest::prelude::*;
use sae_core::{
    FeatureId, Result, Sae, SaeError, SparseAutoencoder, SparseFeatures,
    anatomy::{Anatomy, LogitOptions, logit_effects},
};
use tch::{Device, Kind, Tensor};
use testkit::{assert_close, normal};

use crate::common::{ROUNDING, cases, matrix, numbers, parameter, random_sae, refused};

fn sae(w_enc: Tensor, w_dec: Tensor) -> Sae {
    let zeros = |n| Tensor::zeros([n], (Kind::Float, Device::Cpu));
    let (d_sae, d_out) = w_dec.size2().unwrap();
    Sae::jumprelu(w_enc, zeros(d_sae), w_dec, zeros(d_out), zeros(d_sae)).unwrap()
}

/// An SAE of these directions; what it reads does not matter.
fn writes(w_dec: Tensor) -> Sae {
    let (d_sae, d_out) = w_dec.size2().unwrap();
    sae(normal(&[d_out, d_sae], 9), w_dec)
}

/// Latents: two equal, one opposite, one orthogonal, one silent, one half way (cosine 0.5 exactly).
fn by_hand() -> Sae {
    let w_dec = [
        [1.0, 1.0, 1.0, 1.0],
        [0.0, 0.0, 0.0, 0.0],
        [2.0, 2.0, 2.0, 2.0],
        [-1.0, -1.0, -1.0, -1.0],
        [3.0, -3.0, 3.0, -3.0],
        [5.0, 0.0, 0.0, 0.0],
    ];
    let w_enc = matrix(&w_dec.concat(), 4).tr() * 2.0;
    sae(w_enc, matrix(&w_dec.concat(), 4))
}

#[test]
fn norms_and_cosines_by_hand() {
    let sae = by_hand();
    let anatomy = Anatomy::new(&sae);
    let norms = anatomy.norms().unwrap();
    assert_eq!(numbers(&norms.decoder), [2.0, 0.0, 4.0, 2.0, 6.0, 5.0]);
    assert_eq!(numbers(&norms.encoder.unwrap()), [4.0, 0.0, 8.0, 4.0, 12.0, 10.0]);
    let own = anatomy.encoder_decoder_cosine().unwrap().unwrap();
    assert_eq!(numbers(&own), [1.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
}

#[test]
fn nearest_latents_by_hand() {
    let sae = by_hand();
    for at_a_time in 1..8 {
        let anatomy = Anatomy::new(&sae).at_a_time(at_a_time);
        let nearest = anatomy.max_cosine().unwrap();
        assert_eq!(numbers(&nearest.cosine), [1.0, 0.0, 1.0, 0.0, 0.5, 0.5], "{at_a_time} at a time");
        // Ties go to the lower index, and nobody is his own neighbour.
        assert_eq!(numbers(&nearest.other), [2.0, 0.0, 0.0, 1.0, 5.0, 0.0], "{at_a_time} at a time");
        let near =
            |f, k| anatomy.neighbours(FeatureId(f), k).unwrap().into_iter().map(|(f, c)| (f.0, c)).collect();
        let all: Vec<(usize, f32)> = near(0, 9);
        assert_eq!(all, [(2, 1.0), (5, 0.5), (1, 0.0), (4, 0.0), (3, -1.0)]);
        let silent: Vec<(usize, f32)> = near(1, 3);
        assert_eq!(silent, [(0, 0.0), (2, 0.0), (3, 0.0)]);
        let none: Vec<(usize, f32)> = near(5, 0);
        assert!(none.is_empty());
    }
}

/// `[d_sae, d_sae]` cosines of rows in float64.
fn all_cosines(w_dec: &Tensor) -> Tensor {
    let w = w_dec.to_kind(Kind::Double);
    let w = &w / w.square().sum_dim_intlist(1, true, Kind::Double).sqrt();
    w.matmul(&w.tr())
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn against_dense_formulas_whatever_goes_at_a_time(
        d in 2i64..9, d_sae in 2i64..30, at_a_time in 1i64..33, seed in 0u64..1000,
    ) {
        let sae = random_sae(d, d_sae, d, seed);
        let anatomy = Anatomy::new(&sae).at_a_time(at_a_time);
        let [w_enc, w_dec] = ["W_enc", "W_dec"].map(|name| parameter(&sae, name).to_kind(Kind::Double));
        let norm = |w: &Tensor| w.square().sum_dim_intlist(1, false, Kind::Double).sqrt();
        let got = anatomy.norms().unwrap();
        assert_close("decoder norms", &got.decoder, &norm(&w_dec), ROUNDING);
        assert_close("encoder norms", &got.encoder.unwrap(), &norm(&w_enc.tr()), ROUNDING);

        let own = (&w_enc.tr() * &w_dec).sum_dim_intlist(1, false, Kind::Double) / (norm(&w_enc.tr()) * norm(&w_dec));
        let got = anatomy.encoder_decoder_cosine().unwrap().unwrap();
        // Of a sum that cancels, the error is that of its terms, which have size 1.
        prop_assert!((got.to_kind(Kind::Double) - own).abs().max().double_value(&[]) < ROUNDING);

        let cosines = all_cosines(&w_dec).fill_diagonal_(f64::NEG_INFINITY, false);
        let got = anatomy.max_cosine().unwrap();
        prop_assert!((got.cosine.to_kind(Kind::Double) - cosines.amax([1], false)).abs().max().double_value(&[]) < ROUNDING);
        let at_other = cosines.gather(1, &got.other.unsqueeze(1), false).squeeze_dim(1);
        prop_assert!((got.cosine.to_kind(Kind::Double) - at_other).abs().max().double_value(&[]) < ROUNDING);

        let f = seed as i64 % d_sae;
        let near = anatomy.neighbours(FeatureId(f as usize), 5).unwrap();
        let (want, _) = cosines.get(f).topk(5.min(d_sae - 1), 0, true, true);
        prop_assert_eq!(near.len() as i64, want.numel() as i64);
        for ((other, cosine), want) in near.into_iter().zip(numbers(&want)) {
            prop_assert!((f64::from(cosine) - want).abs() < ROUNDING);
            prop_assert!((cosines.double_value(&[f, other.0 as i64]) - want).abs() < ROUNDING);
        }
    }

    /// Small integers, so that every product is exact and ties are many.
    #[test]
    fn tokens_are_a_full_sort(
        m in 1usize..4, d_vocab in 1usize..20, k in 0usize..7, at_a_time in 1i64..24, seed in any::<u64>(),
    ) {
        let whole = |size: &[i64], seed| (normal(size, seed) * 1.5).round();
        let (directions, w_u) = (whole(&[m as i64, 3], seed), whole(&[3, d_vocab as i64], seed ^ 1));
        let options = LogitOptions { k, at_a_time, ..LogitOptions::default() };
        let got = logit_effects(&directions, columns(&w_u), d_vocab as i64, &options).unwrap();
        prop_assert_eq!(got.len(), m);
        let logits = numbers(&directions.to_kind(Kind::Double).matmul(&w_u.to_kind(Kind::Double)));
        for (got, logits) in got.into_iter().zip(logits.chunks(d_vocab)) {
            let sorted = |sign: f64| {
                let mut all: Vec<_> = (0i64..).zip(logits.iter().map(|v| (v * sign) as f32)).collect();
                all.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap()); // stable
                all.into_iter().take(k).map(|(t, v)| (t, v * sign as f32)).collect::<Vec<_>>()
            };
            prop_assert_eq!(got.top, sorted(1.0));
            prop_assert_eq!(got.bottom, sorted(-1.0));
        }
    }
}

/// `W_U` as its columns are asked for.
fn columns(w_u: &Tensor) -> impl Fn(Range<i64>) -> Result<Tensor> + '_ {
    |tokens| Ok(w_u.f_narrow(1, tokens.start, tokens.end - tokens.start)?)
}

#[test]
fn tokens_by_hand_with_and_without_the_gain() {
    let (directions, w_u) =
        (matrix(&[1.0, 0.0, 0.0, 1.0], 2), matrix(&[3.0, -1.0, 0.0, 3.0, 1.0, 4.0, -2.0, 0.0], 4));
    let options = LogitOptions { k: 2, ..LogitOptions::default() };
    let got = logit_effects(&directions, columns(&w_u), 4, &options).unwrap();
    assert_eq!((&got[0].top, &got[0].bottom), (&vec![(0, 3.0), (3, 3.0)], &vec![(1, -1.0), (2, 0.0)]));
    assert_eq!((&got[1].top, &got[1].bottom), (&vec![(1, 4.0), (0, 1.0)], &vec![(2, -2.0), (3, 0.0)]));
    let gain = Tensor::from_slice(&[1.0f32, -0.5]);
    let got =
        logit_effects(&directions, columns(&w_u), 4, &LogitOptions { gain: Some(&gain), ..options }).unwrap();
    assert_eq!((&got[0].top, &got[0].bottom), (&vec![(0, 3.0), (3, 3.0)], &vec![(1, -1.0), (2, 0.0)]));
    assert_eq!((&got[1].top, &got[1].bottom), (&vec![(2, 1.0), (3, 0.0)], &vec![(1, -2.0), (0, -0.5)]));
}

/// Tied embeddings in bfloat16, sizes for which the fast routes of the product are taken.
#[test]
fn tokens_of_tied_embeddings() {
    let (m, d_model, d_vocab) = (70, 256, 3000);
    let (directions, w_e) =
        (normal(&[m, d_model], 1), normal(&[d_vocab, d_model], 2).to_kind(Kind::BFloat16));
    let unembed =
        |tokens: Range<i64>| Ok(w_e.f_narrow(0, tokens.start, tokens.end - tokens.start)?.f_tr()?);
    let logits = directions.to_kind(Kind::Double).matmul(&w_e.to_kind(Kind::Double).tr());
    let ((top, _), (bottom, _)) = (logits.topk(7, 1, true, true), logits.topk(7, 1, false, true));
    let largest = logits.abs().max().double_value(&[]);
    for at_a_time in [1024, 5000] {
        let options = LogitOptions { k: 7, at_a_time, ..LogitOptions::default() };
        let got = logit_effects(&directions, unembed, d_vocab, &options).unwrap();
        for (i, effect) in (0..).zip(got) {
            for (got, want) in [(effect.top, top.get(i)), (effect.bottom, bottom.get(i))] {
                assert_eq!(got.len(), 7);
                for ((token, logit), want) in got.into_iter().zip(numbers(&want)) {
                    assert!((f64::from(logit) - want).abs() < ROUNDING * largest);
                    assert!((logits.double_value(&[i, token]) - want).abs() < ROUNDING * largest);
                }
            }
        }
    }
}

#[test]
fn nothing_to_look_at() {
    let w_u = normal(&[3, 5], 1);
    let none = normal(&[0, 3], 1);
    assert!(logit_effects(&none, columns(&w_u), 5, &LogitOptions::default()).unwrap().is_empty());
    let one = logit_effects(&normal(&[1, 3], 1), columns(&w_u), 0, &LogitOptions::default()).unwrap();
    assert!(one[0].top.is_empty() && one[0].bottom.is_empty());
    refused(Anatomy::new(&writes(normal(&[1, 4], 1))).max_cosine(), &["a lone latent"]);
    assert!(Anatomy::new(&writes(normal(&[1, 4], 1))).neighbours(FeatureId(0), 3).unwrap().is_empty());
}

#[test]
fn what_does_not_fit_is_refused() {
    let options = LogitOptions::default();
    let w_u = normal(&[3, 5], 1);
    let of = |directions: &Tensor| logit_effects(directions, columns(&w_u), 5, &options);
    refused(of(&normal(&[3], 1)), &["the directions", "two axes", "[3]"]);
    refused(of(&normal(&[2, 3], 1).to_kind(Kind::Half)), &["the directions", "F32", "F16"]);
    refused(of(&(normal(&[2, 3], 1) / 0.0)), &["the directions", "NaN or infinite"]);
    refused(of(&normal(&[2, 4], 1)), &["W_U", "d_model=4", "tokens=5", "[3, 5]"]);
    let short = |_| Ok(normal(&[3, 4], 1));
    refused(logit_effects(&normal(&[2, 3], 1), short, 5, &options), &["W_U", "tokens=5", "[3, 4]"]);
    let damaged = |_| Ok(normal(&[3, 5], 1) / 0.0);
    refused(logit_effects(&normal(&[2, 3], 1), damaged, 5, &options), &["W_U", "NaN or infinite"]);
    let failing = |_| Err(SaeError::Parts("no unembedding here".to_owned()));
    refused(logit_effects(&normal(&[2, 3], 1), failing, 5, &options), &["no unembedding here"]);
    let gain = LogitOptions { gain: Some(&w_u), ..options };
    refused(logit_effects(&normal(&[2, 3], 1), columns(&w_u), 5, &gain), &["gain", "d_model=3", "[3, 5]"]);
    refused(Anatomy::new(&by_hand()).neighbours(FeatureId(6), 1), &["latent 6", "the SAE has 6"]);
}

/// One whose encoder is no matrix.
#[derive(Debug)]
struct Opaque(Sae);

impl SparseAutoencoder for Opaque {
    fn architecture(&self) -> &'static str {
        "opaque"
    }
    fn d_in(&self) -> i64 {
        self.0.d_in()
    }
    fn d_sae(&self) -> i64 {
        self.0.d_sae()
    }
    fn d_out(&self) -> i64 {
        self.0.d_out()
    }
    fn encode(&self, x: &Tensor) -> Result<Tensor> {
        self.0.encode(x)
    }
    fn encode_sparse(&self, x: &Tensor) -> Result<SparseFeatures> {
        self.0.encode_sparse(x)
    }
    fn decode(&self, features: &Tensor) -> Result<Tensor> {
        self.0.decode(features)
    }
    fn decode_sparse(&self, features: &SparseFeatures) -> Result<Tensor> {
        self.0.decode_sparse(features)
    }
    fn w_dec(&self, latents: Range<i64>) -> Result<Tensor> {
        // As in training.
        Ok(self.0.w_dec(latents)?.set_requires_grad(true))
    }
}

#[test]
fn without_an_encoder_matrix_or_with_another_width_of_output() {
    let opaque = Opaque(random_sae(4, 9, 4, 1));
    let anatomy = Anatomy::new(&opaque).at_a_time(2);
    let norms = anatomy.norms().unwrap();
    assert!(norms.encoder.is_none() && !norms.decoder.requires_grad());
    assert!(anatomy.encoder_decoder_cosine().unwrap().is_none());
    assert!(!anatomy.max_cosine().unwrap().cosine.requires_grad());
    let directions = opaque.w_dec(0..9).unwrap();
    logit_effects(&directions, columns(&normal(&[4, 6], 1)), 6, &LogitOptions::default()).unwrap();
    let other = random_sae(4, 9, 5, 1);
    assert!(Anatomy::new(&other).encoder_decoder_cosine().unwrap().is_none());
    assert!(Anatomy::new(&other).norms().unwrap().encoder.is_some());
}
