//! Numbers that float32 holds exactly: what is at its threshold is off, and what is just above it is on.

use proptest::{collection::vec, prelude::*};
use sae_core::{Sae, SparseAutoencoder as _};
use tch::{Device, Kind, Tensor};
use testkit::assert_same;

use crate::common::{cases, matrix};

/// Everything is a multiple of a quarter, and small: float32 sums it without rounding.
const UNIT: f32 = 0.25;

#[test]
fn a_latent_at_its_threshold_is_off() {
    let threshold = [0.5f32, 1.0, 3.0, 0.0];
    let eye = Tensor::eye(4, (Kind::Float, Device::Cpu));
    let zeros = Tensor::zeros([4], (Kind::Float, Device::Cpu));
    let sae = Sae::jumprelu(eye.copy(), zeros.copy(), eye, zeros, Tensor::from_slice(&threshold)).unwrap();
    let at = matrix(&threshold, 4);
    let above = matrix(&threshold.map(f32::next_up), 4);
    let below = matrix(&threshold.map(f32::next_down), 4);
    let off = Tensor::zeros([1, 4], (Kind::Float, Device::Cpu));
    assert_same("at the threshold", &sae.encode(&at).unwrap(), &off);
    assert_same("below it", &sae.encode(&below).unwrap(), &off);
    // The smallest subnormal, which stands above a threshold of zero, may be flushed to zero by the processor.
    let larger = above.narrow(1, 0, 3);
    assert_same("above it", &sae.encode(&above).unwrap().narrow(1, 0, 3), &larger);
    assert_eq!(sae.encode_sparse(&at).unwrap().nnz(), 0);
}

fn quarters(n: usize, low: i32, high: i32) -> impl Strategy<Value = Vec<i32>> {
    vec(low..=high, n)
}

proptest! {
    #![proptest_config(cases(64))]

    /// The formula in integers: `π = x W_enc + b_enc`, `f = π` where `π > θ`, else 0.
    #[test]
    fn the_formula_in_integers(
        (d_in, d_sae, rows) in (1usize..6, 1usize..12, 1usize..8),
        w in quarters(72, -2, 2),
        x in quarters(48, -4, 4),
        b in quarters(12, -4, 4),
        theta in quarters(12, 0, 6),
    ) {
        let floats = |values: &[i32]| values.iter().map(|&v| v as f32 * UNIT).collect::<Vec<_>>();
        // W_enc holds whole numbers, so that products of it and of x are multiples of the unit.
        let w_enc: Vec<f32> = w[..d_in * d_sae].iter().map(|&v| v as f32).collect();
        let zeros = Tensor::zeros([d_sae as i64, 1], (Kind::Float, Device::Cpu));
        let sae = Sae::jumprelu(
            matrix(&w_enc, d_sae as i64),
            Tensor::from_slice(&floats(&b[..d_sae])),
            zeros.copy(),
            zeros.get(0),
            Tensor::from_slice(&floats(&theta[..d_sae])),
        ).unwrap();
        let mut want = Vec::new();
        for row in 0..rows {
            for j in 0..d_sae {
                let pre = (0..d_in).map(|i| x[row * d_in + i] * w[i * d_sae + j]).sum::<i32>() + b[j];
                want.push(if pre > theta[j] { pre } else { 0 });
            }
        }
        let got = sae.encode(&matrix(&floats(&x[..rows * d_in]), d_in as i64)).unwrap();
        assert_same("features", &got, &matrix(&floats(&want), d_sae as i64));
    }
}
