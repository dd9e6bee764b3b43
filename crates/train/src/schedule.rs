use std::f64::consts::PI;

/// Linear from 0 at step 0 to 1 at step `over`, then 1. Gemma Scope warms λ up so (section 3.2).
pub fn linear_warmup(step: usize, over: usize) -> f64 {
    if step >= over { 1.0 } else { step as f64 / over as f64 }
}

/// A cosine from `from` at step 0 to 1 at step `over`, then 1. Gemma Scope's learning rate starts at 0.1 of its value so.
pub fn cosine_warmup(step: usize, over: usize, from: f64) -> f64 {
    if step >= over {
        return 1.0;
    }
    let rise = 0.5 * (1.0 - (PI * step as f64 / over as f64).cos());
    from + (1.0 - from) * rise
}

/// Linear from 1 to `to` over the last `over` of `total` steps.
pub fn linear_decay(step: usize, total: usize, over: usize, to: f64) -> f64 {
    let left = total.saturating_sub(step);
    if left >= over || over == 0 { 1.0 } else { to + (1.0 - to) * left as f64 / over as f64 }
}
