//! How the tokens are cut into batches, in which order they come, and who sums them does not matter.

use eval::{Judged, Means, Suite, Sums};
use hooks::{Positions, TokenBatch};
use proptest::{prelude::*, sample::Index};

use crate::{
    common::{assert_reports_agree, at, batch, cases, cut, gemma, judge, means, report, tokens},
    golden::{Case, all_cases, golden_cases},
};

#[test]
fn batches_of_any_size() {
    let (model, tokens) = (gemma(), tokens());
    for case in golden_cases() {
        let whole = report(&model, case.site, &case.sae, vec![batch(tokens.rows())], Positions::Counted);
        for size in [1, 2, 3, 5, 12] {
            let got = report(&model, case.site, &case.sae, cut(tokens.rows(), size), Positions::Counted);
            assert_reports_agree(&format!("{} by {size}", case.name), &got, &whole);
        }
    }
}

/// As different machines would: the sums travel as JSON.
fn travelled(sums: &Sums) -> Sums {
    let read: Sums = serde_json::from_str(&serde_json::to_string(sums).unwrap()).unwrap();
    assert_eq!(read, *sums);
    read
}

#[test]
fn shards_merge_into_the_whole_to_the_last_digit() {
    let (model, tokens, cases) = (gemma(), tokens(), all_cases());
    let judged: Vec<Judged<'_>> = cases.iter().map(Case::judged).collect();
    let batches = cut(tokens.rows(), 2);
    let options = eval::EvalOptions { uniformity: 2, ..at(Positions::Counted) };
    let means = means(&model, &judged, &batches, Positions::Counted);
    let whole = judge(&model, &judged, &batches, options);
    for shards in [
        vec![vec![0, 1, 2, 3, 4, 5]],
        vec![vec![5, 1, 0], vec![4, 2, 3]],
        vec![vec![], vec![2], vec![3, 0], vec![1, 5, 4]],
    ] {
        let sums = shards.iter().map(|shard| {
            let mut suite = Suite::new(&model, judged.clone(), &means, options).unwrap();
            shard.iter().for_each(|i| suite.add(&batches[*i], None).unwrap());
            travelled(suite.sums())
        });
        let merged = sums.reduce(|mut all, shard| {
            all.merge(&shard).unwrap();
            all
        });
        assert_eq!(merged.unwrap().reports().unwrap(), whole, "{shards:?}");
    }
}

#[test]
fn an_evaluation_goes_on_where_it_was_left() {
    let (model, tokens, cases) = (gemma(), tokens(), all_cases());
    let judged: Vec<Judged<'_>> = cases.iter().map(Case::judged).collect();
    let batches = cut(tokens.rows(), 5);
    let whole = judge(&model, &judged, &batches, at(Positions::Counted));
    let means = means(&model, &judged, &batches, Positions::Counted);
    let read: Means = serde_json::from_str(&serde_json::to_string(&means).unwrap()).unwrap();
    assert_eq!(read, means);
    let new = |means| Suite::new(&model, judged.clone(), means, at(Positions::Counted)).unwrap();
    for left_at in 0..=batches.len() {
        let mut first = new(&means);
        batches[..left_at].iter().for_each(|tokens| first.add(tokens, None).unwrap());
        let mut second = new(&read);
        second.resume(&travelled(first.sums())).unwrap();
        batches[left_at..].iter().for_each(|tokens| second.add(tokens, None).unwrap());
        assert_eq!(second.reports().unwrap(), whole, "left at {left_at}");
    }
}

#[test]
fn a_batch_in_which_nothing_counts_adds_nothing() {
    let (model, tokens) = (gemma(), tokens());
    let empty = || batch(&[vec![2, 1, 0, 0, 2]]);
    let cases = all_cases();
    let judged: Vec<Judged<'_>> = cases.iter().map(Case::judged).collect();
    let options = eval::EvalOptions { uniformity: 2, ..at(Positions::Counted) };
    let whole = judge(&model, &judged, &[batch(tokens.rows())], options);
    let with: Vec<TokenBatch> = vec![empty(), batch(tokens.rows()), empty()];
    assert_eq!(judge(&model, &judged, &with, options), whole);
}

proptest! {
    #![proptest_config(cases(6))]

    #[test]
    fn rows_in_any_order(keys in any::<[Index; 12]>(), size in 1usize..=12) {
        let model = gemma();
        let mut rows = tokens().rows().to_vec();
        for (i, key) in keys.iter().enumerate() {
            rows.swap(i, key.index(12));
        }
        for case in golden_cases() {
            let whole = report(&model, case.site, &case.sae, vec![tokens()], Positions::Counted);
            let got = report(&model, case.site, &case.sae, cut(&rows, size), Positions::Counted);
            assert_reports_agree(&case.name, &got, &whole);
        }
    }

    /// The very same batches in another order: the sums are exact.
    #[test]
    fn batches_in_any_order(keys in any::<[Index; 6]>()) {
        let (model, tokens, cases) = (gemma(), tokens(), all_cases());
        let judged: Vec<Judged<'_>> = cases.iter().map(Case::judged).collect();
        let mut batches = cut(tokens.rows(), 2);
        let whole = judge(&model, &judged, &batches, at(Positions::Counted));
        for (i, key) in keys.iter().enumerate() {
            batches.swap(i, key.index(6));
        }
        prop_assert_eq!(judge(&model, &judged, &batches, at(Positions::Counted)), whole);
    }
}
