//! Which entries are active: the collectors against plain loops, bit by bit, whatever the tiles are.

use native::{Csr, GroupMax, Rule, Selection, TopK};
use tch::{Device, Kind, Tensor};

/// Rows of a tile are scanned 32 at a time and in strips of 256: on both sides of either.
const WIDTHS: [usize; 6] = [1, 31, 32, 33, 257, 1000];

/// One row, some, and more than there are bands for.
const ROWS: [usize; 3] = [1, 7, 150];

/// Numbers from a seed (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Between −1 and 1.
    pub(crate) fn number(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn numbers(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.number()).collect()
    }

    /// Quarters, of which many are equal.
    fn quarters(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.number() * 4.0).round() / 4.0).collect()
    }

    /// Some of them something else than an ordinary number.
    fn odd(&mut self, mut values: Vec<f32>) -> Vec<f32> {
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, 0.0, f32::MAX, f32::MIN_POSITIVE];
        for _ in 0..values.len() / 5 {
            let at = self.below(values.len());
            values[at] = odd[self.below(odd.len())];
        }
        values
    }
}

pub(crate) fn table(values: &[f32], width: usize) -> Tensor {
    Tensor::from_slice(values).view([-1, width as i64])
}

/// Columns `from..to` of rows of `width`.
fn columns(values: &[f32], width: usize, from: usize, to: usize) -> Tensor {
    let part: Vec<f32> = values.chunks(width).flat_map(|row| row[from..to].to_vec()).collect();
    table(&part, to - from)
}

/// Where tiles may end: all at once, one by one where that is not too often, and anywhere.
fn cuts(random: &mut Random, width: usize) -> Vec<Vec<usize>> {
    let mut anywhere = vec![0, width];
    anywhere.extend((0..3).map(|_| random.below(width + 1)));
    anywhere.sort_unstable();
    anywhere.dedup();
    let step = width.div_ceil(40);
    let mut many: Vec<usize> = (0..width).step_by(step).collect();
    many.push(width);
    vec![vec![0, width], anywhere, many]
}

/// The latents of each row, ascending.
type Want = Vec<Vec<(usize, f32)>>;

#[track_caller]
fn assert_csr(what: &str, got: &Csr, want: &Want) {
    let mut indptr = vec![0];
    want.iter().for_each(|row| indptr.push(indptr[indptr.len() - 1] + row.len() as i64));
    assert_eq!(got.indptr, indptr, "{what}: pointers");
    let flat: Vec<(usize, f32)> = want.concat();
    assert_eq!(got.indices, flat.iter().map(|(j, _)| *j as i64).collect::<Vec<_>>(), "{what}: latents");
    // NaN is the same as NaN here, and −0 not the same as 0.
    let bits = |v: f32| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() };
    let values: Vec<u32> = got.values.iter().map(|v| bits(*v)).collect();
    assert_eq!(values, flat.iter().map(|(_, v)| bits(*v)).collect::<Vec<_>>(), "{what}: values");
}

/// Rows × widths × ordinary, tied and odd numbers × tiles.
fn each(mut test: impl FnMut(&str, usize, usize, &[f32], &[f32], &[usize], &mut Random)) {
    for rows in ROWS {
        for width in WIDTHS {
            for kind in ["ordinary", "tied", "odd"] {
                let mut random = Random((rows * 10_000 + width * 3) as u64);
                let (g, bias) = match kind {
                    "tied" => (random.quarters(rows * width), random.quarters(width)),
                    _ => (random.numbers(rows * width), random.numbers(width)),
                };
                let g = if kind == "odd" { random.odd(g) } else { g };
                for cuts in cuts(&mut random, width) {
                    let what = format!("{rows} rows of {width}, {kind}, {} tiles", cuts.len() - 1);
                    test(&what, rows, width, &g, &bias, &cuts, &mut random);
                }
            }
        }
    }
}

#[test]
fn what_is_above_a_threshold() {
    each(|what, rows, width, g, bias, cuts, random| {
        let threshold: Vec<f32> = random.quarters(width).iter().map(|t| t.abs()).collect();
        let mut selection = Selection::new(rows);
        for cut in cuts.windows(2) {
            let (a, b) = (cut[0], cut[1]);
            let rule = Rule::Above { bias: &bias[a..b], threshold: &threshold[a..b] };
            assert!(selection.add(&columns(g, width, a, b), a as u32, rule), "{what}");
        }
        let of = |row: &[f32]| {
            let all = (0..width).map(|j| (j, row[j] + bias[j]));
            all.filter(|(j, v)| v.is_nan() || *v > threshold[*j]).collect::<Vec<_>>()
        };
        assert_csr(what, &selection.finish(), &g.chunks(width).map(of).collect());
    });
}

#[test]
fn what_a_gate_lets_through() {
    each(|what, rows, width, g, bias, cuts, random| {
        let gate: Vec<f32> = random.quarters(width);
        let scale: Vec<f32> = random.numbers(width).iter().map(|r| r.exp()).collect();
        let mut selection = Selection::new(rows);
        for cut in cuts.windows(2) {
            let (a, b) = (cut[0], cut[1]);
            let rule = Rule::Gated { gate_bias: &gate[a..b], scale: &scale[a..b], bias: &bias[a..b] };
            assert!(selection.add(&columns(g, width, a, b), a as u32, rule), "{what}");
        }
        let on = |v: f32| v.is_nan() || v > 0.0;
        let of = |row: &[f32]| {
            let all = (0..width).filter(|j| on(row[*j] + gate[*j]));
            all.map(|j| (j, row[j] * scale[j] + bias[j])).filter(|(_, v)| on(*v)).collect::<Vec<_>>()
        };
        assert_csr(what, &selection.finish(), &g.chunks(width).map(of).collect());
    });
}

/// The k best of some entries, NaN as good as infinity, of equal ones the first.
fn best(entries: Vec<(usize, f32)>, k: usize) -> Vec<(usize, f32)> {
    let key = |v: f32| if v.is_nan() { f32::INFINITY } else { v };
    let mut found: Vec<_> = entries.into_iter().filter(|(_, v)| v.is_nan() || *v > 0.0).collect();
    found.sort_by(|a, b| key(b.1).total_cmp(&key(a.1)).then(a.0.cmp(&b.0)));
    found.truncate(k);
    found.sort_by_key(|(j, _)| *j);
    found
}

#[test]
fn the_largest() {
    each(|what, rows, width, g, bias, cuts, _| {
        if what.contains("odd") {
            return; // see below: which of NaN and infinity are kept depends on nothing that is promised
        }
        for k in [0, 1, 2, 32, 100, width, width + 1, 5000] {
            let mut top = TopK::new(rows, k);
            for cut in cuts.windows(2) {
                let (a, b) = (cut[0], cut[1]);
                assert!(top.add(&columns(g, width, a, b), a as u32, &bias[a..b]), "{what}");
            }
            let of = |row: &[f32]| best((0..width).map(|j| (j, row[j] + bias[j])).collect(), k);
            assert_csr(&format!("{what}, k = {k}"), &top.finish(), &g.chunks(width).map(of).collect());
        }
    });
}

#[test]
fn the_largest_of_odd_numbers() {
    each(|what, rows, width, g, bias, cuts, _| {
        for k in [1, 2, 32, 100, width] {
            let mut top = TopK::new(rows, k);
            for cut in cuts.windows(2) {
                let (a, b) = (cut[0], cut[1]);
                assert!(top.add(&columns(g, width, a, b), a as u32, &bias[a..b]), "{what}");
            }
            let csr = top.finish();
            for (i, row) in g.chunks(width).enumerate() {
                let span = csr.indptr[i] as usize..csr.indptr[i + 1] as usize;
                let all = (0..width).map(|j| (j, row[j] + bias[j]));
                let want = best(all.clone().collect(), k);
                assert_eq!(span.len(), want.len(), "{what}, k = {k}");
                for (j, value) in csr.indices[span.clone()].iter().zip(&csr.values[span.clone()]) {
                    let own = row[*j as usize] + bias[*j as usize];
                    assert!(own == *value || (own.is_nan() && value.is_nan()), "{what}, k = {k}");
                }
                // What is larger than every number shows before any number does.
                let huge = |v: f32| v.is_nan() || v == f32::INFINITY;
                let shown = csr.values[span].iter().filter(|v| huge(**v)).count();
                assert_eq!(shown, all.filter(|(_, v)| huge(*v)).count().min(k), "{what}, k = {k}");
            }
        }
    });
}

#[test]
fn the_largest_of_each_group() {
    for size in [1, 2, 31, 100] {
        for groups in [1, 3, 20] {
            for rows in ROWS {
                let width = size * groups;
                let mut random = Random((size * 1000 + groups) as u64);
                for odd in [false, true] {
                    let (g, bias) = (random.quarters(rows * width), random.quarters(width));
                    let g = if odd { random.odd(g) } else { g };
                    for cuts in cuts(&mut random, width) {
                        let mut kept = GroupMax::new(rows, groups, size);
                        for cut in cuts.windows(2) {
                            let (a, b) = (cut[0], cut[1]);
                            assert!(kept.add(&columns(&g, width, a, b), a as u32, &bias[a..b]));
                        }
                        let nan_first = |entries: Vec<(usize, f32)>| {
                            let nan = entries.iter().find(|(_, v)| v.is_nan()).copied();
                            nan.map_or_else(|| best(entries, 1), |nan| vec![nan])
                        };
                        let of = |row: &[f32]| {
                            let all: Vec<_> = (0..width).map(|j| (j, row[j] + bias[j])).collect();
                            all.chunks(size).flat_map(|group| nan_first(group.to_vec())).collect::<Vec<_>>()
                        };
                        let want = g.chunks(width).map(of).collect();
                        assert_csr(&format!("{rows} rows, {groups} of {size}"), &kept.finish(), &want);
                    }
                }
            }
        }
    }
}

#[test]
fn no_rows() {
    let none = Tensor::zeros([0, 5], (Kind::Float, Device::Cpu));
    let bias = [0.0; 5];
    let mut selection = Selection::new(0);
    assert!(selection.add(&none, 0, Rule::Above { bias: &bias, threshold: &bias }));
    let (mut top, mut groups) = (TopK::new(0, 3), GroupMax::new(0, 5, 1));
    assert!(top.add(&none, 0, &bias) && groups.add(&none, 0, &bias));
    for csr in [selection.finish(), top.finish(), groups.finish()] {
        assert_eq!((csr.indptr, csr.indices.len(), csr.values.len()), (vec![0], 0, 0));
    }
}

#[test]
fn nothing_added() {
    for csr in [Selection::new(3).finish(), TopK::new(3, 2).finish(), GroupMax::new(3, 2, 4).finish()] {
        assert_eq!((csr.indptr, csr.indices.len(), csr.values.len()), (vec![0; 4], 0, 0));
    }
}

/// What a kernel does not take it leaves, and has not half taken.
#[test]
fn what_they_do_not_take_they_leave() {
    let good = Tensor::ones([4, 6], (Kind::Float, Device::Cpu));
    let bad = [
        good.to_kind(Kind::Double),
        good.to_kind(Kind::Half),
        good.to_kind(Kind::Int64),
        Tensor::ones([6, 4], (Kind::Float, Device::Cpu)).tr(),
        Tensor::ones([4, 7], (Kind::Float, Device::Cpu)).narrow(1, 0, 6),
        good.get(0).expand([4, 6], false),
        good.copy().set_requires_grad(true),
        &good.copy().set_requires_grad(true) * 2.0,
        Tensor::ones([3, 6], (Kind::Float, Device::Cpu)),
        Tensor::ones([4, 5], (Kind::Float, Device::Cpu)),
        Tensor::ones([24], (Kind::Float, Device::Cpu)),
        Tensor::ones([4, 6, 1], (Kind::Float, Device::Cpu)),
    ];
    let (zeros, ones) = ([0.0; 6], [1.0; 6]);
    let (mut selection, mut top, mut groups) = (Selection::new(4), TopK::new(4, 6), GroupMax::new(4, 2, 3));
    for tile in &bad {
        assert!(!selection.add(tile, 0, Rule::Above { bias: &zeros, threshold: &zeros }), "{tile:?}");
        let gated = Rule::Gated { gate_bias: &zeros, scale: &ones, bias: &zeros };
        assert!(!selection.add(tile, 0, gated), "{tile:?}");
        assert!(!top.add(tile, 0, &zeros) && !groups.add(tile, 0, &zeros), "{tile:?}");
    }
    // Rules that are not as wide as the tile, and latents beyond the last group.
    assert!(!selection.add(&good, 0, Rule::Above { bias: &zeros[1..], threshold: &zeros }));
    assert!(!selection.add(&good, 0, Rule::Above { bias: &zeros, threshold: &zeros[1..] }));
    assert!(!selection.add(&good, 0, Rule::Gated { gate_bias: &zeros, scale: &ones[1..], bias: &zeros }));
    assert!(!top.add(&good, 0, &zeros[1..]) && !groups.add(&good, 0, &zeros[1..]));
    assert!(!groups.add(&good, 1, &zeros) && !groups.add(&good, u32::MAX, &zeros));
    for csr in [selection.finish(), top.finish(), groups.finish()] {
        assert_eq!((csr.indptr, csr.indices.len()), (vec![0; 5], 0));
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let mut random = Random(1);
    let (g, bias) = (random.quarters(150 * 257), random.quarters(257));
    let before = tch::get_num_threads();
    let of = |threads| {
        tch::set_num_threads(threads);
        let mut top = TopK::new(150, 9);
        assert!(top.add(&table(&g, 257), 0, &bias));
        let mut selection = Selection::new(150);
        let zeros = vec![0.0; 257];
        assert!(selection.add(&table(&g, 257), 0, Rule::Above { bias: &bias, threshold: &zeros }));
        let (a, b) = (top.finish(), selection.finish());
        (a.indptr, a.indices, a.values, b.indptr, b.indices, b.values)
    };
    let same = of(1) == of(2);
    tch::set_num_threads(before);
    assert!(same);
}
