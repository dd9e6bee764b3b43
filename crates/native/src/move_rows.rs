//! The weights of a sparse autoencoder, moved by Adam latent after latent: a gradient's two rows are summed from the entries of
//! their latent, used and forgotten while they are in cache.

use tch::{Kind, TchError, Tensor};

use crate::{
    few_rows::{slice, slice_mut},
    residuals::plain,
    vectors::{add_weighted, dot, fma, for_this_processor, side_by_side},
};

/// The gradients of W_enc and W_dec as sums over entries:
/// `dW_enc[i] = Σ d_pre · x[row]` and `dW_dec[i] = Σ values · errors[row, g]` over the entries of latent i, with g the first
/// dictionary that has it. All contiguous and on the CPU.
#[derive(Debug, Clone, Copy)]
pub struct SparseGradient<'t> {
    /// `[nnz]`, int64.
    pub rows: &'t Tensor,
    /// `[nnz]`, int64.
    pub latents: &'t Tensor,
    /// `[nnz]`.
    pub d_pre: &'t Tensor,
    /// `[nnz]`.
    pub values: &'t Tensor,
    /// `[B, d_in]`.
    pub x: &'t Tensor,
    /// `[B, G, d_out]`.
    pub errors: &'t Tensor,
    /// As in [`Decoding`](crate::Decoding).
    pub ends: &'t [i64],
    /// Added to the gradients of some latents (`[n]`, int64, ascending): `[n, d_in]` and `[n, d_out]`.
    pub extra: Option<[&'t Tensor; 3]>,
    /// Whether the part of a row of dW_dec along the row of W_dec is taken out.
    pub project: bool,
}

/// One weight matrix, `[d_sae, d]`, and its moments of the same shape; contiguous and on the CPU.
#[derive(Debug, Clone, Copy)]
pub struct Moved<'t> {
    /// The weights.
    pub weights: &'t Tensor,
    /// Adam's first moment, unless β₁ is 0.
    pub m: Option<&'t Tensor>,
    /// Adam's second moment.
    pub v: &'t Tensor,
}

/// `m ← β₁ m + (1 − β₁) g`, `v ← β₂ v + (1 − β₂) g²`, `w ← (1 − decay) w − rate · m / (√v / root + ε)`, with g the gradient
/// times `scale`.
#[derive(Debug, Clone, Copy)]
pub struct AdamStep {
    /// β₁.
    pub beta1: f64,
    /// β₂.
    pub beta2: f64,
    /// ε.
    pub eps: f64,
    /// `lr / (1 − β₁^t)`.
    pub rate: f64,
    /// `√(1 − β₂^t)`.
    pub root: f64,
    /// `lr` times the weight decay.
    pub decay: f64,
    /// By which gradients are multiplied first.
    pub scale: f64,
    /// Whether rows of W_dec are divided by their norm afterwards.
    pub unit_norm: bool,
}

/// Takes one step of both weight matrices in place. False, and nothing changed, where this kernel does not apply: another
/// dtype or device, operands that are not contiguous or contradict each other.
///
/// The order of every sum depends on the entries alone, not on the number of threads.
pub fn move_rows(by: &SparseGradient<'_>, enc: Moved<'_>, dec: Moved<'_>, step: AdamStep) -> bool {
    let Some(gradient) = Gradient::new(by, enc.weights, dec.weights) else { return false };
    let fits = |of: &Moved<'_>| {
        let like = |t: &Tensor| plain(t, Kind::Float) && t.size() == of.weights.size();
        like(of.v) && of.m.map_or(step.beta1 == 0.0, like)
    };
    if !fits(&enc) || !fits(&dec) {
        return false;
    }
    // SAFETY: contiguous float32 CPU tensors of d_sae · d_in and d_sae · d_out elements (checked above and by
    // `Gradient::new`), six different ones by the meaning of the arguments, alive for this call; nobody else reads or writes
    // them meanwhile, since the caller lends them for being changed, and the slices of `gradient` are of other tensors.
    let [mut enc, mut dec] = unsafe { [Chunks::new(&enc, LATENTS), Chunks::new(&dec, LATENTS)] };
    let pieces: Vec<_> = (0..gradient.d_sae.div_ceil(LATENTS))
        .filter_map(|i| Some(Piece { first: i * LATENTS, enc: enc.next()?, dec: dec.next()? }))
        .collect();
    let step = Constants::from(step);
    side_by_side(pieces, |piece| some_latents(&gradient, &step, piece));
    true
}

/// The sum of the squares of both gradients, in full: what the clipping of their norm needs. `None` where [`move_rows`] would
/// not apply.
pub fn gradient_square_sum(by: &SparseGradient<'_>, w_enc: &Tensor, w_dec: &Tensor) -> Option<f64> {
    let gradient = Gradient::new(by, w_enc, w_dec)?;
    // SAFETY: a contiguous float32 CPU tensor of d_sae · d_out elements (checked by `Gradient::new`), alive for this call, in
    // which nobody writes.
    let w_dec = unsafe { slice::<f32>(w_dec, gradient.d_sae * gradient.d_out) };
    let mut sums = vec![0f64; gradient.d_sae];
    let pieces: Vec<_> = sums.chunks_mut(LATENTS).enumerate().collect();
    side_by_side(pieces, |(i, sums)| some_squares(&gradient, w_dec, i * LATENTS, sums));
    Some(sums.iter().sum())
}

/// `Σ_r weights[r] · m[r]`, or of all rows with weight 1: `[n, d]` to `[d]`, summed in float64 in the order of the rows. `m` may
/// have other numbers between its rows. `None` for another dtype, device or layout.
///
/// # Errors
/// libtorch's, as when there is no memory.
pub fn sum_of_rows(m: &Tensor, weights: Option<&Tensor>) -> Result<Option<Tensor>, TchError> {
    let (&[n, d], &[stride, 1]) = (&m.size()[..], &m.stride()[..]) else { return Ok(None) };
    let fits = m.device() == tch::Device::Cpu
        && m.f_kind()? == Kind::Float
        && !m.requires_grad()
        && d > 0
        && stride >= d
        && weights.is_none_or(|w| plain(w, Kind::Float) && w.size() == [n]);
    if !fits {
        return Ok(None);
    }
    let mut sums = vec![0f64; d as usize];
    let [n, d, stride] = [n, d, stride].map(|n| n as usize);
    if n > 0 {
        // SAFETY: `m` is float32 on the CPU, alive for this call; from its first element on it owns `stride` numbers for each
        // row but the last, and d for that one. `weights` is contiguous, of n elements. Nobody writes to either.
        let (m, weights) =
            unsafe { (slice::<f32>(m, (n - 1) * stride + d), weights.map(|w| slice::<f32>(w, n))) };
        const COLUMNS: usize = 128;
        let pieces: Vec<_> = sums.chunks_mut(COLUMNS).enumerate().collect();
        side_by_side(pieces, |(i, sums)| {
            for row in 0..n {
                let start = row * stride + i * COLUMNS;
                let weight = weights.map_or(1.0, |w| f64::from(w[row]));
                if weight != 0.0 {
                    for (sum, m) in sums.iter_mut().zip(&m[start..]) {
                        *sum += weight * f64::from(*m);
                    }
                }
            }
        });
    }
    let sums: Vec<f32> = sums.iter().map(|sum| *sum as f32).collect();
    Tensor::f_from_slice(&sums).map(Some)
}

/// Latents in one piece of work.
const LATENTS: usize = 8;

/// [`SparseGradient`] by latent.
struct Gradient<'t> {
    d_sae: usize,
    d_in: usize,
    d_out: usize,
    groups: usize,
    /// `[d_sae + 1]`.
    pointers: Vec<u32>,
    /// The row and the two weights of each entry, by latent, then by row.
    entries: Vec<(u32, f32, f32)>,
    x: &'t [f32],
    errors: &'t [f32],
    ends: &'t [i64],
    extra: Option<(&'t [i64], &'t [f32], &'t [f32])>,
    project: bool,
}

impl<'t> Gradient<'t> {
    fn new(by: &SparseGradient<'t>, w_enc: &Tensor, w_dec: &Tensor) -> Option<Self> {
        let (&[d_sae, d_in], &[d_sae_too, d_out]) = (&w_enc.size()[..], &w_dec.size()[..]) else {
            return None;
        };
        let (&[rows, x_width], &[rows_too, groups, width]) = (&by.x.size()[..], &by.errors.size()[..]) else {
            return None;
        };
        let &[nnz] = &by.rows.size()[..] else { return None };
        let fits = [w_enc, w_dec, by.x, by.errors, by.d_pre, by.values].iter().all(|t| plain(t, Kind::Float))
            && [by.rows, by.latents].iter().all(|t| plain(t, Kind::Int64))
            && [by.latents, by.d_pre, by.values].iter().all(|t| t.size() == [nnz])
            && (d_sae, rows, x_width, width) == (d_sae_too, rows_too, d_in, d_out)
            && d_in > 0
            && d_out > 0
            && groups == by.ends.len() as i64
            && by.ends.last() == Some(&d_sae)
            && u32::try_from(nnz).is_ok()
            && u32::try_from(rows).is_ok();
        if !fits {
            return None;
        }
        let [d_sae, d_in, d_out, rows, groups, nnz] =
            [d_sae, d_in, d_out, rows, groups, nnz].map(|n| n as usize);
        let extra = match by.extra {
            Some([latents, enc, dec]) => {
                let &[n] = &latents.size()[..] else { return None };
                let fits = plain(latents, Kind::Int64)
                    && [enc, dec].iter().all(|t| plain(t, Kind::Float))
                    && enc.size() == [n, d_in as i64]
                    && dec.size() == [n, d_out as i64];
                if !fits {
                    return None;
                }
                let n = n as usize;
                // SAFETY: contiguous CPU tensors of these dtypes and sizes (checked above), which live as long as 't and in which
                // nobody writes meanwhile.
                unsafe {
                    Some((
                        slice::<i64>(latents, n),
                        slice::<f32>(enc, n * d_in),
                        slice::<f32>(dec, n * d_out),
                    ))
                }
            }
            None => None,
        };
        // SAFETY: as above.
        let (at, latents, d_pre, values, x, errors) = unsafe {
            (
                slice::<i64>(by.rows, nnz),
                slice::<i64>(by.latents, nnz),
                slice::<f32>(by.d_pre, nnz),
                slice::<f32>(by.values, nnz),
                slice::<f32>(by.x, rows * d_in),
                slice::<f32>(by.errors, rows * groups * d_out),
            )
        };
        let there = |index: &i64, n: usize| usize::try_from(*index).is_ok_and(|i| i < n);
        let sound = at.iter().all(|row| there(row, rows))
            && latents.iter().all(|latent| there(latent, d_sae))
            && extra.is_none_or(|(latents, ..)| latents.is_sorted());
        if !sound {
            return None;
        }
        let (pointers, entries) = by_latent(at, latents, d_pre, values, d_sae);
        Some(Self {
            d_sae,
            d_in,
            d_out,
            groups,
            pointers,
            entries,
            x,
            errors,
            ends: by.ends,
            extra,
            project: by.project,
        })
    }

    /// Puts latent's two rows into `d_enc` and `d_dec`; false where they are 0 because nothing adds to them. `chosen` is
    /// scratch.
    #[inline(always)]
    fn rows<'s, const FUSED: bool>(
        &'s self,
        latent: usize,
        d_enc: &mut [f32],
        d_dec: &mut [f32],
        w_dec: &[f32],
        chosen: &mut Vec<(f32, &'s [f32])>,
    ) -> bool {
        let entries = &self.entries[self.pointers[latent] as usize..self.pointers[latent + 1] as usize];
        let (d_in, d_out) = (self.d_in, self.d_out);
        let extra = self.extra.and_then(|(latents, enc, dec)| {
            let at = latents.binary_search(&(latent as i64)).ok()?;
            Some((&enc[at * d_in..(at + 1) * d_in], &dec[at * d_out..(at + 1) * d_out]))
        });
        match extra {
            Some((enc, dec)) => {
                d_enc.copy_from_slice(enc);
                d_dec.copy_from_slice(dec);
            }
            None if entries.is_empty() => return false,
            None => {
                d_enc.fill(0.0);
                d_dec.fill(0.0);
            }
        }
        let group = self.ends.partition_point(|end| *end <= latent as i64);
        chosen.clear();
        chosen.extend(entries.iter().map(|(row, d_pre, _)| {
            let start = *row as usize * d_in;
            (*d_pre, &self.x[start..start + d_in])
        }));
        add_weighted::<FUSED>(d_enc, chosen);
        chosen.clear();
        chosen.extend(entries.iter().map(|(row, _, value)| {
            let start = (*row as usize * self.groups + group) * d_out;
            (*value, &self.errors[start..start + d_out])
        }));
        add_weighted::<FUSED>(d_dec, chosen);
        if self.project {
            let along = dot::<FUSED>(d_dec, w_dec) / dot::<FUSED>(w_dec, w_dec).max(1e-24);
            for (d, w) in d_dec.iter_mut().zip(w_dec) {
                *d = fma::<FUSED>(-along, *w, *d);
            }
        }
        true
    }
}

/// A stable counting sort; entries that weigh nothing are left out.
fn by_latent(
    rows: &[i64],
    latents: &[i64],
    d_pre: &[f32],
    values: &[f32],
    d_sae: usize,
) -> (Vec<u32>, Vec<(u32, f32, f32)>) {
    let counts = |i: usize| d_pre[i] != 0.0 || values[i] != 0.0;
    let mut pointers = vec![0u32; d_sae + 1];
    for (i, latent) in latents.iter().enumerate() {
        pointers[*latent as usize + 1] += u32::from(counts(i));
    }
    for i in 0..d_sae {
        pointers[i + 1] += pointers[i];
    }
    let mut entries = vec![(0, 0.0, 0.0); pointers[d_sae] as usize];
    let mut next = pointers.clone();
    for (i, latent) in latents.iter().enumerate() {
        if counts(i) {
            let at = &mut next[*latent as usize];
            entries[*at as usize] = (rows[i] as u32, d_pre[i], values[i]);
            *at += 1;
        }
    }
    (pointers, entries)
}

/// A matrix and its moments, some latents at a time.
struct Chunks<'t> {
    weights: std::slice::ChunksMut<'t, f32>,
    m: Option<std::slice::ChunksMut<'t, f32>>,
    v: std::slice::ChunksMut<'t, f32>,
}

struct Chunk<'t> {
    weights: &'t mut [f32],
    m: Option<&'t mut [f32]>,
    v: &'t mut [f32],
}

impl<'t> Chunks<'t> {
    /// # Safety
    /// The tensors must be contiguous float32 on the CPU and equally large, three different ones; nobody else may refer to their
    /// memory meanwhile.
    unsafe fn new(of: &Moved<'t>, latents: usize) -> Self {
        let n = of.weights.numel();
        let size = latents * of.weights.size().get(1).map_or(1, |d| *d as usize).max(1);
        // SAFETY: the caller's promise.
        let chunks = |t: &'t Tensor| unsafe { slice_mut::<f32>(t, n) }.chunks_mut(size);
        Self { weights: chunks(of.weights), m: of.m.map(chunks), v: chunks(of.v) }
    }

    fn next(&mut self) -> Option<Chunk<'t>> {
        let m = match &mut self.m {
            Some(m) => Some(m.next()?),
            None => None,
        };
        Some(Chunk { weights: self.weights.next()?, m, v: self.v.next()? })
    }
}

struct Piece<'t> {
    first: usize,
    enc: Chunk<'t>,
    dec: Chunk<'t>,
}

/// [`AdamStep`] in float32.
struct Constants {
    beta1: f32,
    one_minus_beta1: f32,
    beta2: f32,
    one_minus_beta2: f32,
    eps: f32,
    rate: f32,
    over_root: f32,
    keep: f32,
    scale: f32,
    unit_norm: bool,
    /// Weights without a gradient stay where they are.
    rests: bool,
}

impl From<AdamStep> for Constants {
    fn from(s: AdamStep) -> Self {
        Self {
            beta1: s.beta1 as f32,
            one_minus_beta1: (1.0 - s.beta1) as f32,
            beta2: s.beta2 as f32,
            one_minus_beta2: (1.0 - s.beta2) as f32,
            eps: s.eps as f32,
            rate: s.rate as f32,
            over_root: s.root.recip() as f32,
            keep: (1.0 - s.decay) as f32,
            scale: s.scale as f32,
            unit_norm: s.unit_norm,
            rests: s.beta1 == 0.0 && s.decay == 0.0,
        }
    }
}

fn some_latents(by: &Gradient<'_>, step: &Constants, piece: Piece<'_>) {
    for_this_processor!(some_latents_as_written(by: &Gradient<'_>, step: &Constants, piece: Piece<'_>))
}

#[inline(always)]
fn some_latents_as_written<const FUSED: bool>(by: &Gradient<'_>, step: &Constants, piece: Piece<'_>) {
    let (d_in, d_out) = (by.d_in, by.d_out);
    let (mut d_enc, mut d_dec, mut chosen) = (vec![0f32; d_in], vec![0f32; d_out], Vec::new());
    let Piece { first, mut enc, mut dec } = piece;
    for i in 0..enc.weights.len() / d_in {
        let (enc, dec) = (enc.row(i, d_in), dec.row(i, d_out));
        if by.rows::<FUSED>(first + i, &mut d_enc, &mut d_dec, dec.weights, &mut chosen) {
            adam::<FUSED>(&d_enc, enc.weights, enc.m, enc.v, step);
            adam::<FUSED>(&d_dec, dec.weights, dec.m, dec.v, step);
        } else if step.rests {
            enc.v.iter_mut().for_each(|v| *v *= step.beta2);
            dec.v.iter_mut().for_each(|v| *v *= step.beta2);
        } else {
            d_enc.fill(0.0);
            d_dec.fill(0.0);
            adam::<FUSED>(&d_enc, enc.weights, enc.m, enc.v, step);
            adam::<FUSED>(&d_dec, dec.weights, dec.m, dec.v, step);
        }
        if step.unit_norm {
            let norm = dot::<FUSED>(dec.weights, dec.weights).sqrt().max(1e-12);
            let over = norm.recip();
            dec.weights.iter_mut().for_each(|w| *w *= over);
        }
    }
}

impl Chunk<'_> {
    #[inline(always)]
    fn row(&mut self, i: usize, d: usize) -> Chunk<'_> {
        let at = i * d..(i + 1) * d;
        Chunk {
            weights: &mut self.weights[at.clone()],
            m: self.m.as_mut().map(|m| &mut m[at.clone()]),
            v: &mut self.v[at],
        }
    }
}

#[inline(always)]
fn adam<const FUSED: bool>(g: &[f32], w: &mut [f32], m: Option<&mut [f32]>, v: &mut [f32], c: &Constants) {
    let n = g.len();
    let (w, v) = (&mut w[..n], &mut v[..n]);
    let over = |v: f32| fma::<FUSED>(v.sqrt(), c.over_root, c.eps);
    match m {
        Some(m) => {
            let m = &mut m[..n];
            for i in 0..n {
                let g = g[i] * c.scale;
                v[i] = fma::<FUSED>(c.one_minus_beta2 * g, g, c.beta2 * v[i]);
                m[i] = fma::<FUSED>(c.one_minus_beta1, g, c.beta1 * m[i]);
                w[i] = fma::<FUSED>(-c.rate, m[i] / over(v[i]), w[i] * c.keep);
            }
        }
        None => {
            for i in 0..n {
                let g = g[i] * c.scale;
                v[i] = fma::<FUSED>(c.one_minus_beta2 * g, g, c.beta2 * v[i]);
                w[i] = fma::<FUSED>(-c.rate, g / over(v[i]), w[i] * c.keep);
            }
        }
    }
}

fn some_squares(by: &Gradient<'_>, w_dec: &[f32], first: usize, sums: &mut [f64]) {
    for_this_processor!(some_squares_as_written(
        by: &Gradient<'_>,
        w_dec: &[f32],
        first: usize,
        sums: &mut [f64],
    ))
}

#[inline(always)]
fn some_squares_as_written<const FUSED: bool>(
    by: &Gradient<'_>,
    w_dec: &[f32],
    first: usize,
    sums: &mut [f64],
) {
    let (mut d_enc, mut d_dec, mut chosen) = (vec![0f32; by.d_in], vec![0f32; by.d_out], Vec::new());
    for (latent, sum) in (first..).zip(sums) {
        let w_dec = &w_dec[latent * by.d_out..(latent + 1) * by.d_out];
        if by.rows::<FUSED>(latent, &mut d_enc, &mut d_dec, w_dec, &mut chosen) {
            *sum = f64::from(dot::<FUSED>(&d_enc, &d_enc)) + f64::from(dot::<FUSED>(&d_dec, &d_dec));
        }
    }
}
