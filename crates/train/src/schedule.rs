use std::f64::consts::PI;

use crate::config::{Curve, Optimizer, Span};

/// Linear from 0 at step 0 to 1 at step `over`, then 1. Gemma Scope warms λ up so (section 3.2).
pub fn linear_warmup(step: usize, over: usize) -> f64 {
    if step >= over { 1.0 } else { step as f64 / over as f64 }
}

/// Linear from 1 to `to` over the last `over` of `total` steps.
pub fn linear_decay(step: usize, total: usize, over: usize, to: f64) -> f64 {
    let left = total.saturating_sub(step);
    if left >= over || over == 0 { 1.0 } else { to + (1.0 - to) * left as f64 / over as f64 }
}

impl Curve {
    /// The curve's height, 0 to 1, at a share of its length.
    fn at(self, share: f64) -> f64 {
        match self {
            Self::Linear => share,
            Self::Cosine => 0.5 * (1.0 - (PI * share).cos()),
        }
    }
}

impl Optimizer {
    /// The learning rate of a step, counted from 0, of `total`: `lr`, times the warm-up's share, times the decay's. The first of
    /// the last `lr_decay` steps still has the full rate; the step after the last would have the share `lr_decay_to`.
    pub fn rate(&self, step: u64, total: u64) -> f64 {
        let (warmup, decay) = (self.lr_warmup.steps(total), self.lr_decay.steps(total));
        let mut rate = self.lr;
        if step < warmup {
            let risen = self.lr_warmup_shape.at(step as f64 / warmup as f64);
            rate *= self.lr_warmup_from + (1.0 - self.lr_warmup_from) * risen;
        }
        let left = total.saturating_sub(step);
        if left < decay {
            let height = self.lr_decay_shape.at(left as f64 / decay as f64);
            rate *= self.lr_decay_to + (1.0 - self.lr_decay_to) * height;
        }
        rate
    }
}

/// A value that rises linearly from 0 over `warmup`: λ.
pub fn warmed(value: f64, warmup: Span, step: u64, total: u64) -> f64 {
    value * linear_warmup(step as usize, warmup.steps(total) as usize)
}
