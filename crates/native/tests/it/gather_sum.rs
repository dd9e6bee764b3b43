//! Sums of chosen rows against plain loops in float64.

use native::gather_sum;
use tch::{Device, Kind, Tensor};

use crate::sparse::{Random, table};

/// Sums of up to a few hundred float32 products, in any order, relative to the sum of their magnitudes.
const SUM: f64 = 1e-6;

/// What is summed: pointers, latents, values, `[d_sae, d_out]`, `[d_out]`.
struct Work {
    indptr: Vec<i64>,
    indices: Vec<i64>,
    values: Vec<f32>,
    rows: Vec<f32>,
    bias: Vec<f32>,
}

impl Work {
    fn random(n: usize, d_sae: usize, d_out: usize, most: usize) -> Self {
        let mut random = Random((n * 7919 + d_sae * 31 + d_out) as u64);
        let (mut indptr, mut indices) = (vec![0], Vec::new());
        for _ in 0..n {
            let entries = random.below(most + 1);
            indices.extend((0..entries).map(|_| random.below(d_sae) as i64));
            indptr.push(indices.len() as i64);
        }
        let mut numbers = |n: usize| (0..n).map(|_| random.number()).collect::<Vec<f32>>();
        let (values, rows, bias) = (numbers(indices.len()), numbers(d_sae * d_out), numbers(d_out));
        Self { indptr, indices, values, rows, bias }
    }

    fn tensors(&self) -> [Tensor; 5] {
        [
            Tensor::from_slice(&self.indptr),
            Tensor::from_slice(&self.indices),
            Tensor::from_slice(&self.values),
            table(&self.rows, self.bias.len()),
            Tensor::from_slice(&self.bias),
        ]
    }

    fn run(&self) -> Option<Tensor> {
        sum(&self.tensors())
    }
}

fn sum([indptr, indices, values, rows, bias]: &[Tensor; 5]) -> Option<Tensor> {
    gather_sum([indptr, indices], values, rows, bias).unwrap()
}

#[test]
fn it_is_the_sum() {
    for n in [1, 2, 7, 150] {
        for d_out in [1, 7, 8, 33, 257] {
            for (d_sae, most) in [(1, 1), (5, 3), (300, 40), (300, 0)] {
                let work = Work::random(n, d_sae, d_out, most);
                let got = work.run().unwrap();
                assert_eq!((got.size(), got.kind()), (vec![n as i64, d_out as i64], Kind::Float));
                let got = Vec::<f32>::try_from(got.view(-1)).unwrap();
                for i in 0..n {
                    let span = work.indptr[i] as usize..work.indptr[i + 1] as usize;
                    for o in 0..d_out {
                        let (mut want, mut size) = (f64::from(work.bias[o]), f64::from(work.bias[o].abs()));
                        for e in span.clone() {
                            let row = f64::from(work.rows[work.indices[e] as usize * d_out + o]);
                            want += f64::from(work.values[e]) * row;
                            size += (f64::from(work.values[e]) * row).abs();
                        }
                        let off = (f64::from(got[i * d_out + o]) - want).abs();
                        assert!(off <= SUM * size, "{n} rows of {d_out}, up to {most}: off by {off:.1e}");
                    }
                }
            }
        }
    }
}

#[test]
fn nothing_to_sum_is_the_bias() {
    let work = Work::random(3, 5, 4, 0);
    let got = Vec::<f32>::try_from(work.run().unwrap().view(-1)).unwrap();
    assert_eq!(got, work.bias.repeat(3));
    for (n, d_out) in [(0, 4), (3, 0), (0, 0)] {
        let [indptr, indices, values, ..] = Work::random(n, 5, 4, 0).tensors();
        let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
        let (rows, bias) = (zeros(&[5, d_out as i64]), zeros(&[d_out as i64]));
        let got = sum(&[indptr, indices, values, rows, bias]).unwrap();
        assert_eq!(got.size(), [n as i64, d_out as i64]);
    }
}

#[test]
fn what_is_not_finite_shows_in_its_row_alone() {
    let make = || Work {
        indptr: vec![0, 2, 3, 9],
        indices: vec![0, 1, 2, 0, 1, 3, 0, 1, 3],
        values: vec![1.0; 9],
        ..Work::random(3, 4, 5, 0)
    };
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for place in ["value", "row"] {
            let mut work = make();
            match place {
                "value" => work.values[2] = bad,
                _ => work.rows[2 * 5..3 * 5].fill(bad),
            }
            let finite = work.run().unwrap().isfinite().any_dim(1, false);
            assert_eq!(Vec::<bool>::try_from(finite).unwrap(), [true, false, true], "{bad} in a {place}");
        }
    }
}

#[test]
fn indices_and_pointers_that_are_out_of_range() {
    let good = || Work {
        indptr: vec![0, 2, 4],
        indices: vec![0, 4, 1, 3],
        values: vec![1.0; 4],
        ..Work::random(2, 5, 3, 0)
    };
    assert!(good().run().is_some());
    for index in [5, 6, -1, i64::MIN, i64::MAX, i64::MAX / 3, (u64::MAX / 3) as i64] {
        for at in 0..4 {
            let mut work = good();
            work.indices[at] = index;
            assert!(work.run().is_none(), "{index} at {at}");
        }
    }
    for indptr in [
        vec![0, 2, 5],
        vec![0, 5, 4],
        vec![-1, 2, 4],
        vec![0, 3, 2],
        vec![0, i64::MAX, 4],
        vec![i64::MIN, 2, 4],
        vec![4, 2, 4],
    ] {
        assert!(Work { indptr: indptr.clone(), ..good() }.run().is_none(), "{indptr:?}");
    }
}

#[test]
fn what_it_does_not_take_it_leaves() {
    let work = Work::random(6, 20, 8, 9);
    let none = |at: usize, tensor: Tensor| {
        let mut tensors = work.tensors();
        tensors[at] = tensor;
        assert!(sum(&tensors).is_none(), "operand {at}");
    };
    let of = |at: usize| work.tensors()[at].copy();
    for at in 0..5 {
        none(at, of(at).to_kind(Kind::Double));
        none(at, of(at).to_kind(Kind::Int));
        none(at, of(at).unsqueeze(0));
        // Every other element of twice as many.
        let twice = of(at).repeat_interleave_self_int(2, -1, None::<i64>);
        none(at, twice.slice(-1, 0, None::<i64>, 2));
    }
    for at in 2..5 {
        none(at, of(at).set_requires_grad(true));
        none(at, of(at).to_kind(Kind::Half));
        none(at, of(at).to_kind(Kind::BFloat16));
    }
    none(0, Tensor::zeros([0], (Kind::Int64, Device::Cpu)));
    none(2, of(2).narrow(0, 1, of(2).size()[0] - 1));
    none(3, table(&work.rows, 20).tr());
    none(3, table(&work.rows, 10));
    none(4, of(4).narrow(0, 0, 7));
    // Under a guard nothing asks for a gradient, and still the operand might.
    let _no_grad = tch::no_grad_guard();
    none(3, of(3).set_requires_grad(true));
}
