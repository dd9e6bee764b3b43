//! How the tokens are cut into batches, in which order they come, and who sums them does not matter.

use eval::{EvalOptions, Evaluation};
use hooks::{Positions, TokenBatch};
use proptest::{prelude::*, sample::Index};

use crate::{
    common::{assert_reports_agree, batch, cases, gemma, report, tokens},
    golden::golden_cases,
};

fn cut(rows: &[Vec<i64>], size: usize) -> Vec<TokenBatch> {
    rows.chunks(size).map(batch).collect()
}

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

#[test]
fn two_halves_merge_into_the_whole() {
    let (model, tokens) = (gemma(), tokens());
    for case in golden_cases() {
        let whole = report(&model, case.site, &case.sae, vec![batch(tokens.rows())], Positions::Counted);
        for at in [1, 6, 11] {
            let (first, second) = tokens.rows().split_at(at);
            let [mut ours, theirs] = [first, second].map(|rows| {
                let mut part = Evaluation::new(&model, case.site, &case.sae, EvalOptions::default()).unwrap();
                part.add(&batch(rows)).unwrap();
                part
            });
            ours.merge(&theirs).unwrap();
            assert_reports_agree(&format!("{} at {at}", case.name), &ours.report().unwrap(), &whole);
        }
    }
}

#[test]
fn a_batch_in_which_nothing_counts_adds_nothing() {
    let (model, tokens) = (gemma(), tokens());
    let empty = || batch(&[vec![2, 1, 0, 0, 2]]);
    for case in golden_cases() {
        let whole = report(&model, case.site, &case.sae, vec![batch(tokens.rows())], Positions::Counted);
        let with = vec![empty(), batch(tokens.rows()), empty()];
        let got = report(&model, case.site, &case.sae, with, Positions::Counted);
        assert_reports_agree(&case.name, &got, &whole);
        let mut merged = Evaluation::new(&model, case.site, &case.sae, EvalOptions::default()).unwrap();
        let mut rest = Evaluation::new(&model, case.site, &case.sae, EvalOptions::default()).unwrap();
        merged.add(&empty()).unwrap();
        rest.add(&batch(tokens.rows())).unwrap();
        merged.merge(&rest).unwrap();
        assert_reports_agree(&case.name, &merged.report().unwrap(), &whole);
    }
}

proptest! {
    #![proptest_config(cases(8))]

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
}
