use rand::{SeedableRng as _, rngs::StdRng};
use rand_distr::{Distribution as _, StandardNormal};
use tch::Tensor;

use crate::{Gemma2, Gemma2Config, Result};

impl Gemma2 {
    /// A fresh model to train, float32 on the CPU, with gradients asked for. The same seed gives the same weights everywhere.
    ///
    /// Matrices are normal with variance 1/fan-in, the embedding with variance 1/d_model (so that what enters block 0 has
    /// unit variance), and gains are one.
    ///
    /// # Errors
    /// A configuration that makes no model.
    pub fn init(config: Gemma2Config, seed: u64) -> Result<Self> {
        let mut rng = StdRng::seed_from_u64(seed);
        Self::from_fn(config, |_name, axes| {
            let size: Vec<i64> = axes.iter().map(|(_, n)| *n).collect();
            let count = size.iter().product::<i64>() as usize;
            let spread = match size.as_slice() {
                [_, fan_in] => (*fan_in as f32).sqrt().recip(),
                _ => 0.0, // a norm's distance from a gain of one
            };
            let values: Vec<f32> =
                StandardNormal.sample_iter(&mut rng).take(count).map(|v: f32| spread * v).collect();
            Ok(Tensor::f_from_slice(&values)?.f_reshape(size)?.f_set_requires_grad(true)?)
        })
    }
}
