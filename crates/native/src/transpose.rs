use rayon::prelude::*;
use tch::{Device, Kind, TchError, Tensor};

use crate::few_rows::{slice, slice_mut};

/// Values of a row that lie side by side in memory, and rows that are turned together: a cache line each.
const BLOCK: usize = 16;

/// The transpose of `m`, `[rows, columns]` float32 on the CPU whose rows are contiguous (with other numbers between them,
/// perhaps), as a contiguous `[columns, rows]`. libtorch's own copy of such a view takes ten times as long.
///
/// `None` where this kernel does not apply: another dtype, device or layout, or a gradient that is to flow.
///
/// # Errors
/// libtorch's, as when there is no memory.
pub fn transposed(m: &Tensor) -> Result<Option<Tensor>, TchError> {
    let (&[rows, columns], &[stride, 1]) = (&m.size()[..], &m.stride()[..]) else { return Ok(None) };
    let fits = m.device() == Device::Cpu
        && m.f_kind()? == Kind::Float
        && !m.requires_grad()
        && rows > 0
        && columns > 0
        && stride >= columns;
    if !fits {
        return Ok(None);
    }
    let out = Tensor::f_empty([columns, rows], (Kind::Float, Device::Cpu))?;
    let [n, width, stride] = [rows, columns, stride].map(|n| n as usize);
    // SAFETY: `m` is a float32 tensor on the CPU, alive for this call; from its first element on it owns `stride` numbers for
    // each row but the last, and `width` for that one. `out` is new, contiguous, and of `width · n` elements; nobody else
    // refers to its memory.
    let (from, to) =
        unsafe { (slice::<f32>(m, (n - 1) * stride + width), slice_mut::<f32>(&out, width * n)) };
    to.par_chunks_mut(BLOCK * n).enumerate().for_each(|(i, to)| {
        let first = i * BLOCK;
        let some = to.len() / n;
        for start in (0..n).step_by(BLOCK) {
            let together = BLOCK.min(n - start);
            let mut block = [[0f32; BLOCK]; BLOCK];
            for (r, row) in block[..together].iter_mut().enumerate() {
                let at = (start + r) * stride + first;
                row[..some].copy_from_slice(&from[at..at + some]);
            }
            for (c, to) in to.chunks_exact_mut(n).enumerate() {
                for (r, to) in to[start..start + together].iter_mut().enumerate() {
                    *to = block[r][c];
                }
            }
        }
    });
    Ok(Some(out))
}
