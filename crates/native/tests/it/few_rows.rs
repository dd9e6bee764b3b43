//! The kernel against libtorch's own product, in every case that it takes, and its refusals of the others.

use native::{linear_few_rows, most_rows};
use tch::{Device, Kind, Tensor};

fn random(size: [i64; 2], kind: Kind) -> Tensor {
    Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(kind)
}

#[test]
fn it_is_the_product() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for rows in 1..=most_rows(kind) {
            // Widths that leave a tail in every number of lanes; the last is spread over threads.
            for (d_in, d_out) in [(1, 1), (7, 5), (63, 3), (64, 64), (131, 17), (2304, 300)] {
                let (x, w) = (random([rows, d_in], kind), random([d_out, d_in], kind));
                let got = linear_few_rows(&x, &w).unwrap().unwrap();
                assert_eq!((got.size(), got.kind()), (vec![rows, d_out], kind));
                let exact = x.to_kind(Kind::Double).matmul(&w.to_kind(Kind::Double).tr());
                // float32 sums of 2304 products; bfloat16 is rounded once, to 8 bits.
                let of_largest = if kind == Kind::Float { 1e-6 } else { 1.0 / 256.0 };
                let off = (got.to_kind(Kind::Double) - &exact).abs().max().double_value(&[]);
                let limit = of_largest * exact.abs().max().double_value(&[]) + 1e-6;
                assert!(off <= limit, "{kind:?} [{rows}, {d_in}] by {d_out}: {off:.1e}");
            }
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (x, w) = (random([3, 2304], Kind::Float), random([300, 2304], Kind::Float));
    let before = tch::get_num_threads();
    let of = |threads| {
        tch::set_num_threads(threads);
        linear_few_rows(&x, &w).unwrap().unwrap()
    };
    let (one, two) = (of(1), of(2));
    tch::set_num_threads(before);
    assert!(one == two);
}

#[test]
fn what_it_does_not_take_it_leaves() {
    let w = random([5, 16], Kind::Float);
    let none = |x: &Tensor, w: &Tensor| assert!(linear_few_rows(x, w).unwrap().is_none());
    none(&random([most_rows(Kind::Float) + 1, 16], Kind::Float), &w);
    none(&random([3, 16], Kind::BFloat16), &w.to_kind(Kind::BFloat16));
    none(&random([1, 15], Kind::Float), &w);
    none(&random([1, 16], Kind::BFloat16), &w);
    none(&random([1, 16], Kind::Half), &w.to_kind(Kind::Half));
    none(&random([16, 2], Kind::Float).tr(), &w);
    none(&random([1, 16], Kind::Float), &random([16, 5], Kind::Float).tr());
    none(&random([1, 16], Kind::Float).set_requires_grad(true), &w);
    none(&random([1, 16], Kind::Float).view([16]), &w);
    none(&random([0, 16], Kind::Float), &w);
}
