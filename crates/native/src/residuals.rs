//! Reconstructions from sparse latents, what they leave, and how much each latent has to do with it.

use tch::{Device, Kind, TchError, Tensor};

use crate::{
    few_rows::{slice, slice_mut},
    vectors::{add_weighted, dot, for_this_processor, four_dots, side_by_side},
};

/// The operands of [`residuals`], contiguous and on the CPU.
#[derive(Debug, Clone, Copy)]
pub struct Decoding<'t> {
    /// `[B + 1]`, int64: row b holds entries `indptr[b]` to `indptr[b + 1] - 1`, latents ascending.
    pub indptr: &'t Tensor,
    /// `[nnz]`, int64.
    pub latents: &'t Tensor,
    /// `[nnz]`: what a latent is multiplied by; may be 0.
    pub values: &'t Tensor,
    /// `[d_sae, d_out]`.
    pub w_dec: &'t Tensor,
    /// `[d_out]`.
    pub b_dec: &'t Tensor,
    /// `[B, d_out]`, added to the reconstruction.
    pub skip: Option<&'t Tensor>,
    /// `[B, d_out]`.
    pub target: &'t Tensor,
    /// Widths of the nested dictionaries, ascending; the last is `d_sae`.
    pub ends: &'t [i64],
}

/// What [`residuals`] makes, for G nested dictionaries.
#[derive(Debug)]
pub struct Residuals {
    /// `[B, G, d_out]`: of each row and dictionary g the sum of `x̂ − target` over this dictionary and all wider ones.
    pub errors: Tensor,
    /// `[nnz]`: the dot product of an entry's decoder row with the errors of the narrowest dictionary that has the latent.
    pub products: Tensor,
    /// `[G]`: the sum over rows of `‖x̂ − target‖²` of each dictionary.
    pub squared: Vec<f64>,
}

/// Reconstructs each row by each of the nested dictionaries, `x̂_g = b_dec + skip + Σ values · W_dec` over the entries whose
/// latent is less than `ends[g]`, and takes the products that a gradient needs while the decoder's rows are in cache.
///
/// `None` where this kernel does not apply: another dtype or device, operands that are not contiguous or contradict each
/// other.
///
/// # Errors
/// libtorch's, as when there is no memory.
pub fn residuals(of: &Decoding<'_>) -> Result<Option<Residuals>, TchError> {
    let (&[rows, d_out], &[d_sae, width], &[nnz]) =
        (&of.target.size()[..], &of.w_dec.size()[..], &of.latents.size()[..])
    else {
        return Ok(None);
    };
    let groups = of.ends.len();
    let skip_fits = of.skip.is_none_or(|s| plain(s, Kind::Float) && s.size() == [rows, d_out]);
    let fits = [of.indptr, of.latents].iter().all(|t| plain(t, Kind::Int64))
        && [of.values, of.w_dec, of.b_dec, of.target].iter().all(|t| plain(t, Kind::Float))
        && of.indptr.size() == [rows + 1]
        && of.values.size() == [nnz]
        && of.b_dec.size() == [d_out]
        && width == d_out
        && d_out > 0
        && skip_fits
        && of.ends.is_sorted()
        && of.ends.last() == Some(&d_sae);
    if !fits {
        return Ok(None);
    }
    let errors = Tensor::f_empty([rows, groups as i64, d_out], (Kind::Float, Device::Cpu))?;
    let products = Tensor::f_empty([nnz], (Kind::Float, Device::Cpu))?;
    let [n, d, entries] = [rows, d_out, nnz].map(|n| n as usize);
    // SAFETY: all are contiguous CPU tensors of these dtypes and numbers of elements (checked above), alive for this call;
    // nothing here writes to them but to `errors` and `products`, which are new and which nobody else refers to.
    let (operands, errors_out, products_out) = unsafe {
        let operands = Operands {
            indptr: slice::<i64>(of.indptr, n + 1),
            latents: slice::<i64>(of.latents, entries),
            values: slice::<f32>(of.values, entries),
            w_dec: slice::<f32>(of.w_dec, d_sae as usize * d),
            b_dec: slice::<f32>(of.b_dec, d),
            skip: of.skip.map(|skip| slice::<f32>(skip, n * d)),
            target: slice::<f32>(of.target, n * d),
            ends: of.ends,
        };
        (operands, slice_mut::<f32>(&errors, n * groups * d), slice_mut::<f32>(&products, entries))
    };
    if !operands.are_sound(d_sae) {
        return Ok(None);
    }
    let mut squared = vec![0f64; n * groups];
    let mut pieces = Vec::new();
    let mut left = products_out;
    let parts = errors_out.chunks_mut(ROWS * groups * d).zip(squared.chunks_mut(ROWS * groups));
    for (i, (errors, squared)) in parts.enumerate() {
        let first = i * ROWS;
        let end = (first + ROWS).min(n);
        let here = (operands.indptr[end] - operands.indptr[first]) as usize;
        let (products, others) = left.split_at_mut(here);
        left = others;
        pieces.push(Piece { first, errors, products, squared });
    }
    side_by_side(pieces, |piece| some_rows(&operands, piece));
    let mut sums = vec![0f64; groups];
    for row in squared.chunks_exact(groups) {
        sums.iter_mut().zip(row).for_each(|(sum, row)| *sum += row);
    }
    Ok(Some(Residuals { errors, products, squared: sums }))
}

/// Rows in one piece of work.
const ROWS: usize = 16;

pub(crate) fn plain(t: &Tensor, kind: Kind) -> bool {
    t.device() == Device::Cpu
        && t.f_kind().is_ok_and(|k| k == kind)
        && t.is_contiguous()
        && !t.requires_grad()
}

struct Operands<'t> {
    indptr: &'t [i64],
    latents: &'t [i64],
    values: &'t [f32],
    w_dec: &'t [f32],
    b_dec: &'t [f32],
    skip: Option<&'t [f32]>,
    target: &'t [f32],
    ends: &'t [i64],
}

impl Operands<'_> {
    /// Whether the row pointers rise from 0 to the number of entries, and every latent is there.
    fn are_sound(&self, d_sae: i64) -> bool {
        self.indptr.is_sorted()
            && self.indptr.first() == Some(&0)
            && self.indptr.last() == Some(&(self.latents.len() as i64))
            && self.latents.iter().all(|latent| (0..d_sae).contains(latent))
    }
}

struct Piece<'p> {
    first: usize,
    errors: &'p mut [f32],
    products: &'p mut [f32],
    squared: &'p mut [f64],
}

fn some_rows(of: &Operands<'_>, piece: Piece<'_>) {
    for_this_processor!(some_rows_as_written(of: &Operands<'_>, piece: Piece<'_>))
}

#[inline(always)]
fn some_rows_as_written<const FUSED: bool>(of: &Operands<'_>, piece: Piece<'_>) {
    let (d, groups) = (of.b_dec.len(), of.ends.len());
    let Piece { first, errors, mut products, squared } = piece;
    let mut recon = vec![0f32; d];
    let mut chosen: Vec<(f32, &[f32])> = Vec::new();
    for (i, (errors, squared)) in
        errors.chunks_exact_mut(groups * d).zip(squared.chunks_exact_mut(groups)).enumerate()
    {
        let row = first + i;
        let (from, to) = (of.indptr[row] as usize, of.indptr[row + 1] as usize);
        let (latents, values) = (&of.latents[from..to], &of.values[from..to]);
        let target = &of.target[row * d..(row + 1) * d];
        let decoder_row = |latent: i64| &of.w_dec[latent as usize * d..(latent as usize + 1) * d];
        recon.copy_from_slice(of.b_dec);
        if let Some(skip) = of.skip {
            recon.iter_mut().zip(&skip[row * d..]).for_each(|(recon, skip)| *recon += skip);
        }
        let mut done = 0;
        for (g, error) in errors.chunks_exact_mut(d).enumerate() {
            let upto = done + latents[done..].partition_point(|latent| *latent < of.ends[g]);
            chosen.clear();
            let some = latents[done..upto].iter().zip(&values[done..upto]);
            chosen.extend(some.filter(|(_, v)| **v != 0.0).map(|(latent, v)| (*v, decoder_row(*latent))));
            add_weighted::<FUSED>(&mut recon, &chosen);
            for ((error, recon), target) in error.iter_mut().zip(&recon).zip(target) {
                *error = recon - target;
            }
            squared[g] = f64::from(dot::<FUSED>(error, error));
            done = upto;
        }
        for g in (1..groups).rev() {
            let (narrower, wider) = errors.split_at_mut(g * d);
            narrower[(g - 1) * d..].iter_mut().zip(&wider[..d]).for_each(|(n, w)| *n += w);
        }
        let (here, others) = products.split_at_mut(to - from);
        products = others;
        let mut done = 0;
        for (g, error) in errors.chunks_exact(d).enumerate() {
            let upto = done + latents[done..].partition_point(|latent| *latent < of.ends[g]);
            let (fours, rest) = latents[done..upto].as_chunks::<4>();
            let (out_fours, out_rest) = here[done..upto].as_chunks_mut::<4>();
            for (latents, out) in fours.iter().zip(out_fours) {
                *out = four_dots::<FUSED>(error, latents.map(decoder_row));
            }
            for (latent, out) in rest.iter().zip(out_rest) {
                *out = dot::<FUSED>(error, decoder_row(*latent));
            }
            done = upto;
        }
    }
}
