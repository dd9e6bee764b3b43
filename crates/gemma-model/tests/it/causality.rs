//! A token changes nothing before it.

use gemma_model::Gemma2;
use hooks::{HookedModelExt as _, TokenBatch};
use proptest::prelude::*;
use tch::Tensor;
use testkit::relative_error;

use crate::common::{WHOLE_MODEL, batch, cases, model, tokens};

/// The same sums over the same numbers: what differs is at most the order in which a kernel adds zeros.
const UNMOVED: f64 = 1e-6;

thread_local! {
    /// Loaded once for all cases: tensors are not shared between threads.
    static MINI: Gemma2 = model("mini-2b");
}

fn logits(tokens: &TokenBatch) -> Tensor {
    MINI.with(|model| model.logits(tokens).unwrap())
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn changing_a_token_leaves_earlier_logits_alone(at in 1usize..24, to in 0i64..320, row in 0usize..2) {
        let tokens = tokens("mini-2b");
        let mut rows = tokens.rows().to_vec();
        let from = std::mem::replace(&mut rows[row][at], to);
        let (before, after) = (logits(&tokens), logits(&batch(&rows)));
        let of = |logits: &Tensor, row: usize| logits.get(row as i64);
        let at_row = |start, length| {
            (of(&after, row).narrow(0, start, length), of(&before, row).narrow(0, start, length))
        };
        let (earlier_after, earlier_before) = at_row(0, at as i64);
        prop_assert!(relative_error(&earlier_after, &earlier_before) <= UNMOVED);
        // Nor does the other sequence see it.
        prop_assert!(relative_error(&of(&after, 1 - row), &of(&before, 1 - row)) <= UNMOVED);
        // The position itself does.
        if from != to {
            let (own_after, own_before) = at_row(at as i64, 1);
            prop_assert!(relative_error(&own_after, &own_before) > UNMOVED);
        }
    }

    #[test]
    fn a_prefix_has_the_logits_it_has_in_the_whole(length in 1usize..24) {
        let tokens = tokens("mini-2b");
        let rows: Vec<Vec<i64>> = tokens.rows().iter().map(|r| r[..length].to_vec()).collect();
        let whole = logits(&tokens).narrow(1, 0, length as i64);
        let prefix = logits(&batch(&rows));
        // The sums run over other lengths, so in another order.
        prop_assert!(relative_error(&prefix, &whole) <= WHOLE_MODEL);
    }
}
