//! Sums that lose nothing, against integers as wide as all of float64.

use eval::Exact;
use proptest::{collection::vec, prelude::*};

use crate::common::cases;

/// Every float64 is a whole multiple of 2⁻¹⁰⁷⁴: the sum of such multiples, 32 bits a limb, the lowest first.
#[derive(Clone)]
struct Wide([i64; 70]);

impl Wide {
    fn sum(terms: &[f64]) -> Self {
        let mut limbs = [0i64; 70];
        for term in terms {
            let bits = term.to_bits();
            let (field, fraction) = ((bits >> 52) & 0x7ff, bits & ((1 << 52) - 1));
            // A subnormal has no implicit one, and the exponent of field 1.
            let mantissa = if field == 0 { fraction } else { fraction | 1 << 52 };
            let shift = field.max(1) as usize - 1;
            let wide = u128::from(mantissa) << (shift % 32);
            for i in 0..4 {
                let part = ((wide >> (32 * i)) & 0xffff_ffff) as i64;
                limbs[(shift / 32 + i).min(69)] += if *term < 0.0 { -part } else { part };
            }
        }
        Self(limbs)
    }

    /// Digits from 0 to 2³² − 1, and whether the number is negative.
    fn digits(mut self) -> ([u64; 70], bool) {
        let carried = |limbs: &mut [i64; 70]| {
            for i in 0..69 {
                let carry = limbs[i] >> 32;
                limbs[i] -= carry << 32;
                limbs[i + 1] += carry;
            }
            limbs[69] < 0
        };
        let negative = carried(&mut self.0);
        if negative {
            self.0.iter_mut().for_each(|limb| *limb = -*limb);
            assert!(!carried(&mut self.0));
        }
        (self.0.map(|limb| limb as u64), negative)
    }

    /// Rounded to the nearest, of two as near the even one.
    fn rounded(self) -> f64 {
        let (digits, negative) = self.digits();
        let bit = |i: usize| (digits[i / 32] >> (i % 32)) & 1;
        let Some(top) = (0..70 * 32).rev().find(|i| bit(*i) == 1) else { return 0.0 };
        let shift = top.saturating_sub(52);
        let mut mantissa = (shift..=top).rev().fold(0u64, |m, i| m << 1 | bit(i));
        if shift > 0 && bit(shift - 1) == 1 {
            let beyond_half = (0..shift - 1).any(|i| bit(i) == 1);
            mantissa += u64::from(beyond_half || mantissa & 1 == 1);
        }
        // A mantissa with the implicit one adds it to the exponent's field; rounding up may carry on into it.
        let magnitude = f64::from_bits(((shift as u64) << 52) + mantissa);
        if negative { -magnitude } else { magnitude }
    }
}

fn exact(terms: &[f64]) -> Exact {
    terms.iter().copied().collect()
}

#[track_caller]
fn check(terms: &[f64]) {
    let want = Wide::sum(terms).rounded();
    assert_eq!(exact(terms).value(), want, "{terms:?}");
    let backwards: Vec<f64> = terms.iter().rev().copied().collect();
    assert_eq!(exact(&backwards).value(), want, "{backwards:?}");
}

#[test]
fn the_reference_itself() {
    for x in [0.0, 1.0, -1.5, 0.1, 1e300, f64::MAX, f64::MIN_POSITIVE, 5e-324, -3e-310, 1.0f64.next_up()] {
        assert_eq!(Wide::sum(&[x]).rounded(), x);
    }
    assert_eq!(Wide::sum(&[0.1, 0.2]).rounded(), 0.1 + 0.2);
}

#[test]
fn hard_cases() {
    let (one, tiny, half) = (1.0f64, 2f64.powi(-300), 2f64.powi(-53));
    for (terms, want) in [
        (vec![], 0.0),
        (vec![0.0, -0.0], 0.0),
        (vec![1e100, 1.0, -1e100], 1.0),
        (vec![1e100, 1.0, -1e100, 1e-100, 1e50, -1.0, -1e50], 1e-100),
        // Half-way between two floats: to the even one, unless something below says otherwise.
        (vec![one, half], one),
        (vec![one, half, tiny], one.next_up()),
        (vec![one, half, -tiny], one),
        (vec![one.next_up(), half * 2.0 * 0.5], one.next_up().next_up()),
        (vec![one.next_up(), half, -tiny], one.next_up()),
        (vec![-one, -half, -tiny], -one.next_up()),
        (vec![-one, -half], -one),
        (vec![0.1; 10], 1.0),
        (vec![f64::MAX, f64::MAX, -f64::MAX], f64::MAX),
        (vec![5e-324, 5e-324, -5e-324], 5e-324),
    ] {
        // Two of the largest exceed float64 on the way in one order.
        if terms.first() != Some(&f64::MAX) {
            check(&terms);
            assert_eq!(exact(&terms).value(), want, "{terms:?}");
        }
    }
    assert!(!exact(&[f64::MAX, f64::MAX]).is_finite());
    assert!(exact(&[f64::MAX, -f64::MAX, f64::MAX]).is_finite());
    assert!(!exact(&[1.0, f64::NAN]).is_finite());
    assert!(!exact(&[1.0, f64::INFINITY]).is_finite());
}

/// Numbers of all magnitudes, many of which cancel, some half an ulp of others.
fn terms() -> impl Strategy<Value = Vec<f64>> {
    let wide = (-1.0f64..1.0, -320i32..300).prop_map(|(x, e)| x * 2f64.powi(e));
    let near = (-1.0f64..1.0, -60i32..4).prop_map(|(x, e)| x * 2f64.powi(e));
    let power = (prop_oneof![Just(1.0), Just(-1.0)], -120i32..4)
        .prop_map(|(sign, e): (f64, i32)| sign * 2f64.powi(e));
    vec((prop_oneof![wide, near, power], any::<bool>()), 0..60).prop_map(|drawn| {
        let mut terms = Vec::new();
        for (term, cancels) in drawn {
            terms.push(term);
            if cancels {
                terms.push(-term * (1.0 + f64::EPSILON));
            }
        }
        terms
    })
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn the_nearest_float_whatever_the_order(terms in terms().prop_shuffle()) {
        let want = Wide::sum(&terms).rounded();
        prop_assert_eq!(exact(&terms).value(), want);
        let mut sorted = terms;
        sorted.sort_by(f64::total_cmp);
        prop_assert_eq!(exact(&sorted).value(), want);
    }

    #[test]
    fn merged_and_written_and_read(terms in terms(), parts in vec(0usize..4, 120)) {
        let want = exact(&terms);
        let mut sums: Vec<Exact> = vec![Exact::default(); 4];
        for (term, part) in terms.iter().zip(&parts) {
            sums[*part].add(*term);
        }
        let mut merged = Exact::default();
        for sum in sums.iter().rev() {
            let read: Exact = serde_json::from_str(&serde_json::to_string(sum).unwrap()).unwrap();
            prop_assert_eq!(format!("{read:?}"), format!("{sum:?}"));
            merged.merge(&read);
        }
        prop_assert_eq!(merged.value(), want.value());
        prop_assert_eq!(&merged, &want);
        // What was lost by neither shows when the rest is taken away again.
        terms.iter().for_each(|term| merged.add(-term));
        prop_assert_eq!(merged.value(), 0.0);
    }
}
