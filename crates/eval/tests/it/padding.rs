//! What attention does not see, and what does not count, changes no metric.

use hooks::{HookPoint, HookedModel as _, LayerIdx, Positions, TokenBatch};
use proptest::{collection::vec, prelude::*};

use crate::common::{assert_reports_agree, batch, cases, gemma, random_sae, report, tokens, width};

const L: LayerIdx = LayerIdx(1);
const SITES: [HookPoint; 4] =
    [HookPoint::ResidPost(L), HookPoint::MlpOut(L), HookPoint::AttnZ(L), HookPoint::ResidMid(L)];

/// Sequences of 20, 13, 8 and 5 tokens; what stands behind them is `fill`.
fn padded(fill: &[i64]) -> TokenBatch {
    let lengths = [20, 13, 8, 5];
    let mut fill = fill.iter().copied();
    let mut rows = tokens().rows()[..4].to_vec();
    rows[3][4] = 77; // no EOS inside
    for (row, length) in rows.iter_mut().zip(lengths) {
        row.truncate(length);
        row.extend(std::iter::repeat_with(|| fill.next().unwrap()).take(20 - length));
    }
    let mask = lengths.map(|n| (0..20).map(|p| i64::from(p < n)).collect::<Vec<_>>());
    TokenBatch::with_mask(&rows, &mask, &crate::common::SPECIAL).unwrap()
}

const FILL: usize = 7 + 12 + 15;

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn whatever_stands_in_the_padding(fill in vec(0i64..320, FILL)) {
        let model = gemma();
        for site in SITES {
            let d_in = width(model.dims(), site);
            let sae = random_sae(d_in, 32, d_in, 3);
            let want = report(&model, site, &sae, vec![padded(&[0; FILL])], Positions::Counted);
            let got = report(&model, site, &sae, vec![padded(&fill)], Positions::Counted);
            assert_reports_agree(&site.to_string(), &got, &want);
            prop_assert_eq!(got.tokens, 20 + 13 + 8 + 5 - 4);
        }
    }
}

/// Each sequence alone needs no padding.
#[test]
fn padding_is_as_good_as_none() {
    let model = gemma();
    let all = padded(&[0; FILL]);
    for site in SITES {
        let d_in = width(model.dims(), site);
        let sae = random_sae(d_in, 32, d_in, 3);
        let alone =
            all.rows().iter().zip([20, 13, 8, 5]).map(|(row, n)| batch(&[row[..n].to_vec()])).collect();
        let want = report(&model, site, &sae, alone, Positions::Counted);
        let got = report(&model, site, &sae, vec![padded(&[0; FILL])], Positions::Counted);
        assert_reports_agree(&site.to_string(), &got, &want);
    }
}

/// Nothing after the last counted position reaches a loss that counts.
#[test]
fn special_tokens_at_the_end_change_nothing() {
    let model = gemma();
    let rows = |tail: &[i64]| vec![batch(&[[&[2, 9, 40, 87, 301], tail].concat()])];
    for site in SITES {
        let d_in = width(model.dims(), site);
        let sae = random_sae(d_in, 32, d_in, 3);
        let want = report(&model, site, &sae, rows(&[]), Positions::Counted);
        for tail in [[1, 0, 0], [0, 2, 1]] {
            let got = report(&model, site, &sae, rows(&tail), Positions::Counted);
            assert_reports_agree(&site.to_string(), &got, &want);
        }
    }
}
