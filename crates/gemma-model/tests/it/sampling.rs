//! What may come next, and how likely: the laws of the filters.

use gemma_model::{GenerateOptions, Sampling, generate};
use hooks::{HookSet, HookedModelExt as _};
use proptest::prelude::*;
use testkit::fixture;

use crate::common::{batch, cases, model, refused};

/// Sums of at most a few hundred float64 probabilities.
const ROUNDING: f64 = 1e-12;

/// Logits as models give them, all different.
fn logits() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-30.0f32..30.0, 1..80).prop_filter("no ties", |logits| {
        let mut sorted = logits.clone();
        sorted.sort_by(f32::total_cmp);
        sorted.windows(2).all(|pair| pair[0] != pair[1])
    })
}

fn temperature() -> impl Strategy<Value = f64> {
    0.2f64..3.0
}

/// The softmax in float64, likeliest first.
fn softmax(logits: &[f32], temperature: f64) -> Vec<(i64, f64)> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let weight = |l: &f32| ((f64::from(*l) - largest) / temperature).exp();
    let weights: Vec<(i64, f64)> = logits.iter().enumerate().map(|(id, l)| (id as i64, weight(l))).collect();
    let mut all = renormalised(weights);
    all.sort_by(|a, b| b.1.total_cmp(&a.1));
    all
}

fn renormalised(of: Vec<(i64, f64)>) -> Vec<(i64, f64)> {
    let total: f64 = of.iter().map(|(_, p)| p).sum();
    of.into_iter().map(|(id, p)| (id, p / total)).collect()
}

fn ids(of: &[(i64, f64)]) -> Vec<i64> {
    of.iter().map(|(id, _)| *id).collect()
}

/// Asserts equal tokens in equal order with equal probabilities. What is less likely than 1e-25 is never
/// drawn and may be left out.
#[track_caller]
fn assert_same_distribution(got: &[(i64, f64)], want: &[(i64, f64)]) {
    let likely = |of: &[(i64, f64)]| of.iter().copied().filter(|(_, p)| *p > 1e-25).collect::<Vec<_>>();
    let (got, want) = (likely(got), likely(want));
    assert_eq!(ids(&got), ids(&want));
    for ((id, got), (_, want)) in got.iter().zip(&want) {
        assert!((got - want).abs() <= ROUNDING, "token {id}: {got} instead of {want}");
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn without_filters_it_is_the_softmax(logits in logits(), temperature in temperature()) {
        let got = Sampling::with_temperature(temperature).distribution(&logits).unwrap();
        assert_same_distribution(&got, &softmax(&logits, temperature));
    }

    #[test]
    fn probabilities_sum_to_one_and_fall(
        logits in logits(),
        temperature in temperature(),
        top_k in prop::option::of(1usize..100),
        top_p in prop::option::of(0.01f64..=1.0),
        min_p in prop::option::of(0.0f64..=1.0),
    ) {
        let sampling = Sampling { temperature, top_k, top_p, min_p, seed: 0 };
        let got = sampling.distribution(&logits).unwrap();
        let total: f64 = got.iter().map(|(_, p)| p).sum();
        prop_assert!((total - 1.0).abs() <= ROUNDING, "{}", total);
        prop_assert!(got.iter().all(|(_, p)| *p > 0.0));
        prop_assert!(got.windows(2).all(|pair| pair[0].1 >= pair[1].1));
        // No filter takes the likeliest.
        prop_assert_eq!(got[0].0, softmax(&logits, 1.0)[0].0);
    }

    #[test]
    fn top_k_keeps_k(logits in logits(), k in 1usize..100) {
        // A high temperature keeps all of them likely enough to be kept at all.
        let sampling = Sampling { top_k: Some(k), ..Sampling::with_temperature(2.0) };
        let got = sampling.distribution(&logits).unwrap();
        prop_assert_eq!(got.len(), k.min(logits.len()));
        let best: Vec<_> = softmax(&logits, 2.0).into_iter().take(k).collect();
        assert_same_distribution(&got, &renormalised(best));
    }

    #[test]
    fn top_k_keeps_those_as_likely_as_the_last(ties in 1usize..10, better in 0usize..5, k in 1usize..12) {
        let logits: Vec<f32> = [vec![3.0; better], vec![1.0; ties], vec![-1.0; 4]].concat();
        let sampling = Sampling { top_k: Some(k), ..Sampling::with_temperature(1.0) };
        let kept = sampling.distribution(&logits).unwrap().len();
        let ends = [better, better + ties, logits.len()];
        prop_assert_eq!(kept, ends.into_iter().find(|n| *n >= k).unwrap_or(logits.len()));
    }

    #[test]
    fn top_p_keeps_the_fewest_that_reach_it(
        logits in logits(),
        temperature in temperature(),
        p in 0.001f64..1.0,
    ) {
        let sampling = Sampling { top_p: Some(p), ..Sampling::with_temperature(temperature) };
        let kept = sampling.distribution(&logits).unwrap().len();
        let all = softmax(&logits, temperature);
        let mass = |n: usize| all.iter().take(n).map(|(_, p)| p).sum::<f64>();
        prop_assert!(mass(kept) >= p - ROUNDING, "{} of {} reach {}", kept, all.len(), mass(kept));
        prop_assert!(mass(kept - 1) < p + ROUNDING, "{} would do", kept - 1);
    }

    #[test]
    fn min_p_keeps_what_is_as_likely_as_that(
        logits in logits(),
        temperature in temperature(),
        p in 1e-9f64..=1.0,
    ) {
        let sampling = Sampling { min_p: Some(p), ..Sampling::with_temperature(temperature) };
        let all = softmax(&logits, temperature);
        let want: Vec<_> = all.iter().copied().filter(|(_, q)| *q >= p * all[0].1).collect();
        assert_same_distribution(&sampling.distribution(&logits).unwrap(), &renormalised(want));
    }

    #[test]
    fn filters_act_one_after_the_other(
        logits in logits(),
        temperature in temperature(),
        k in 1usize..40,
        p in 0.01f64..1.0,
        min_p in 1e-6f64..1.0,
    ) {
        let best: Vec<_> = renormalised(softmax(&logits, temperature).into_iter().take(k).collect());
        // Each filter knows what the one before has left: p is of the mass of the k, not of all.
        let mut before = 0.0;
        let nucleus: Vec<_> = best
            .into_iter()
            .take_while(|(_, q)| {
                let keep = before < p;
                before += q;
                keep
            })
            .collect();
        let least = min_p * nucleus[0].1;
        let want = renormalised(nucleus.into_iter().filter(|(_, q)| *q >= least).collect());
        let sampling = Sampling { temperature, top_k: Some(k), top_p: Some(p), min_p: Some(min_p), seed: 0 };
        assert_same_distribution(&sampling.distribution(&logits).unwrap(), &want);
    }

    #[test]
    fn filters_that_filter_nothing_change_nothing(logits in logits(), temperature in temperature()) {
        let top_k = Some(logits.len());
        let open = Sampling { top_k, top_p: Some(1.0), min_p: Some(0.0), temperature, seed: 0 };
        let plain = Sampling::with_temperature(temperature);
        prop_assert_eq!(open.distribution(&logits).unwrap(), plain.distribution(&logits).unwrap());
    }

    #[test]
    fn adding_to_all_logits_changes_nothing(
        ints in prop::collection::hash_set(-64i8..64, 1..40),
        shift in -900i16..900,
    ) {
        // Whole numbers, so that the sums are exact.
        let logits: Vec<f32> = ints.iter().map(|l| f32::from(*l)).collect();
        let shifted: Vec<f32> = logits.iter().map(|l| l + f32::from(shift)).collect();
        let sampling = Sampling::with_temperature(4.0);
        let (a, b) = (sampling.distribution(&logits).unwrap(), sampling.distribution(&shifted).unwrap());
        assert_same_distribution(&a, &b);
    }

    #[test]
    fn greedy_is_where_the_temperature_leads(logits in logits()) {
        let greedy = Sampling::default().distribution(&logits).unwrap();
        prop_assert_eq!(&greedy, &vec![(softmax(&logits, 1.0)[0].0, 1.0)]);
        // Different float32 logits may lie very near each other: the temperature is low beside their gap.
        let mut sorted = logits;
        sorted.sort_by(|a, b| b.total_cmp(a));
        let gap = sorted.get(1).map_or(1.0, |second| f64::from(sorted[0]) - f64::from(*second));
        let cold = Sampling::with_temperature(gap / 100.0).distribution(&sorted).unwrap();
        prop_assert_eq!(cold, vec![(0, 1.0)]);
    }
}

#[test]
fn a_low_temperature_is_greedy() {
    let logits = [25.0, -3.0, 29.5, 0.0];
    for temperature in [1e-3, 1e-100, 1e-300] {
        let got = Sampling::with_temperature(temperature).distribution(&logits).unwrap();
        assert_eq!(got, [(2, 1.0)], "at {temperature:e}");
    }
}

#[test]
fn however_low_the_temperature_something_is_drawn() {
    let logits = [25.0, -3.0, 29.5, 0.0];
    // The quotient is more than float64 holds.
    for temperature in [1e-307, f64::MIN_POSITIVE, 5e-324] {
        let got = Sampling::with_temperature(temperature).distribution(&logits).unwrap();
        assert_eq!(got, [(2, 1.0)], "at {temperature:e}");
    }
}

#[test]
fn however_high_the_temperature_all_are_equally_likely() {
    for temperature in [1e12, 1e300, f64::MAX] {
        let got = Sampling::with_temperature(temperature).distribution(&[25.0, -3.0, 29.5, 0.0]).unwrap();
        let equal = got.iter().all(|(_, p)| (p - 0.25).abs() < 1e-9);
        assert!(got.len() == 4 && equal, "at {temperature:e}: {got:?}");
    }
}

#[test]
fn the_smaller_id_comes_first_among_equals() {
    let got = Sampling::with_temperature(1.0).distribution(&[1.0, 2.0, 1.0, 2.0]).unwrap();
    assert_eq!(ids(&got), [1, 3, 0, 2]);
    assert_eq!(Sampling::default().distribution(&[1.0, 2.0, 1.0, 2.0]).unwrap(), [(1, 1.0)]);
}

#[test]
fn a_token_with_a_logit_of_minus_infinity_never_comes() {
    let logits = [f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY, 1.0];
    let want = [(1, 0.5), (3, 0.5)];
    for top_k in [None, Some(2), Some(3), Some(4)] {
        let sampling = Sampling { top_k, top_p: Some(0.99), ..Sampling::with_temperature(1.0) };
        assert_eq!(sampling.distribution(&logits).unwrap(), want, "top-k {top_k:?}");
    }
}

#[test]
fn logits_that_nothing_can_be_drawn_from_are_refused() {
    for sampling in [Sampling::default(), Sampling::with_temperature(1.0)] {
        refused(sampling.distribution(&[1.0, f32::NAN, 2.0]), &["token 1", "NaN"]);
        refused(sampling.distribution(&[f32::NEG_INFINITY; 3]), &["finite"]);
        refused(sampling.distribution(&[]), &["finite"]);
    }
}

/// How often each of the distribution's tokens comes behind a prompt, in many rows of one step.
fn counts(sampling: Sampling, rows: usize, batches: u64) -> (Vec<(i64, f64)>, Vec<f64>) {
    let model = model("mini-sharded");
    let prompt = vec![2, 30, 40];
    let logits = model.logits(&batch(std::slice::from_ref(&prompt))).unwrap().get(0).get(-1);
    let distribution = sampling.distribution(&Vec::<f32>::try_from(logits).unwrap()).unwrap();
    let mut counts = vec![0.0; distribution.len()];
    for i in 0..batches {
        // Row r draws by seed + r: batches whose seeds lie further apart share none.
        let sampling = Sampling { seed: i * rows as u64, ..sampling };
        let options = GenerateOptions { max_new_tokens: 1, sampling, stop: None };
        let drawn = generate(&model, &vec![prompt.clone(); rows], options, HookSet::new(), |_| {}).unwrap();
        for id in drawn.concat() {
            let at = distribution.iter().position(|(known, _)| *known == id);
            counts[at.expect("a token that was filtered out")] += 1.0;
        }
    }
    (distribution, counts)
}

#[test]
fn many_draws_approach_the_distribution() {
    const ROWS: usize = 512;
    const BATCHES: u64 = 8;
    let n = (ROWS as u64 * BATCHES) as f64;
    let base = Sampling::with_temperature(1.0);
    let few = Sampling { top_k: Some(8), ..base };
    let hot = Sampling { temperature: 3.0, top_p: Some(0.5), ..base };
    for sampling in [base, few, hot] {
        let (distribution, counts) = counts(sampling, ROWS, BATCHES);
        assert!(distribution.len() > 2, "{distribution:?}");
        // Pearson's statistic, over tokens that are expected at least five times and the rest together.
        let (mut chi_square, mut terms, mut rest) = (0.0, 0.0, (0.0, 0.0));
        for ((_, p), count) in distribution.iter().zip(&counts) {
            if n * p >= 5.0 {
                chi_square += (count - n * p).powi(2) / (n * p);
                terms += 1.0;
            } else {
                rest = (rest.0 + n * p, rest.1 + count);
            }
        }
        if rest.0 >= 5.0 {
            chi_square += (rest.1 - rest.0).powi(2) / rest.0;
            terms += 1.0;
        }
        // Its mean is the degrees of freedom and its variance twice that: five deviations.
        let freedom: f64 = terms - 1.0;
        let bound = freedom + 5.0 * (2.0 * freedom).sqrt();
        assert!(chi_square <= bound, "{sampling:?}: {chi_square} for {freedom} degrees of freedom");
    }
}

#[test]
fn transformers_filters_the_same() {
    /// The reference computes in float32: a sum of up to a few hundred probabilities, each rounded at 6e-8.
    const FLOAT32: f64 = 1e-6;
    let text = std::fs::read_to_string(fixture("sampling.json")).unwrap();
    let examples: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    assert!(!examples.is_empty());
    for example in examples {
        let logits: Vec<f32> =
            example["logits"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap() as f32).collect();
        let sampling = Sampling {
            temperature: example["temperature"].as_f64().unwrap(),
            top_k: example["top_k"].as_u64().map(|k| k as usize),
            top_p: example["top_p"].as_f64(),
            min_p: example["min_p"].as_f64(),
            seed: 0,
        };
        let mut got = vec![0.0; logits.len()];
        for (id, p) in sampling.distribution(&logits).unwrap() {
            got[id as usize] = p;
        }
        let want: Vec<f64> =
            example["probabilities"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect();
        assert_eq!(got.len(), want.len());
        for (id, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!((got - want).abs() <= FLOAT32, "{sampling:?}, token {id}: {got} instead of {want}");
            assert_eq!(*got > 0.0, *want > 0.0, "{sampling:?}, token {id}: kept by one alone");
        }
    }
}
