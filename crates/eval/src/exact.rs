use serde::{Deserialize, Serialize};

/// A sum of float64 that loses nothing: its value is the exact sum, rounded once.
///
/// So the order of the terms, and how they were divided among several sums that were [merged](Self::merge), do not change the
/// last digit. It is kept as a few floats that do not overlap (Shewchuk, "Adaptive Precision Floating-Point Arithmetic", 1997,
/// section 2; Python's `math.fsum` does the same).
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Exact {
    /// Do not overlap; the smallest first. None is zero, but for a sum of zero that was added.
    partials: Vec<f64>,
}

impl Exact {
    /// Adds a term, which must be finite.
    pub fn add(&mut self, mut term: f64) {
        let mut kept = 0;
        for i in 0..self.partials.len() {
            let mut partial = self.partials[i];
            if term.abs() < partial.abs() {
                (term, partial) = (partial, term);
            }
            let high = term + partial;
            let low = partial - (high - term);
            if low != 0.0 {
                self.partials[kept] = low;
                kept += 1;
            }
            term = high;
        }
        self.partials.truncate(kept);
        if term != 0.0 {
            self.partials.push(term);
        }
    }

    /// Adds another sum.
    pub fn merge(&mut self, other: &Self) {
        other.partials.iter().for_each(|partial| self.add(*partial));
    }

    /// The sum, rounded to the nearest float64, of two as near the even one.
    pub fn value(&self) -> f64 {
        let mut rest = self.partials.iter().rev().copied();
        let Some(mut high) = rest.next() else { return 0.0 };
        let mut low = 0.0;
        for partial in rest.by_ref() {
            let sum = high + partial;
            low = partial - (sum - high);
            high = sum;
            if low != 0.0 {
                break;
            }
        }
        // What was cut off lies half-way between two floats: the terms below decide which.
        if let Some(below) = rest.next()
            && (low < 0.0) == (below < 0.0)
        {
            let doubled = low * 2.0;
            let up = high + doubled;
            if doubled == up - high {
                high = up;
            }
        }
        high
    }

    /// Whether every term so far was finite.
    pub fn is_finite(&self) -> bool {
        self.partials.iter().all(|partial| partial.is_finite())
    }
}

impl PartialEq for Exact {
    fn eq(&self, other: &Self) -> bool {
        self.value() == other.value()
    }
}

impl FromIterator<f64> for Exact {
    fn from_iter<I: IntoIterator<Item = f64>>(terms: I) -> Self {
        let mut sum = Self::default();
        terms.into_iter().for_each(|term| sum.add(term));
        sum
    }
}
