use rand::{Rng as _, rngs::StdRng};

use crate::{ModelError, Result};

/// How the next token is chosen from the logits.
///
/// The filters are applied in this order, each to what the one before has left (transformers, `logits_process.py`):
/// temperature, top-k, top-p, min-p. The default is greedy.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Sampling {
    /// Logits are divided by this. 0 is greedy: the likeliest token, and the filters don't matter.
    pub temperature: f64,
    /// Only the `k` likeliest tokens, and those as likely as the last of them.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens whose probabilities together first reach this much.
    pub top_p: Option<f64>,
    /// Only tokens at least this many times as likely as the likeliest.
    pub min_p: Option<f64>,
    /// The same seed draws the same tokens, each row of a batch its own, whatever else is in the batch.
    pub seed: u64,
}

impl Sampling {
    /// Draws by the model's own probabilities.
    pub fn with_temperature(temperature: f64) -> Self {
        Self { temperature, ..Self::default() }
    }

    /// Refuses values that mean nothing.
    pub(crate) fn check(&self) -> Result<()> {
        let bad = |problem: String| Err(ModelError::Generate(problem));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return bad(format!("the temperature must be 0 or more, but is {}", self.temperature));
        }
        if self.top_k == Some(0) {
            return bad("top-k must be at least 1, but is 0".to_owned());
        }
        if let Some(p) = self.top_p.filter(|p| !(*p > 0.0 && *p <= 1.0)) {
            return bad(format!("top-p must lie above 0 and at most at 1, but is {p}"));
        }
        if let Some(p) = self.min_p.filter(|p| !(*p >= 0.0 && *p <= 1.0)) {
            return bad(format!("min-p must lie between 0 and 1, but is {p}"));
        }
        Ok(())
    }

    /// The tokens that may come next and their probabilities, likeliest first (ties: the smaller id first).
    ///
    /// # Errors
    /// [`ModelError::Generate`] for settings that mean nothing, or logits that are NaN or of which none is finite.
    pub fn distribution(&self, logits: &[f32]) -> Result<Vec<(i64, f64)>> {
        self.check()?;
        let best = greedy(logits)?;
        if self.temperature == 0.0 {
            return Ok(vec![(best as i64, 1.0)]);
        }
        let largest = f64::from(logits[best]);
        // Unnormalised: exp((logit − largest) / T). The likeliest has weight 1.
        let weight = |logit: f32| ((f64::from(logit) - largest) / self.temperature).exp();
        let mut left: Vec<(usize, f64)> = logits.iter().map(|l| weight(*l)).enumerate().collect();
        let by_weight = |a: &(usize, f64), b: &(usize, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if let Some(k) = self.top_k.filter(|k| *k < left.len()) {
            let (_, last, _) = left.select_nth_unstable_by(k - 1, by_weight);
            let least = last.1;
            left.retain(|(_, w)| *w >= least);
        }
        // What is a 10^30th as likely as the likeliest is drawn never: it need not be sorted.
        left.retain(|(_, w)| *w > 1e-30);
        left.sort_unstable_by(by_weight);
        if let Some(p) = self.top_p.filter(|p| *p < 1.0) {
            let total: f64 = left.iter().map(|(_, w)| w).sum();
            let mut before = 0.0;
            left.retain(|(_, w)| {
                let keep = before < p * total;
                before += w;
                keep
            });
        }
        if let Some(p) = self.min_p {
            left.retain(|(_, w)| *w >= p);
        }
        let total: f64 = left.iter().map(|(_, w)| w).sum();
        Ok(left.into_iter().map(|(id, w)| (id as i64, w / total)).collect())
    }

    /// The next token.
    pub(crate) fn draw(&self, logits: &[f32], rng: &mut StdRng) -> Result<i64> {
        if self.temperature == 0.0 {
            return Ok(greedy(logits)? as i64);
        }
        let distribution = self.distribution(logits)?;
        let mut left: f64 = rng.random();
        for (id, p) in &distribution {
            left -= p;
            if left < 0.0 {
                return Ok(*id);
            }
        }
        // Rounding may leave a 10^16th.
        Ok(distribution.first().map_or(0, |(id, _)| *id))
    }
}

/// The index of the largest logit, the first of several.
fn greedy(logits: &[f32]) -> Result<usize> {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            return Err(ModelError::Generate(format!("the logit of token {id} is NaN")));
        }
        if *logit > logits[best] {
            best = id;
        }
    }
    match logits.get(best) {
        Some(logit) if logit.is_finite() => Ok(best),
        Some(logit) if *logit > 0.0 => {
            Err(ModelError::Generate(format!("the logit of token {best} is infinite")))
        }
        _ => Err(ModelError::Generate("no token has a finite logit".to_owned())),
    }
}
