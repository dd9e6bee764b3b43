//! Sums over long rows. Every function is inlined into a caller that is compiled for the processor's vector units, and with
//! `FUSED` uses their fused multiplication and addition. The order of a sum depends on the length alone.

/// Partial sums of a dot product: four registers of eight.
const LANES: usize = 32;

/// `a b + c`.
#[inline(always)]
pub(crate) fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// `Σ a_i b_i`; both are equally long.
#[inline(always)]
pub(crate) fn dot<const FUSED: bool>(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sums[i] = fma::<FUSED>(a[i], b[i], sums[i]);
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    total(sums) + rest
}

/// The dot products of one row with four.
#[inline(always)]
pub(crate) fn four_dots<const FUSED: bool>(a: &[f32], rows: [&[f32]; 4]) -> [f32; 4] {
    const EACH: usize = 16;
    let (whole, rest) = a.as_chunks::<EACH>();
    let rows = rows.map(|row| row.as_chunks::<EACH>());
    let mut sums = [[0f32; EACH]; 4];
    for (at, a) in whole.iter().enumerate() {
        for (sums, row) in sums.iter_mut().zip(&rows) {
            let row = &row.0[at];
            for i in 0..EACH {
                sums[i] = fma::<FUSED>(a[i], row[i], sums[i]);
            }
        }
    }
    let mut out = [0f32; 4];
    for ((out, sums), row) in out.iter_mut().zip(sums).zip(&rows) {
        let rest: f32 = rest.iter().zip(row.1).map(|(a, b)| a * b).sum();
        let mut lanes = [0f32; LANES];
        lanes[..EACH].copy_from_slice(&sums);
        *out = total(lanes) + rest;
    }
    out
}

/// `sum += Σ weight · row`, four rows at a time, so that the memory has several to fetch and the sum is written once for them.
#[inline(always)]
pub(crate) fn add_weighted<const FUSED: bool>(sum: &mut [f32], chosen: &[(f32, &[f32])]) {
    let n = sum.len();
    let (fours, rest) = chosen.as_chunks::<4>();
    for [(a, row_a), (b, row_b), (c, row_c), (d, row_d)] in fours {
        let (row_a, row_b, row_c, row_d) = (&row_a[..n], &row_b[..n], &row_c[..n], &row_d[..n]);
        for i in 0..n {
            let one = fma::<FUSED>(*b, row_b[i], a * row_a[i]);
            let other = fma::<FUSED>(*d, row_d[i], c * row_c[i]);
            sum[i] += one + other;
        }
    }
    for (weight, row) in rest {
        for (sum, row) in sum.iter_mut().zip(*row) {
            *sum = fma::<FUSED>(*weight, *row, *sum);
        }
    }
}

#[inline(always)]
fn total(mut sums: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            sums[i] += sums[i + half];
        }
        half /= 2;
    }
    sums[0]
}

/// Calls `$as_written::<true>` compiled for AVX2 and FMA where the processor has them, else `$as_written::<false>`.
macro_rules! for_this_processor {
    ($as_written:ident ( $($name:ident : $kind:ty),* $(,)? )) => {{
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
            #[target_feature(enable = "avx2,fma")]
            fn wide($($name: $kind),*) {
                $as_written::<true>($($name),*);
            }
            // SAFETY: the processor has what the function is compiled for: it was asked a line above.
            return unsafe { wide($($name),*) };
        }
        $as_written::<false>($($name),*);
    }};
}
pub(crate) use for_this_processor;

/// Does each piece of work, on as many threads as libtorch uses at most. What comes out must not depend on the order.
pub(crate) fn side_by_side<T: Send>(pieces: Vec<T>, work: impl Fn(T) + Send + Sync) {
    use rayon::prelude::*;
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1).max(1);
    if threads == 1 {
        return pieces.into_iter().for_each(work);
    }
    let at_least = if threads >= rayon::current_num_threads() { 1 } else { pieces.len().div_ceil(threads) };
    pieces.into_par_iter().with_min_len(at_least.max(1)).for_each(work);
}
