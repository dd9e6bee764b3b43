use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use tch_ext::expect_shape;

use crate::{EvalError, Exact, Result};

/// Rows whose float64 copies exist at one time: a few MiB, which stay in the processor's cache.
const ROWS_AT_A_TIME: i64 = 256;

/// How well vectors are reconstructed: FVU and its kin, MSE, cosine, ratio of norms, bias. Every sum is exact, so that with a
/// centre that is [given](Self::about) neither the order of the rows' batches nor how they were divided and merged changes a digit.
///
/// The sums are taken about a centre, so that a mean far from zero costs no digits. [`FVU`](Self::fvu) does not depend on it;
/// the per-token form of the explained variance does, and has its meaning where the centre is the mean of all the data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reconstruction {
    n: u64,
    /// c: `[d]`, given, or the first x that came.
    centre: Option<Vec<f64>>,
    /// Σ (x − c): `[d]`.
    sum: Vec<Exact>,
    /// Σ (x − x̂): `[d]`.
    error_sum: Vec<Exact>,
    totals: Totals,
}

/// Sums over rows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
struct Totals {
    /// Σ‖x − x̂‖².
    error: Exact,
    /// Σ‖x − c‖².
    spread: Exact,
    /// Σ‖x̂‖².
    square_out: Exact,
    /// Σ⟨x, x̂⟩.
    dot: Exact,
    /// Σ cos(x, x̂), zero where either vector is.
    cosine: Exact,
    /// Σ‖x‖.
    norm_in: Exact,
    /// Σ‖x̂‖.
    norm_out: Exact,
    /// Σ‖x − x̂‖.
    error_norm: Exact,
    /// Rows with x ≠ 0, and Σ‖x̂‖ / ‖x‖ and Σ‖x − x̂‖² / ‖x‖² over them.
    nonzero: u64,
    ratio: Exact,
    relative_error: Exact,
    /// Rows with x ≠ c, and Σ‖x − x̂‖² / ‖x − c‖² over them.
    off_centre: u64,
    unexplained: Exact,
}

/// What one row contributes, for those who also sum over parts of the data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    /// ‖x − x̂‖².
    pub(crate) error: f64,
    /// ‖x − c‖².
    pub(crate) spread: f64,
}

impl Reconstruction {
    /// For vectors of `d` entries. The centre is the first row that comes.
    pub fn new(d: i64) -> Self {
        let zeros = vec![Exact::default(); d.max(0) as usize];
        Self { n: 0, centre: None, sum: zeros.clone(), error_sum: zeros, totals: Totals::default() }
    }

    /// With a centre: the mean of the data, or an estimate of it.
    pub fn about(centre: &[f64]) -> Self {
        Self { centre: Some(centre.to_vec()), ..Self::new(centre.len() as i64) }
    }

    /// Adds rows: `x` and `x_hat`, both `[n, d]`.
    ///
    /// # Errors
    /// Tensors of other shapes; [`EvalError::NotFinite`]; then nothing was added.
    pub fn add(&mut self, x: &Tensor, x_hat: &Tensor) -> Result<()> {
        self.add_rows(x, x_hat).map(|_| ())
    }

    pub(crate) fn add_rows(&mut self, x: &Tensor, x_hat: &Tensor) -> Result<Vec<Row>> {
        let axes = [("n", x.size().first().copied().unwrap_or(0)), ("d", self.sum.len() as i64)];
        expect_shape("x", x, &axes)?;
        expect_shape("x_hat", x_hat, &axes)?;
        let _no_grad = tch::no_grad_guard();
        if axes[0].1 == 0 {
            return Ok(Vec::new());
        }
        let centre = match &self.centre {
            Some(centre) => centre.clone(),
            None => Vec::<f64>::try_from(x.f_get(0)?.f_to_kind(Kind::Double)?)?,
        };
        let about = Tensor::f_from_slice(&centre)?.f_to_device(x.device())?;
        let mut batch = Batch::default();
        for (x, x_hat) in x.f_split(ROWS_AT_A_TIME, 0)?.iter().zip(x_hat.f_split(ROWS_AT_A_TIME, 0)?) {
            batch.add(x, &x_hat, &about)?;
        }
        let (totals, rows) = batch.totals()?;
        let (sum, error_sum) = (floats(batch.sum.as_ref())?, floats(batch.error_sum.as_ref())?);
        // The squares bound every other sum; a norm's is no larger than its square's, or than the number of rows.
        let squares = [&totals.error, &totals.spread, &totals.square_out, &totals.dot, &totals.norm_in];
        let finite = squares.into_iter().all(Exact::is_finite);
        let finite = finite
            && [&totals.ratio, &totals.relative_error, &totals.unexplained].into_iter().all(Exact::is_finite);
        if !finite || !sum.iter().chain(&error_sum).all(|s| s.is_finite()) {
            return Err(EvalError::NotFinite("an activation or its reconstruction"));
        }
        self.n += rows.len() as u64;
        self.centre = Some(centre);
        self.totals.merge(&totals);
        self.sum.iter_mut().zip(&sum).for_each(|(sum, term)| sum.add(*term));
        self.error_sum.iter_mut().zip(&error_sum).for_each(|(sum, term)| sum.add(*term));
        Ok(rows)
    }

    /// Joins what another has summed. Exact where the two have one centre.
    ///
    /// # Errors
    /// [`EvalError::Merge`] for vectors of another width.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if self.sum.len() != other.sum.len() {
            let (own, theirs) = (self.sum.len(), other.sum.len());
            return Err(EvalError::Merge(format!("reconstructions of {own} and {theirs} entries")));
        }
        let Some(theirs) = &other.centre else { return Ok(()) };
        let ours = self.centre.get_or_insert_with(|| theirs.clone());
        // Σ‖x − c‖² = Σ‖x − c'‖² + 2 (c' − c)·Σ(x − c') + n ‖c' − c‖², and Σ(x − c) = Σ(x − c') + n (c' − c).
        let n = other.n as f64;
        for ((sum, their_sum), (ours, theirs)) in
            self.sum.iter_mut().zip(&other.sum).zip(ours.iter().zip(theirs))
        {
            let step = theirs - ours;
            if step != 0.0 {
                self.totals.spread.add(2.0 * step * their_sum.value() + n * step * step);
                sum.add(n * step);
            }
            sum.merge(their_sum);
        }
        self.n += other.n;
        self.totals.merge(&other.totals);
        self.error_sum.iter_mut().zip(&other.error_sum).for_each(|(sum, theirs)| sum.merge(theirs));
        Ok(())
    }

    /// Whether two are about one centre, but for the rounding of another machine: closer than a thousandth of the rows' own
    /// distance from it. Of others only what the centre does not enter can be merged.
    pub(crate) fn is_about_the_centre_of(&self, other: &Self) -> bool {
        let (Some(own), Some(theirs)) = (&self.centre, &other.centre) else { return true };
        let apart: f64 = own.iter().zip(theirs).map(|(own, theirs)| (own - theirs).powi(2)).sum();
        let spread = self.totals.spread.value() + other.totals.spread.value();
        apart * (self.n + other.n) as f64 <= 1e-6 * spread
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.n
    }

    /// `Σ‖x − x̄‖²`.
    pub fn total_variance(&self) -> f64 {
        about_mean(&self.totals.spread, &self.sum, self.n)
    }

    /// Fraction of variance unexplained: `Σ‖x − x̂‖² / Σ‖x − x̄‖²`, where x̄ is the mean of all x (Gemma Scope, section 4).
    ///
    /// 0 is perfect; 1 is no better than always predicting the mean; more is worse than that. `1 − FVU` is what SAELens calls
    /// `explained_variance` since its issue 665. Unchanged by a common scale or shift of x and x̂. `None` where x does not vary.
    pub fn fvu(&self) -> Option<f64> {
        self.variance().map(|variance| self.totals.error.value() / variance)
    }

    /// `1 − Σ_d Var_d(x − x̂) / Σ_d Var_d(x)`, which forgives a constant error (dictionary_learning, `evaluation.py`).
    pub fn frac_variance_explained(&self) -> Option<f64> {
        let error = about_mean(&self.totals.error, &self.error_sum, self.n);
        self.variance().map(|variance| 1.0 - error / variance)
    }

    /// Mean of `1 − ‖x − x̂‖² / ‖x − c‖²`, a ratio for each row (SAELens' `explained_variance_legacy`).
    pub fn explained_variance_legacy(&self) -> Option<f64> {
        mean(&self.totals.unexplained, self.totals.off_centre).map(|unexplained| 1.0 - unexplained)
    }

    /// Mean of `‖x − x̂‖²`.
    pub fn mse(&self) -> Option<f64> {
        mean(&self.totals.error, self.n)
    }

    /// Mean of `‖x − x̂‖² / ‖x‖²` over rows that are not zero (OpenAI's sparse_autoencoder, `loss.py`).
    pub fn normalized_mse(&self) -> Option<f64> {
        mean(&self.totals.relative_error, self.totals.nonzero)
    }

    /// Mean of `‖x − x̂‖`.
    pub fn l2_loss(&self) -> Option<f64> {
        mean(&self.totals.error_norm, self.n)
    }

    /// Mean cosine of x and x̂; that of a zero vector is 0.
    pub fn cosine(&self) -> Option<f64> {
        mean(&self.totals.cosine, self.n)
    }

    /// Mean of `‖x̂‖ / ‖x‖` over rows that are not zero.
    pub fn l2_ratio(&self) -> Option<f64> {
        mean(&self.totals.ratio, self.totals.nonzero)
    }

    /// Mean of `‖x‖`.
    pub fn l2_norm_in(&self) -> Option<f64> {
        mean(&self.totals.norm_in, self.n)
    }

    /// Mean of `‖x̂‖`.
    pub fn l2_norm_out(&self) -> Option<f64> {
        mean(&self.totals.norm_out, self.n)
    }

    /// `γ = Σ‖x̂‖² / Σ⟨x, x̂⟩` (Gated SAEs, arXiv 2404.16014, eq. 10). `None` where the denominator is zero.
    pub fn relative_reconstruction_bias(&self) -> Option<f64> {
        let dot = self.totals.dot.value();
        (dot != 0.0).then(|| self.totals.square_out.value() / dot)
    }

    /// What is left of the squares may be rounding alone: less than that is no variance.
    fn variance(&self) -> Option<f64> {
        let variance = self.total_variance();
        (variance > 1e-12 * self.totals.spread.value()).then_some(variance)
    }
}

impl Totals {
    fn merge(&mut self, other: &Self) {
        self.error.merge(&other.error);
        self.spread.merge(&other.spread);
        self.square_out.merge(&other.square_out);
        self.dot.merge(&other.dot);
        self.cosine.merge(&other.cosine);
        self.norm_in.merge(&other.norm_in);
        self.norm_out.merge(&other.norm_out);
        self.error_norm.merge(&other.error_norm);
        self.ratio.merge(&other.ratio);
        self.relative_error.merge(&other.relative_error);
        self.unexplained.merge(&other.unexplained);
        self.nonzero += other.nonzero;
        self.off_centre += other.off_centre;
    }
}

/// The rows of one call, summed plainly in float64: what is added to the exact sums in the end.
#[derive(Default)]
struct Batch {
    /// ‖x − x̂‖², ‖x − c‖², ‖x‖², ‖x̂‖² and ⟨x, x̂⟩ of each row.
    squares: [Vec<f64>; 5],
    sum: Option<Tensor>,
    error_sum: Option<Tensor>,
}

impl Batch {
    fn add(&mut self, x: &Tensor, x_hat: &Tensor, centre: &Tensor) -> Result<()> {
        let (x, x_hat) = (x.f_to_kind(Kind::Double)?, x_hat.f_to_kind(Kind::Double)?);
        let (error, shifted) = (x.f_sub(&x_hat)?, x.f_sub(centre)?);
        let pairs = [(&error, &error), (&shifted, &shifted), (&x, &x), (&x_hat, &x_hat), (&x, &x_hat)];
        for (rows, (a, b)) in self.squares.iter_mut().zip(pairs) {
            rows.extend(Vec::<f64>::try_from(Tensor::f_linalg_vecdot(a, b, -1)?)?);
        }
        for (sum, t) in [(&mut self.sum, shifted), (&mut self.error_sum, error)] {
            let here = t.f_sum_dim_intlist(0, false, Kind::Double)?;
            *sum = Some(match sum {
                None => here,
                Some(sum) => sum.f_add(&here)?,
            });
        }
        Ok(())
    }

    fn totals(&self) -> Result<(Totals, Vec<Row>)> {
        let [error, spread, square_in, square_out, dot] = &self.squares;
        let over = |f: &dyn Fn(usize) -> f64| Exact::from_iter([(0..error.len()).map(f).sum::<f64>()]);
        let of = |values: &[f64]| Exact::from_iter([values.iter().sum::<f64>()]);
        let quotient = |a: f64, b: f64| if b > 0.0 { a / b } else { 0.0 };
        let count = |values: &[f64]| values.iter().filter(|v| **v > 0.0).count() as u64;
        let totals = Totals {
            error: of(error),
            spread: of(spread),
            square_out: of(square_out),
            dot: of(dot),
            cosine: over(&|i| quotient(dot[i], square_in[i].sqrt() * square_out[i].sqrt())),
            norm_in: over(&|i| square_in[i].sqrt()),
            norm_out: over(&|i| square_out[i].sqrt()),
            error_norm: over(&|i| error[i].sqrt()),
            nonzero: count(square_in),
            ratio: over(&|i| quotient(square_out[i].sqrt(), square_in[i].sqrt())),
            relative_error: over(&|i| quotient(error[i], square_in[i])),
            off_centre: count(spread),
            unexplained: over(&|i| quotient(error[i], spread[i])),
        };
        let rows = error.iter().zip(spread).map(|(error, spread)| Row { error: *error, spread: *spread });
        Ok((totals, rows.collect()))
    }
}

fn floats(t: Option<&Tensor>) -> Result<Vec<f64>> {
    Ok(t.map(Vec::<f64>::try_from).transpose()?.unwrap_or_default())
}

/// `Σ‖v − v̄‖²` from `Σ‖v‖²` and `Σ v` of n vectors.
fn about_mean(squares: &Exact, sum: &[Exact], n: u64) -> f64 {
    if n == 0 {
        return 0.0;
    }
    squares.value() - sum.iter().map(|s| s.value().powi(2)).sum::<f64>() / n as f64
}

pub(crate) fn mean(sum: &Exact, n: u64) -> Option<f64> {
    (n > 0).then(|| sum.value() / n as f64)
}
