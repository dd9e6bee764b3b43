use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use rand_distr::{Distribution as _, StandardNormal};
use tch::Tensor;

/// Standard normal float32 values: the same seed gives the same tensor everywhere.
pub fn normal(size: &[i64], seed: u64) -> Tensor {
    let count = size.iter().product::<i64>() as usize;
    let values: Vec<f32> = StandardNormal.sample_iter(StdRng::seed_from_u64(seed)).take(count).collect();
    Tensor::from_slice(&values).reshape(size)
}

/// Float32 values spread evenly over `low..high`.
pub fn uniform(size: &[i64], low: f32, high: f32, seed: u64) -> Tensor {
    let count = size.iter().product::<i64>() as usize;
    let mut rng = StdRng::seed_from_u64(seed);
    let values: Vec<f32> = (0..count).map(|_| rng.random_range(low..high)).collect();
    Tensor::from_slice(&values).reshape(size)
}
