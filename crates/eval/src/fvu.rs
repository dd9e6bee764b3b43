use tch::{Kind, Tensor};
use tch_ext::expect_shape;

use crate::{EvalError, Result};

/// Fraction of variance unexplained: `Σ‖x − x̂‖² / Σ‖x − x̄‖²`, where x̄ is the mean of all x (Gemma Scope, section 4).
///
/// 0 is perfect; 1 is no better than always predicting the mean; more is worse than that. `1 − FVU` is what SAELens calls
/// `explained_variance` since its issue 665. Unchanged by a common scale or shift of x and x̂.
#[derive(Debug, Clone, PartialEq)]
pub struct Fvu {
    n: f64,
    /// Σ‖x − x̂‖².
    error: f64,
    /// Σ(x − c): `[d]`.
    sum: Vec<f64>,
    /// Σ‖x − c‖².
    square: f64,
    /// c, the first x that came: sums about it lose no digits to a mean far from zero.
    centre: Option<Vec<f64>>,
}

impl Fvu {
    /// For vectors of `d` entries.
    pub fn new(d: i64) -> Self {
        Self { n: 0.0, error: 0.0, sum: vec![0.0; d.max(0) as usize], square: 0.0, centre: None }
    }

    /// Adds rows: `x` and `x_hat`, both `[n, d]`.
    ///
    /// # Errors
    /// Tensors of other shapes.
    pub fn add(&mut self, x: &Tensor, x_hat: &Tensor) -> Result<()> {
        let axes = [("n", x.size().first().copied().unwrap_or(0)), ("d", self.sum.len() as i64)];
        expect_shape("x", x, &axes)?;
        expect_shape("x_hat", x_hat, &axes)?;
        if axes[0].1 == 0 {
            return Ok(());
        }
        let (x, x_hat) = (x.f_detach()?.f_to_kind(Kind::Double)?, x_hat.f_detach()?.f_to_kind(Kind::Double)?);
        let centre = match &self.centre {
            Some(centre) => centre,
            None => self.centre.insert(Vec::<f64>::try_from(x.f_get(0)?)?),
        };
        let shifted = x.f_sub(&Tensor::f_from_slice(centre)?.f_to_device(x.device())?)?;
        self.n += axes[0].1 as f64;
        self.error += total(&x.f_sub(&x_hat)?.f_square()?)?;
        self.square += total(&shifted.f_square()?)?;
        let sums = Vec::<f64>::try_from(shifted.f_sum_dim_intlist(0, false, Kind::Double)?)?;
        self.sum.iter_mut().zip(sums).for_each(|(sum, s)| *sum += s);
        Ok(())
    }

    /// Joins what another has summed.
    ///
    /// # Errors
    /// [`EvalError::Merge`] for vectors of another width.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        if self.sum.len() != other.sum.len() {
            return Err(EvalError::Merge(format!(
                "FVU over {} and {} entries",
                self.sum.len(),
                other.sum.len()
            )));
        }
        let Some(theirs) = &other.centre else { return Ok(()) };
        let ours = self.centre.get_or_insert_with(|| theirs.clone());
        self.n += other.n;
        self.error += other.error;
        self.square += other.square;
        // Σ‖x − c‖² = Σ‖x − c'‖² + 2 (c' − c)·Σ(x − c') + n ‖c' − c‖², and Σ(x − c) = Σ(x − c') + n (c' − c).
        for ((sum, their_sum), (ours, theirs)) in
            self.sum.iter_mut().zip(&other.sum).zip(ours.iter().zip(theirs))
        {
            let step = theirs - ours;
            self.square += 2.0 * step * their_sum + other.n * step * step;
            *sum += their_sum + other.n * step;
        }
        Ok(())
    }

    /// `Σ‖x − x̄‖²`.
    pub fn total_variance(&self) -> f64 {
        if self.n == 0.0 { 0.0 } else { self.square - self.sum.iter().map(|s| s * s).sum::<f64>() / self.n }
    }

    /// The fraction; `None` where x does not vary.
    pub fn value(&self) -> Option<f64> {
        // What is left of the squares may be rounding alone: less than that is no variance.
        let variance = self.total_variance();
        (variance > 1e-12 * self.square).then(|| self.error / variance)
    }
}

fn total(t: &Tensor) -> Result<f64> {
    Ok(t.f_sum(Kind::Double)?.f_double_value(&[])?)
}
