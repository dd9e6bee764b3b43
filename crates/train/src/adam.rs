use tch::Tensor;

use crate::Result;

/// Adam's constants (arXiv 1412.6980), with decoupled weight decay (arXiv 1711.05101).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamOptions {
    /// Decay of the first moment. Zero, as Gemma Scope trains, keeps none.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Pulls weights towards zero by `lr · weight_decay` a step.
    pub weight_decay: f64,
}

/// Adam for one tensor. tch's own optimisers can't be saved; the state of this one is two tensors and a count.
#[derive(Debug)]
pub struct Adam {
    options: AdamOptions,
    steps: i64,
    /// First moment, unless `beta1` is zero.
    m: Option<Tensor>,
    /// Second moment.
    v: Tensor,
}

impl Adam {
    /// A fresh state for a parameter of this shape.
    ///
    /// # Errors
    /// libtorch's.
    pub fn new(parameter: &Tensor, options: AdamOptions) -> Result<Self> {
        let zeros = || parameter.f_detach()?.f_zeros_like();
        let m = if options.beta1 == 0.0 { None } else { Some(zeros()?) };
        Ok(Self { options, steps: 0, m, v: zeros()? })
    }

    /// `p ← p − lr · (m̂ / (√v̂ + ε) + weight_decay · p)`, with both moments corrected for their start at zero.
    ///
    /// # Errors
    /// libtorch's, as for a gradient of another shape.
    pub fn step(&mut self, parameter: &Tensor, grad: &Tensor, lr: f64) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let AdamOptions { beta1, beta2, eps, weight_decay } = self.options;
        self.steps += 1;
        let steps = self.steps as f64;
        let _ = self.v.f_mul_scalar_(beta2)?.f_add_(&grad.f_square()?.f_mul_scalar_(1.0 - beta2)?)?;
        let root = self.v.f_sqrt()?.f_div_scalar_((1.0 - beta2.powf(steps)).sqrt())?.f_add_scalar_(eps)?;
        let update = match &mut self.m {
            Some(m) => {
                let _ = m.f_mul_scalar_(beta1)?.f_add_(&grad.f_mul_scalar(1.0 - beta1)?)?;
                m.f_div(&root)?.f_div_scalar_(1.0 - beta1.powf(steps))?
            }
            None => grad.f_div(&root)?,
        };
        let mut data = parameter.f_detach()?;
        let _ = data.f_mul_scalar_(1.0 - lr * weight_decay)?;
        let _ = data.f_sub_(&update.f_mul_scalar(lr)?)?;
        Ok(())
    }

    /// Its constants.
    pub fn options(&self) -> AdamOptions {
        self.options
    }

    /// The first moment, unless `beta1` is zero, and the second: for a step that is fused with its gradient.
    pub(crate) fn moments(&self) -> (Option<&Tensor>, &Tensor) {
        (self.m.as_ref(), &self.v)
    }

    /// Counts a step that was taken elsewhere.
    pub(crate) fn count_step(&mut self) {
        self.steps += 1;
    }

    /// Forgets both moments of some rows.
    pub(crate) fn forget(&mut self, rows: &Tensor) -> Result<()> {
        for moment in self.m.iter_mut().chain([&mut self.v]) {
            let _ = moment.f_index_fill_(0, rows, 0.0)?;
        }
        Ok(())
    }

    /// How many steps were taken, and the moments by name: what a checkpoint holds.
    pub fn state(&self) -> (i64, Vec<(&'static str, &Tensor)>) {
        let m = self.m.iter().map(|m| ("m", m));
        (self.steps, m.chain([("v", &self.v)]).collect())
    }

    /// Takes up a state that [`state`](Self::state) gave.
    ///
    /// # Errors
    /// A moment that is missing or of another shape.
    pub fn restore(&mut self, steps: i64, mut moment: impl FnMut(&str) -> Result<Tensor>) -> Result<()> {
        self.steps = steps;
        if let Some(m) = &mut self.m {
            m.f_copy_(&moment("m")?)?;
        }
        self.v.f_copy_(&moment("v")?)?;
        Ok(())
    }
}
