//! The laws of the mixer.

use activations::{Dtype, Mixer, MixerOptions, MixerState, Source as _};
use proptest::prelude::*;
use tch::Kind;

use crate::common::{Numbered, cases, live, numbers, refused, toy};

fn mixed(buffer_rows: u64, parts: u64, seed: u64) -> MixerOptions {
    MixerOptions { buffer_rows, parts, seed, dtype: Dtype::F32 }
}

/// Batches of the given sizes, in turn, until nothing is left.
fn drain(mixer: &mut Mixer<Numbered>, sizes: &[usize]) -> Vec<Vec<u64>> {
    let mut batches = Vec::new();
    for size in sizes.iter().cycle() {
        match mixer.next_batch(*size).unwrap() {
            Some(rows) => batches.push(numbers(&rows)),
            None => return batches,
        }
    }
    unreachable!("some size")
}

prop_compose! {
    fn setups()(
        chunks in prop::collection::vec(0_u64..40, 0..30),
        buffer in 1_u64..200,
        parts in 1_u64..9,
        seed: u64,
        sizes in prop::collection::vec(1_usize..50, 1..4),
    ) -> (Numbered, MixerOptions, Vec<usize>) {
        (Numbered::new(&chunks), mixed(buffer, parts, seed), sizes)
    }
}

proptest! {
    #![proptest_config(cases(300))]

    #[test]
    fn each_row_is_served_once((source, options, sizes) in setups()) {
        let total: u64 = source.chunks.iter().sum();
        let mut mixer = Mixer::new(source, options).unwrap();
        let mut served = drain(&mut mixer, &sizes).concat();
        served.sort_unstable();
        prop_assert_eq!(served, (0..total).collect::<Vec<_>>());
        prop_assert!(mixer.next_batch(5).unwrap().is_none());
        prop_assert_eq!(mixer.stats().held, 0);
    }

    #[test]
    fn batches_are_full_but_the_last((source, options, sizes) in setups()) {
        let batches = drain(&mut Mixer::new(source, options).unwrap(), &sizes[..1]);
        for batch in batches.iter().rev().skip(1) {
            prop_assert_eq!(batch.len(), sizes[0]);
        }
    }

    #[test]
    fn the_order_depends_on_the_seed_and_not_on_the_batches((source, options, sizes) in setups()) {
        let order = |options: &MixerOptions, sizes: &[usize]| {
            drain(&mut Mixer::new(source.clone(), options.clone()).unwrap(), sizes).concat()
        };
        let one = order(&options, &sizes);
        prop_assert_eq!(&one, &order(&options, &[7]));
        // A chance of 1/40! at most.
        if one.len() > 40 && options.buffer_rows > 80 {
            let other = MixerOptions { seed: options.seed ^ 1, ..options };
            prop_assert_ne!(one, order(&other, &sizes));
        }
    }

    #[test]
    fn a_mixer_resumes_after_any_batch((source, options, sizes) in setups(), stop in 0_usize..60) {
        let mut mixer = Mixer::new(source.clone(), options.clone()).unwrap();
        for size in sizes.iter().cycle().take(stop) {
            let _batch = mixer.next_batch(*size).unwrap();
        }
        let state = serde_json::to_string(&mixer.state()).unwrap();
        prop_assert!(state.len() < 300, "{}", state);
        let rest = drain(&mut mixer, &sizes);
        let state: MixerState = serde_json::from_str(&state).unwrap();
        // A new mixer, the one that has come to its end, and one that has begun elsewhere.
        let mut elsewhere = Mixer::new(source.clone(), options.clone()).unwrap();
        let _batch = elsewhere.next_batch(3).unwrap();
        for mut mixer in [Mixer::new(source, options).unwrap(), mixer, elsewhere] {
            mixer.restore(&state).unwrap();
            prop_assert_eq!(mixer.state(), state.clone());
            prop_assert_eq!(drain(&mut mixer, &sizes), rest.clone());
        }
    }

    #[test]
    fn the_buffer_is_bounded((source, options, sizes) in setups()) {
        let chunk = source.chunks.iter().max().copied().unwrap_or(0);
        let parts = options.parts;
        let part = (2 * options.buffer_rows / (parts + 1)).div_ceil(parts).max(1);
        let mut mixer = Mixer::new(source, options.clone()).unwrap();
        let _all = drain(&mut mixer, &sizes);
        // What waits, and what is left of a chunk; `part` is rounded up.
        let bound = parts * (parts + 1) / 2 * part + chunk;
        prop_assert!(mixer.stats().most_held <= bound, "{:?}", mixer.stats());
        prop_assert!(parts * (parts + 1) / 2 * part <= options.buffer_rows + parts * (parts + 1) / 2);
    }

    #[test]
    fn a_failure_loses_nothing((source, options, sizes) in setups(), fails in prop::collection::vec(0_u64..30, 1..4)) {
        let whole = drain(&mut Mixer::new(source.clone(), options.clone()).unwrap(), &sizes[..1]);
        let mut failing = source.clone();
        failing.fails = fails;
        let mut mixer = Mixer::new(failing, options.clone()).unwrap();
        let mut batches: Vec<Vec<u64>> = Vec::new();
        loop {
            match mixer.next_batch(sizes[0]) {
                Ok(Some(rows)) => batches.push(numbers(&rows)),
                Ok(None) => break,
                Err(error) => {
                    prop_assert!(error.to_string().ends_with("failed"));
                    // What is saved now is what a new mixer can go on from.
                    let mut fresh = Mixer::new(source.clone(), options.clone()).unwrap();
                    fresh.restore(&mixer.state()).unwrap();
                    prop_assert_eq!(drain(&mut fresh, &sizes[..1]), &whole[batches.len()..]);
                }
            }
        }
        prop_assert_eq!(batches, whole);
    }
}

#[test]
fn the_rows_of_a_chunk_are_spread() {
    // 100 chunks of 100 rows, a buffer of 2,000, 8 parts: a block of 448 is served over 8 rounds of 448, so over 56 batches of 64.
    let mut mixer = Mixer::new(Numbered::new(&[100; 100]), mixed(2_000, 8, 3)).unwrap();
    let batches = drain(&mut mixer, &[64]);
    for chunk in 20..60 {
        let of_chunk = |batch: &Vec<u64>| batch.iter().filter(|n| **n / 100 == chunk).count();
        let counts: Vec<usize> = batches.iter().map(of_chunk).collect();
        let spread = counts.iter().filter(|n| **n > 0).count();
        assert!(spread >= 30, "the rows of chunk {chunk} are in {spread} batches");
        assert!(counts.iter().all(|n| *n <= 12), "a batch has many rows of chunk {chunk}: {counts:?}");
    }
    // Each batch meets rows from nearly all over the buffer.
    for batch in &batches[10..100] {
        let (low, high) = (batch.iter().min().unwrap(), batch.iter().max().unwrap());
        assert!(high - low > 2_000, "{low} to {high}");
    }
}

#[test]
fn neighbours_are_torn_apart() {
    let order =
        drain(&mut Mixer::new(Numbered::new(&[100; 100]), mixed(2_000, 8, 3)).unwrap(), &[64]).concat();
    let close = order.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) <= 10).count();
    // By chance: 20 numbers that are close, among the thousands that a row may meet.
    assert!(close < order.len() / 50, "{close} of {} neighbours were neighbours before", order.len());
}

#[test]
fn bf16_buffers_give_rounded_float32() {
    let model = toy();
    let options = MixerOptions { dtype: Dtype::Bf16, ..mixed(20, 3, 1) };
    let mut exact = Mixer::new(live(&model, 9, Some(2)), mixed(20, 3, 1)).unwrap();
    let mut rounded = Mixer::new(live(&model, 9, Some(2)), options).unwrap();
    while let Some(want) = exact.next_batch(13).unwrap() {
        let got = rounded.next_batch(13).unwrap().unwrap();
        for (got, want) in got.at.iter().zip(&want.at) {
            assert_eq!(got.kind(), Kind::Float);
            assert!(got.equal(&want.to_kind(Kind::BFloat16).to_kind(Kind::Float)));
            assert!(!got.equal(want));
        }
    }
    assert!(rounded.next_batch(13).unwrap().is_none());
}

#[test]
fn an_endless_live_stream_resumes_to_the_last_bit() {
    let model = toy();
    let mut mixer = Mixer::new(live(&model, 9, None), mixed(60, 4, 1)).unwrap();
    for _ in 0..25 {
        let _batch = mixer.next_batch(16).unwrap().unwrap();
    }
    let state = mixer.state();
    let mut again = Mixer::new(live(&model, 9, None), mixed(60, 4, 1)).unwrap();
    again.restore(&state).unwrap();
    for _ in 0..25 {
        let (want, got) = (mixer.next_batch(16).unwrap().unwrap(), again.next_batch(16).unwrap().unwrap());
        assert!(want.at.iter().zip(&got.at).all(|(want, got)| want.equal(got)));
    }
    assert!(mixer.source().cursor().chunk > 30, "several epochs");
    let stats = mixer.stats();
    assert!(stats.source > 0.0 && stats.mixing > 0.0 && stats.waited == 0.0, "{stats:?}");
}

#[test]
fn a_mixer_may_begin_in_the_middle() {
    let mut source = Numbered::new(&[10; 10]);
    source.at.chunk = 4;
    let mut mixer = Mixer::new(source, mixed(30, 2, 1)).unwrap();
    let state = mixer.state();
    let order = drain(&mut mixer, &[7]);
    let mut sorted = order.concat();
    sorted.sort_unstable();
    assert_eq!(sorted, (40..100).collect::<Vec<_>>());
    mixer.restore(&state).unwrap();
    assert_eq!(drain(&mut mixer, &[7]), order);
}

#[test]
fn what_does_not_fit_is_refused() {
    let source = || Numbered::new(&[10; 10]);
    refused(Mixer::new(source(), mixed(10, 0, 1)), &["`parts`", "0"]);
    refused(Mixer::new(source(), mixed(10, 257, 1)), &["`parts`", "257"]);
    refused(Mixer::new(source(), mixed(0, 2, 1)), &["`buffer_rows`", "0"]);
    let mut mixer = Mixer::new(source(), mixed(10, 2, 1)).unwrap();
    let state = mixer.state();
    for (options, setting) in [
        (mixed(11, 2, 1), "buffer_rows"),
        (mixed(10, 3, 1), "parts"),
        (mixed(10, 2, 7), "seed"),
        (MixerOptions { dtype: Dtype::Bf16, ..mixed(10, 2, 1) }, "dtype"),
    ] {
        refused(mixer.restore(&MixerState { options, ..state.clone() }), &["the stream", setting]);
    }
    refused(mixer.restore(&MixerState { round: 0, ..state.clone() }), &["the mixer", "round 0"]);
    refused(mixer.restore(&MixerState { served: 1_000, ..state }), &["the mixer", "round 1", "rows"]);
}
