use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::{ActivationError, Result, Site, Source};

/// Sums over the rows of a site, in float64: added up, they are those of all rows.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moments {
    /// How many rows.
    pub rows: u64,
    /// Σ ‖x‖².
    pub square: f64,
    /// Σ ‖x‖.
    pub norm: f64,
}

impl Moments {
    /// Those of some rows, `[rows, width]`.
    ///
    /// # Errors
    /// libtorch's.
    pub fn of(rows: &Tensor) -> Result<Self> {
        /// float64 takes room, so it is done piece by piece.
        const PIECE: i64 = 1024;
        let mut sums = Self::default();
        let count = rows.size().first().copied().unwrap_or(0);
        for start in (0..count).step_by(PIECE as usize) {
            let piece = rows.f_narrow(0, start, PIECE.min(count - start))?.f_to_kind(Kind::Double)?;
            let square = piece.f_square()?.f_sum_dim_intlist(1, false, Kind::Double)?;
            sums.square += square.f_sum(Kind::Double)?.f_double_value(&[])?;
            sums.norm += square.f_sqrt()?.f_sum(Kind::Double)?.f_double_value(&[])?;
        }
        sums.rows = count as u64;
        Ok(sums)
    }

    /// Adds those of other rows.
    pub fn add(&mut self, other: &Self) {
        self.rows += other.rows;
        self.square += other.square;
        self.norm += other.norm;
    }

    /// Those of the next `rows` rows of a source or a few more (whole chunks are taken), for each site; of all that is left where
    /// there are fewer. The source stands afterwards where it stood.
    ///
    /// # Errors
    /// The source's; [`ActivationError::Empty`] where no row is left.
    pub fn estimate(source: &mut (impl Source + ?Sized), rows: u64) -> Result<Vec<Self>> {
        let at = source.cursor();
        let mut sums = vec![Self::default(); source.sites().len()];
        while sums.first().is_some_and(|sums| sums.rows < rows) {
            let Some(chunk) = source.next()? else { break };
            for (sums, rows) in sums.iter_mut().zip(&chunk.at) {
                sums.add(&Self::of(rows)?);
            }
        }
        source.seek(at)?;
        match sums.first() {
            Some(sums) if sums.rows == 0 => Err(ActivationError::Empty),
            _ => Ok(sums),
        }
    }
}

/// What one scalar makes of a site's activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalisation {
    /// E‖x‖² = 1, so the scalar is √(mean ‖x‖²): Gemma Scope (section 3.1) and the JumpReLU paper.
    #[default]
    UnitMeanSquare,
    /// E‖x‖ = √d, so the scalar is (mean ‖x‖)/√d: Anthropic's update of April 2024.
    MeanNormSqrtD,
    /// The activations as they are: the scalar is 1.
    None,
}

/// The scalar that a site's activations are divided by, fixed before training and folded into the SAE's weights afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// The site.
    pub site: Site,
    /// What the scalar is for.
    pub normalisation: Normalisation,
    /// The scalar: x is divided by it.
    pub divisor: f64,
    /// Rows that it was taken from.
    pub rows: u64,
}

impl Scale {
    /// The scalar of a site whose rows have these sums.
    ///
    /// # Errors
    /// [`ActivationError::Rows`] where there were no rows, or all were zero.
    pub fn new(site: Site, normalisation: Normalisation, sums: &Moments) -> Result<Self> {
        let n = sums.rows as f64;
        let divisor = match normalisation {
            Normalisation::UnitMeanSquare => (sums.square / n).sqrt(),
            Normalisation::MeanNormSqrtD => sums.norm / n / (site.width as f64).sqrt(),
            Normalisation::None => 1.0,
        };
        if divisor.is_finite() && divisor > 0.0 {
            return Ok(Self { site, normalisation, divisor, rows: sums.rows });
        }
        let problem = format!(
            "the activations at `{}` can't be scaled: their {} rows have a mean square norm of {}",
            site.hook,
            sums.rows,
            sums.square / n
        );
        Err(ActivationError::Rows(problem))
    }

    /// The rows divided by the scalar.
    ///
    /// # Errors
    /// libtorch's.
    pub fn apply(&self, rows: &Tensor) -> Result<Tensor> {
        Ok(rows.f_div_scalar(self.divisor)?)
    }
}
