use rayon::prelude::*;
use tch::{Device, Kind, TchError, Tensor};

/// A new contiguous CPU tensor whose memory several threads fill, and what they say of each piece, in order.
///
/// `fill` is called once for each run of `piece` bytes (the last may be shorter) with the place at which it begins and its
/// memory, whose bytes are anything until they are written. Nothing is copied afterwards: a file is read straight into the
/// tensor. As few threads as libtorch itself would use.
///
/// # Errors
/// libtorch's, as when there is no memory; the first that `fill` returns.
pub fn filled<P: Send, E: From<TchError> + Send>(
    size: &[i64],
    kind: Kind,
    piece: usize,
    fill: impl Fn(usize, &mut [u8]) -> Result<P, E> + Sync,
) -> Result<(Tensor, Vec<P>), E> {
    let tensor = Tensor::f_empty(size, (kind, Device::Cpu))?;
    let length = tensor.numel() * kind.elt_size_in_bytes();
    if length == 0 {
        return Ok((tensor, Vec::new()));
    }
    // SAFETY: the tensor is new, contiguous, on the CPU, of `length` bytes, and nobody else refers to its memory, which
    // libtorch allocated and the compiler knows nothing of; every bit pattern is valid in a `u8`.
    let bytes = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<u8>(), length) };
    let piece = piece.max(1);
    let one = |(i, bytes): (usize, &mut [u8])| fill(i * piece, bytes);
    let said: Result<Vec<P>, E> = if tch::get_num_threads() == 1 || length <= piece {
        bytes.chunks_mut(piece).enumerate().map(one).collect()
    } else {
        bytes.par_chunks_mut(piece).enumerate().map(one).collect()
    };
    Ok((tensor, said?))
}
