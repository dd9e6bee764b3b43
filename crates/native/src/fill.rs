use rayon::prelude::*;
use tch::{Device, Kind, TchError, Tensor};

/// A new contiguous CPU tensor whose memory `fill` writes, and what it says: what is read comes straight into the tensor.
///
/// The bytes are anything until they are written.
///
/// # Errors
/// libtorch's, as when there is no memory; that of `fill`.
pub fn filled<P, E: From<TchError>>(
    size: &[i64],
    kind: Kind,
    fill: impl FnOnce(&mut [u8]) -> Result<P, E>,
) -> Result<(Tensor, P), E> {
    let tensor = Tensor::f_empty(size, (kind, Device::Cpu))?;
    let length = tensor.numel() * kind.elt_size_in_bytes();
    if length == 0 {
        let said = fill(&mut [])?;
        return Ok((tensor, said));
    }
    ask_for_huge_pages(&tensor, length);
    // SAFETY: the tensor is new, contiguous, on the CPU, of `length` bytes, and nobody else refers to its memory, which
    // libtorch allocated and the compiler knows nothing of; every bit pattern is valid in a `u8`.
    let bytes = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<u8>(), length) };
    let said = fill(bytes)?;
    Ok((tensor, said))
}

/// As [`filled`], by several threads: `fill` is called once for each run of `piece` bytes (the last may be shorter) with the
/// place at which it begins and its memory. What it says comes in the order of the pieces.
///
/// # Errors
/// As [`filled`]; of several that `fill` returns, one.
pub fn filled_in_pieces<P: Send, E: From<TchError> + Send>(
    size: &[i64],
    kind: Kind,
    piece: usize,
    fill: impl Fn(usize, &mut [u8]) -> Result<P, E> + Sync,
) -> Result<(Tensor, Vec<P>), E> {
    let piece = piece.max(1);
    let one = |(i, bytes): (usize, &mut [u8])| fill(i * piece, bytes);
    filled(size, kind, |bytes| {
        // Never more threads at a time than libtorch itself would use.
        if tch::get_num_threads() == 1 || bytes.len() <= piece {
            bytes.chunks_mut(piece).enumerate().map(one).collect()
        } else {
            bytes.par_chunks_mut(piece).enumerate().map(one).collect()
        }
    })
}

/// Has the system give the memory of a large new tensor in pages of 2 MiB, where it can: fresh memory in pages of 4 KiB
/// costs three times what it takes to read a file into it.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(tensor: &Tensor, length: usize) {
    const HUGE: usize = 2 << 20;
    let start = tensor.data_ptr() as usize;
    // Only whole pages inside the tensor: its neighbours are none of ours.
    let (first, end) = (start.next_multiple_of(HUGE), (start + length) / HUGE * HUGE);
    if first >= end {
        return;
    }
    // SAFETY: the range is mapped, since it lies inside the tensor's memory; the advice changes none of its bytes, and may
    // be declined.
    let _declined = unsafe { libc::madvise(first as *mut libc::c_void, end - first, libc::MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_: &Tensor, _: usize) {}
