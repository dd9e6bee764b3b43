//! The kernels of a training step against sorted lists and plain loops. Whole steps are tested in crate `train`.

use native::{BatchTop, Decoding, keep_strongest, residuals, sum_of_rows};
use tch::{Device, Kind, Tensor};

use crate::sparse::{Random, table};

/// Numbers of which many are equal.
fn rough(n: usize, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..n).map(|_| (random.number() * 4.0).round() / 4.0).collect()
}

#[test]
fn the_strongest_of_a_batch_are_those_of_the_sorted_list() {
    for (rows, width, n) in [(1, 5, 3), (7, 90, 40), (130, 33, 500), (20, 40, 10_000), (9, 9, 0)] {
        let values = rough(rows * width, (rows * width) as u64);
        let bias = rough(width, 5);
        let mut want: Vec<(f32, usize, usize)> = (0..rows * width)
            .map(|i| (values[i] + bias[i % width], i / width, i % width))
            .filter(|(value, ..)| *value > 0.0)
            .collect();
        want.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        want.truncate(n);
        want.sort_by_key(|(_, row, latent)| (*row, *latent));
        let mut top = BatchTop::new(rows, n);
        let all = table(&values, width);
        for first in (0..width).step_by(7) {
            let len = 7.min(width - first);
            let tile = all.narrow(1, first as i64, len as i64).contiguous();
            assert!(top.add(&tile, first as u32, &bias[first..first + len]));
        }
        let got = top.finish();
        let latents: Vec<_> = want.iter().map(|(_, _, latent)| *latent as i64).collect();
        let values: Vec<_> = want.iter().map(|(value, ..)| *value).collect();
        assert_eq!((got.indices, got.values), (latents, values), "{rows} {width} {n}");
        let upto = |row: usize| want.iter().filter(|(_, r, _)| *r < row).count() as i64;
        assert_eq!(got.indptr, (0..=rows).map(upto).collect::<Vec<_>>());
    }
}

#[test]
fn a_rows_strongest_stay_and_the_others_go() {
    for (rows, width, k) in [(1, 5, 3), (40, 33, 7), (3, 8, 8), (3, 8, 20), (2, 6, 0), (2, 6, 1)] {
        let values = rough(rows * width, (rows + width) as u64);
        let got = table(&values, width);
        assert!(keep_strongest(&got, k));
        for (row, got) in values.chunks(width).zip(Vec::<Vec<f32>>::try_from(got).unwrap()) {
            let mut order: Vec<usize> = (0..width).collect();
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
            let mut want = vec![f32::NEG_INFINITY; width];
            order.iter().take(k).for_each(|i| want[*i] = row[*i]);
            assert_eq!(got, want, "{rows} {width} {k}");
        }
    }
    assert!(!keep_strongest(&Tensor::zeros([2, 3], (Kind::Double, Device::Cpu)), 1));
}

#[test]
fn rows_are_summed_whatever_lies_between_them() {
    let all = table(&rough(300, 3), 10);
    let weights = Tensor::from_slice(&rough(30, 4));
    for m in [all.shallow_clone(), all.narrow(1, 2, 5)] {
        let want = weights.unsqueeze(0).matmul(&m).squeeze_dim(0);
        let got = sum_of_rows(&m, Some(&weights)).unwrap().unwrap();
        assert!(got.allclose(&want, 1e-5, 1e-5, false));
        let plain = sum_of_rows(&m, None).unwrap().unwrap();
        assert!(plain.allclose(&m.sum_dim_intlist(0, false, Kind::Float), 1e-5, 1e-5, false));
    }
    assert!(sum_of_rows(&all.tr(), None).unwrap().is_none(), "columns are not rows");
}

#[test]
fn what_is_left_refuses_entries_that_are_not_there() {
    let (w_dec, b_dec, target) =
        (table(&rough(12, 1), 3), Tensor::from_slice(&rough(3, 2)), table(&rough(6, 3), 3));
    let left = |indptr: &[i64], latents: &[i64], ends: &[i64]| {
        let (indptr, latents) = (Tensor::from_slice(indptr), Tensor::from_slice(latents));
        let values = Tensor::from_slice(&[1.0f32, 2.0]);
        let of = Decoding {
            indptr: &indptr,
            latents: &latents,
            values: &values,
            w_dec: &w_dec,
            b_dec: &b_dec,
            skip: None,
            target: &target,
            ends,
        };
        residuals(&of).unwrap()
    };
    let made = left(&[0, 1, 2], &[0, 3], &[2, 4]).unwrap();
    let narrow = &b_dec + w_dec.get(0) - target.get(0);
    assert!(made.errors.get(0).get(1).allclose(&narrow, 1e-6, 1e-6, false));
    assert!(made.errors.get(0).get(0).allclose(&(&narrow * 2.0), 1e-6, 1e-6, false));
    let wide = &b_dec + w_dec.get(3) * 2.0 - target.get(1);
    assert!(made.errors.get(1).get(1).allclose(&wide, 1e-6, 1e-6, false));
    let product = (wide * w_dec.get(3)).sum(Kind::Float).double_value(&[]);
    assert!((made.products.double_value(&[1]) - product).abs() < 1e-5);
    for (indptr, latents, ends) in [
        (&[0, 1, 2][..], &[0, 4][..], &[4][..]),
        (&[0, 1, 2], &[-1, 3], &[4]),
        (&[0, 3, 2], &[0, 3], &[4]),
        (&[1, 1, 2], &[0, 3], &[4]),
        (&[0, 2], &[0, 3], &[4]),
        (&[0, 1, 2], &[0, 3], &[3]),
        (&[0, 1, 2], &[0, 3], &[]),
    ] {
        assert!(left(indptr, latents, ends).is_none(), "{indptr:?} {latents:?} {ends:?}");
    }
}
