use half::bf16;
use rayon::prelude::*;
use tch::{Device, Kind, TchError, Tensor};

/// The most rows that [`linear_few_rows`] takes of a dtype, 0 where it takes none. Beyond them a matrix product that packs
/// its operands is faster; bfloat16 has one in libtorch that is good from three rows on.
pub fn most_rows(kind: Kind) -> i64 {
    match kind {
        Kind::Float => 8,
        Kind::BFloat16 => 2,
        _ => 0,
    }
}

/// `x Wᵀ` for few rows: `x` `[rows, d_in]` and `w` `[d_out, d_in]`, both float32 or both bfloat16, to `[rows, d_out]`.
///
/// Each weight is read once and serves all rows; sums are float32, in an order that depends on the sizes alone, and rounded
/// once. `None` where this kernel does not apply: more than [`most_rows`] rows, other dtypes or devices, operands that are
/// not contiguous, or that a gradient is to flow through.
///
/// # Errors
/// libtorch's, as when there is no memory.
pub fn linear_few_rows(x: &Tensor, w: &Tensor) -> Result<Option<Tensor>, TchError> {
    let (&[rows, d_in], &[d_out, width]) = (&x.size()[..], &w.size()[..]) else { return Ok(None) };
    let kind = x.f_kind()?;
    let plain = |t: &Tensor| {
        t.device() == Device::Cpu
            && t.f_kind().is_ok_and(|k| k == kind)
            && t.is_contiguous()
            && !t.requires_grad()
    };
    let fits = (1..=most_rows(kind)).contains(&rows) && d_in == width && d_in > 0 && d_out > 0;
    if !fits || !plain(x) || !plain(w) {
        return Ok(None);
    }
    let out = Tensor::f_empty([d_out, rows], (kind, Device::Cpu))?;
    let (rows, d_in, d_out) = (rows as usize, d_in as usize, d_out as usize);
    match kind {
        Kind::Float => {
            // SAFETY: `x`, `w` and `out` are contiguous float32 tensors on the CPU of exactly these numbers of elements
            // (checked above), alive for this call; `out` is new, so nobody else refers to its memory.
            let (x, w, out) = unsafe {
                (
                    slice::<f32>(x, rows * d_in),
                    slice::<f32>(w, d_out * d_in),
                    slice_mut::<f32>(&out, d_out * rows),
                )
            };
            multiply(x, w, out, rows, d_in);
        }
        Kind::BFloat16 => {
            // SAFETY: as above, with bfloat16, which `bf16` is bit for bit.
            let (x, w, out) = unsafe {
                (
                    slice::<bf16>(x, rows * d_in),
                    slice::<bf16>(w, d_out * d_in),
                    slice_mut::<bf16>(&out, d_out * rows),
                )
            };
            let x: Vec<f32> = x.iter().map(|v| v.to_f32()).collect();
            multiply(&x, w, out, rows, d_in);
        }
        _ => return Ok(None),
    }
    out.f_tr()?.f_contiguous().map(Some)
}

/// # Safety
/// `t` must be a contiguous CPU tensor of `n` elements of type `T`, which nobody writes while the slice lives.
pub(crate) unsafe fn slice<T>(t: &Tensor, n: usize) -> &[T] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts(t.data_ptr().cast::<T>(), n) }
}

/// # Safety
/// As [`slice`], and nobody else may refer to the tensor's memory.
#[allow(clippy::mut_from_ref, reason = "a tensor's memory is not Rust's to track: see the safety section")]
pub(crate) unsafe fn slice_mut<T>(t: &Tensor, n: usize) -> &mut [T] {
    // SAFETY: the caller's promise.
    unsafe { std::slice::from_raw_parts_mut(t.data_ptr().cast::<T>(), n) }
}

/// Fills `out`, `[d_out, rows]`, in as many parts as libtorch uses threads.
fn multiply<W: Weight>(x: &[f32], w: &[W], out: &mut [W], rows: usize, d_in: usize) {
    let d_out = w.len() / d_in;
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1);
    // Several parts a thread even out a busy core; but never more at a time than libtorch itself would use.
    let parts = if threads >= rayon::current_num_threads() { threads * 8 } else { threads };
    let part = d_out.div_ceil(parts).max(1);
    if d_out * d_in < SMALL {
        return some_weights(x, w, out, rows, d_in);
    }
    out.par_chunks_mut(part * rows)
        .zip(w.par_chunks(part * d_in))
        .for_each(|(out, w)| some_weights(x, w, out, rows, d_in));
}

/// Below this many weights, waking a thread costs more than it saves.
const SMALL: usize = 1 << 16;

fn some_weights<W: Weight>(x: &[f32], w: &[W], out: &mut [W], rows: usize, d_in: usize) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        // SAFETY: the processor has what the function is compiled for: it was asked a line above.
        return unsafe { avx2::some_weights(x, w, out, rows, d_in) };
    }
    for (out, w) in out.chunks_exact_mut(rows).zip(w.chunks_exact(d_in)) {
        for (out, x) in out.iter_mut().zip(x.chunks_exact(d_in)) {
            *out = W::from_f32(dot(x, w));
        }
    }
}

/// A dtype that weights are stored in.
trait Weight: Copy + Send + Sync {
    fn to_f32(self) -> f32;
    fn from_f32(value: f32) -> Self;
    #[cfg(target_arch = "x86_64")]
    fn eight(w: &[Self; 8]) -> [f32; 8];
}

impl Weight for f32 {
    fn to_f32(self) -> f32 {
        self
    }
    fn from_f32(value: f32) -> Self {
        value
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn eight(w: &[Self; 8]) -> [f32; 8] {
        *w
    }
}

impl Weight for bf16 {
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
    fn from_f32(value: f32) -> Self {
        Self::from_f32(value)
    }
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn eight(w: &[Self; 8]) -> [f32; 8] {
        w.map(|w| f32::from_bits(u32::from(w.to_bits()) << 16))
    }
}

/// The product as it is written, in eight partial sums.
fn dot<W: Weight>(x: &[f32], w: &[W]) -> f32 {
    let mut sums = [0.0f32; 8];
    for (i, (x, w)) in x.iter().zip(w).enumerate() {
        sums[i % 8] += x * w.to_f32();
    }
    sums.iter().sum()
}

/// The same with 256-bit vectors: a register a partial sum, so that the only wait is for memory.
#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::{__m256, _mm256_add_ps, _mm256_fmadd_ps, _mm256_setzero_ps};

    use super::Weight;

    #[target_feature(enable = "avx2,fma")]
    pub(super) fn some_weights<W: Weight>(x: &[f32], w: &[W], out: &mut [W], rows: usize, d_in: usize) {
        for (out, w) in out.chunks_exact_mut(rows).zip(w.chunks_exact(d_in)) {
            match rows {
                1 => one_by_many::<W, 1, 8>(x, w, out),
                2 => one_by_many::<W, 2, 4>(x, w, out),
                3 => one_by_many::<W, 3, 4>(x, w, out),
                4 => one_by_many::<W, 4, 2>(x, w, out),
                5 => one_by_many::<W, 5, 2>(x, w, out),
                6 => one_by_many::<W, 6, 2>(x, w, out),
                7 => one_by_many::<W, 7, 1>(x, w, out),
                _ => one_by_many::<W, 8, 1>(x, w, out),
            }
        }
    }

    /// One weight row times each of `ROWS` rows of `x`, with `UNROLL` registers of partial sums for each.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    fn one_by_many<W: Weight, const ROWS: usize, const UNROLL: usize>(x: &[f32], w: &[W], out: &mut [W]) {
        let (whole, tail) = w.as_chunks::<8>();
        let mut x_rows = x.chunks_exact(w.len());
        let x: [(&[[f32; 8]], &[f32]); ROWS] =
            std::array::from_fn(|_| x_rows.next().unwrap_or_default().as_chunks::<8>());
        let x = x.map(|(x_whole, x_tail)| (&x_whole[..whole.len()], x_tail));
        let mut sums = [[_mm256_setzero_ps(); UNROLL]; ROWS];
        let (groups, rest) = whole.as_chunks::<UNROLL>();
        for (group, w) in groups.iter().enumerate() {
            for u in 0..UNROLL {
                let w = vector(W::eight(&w[u]));
                for row in 0..ROWS {
                    sums[row][u] = _mm256_fmadd_ps(w, vector(x[row].0[group * UNROLL + u]), sums[row][u]);
                }
            }
        }
        for (i, w) in rest.iter().enumerate() {
            let w = vector(W::eight(w));
            for row in 0..ROWS {
                sums[row][0] = _mm256_fmadd_ps(w, vector(x[row].0[groups.len() * UNROLL + i]), sums[row][0]);
            }
        }
        for row in 0..ROWS {
            let total = sums[row][1..].iter().fold(sums[row][0], |a, b| _mm256_add_ps(a, *b));
            let tail: f32 = tail.iter().zip(x[row].1).map(|(w, x)| w.to_f32() * x).sum();
            out[row] = W::from_f32(lanes(total).iter().sum::<f32>() + tail);
        }
    }

    fn vector(values: [f32; 8]) -> __m256 {
        // SAFETY: both are 32 bytes of plain float32, and every bit pattern is valid in both.
        unsafe { std::mem::transmute(values) }
    }

    fn lanes(vector: __m256) -> [f32; 8] {
        // SAFETY: as above.
        unsafe { std::mem::transmute(vector) }
    }
}
