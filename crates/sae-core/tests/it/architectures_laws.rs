//! What holds for every architecture on random weights, sizes and tiles.

use proptest::prelude::*;
use sae_core::{Activation, Sae, SaeExt as _, SaeParts, SparseAutoencoder as _, SparseFeatures};
use tch::{Device, Kind, Tensor};
use testkit::{assert_close, assert_same, normal};

use crate::{
    common::{ROUNDING, cases, matrix, numbers},
    reference::{GROUPS, RULES, plain},
};

/// Another tile is another order of the same few sums.
const TILES: f64 = 1e-6;

fn make(rule: &str, sizes: [i64; 3], seed: u64) -> Sae {
    Sae::new(plain(rule, sizes, seed)).unwrap()
}

/// The same weights with another activation.
fn with_activation(sizes: [i64; 3], seed: u64, activation: Activation) -> Sae {
    Sae::new(SaeParts { activation, ..plain("relu", sizes, seed) }).unwrap()
}

fn trained(x: &Tensor) -> Tensor {
    x.copy().set_requires_grad(true)
}

fn any_rule() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&RULES[..])
}

prop_compose! {
    /// `d_in`, `d_sae`, `d_out` and a seed; groups divide `d_sae`, which fills up to several tiles.
    fn sizes()(
        d_in in 1i64..14, group in 2i64..90, d_out in 1i64..14, seed in 0u64..1000,
    ) -> ([i64; 3], u64) {
        ([d_in, GROUPS * group, d_out], seed)
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn dense_is_sparse((sizes, seed) in sizes(), rule in any_rule(), n in 0i64..30) {
        let sae = make(rule, sizes, seed);
        let x = normal(&[n, sizes[0]], seed + 9) * 2.0;
        let (dense, sparse) = (sae.encode(&trained(&x)).unwrap().detach(), sae.encode_sparse(&x).unwrap());
        assert_close("the two ways", &sparse.to_dense().unwrap(), &dense, ROUNDING);
        let again = SparseFeatures::from_dense(&dense).unwrap();
        assert_same("pointers", sparse.indptr(), again.indptr());
        assert_same("latents", sparse.indices(), again.indices());
        assert_close("output", &sae.decode_sparse(&sparse).unwrap(), &sae.decode(&dense).unwrap(), ROUNDING);
    }

    #[test]
    fn tiles_do_not_show((sizes, seed) in sizes(), rule in any_rule(), n in 1i64..30, tile in 1i64..5000) {
        let x = normal(&[n, sizes[0]], seed + 9) * 2.0;
        let whole = make(rule, sizes, seed).encode_sparse(&x).unwrap();
        for tile in [i64::MIN, 0, 1, tile, i64::MAX] {
            let sae = make(rule, sizes, seed).with_tile(tile);
            let tiled = sae.encode_sparse(&x).unwrap();
            assert_same("pointers", tiled.indptr(), whole.indptr());
            assert_same("latents", tiled.indices(), whole.indices());
            assert_close("values", tiled.values(), whole.values(), TILES);
            let dense = sae.encode_sparse(&trained(&x)).unwrap();
            assert_same("latents where gradients flow", dense.indices(), whole.indices());
        }
    }

    #[test]
    fn topk_keeps_the_largest((sizes, seed) in sizes(), n in 1i64..20, k in 1i64..40) {
        let k = k.min(sizes[1]);
        let x = normal(&[n, sizes[0]], seed + 9) * 2.0;
        let relu = with_activation(sizes, seed, Activation::Relu).encode(&x).unwrap();
        let top = with_activation(sizes, seed, Activation::TopK { k }).encode(&x).unwrap();
        for row in 0..n {
            let (relu, top) = (numbers(&relu.get(row)), numbers(&top.get(row)));
            let positive = relu.iter().filter(|v| **v > 0.0).count();
            let kept = top.iter().filter(|v| **v != 0.0).count();
            prop_assert_eq!(kept, positive.min(k as usize));
            prop_assert!(top.iter().zip(&relu).all(|(t, r)| *t == 0.0 || t == r));
            let smallest = top.iter().filter(|v| **v != 0.0).fold(f64::INFINITY, |a, b| a.min(*b));
            let left = top.iter().zip(&relu).filter(|(t, _)| **t == 0.0).map(|(_, r)| *r).fold(0.0, f64::max);
            prop_assert!(left <= smallest, "{left} was left, {smallest} kept");
        }
    }

    #[test]
    fn some_are_relu((sizes, seed) in sizes(), n in 1i64..20) {
        let x = normal(&[n, sizes[0]], seed + 9) * 2.0;
        let full = |value: f64| Tensor::full([sizes[1]], value, (Kind::Float, Device::Cpu));
        let of = |activation: Activation, x: &Tensor| {
            with_activation(sizes, seed, activation).encode(x).unwrap().detach()
        };
        for x in [&x, &trained(&x)] {
            let relu = of(Activation::Relu, x);
            assert_same("TopK of all", &of(Activation::TopK { k: sizes[1] }, x), &relu);
            assert_same("GroupMax of ones", &of(Activation::GroupMax { k: sizes[1] }, x), &relu);
            assert_same("a threshold of zero", &of(Activation::JumpRelu { threshold: full(0.0) }, x), &relu);
            assert_same("one below", &of(Activation::JumpRelu { threshold: full(-0.7) }, x), &relu);
            let gated = Activation::Gated { r_mag: full(0.0), b_mag: plain("relu", sizes, seed).b_enc };
            assert_same("a gate that is the magnitude", &of(gated, x), &relu);
        }
    }

    #[test]
    fn groupmax_keeps_the_largest_of_each_group((sizes, seed) in sizes(), n in 1i64..20) {
        let x = normal(&[n, sizes[0]], seed + 9) * 2.0;
        let relu = with_activation(sizes, seed, Activation::Relu).encode(&x).unwrap();
        let sae = with_activation(sizes, seed, Activation::GroupMax { k: GROUPS });
        for x in [&x, &trained(&x)] {
            let groups = sae.encode(x).unwrap().detach().reshape([n, GROUPS, -1]);
            let most = groups.ne(0.0).sum_dim_intlist(2, false, Kind::Int64).max();
            prop_assert!(most.int64_value(&[]) <= 1);
            let largest = relu.reshape([n, GROUPS, -1]).amax(2, false);
            assert_close("the largest", &groups.amax(2, false), &largest, ROUNDING);
        }
    }

    /// Small whole numbers, of which many are equal: a stable sort says which latents stay.
    #[test]
    fn of_equal_ones_the_lowest_stay(
        n in 1i64..12, group in 1i64..90, k in 1usize..30, tile in 1i64..2000, seed in 0u64..1000,
    ) {
        let d_sae = GROUPS * group;
        let k = k.min(d_sae as usize);
        let x = (normal(&[n, 2], seed) * 1.5).round();
        let w_enc = normal(&[2, d_sae], seed + 1).round();
        let b_enc = normal(&[d_sae], seed + 2).round();
        let pre = numbers(&(x.matmul(&w_enc) + &b_enc));
        let largest = |pre: &[f64], k: usize| {
            let mut order: Vec<usize> = (0..pre.len()).collect();
            order.sort_by(|a, b| pre[*b].total_cmp(&pre[*a]));
            let mut kept = vec![0f32; pre.len()];
            order.iter().take(k).for_each(|j| kept[*j] = pre[*j].max(0.0) as f32);
            kept
        };
        let size = d_sae as usize;
        let top: Vec<f32> = pre.chunks(size).flat_map(|row| largest(row, k)).collect();
        let groups: Vec<f32> = pre.chunks(group as usize).flat_map(|group| largest(group, 1)).collect();
        for (activation, want) in
            [(Activation::TopK { k: k as i64 }, top), (Activation::GroupMax { k: GROUPS }, groups)]
        {
            let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
            let (w_enc, b_enc) = (w_enc.copy(), b_enc.copy());
            let parts = SaeParts::plain(w_enc, b_enc, zeros(&[d_sae, 2]), zeros(&[2]), activation);
            let sae = Sae::new(parts).unwrap().with_tile(tile);
            let want = matrix(&want, d_sae);
            assert_same("by the kernels", &sae.encode(&x).unwrap(), &want);
            assert_same("where gradients flow", &sae.encode(&trained(&x)).unwrap().detach(), &want);
        }
    }
}

/// Nothing but ties: the weights are zero, the biases equal.
#[test]
fn of_all_equal_the_first_stay() {
    let d_sae = 300;
    let x = normal(&[5, 3], 1);
    let on = (Kind::Float, Device::Cpu);
    for (activation, kept) in [
        (Activation::TopK { k: 7 }, (0..7).collect::<Vec<_>>()),
        (Activation::GroupMax { k: 3 }, vec![0, 100, 200]),
    ] {
        let w_enc = Tensor::zeros([3, d_sae], on);
        let (b_enc, w_dec) = (Tensor::full([d_sae], 0.5, on), Tensor::ones([d_sae, 3], on));
        let parts = SaeParts::plain(w_enc, b_enc, w_dec, Tensor::zeros([3], on), activation);
        let sae = Sae::new(parts).unwrap().with_tile(1);
        for x in [&x, &trained(&x)] {
            let found = sae.encode_sparse(x).unwrap();
            assert_eq!(Vec::<i64>::try_from(found.indices()).unwrap(), kept.repeat(5));
        }
    }
}

/// NaN and infinity come out as what is not finite, in their own row, on every way through.
#[test]
fn what_is_not_finite_shows() {
    for (rule, d_sae) in RULES.into_iter().flat_map(|rule| [(rule, 20), (rule, 200)]) {
        let sae = make(rule, [6, d_sae, 6], 1).with_tile(1);
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let x = normal(&[4, 6], 2);
            let _ = x.get(2).narrow(0, 3, 1).fill_(bad);
            for x in [&x, &trained(&x)] {
                let what = format!("{rule}, {bad}, gradients {}", x.requires_grad());
                let sparse = sae.encode_sparse(x).unwrap();
                for tensor in [
                    sae.encode(x).unwrap(),
                    sparse.to_dense().unwrap(),
                    sae.decode(&sae.encode(x).unwrap()).unwrap(),
                    sae.decode_sparse(&sparse).unwrap(),
                    sae.reconstruct(x).unwrap(),
                ] {
                    let finite = tensor.isfinite().all_dim(1, false);
                    assert_eq!(Vec::<bool>::try_from(finite).unwrap(), [true, true, false, true], "{what}");
                    let nan = tensor.get(2).isnan().any().int64_value(&[]) == 1;
                    assert!(nan || !bad.is_nan(), "{what}");
                }
            }
        }
    }
}

/// An output that nothing is known of is NaN everywhere, not in some entries.
#[test]
fn nan_in_a_token_is_nan_in_all_of_its_output() {
    for (name, parts) in crate::reference::all(6, 20, 3) {
        let sae = Sae::new(parts).unwrap();
        let x = normal(&[3, 6], 4);
        let _ = x.get(1).narrow(0, 0, 1).fill_(f64::NAN);
        for x in [&x, &trained(&x)] {
            let nan = sae.reconstruct(x).unwrap().isnan();
            assert_eq!(nan.get(1).all().int64_value(&[]), 1, "{name}");
            assert_eq!(nan.sum(Kind::Int64).int64_value(&[]), sae.d_out(), "{name}");
        }
    }
}
