use crate::{
    config::{Config, Objective, PrefixLoss, ReconstructionLoss},
    objective::Moment,
};

/// How the squared errors of the nested dictionaries count. Each term is `weight · Σ_rows ‖x̂_g − target‖²`.
pub(super) struct Plan {
    /// Widths of the dictionaries, rising to `d_sae`; a 0 in front where `b_dec` alone counts too.
    pub(super) ends: Vec<i64>,
    /// The terms' weight.
    weight: f64,
    /// c, twice the weight: `c (x̂_g − target)` is a term's gradient.
    pub(super) slope: f64,
}

impl Plan {
    pub(super) fn new(config: &Config, at: &Moment, rows: i64) -> Self {
        let (widths, join, divisor) = match &config.objective {
            Objective::Jumprelu(o) => (&o.prefixes[..], o.prefix_loss, 1.0),
            Objective::Topk(o) => {
                let divisor = match o.reconstruction {
                    ReconstructionLoss::Sum => 1.0,
                    ReconstructionLoss::Mean => config.d_out() as f64,
                    ReconstructionLoss::Normalized => at.variance,
                };
                (&o.prefixes[..], o.prefix_loss, divisor)
            }
            Objective::Gated(_) | Objective::Relu(_) => (&[][..], PrefixLoss::Sum, 1.0),
        };
        let ends = match (widths, join) {
            ([], _) => vec![config.d_sae],
            (widths, PrefixLoss::Sum) => widths.to_vec(),
            (widths, PrefixLoss::Mean) => [&[0], widths].concat(),
        };
        let terms = if join == PrefixLoss::Mean { ends.len() as f64 } else { 1.0 };
        let weight = 1.0 / (rows as f64 * divisor * terms);
        Self { ends, weight, slope: 2.0 * weight }
    }

    /// The terms by name, from the sums of squares, `[G]`.
    pub(super) fn parts(&self, squared: &[f64]) -> Vec<(String, f64)> {
        let last = self.ends.len() - 1;
        let name = |g: usize| match g == last {
            true => "reconstruction".to_owned(),
            false => format!("reconstruction_{}", self.ends[g]),
        };
        squared.iter().enumerate().map(|(g, sum)| (name(g), sum * self.weight)).collect()
    }
}
