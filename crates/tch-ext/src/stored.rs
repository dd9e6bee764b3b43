use std::{fs::File, io, sync::Arc};

use crc32fast::Hasher;
use tch::{Device, Kind, Tensor};

use crate::{Result, TensorError, expect_finite, expect_kind};

/// A tensor that lies in a file, read when and as far as it is needed; or one that is in memory already.
///
/// Where it lies aligned in the file, what is asked for is a view of the file's pages: nothing is copied, they are read when
/// they are touched, and the mapping lives as long as the view. Where it does not (NumPy puts arrays at odd places), just
/// what is asked for is read, by several threads. The file must stay as it is meanwhile; one that is replaced by renaming,
/// as all careful writers do, does.
///
/// Values are not checked for NaN here. A member of an archive has a checksum over the whole: it is verified when
/// [`tensor`](Self::tensor) reads all of it, not by a view and not by a part.
#[derive(Debug)]
pub struct Stored {
    what: String,
    kind: Kind,
    shape: Vec<i64>,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Held(Tensor),
    File(InFile),
}

/// Where the bytes begin, and what they must add up to.
#[derive(Debug, Clone)]
pub(crate) struct InFile {
    /// The open file: what is read later is what was checked, whatever stands at its path by now.
    pub(crate) file: Arc<File>,
    pub(crate) offset: u64,
    pub(crate) checksum: Option<Checksum>,
}

/// A CRC-32 over what stands before a tensor and the tensor.
#[derive(Debug, Clone)]
pub(crate) struct Checksum {
    pub(crate) before: Hasher,
    pub(crate) expected: u32,
}

/// Read, summed and checked in one go by one thread: fits the processor's second cache.
pub(crate) const PIECE: usize = 1 << 18;

impl Stored {
    /// A tensor that is in memory; `what` stands for it in errors.
    pub fn held(what: &str, tensor: Tensor) -> Self {
        // libtorch has dtypes that tch can't name, and makes such a tensor only where somebody names them.
        let kind = tensor.f_kind().unwrap_or(Kind::Uint8);
        Self { what: what.to_owned(), kind, shape: tensor.size(), place: Place::Held(tensor) }
    }

    /// A tensor of which the caller has checked that the file holds all its bytes, in C order.
    pub(crate) fn in_file(what: &str, kind: Kind, shape: &[i64], place: InFile) -> Self {
        Self { what: what.to_owned(), kind, shape: shape.to_vec(), place: Place::File(place) }
    }

    /// The file and the tensor's name, for errors.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The sizes.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// The dtype in which it is stored.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// How many bytes its elements take.
    pub fn bytes(&self) -> u64 {
        // Whoever made this has multiplied them before, without overflow.
        self.shape.iter().fold(self.element() as u64, |n, &size| n.saturating_mul(size.unsigned_abs()))
    }

    /// Whether it is in memory, so that asking for it costs nothing.
    pub fn is_held(&self) -> bool {
        matches!(self.place, Place::Held(_))
    }

    /// The same tensor once more; what is in memory is shared, not copied.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        let place = match &self.place {
            Place::Held(tensor) => Place::Held(tensor.shallow_clone()),
            Place::File(place) => Place::File(place.clone()),
        };
        Self { what: self.what.clone(), kind: self.kind, shape: self.shape.clone(), place }
    }

    /// All of it, in its stored dtype: a view of the file's pages where it lies aligned and has no checksum, else a copy.
    ///
    /// # Errors
    /// The system's; [`TensorError::Memory`]; [`TensorError::Format`] for bytes that do not give the checksum.
    pub fn tensor(&self) -> Result<Tensor> {
        let place = match &self.place {
            Place::Held(tensor) => return Ok(tensor.shallow_clone()),
            Place::File(place) => place,
        };
        // A checksum is verified while the bytes are copied.
        match self.view(place).filter(|_| place.checksum.is_none()) {
            Some(view) => Ok(view),
            None => Ok(self.copy(place)?.0),
        }
    }

    /// As [`tensor`](Self::tensor), but never a view of the file, and without NaN and infinity.
    pub(crate) fn read(&self) -> Result<Tensor> {
        match &self.place {
            Place::Held(tensor) => Ok(tensor.shallow_clone()),
            Place::File(place) => {
                let (tensor, finite) = self.copy(place)?;
                if !finite {
                    expect_finite(&self.what, &tensor)?;
                }
                Ok(tensor)
            }
        }
    }

    /// Rows `start..start + len` of a matrix, `[len, cols]`, in the stored dtype.
    ///
    /// # Errors
    /// [`TensorError::Shape`] for what is no matrix; [`TensorError::Range`]; the system's.
    pub fn rows(&self, start: i64, len: i64) -> Result<Tensor> {
        let [rows, cols] = self.matrix()?;
        self.in_range("rows", start, len, rows)?;
        let place = match &self.place {
            Place::Held(tensor) => return Ok(tensor.f_narrow(0, start, len)?),
            Place::File(place) => place,
        };
        if let Some(view) = self.view(place) {
            return Ok(view.f_narrow(0, start, len)?);
        }
        let (what, first) = (self.what.as_str(), start as u64 * self.row_bytes(cols));
        self.make(&[len, cols], PIECE, |at, piece| place.get(what, first + at as u64, piece))
    }

    /// Columns `start..start + len` of a matrix, `[rows, len]`, in the stored dtype. A view is not contiguous.
    ///
    /// # Errors
    /// As [`rows`](Self::rows).
    pub fn columns(&self, start: i64, len: i64) -> Result<Tensor> {
        let [rows, cols] = self.matrix()?;
        self.in_range("columns", start, len, cols)?;
        let place = match &self.place {
            Place::Held(tensor) => return Ok(tensor.f_narrow(1, start, len)?),
            Place::File(place) => place,
        };
        if let Some(view) = self.view(place) {
            return Ok(view.f_narrow(1, start, len)?);
        }
        let (what, stride) = (self.what.as_str(), self.row_bytes(cols));
        let first = start as u64 * self.element() as u64;
        let part = self.row_bytes(len) as usize;
        self.make(&[rows, len], whole_rows(part), |at, piece| {
            for (row, bytes) in (at / part..).zip(piece.chunks_mut(part)) {
                place.get(what, row as u64 * stride + first, bytes)?;
            }
            Ok(())
        })
    }

    /// The rows of a matrix at `indices`, an int64 vector `[n]`, to `[n, cols]`, in the stored dtype and always a copy.
    ///
    /// # Errors
    /// As [`rows`](Self::rows), and [`TensorError::Dtype`] for other indices.
    pub fn select_rows(&self, indices: &Tensor) -> Result<Tensor> {
        let [rows, cols] = self.matrix()?;
        expect_kind("indices", indices, &[Kind::Int64])?;
        if indices.dim() != 1 {
            let expected = "[n]".to_owned();
            return Err(TensorError::Shape { what: "indices".to_owned(), expected, got: indices.size() });
        }
        let indices = indices.f_to_device(Device::Cpu)?;
        let mut list = vec![0i64; indices.numel()];
        indices.f_copy_data(&mut list, indices.numel())?;
        if let Some(&index) = list.iter().find(|index| !(0..rows).contains(*index)) {
            return Err(self.beyond("rows", index, index.saturating_add(1), rows));
        }
        let place = match &self.place {
            Place::Held(tensor) => {
                return Ok(tensor.f_index_select(0, &indices.f_to_device(tensor.device())?)?);
            }
            Place::File(place) => place,
        };
        let (what, row) = (self.what.as_str(), self.row_bytes(cols) as usize);
        self.make(&[list.len() as i64, cols], whole_rows(row), |at, piece| {
            for (index, bytes) in list[at / row..].iter().zip(piece.chunks_mut(row)) {
                place.get(what, *index as u64 * row as u64, bytes)?;
            }
            Ok(())
        })
    }

    fn matrix(&self) -> Result<[i64; 2]> {
        <[i64; 2]>::try_from(self.shape.as_slice()).map_err(|_| TensorError::Shape {
            what: self.what.clone(),
            expected: "[rows, cols]".to_owned(),
            got: self.shape.clone(),
        })
    }

    fn in_range(&self, axis: &'static str, start: i64, len: i64, size: i64) -> Result<()> {
        let end = start.saturating_add(len);
        let fits = start >= 0 && len >= 0 && end <= size;
        if fits { Ok(()) } else { Err(self.beyond(axis, start, end, size)) }
    }

    fn beyond(&self, axis: &'static str, start: i64, end: i64, size: i64) -> TensorError {
        TensorError::Range { what: self.what.clone(), axis, start, end, size }
    }

    fn element(&self) -> usize {
        self.kind.elt_size_in_bytes()
    }

    fn row_bytes(&self, cols: i64) -> u64 {
        cols as u64 * self.element() as u64
    }

    fn view(&self, place: &InFile) -> Option<Tensor> {
        view_of(&place.file, place.offset, self.bytes(), self.kind, &self.shape)
    }

    /// All of it, and whether it is finite; a file's checksum is looked at.
    fn copy(&self, place: &InFile) -> Result<(Tensor, bool)> {
        let (what, kind) = (self.what.as_str(), self.kind);
        let (tensor, pieces) = self.fill(&self.shape, PIECE, |at, piece| {
            place.get(what, at as u64, piece)?;
            // While it is in the processor's cache.
            let mut sum = Hasher::new();
            if place.checksum.is_some() {
                sum.update(piece);
            }
            Ok((sum, all_finite(kind, piece)))
        })?;
        if let Some(Checksum { before, expected }) = &place.checksum {
            let mut whole = before.clone();
            pieces.iter().for_each(|(sum, _)| whole.combine(sum));
            if whole.finalize() != *expected {
                return Err(TensorError::format(what, BAD_CHECKSUM));
            }
        }
        Ok((tensor, pieces.iter().all(|(_, finite)| *finite)))
    }

    fn make(
        &self,
        size: &[i64],
        piece: usize,
        fill: impl Fn(usize, &mut [u8]) -> Result<()> + Sync,
    ) -> Result<Tensor> {
        Ok(self.fill(size, piece, fill)?.0)
    }

    fn fill<P: Send>(
        &self,
        size: &[i64],
        piece: usize,
        fill: impl Fn(usize, &mut [u8]) -> Result<P> + Sync,
    ) -> Result<(Tensor, Vec<P>)> {
        native::filled_in_pieces(size, self.kind, piece, fill).map_err(|e| refusal(e, &self.what))
    }
}

/// Says of an error of libtorch's for which tensor it was.
pub(crate) fn refusal(error: TensorError, what: &str) -> TensorError {
    match error {
        // A tensor without elements may still have sizes whose product no index holds.
        TensorError::Torch(_) => TensorError::format(what, error.to_string()),
        other => other.for_tensor(what),
    }
}

pub(crate) const BAD_CHECKSUM: &str = "damaged: its bytes do not give its checksum";

/// Whether some elements, in this machine's order, are neither NaN nor infinite: those have an exponent of ones.
pub(crate) fn all_finite(kind: Kind, bytes: &[u8]) -> bool {
    const BF16: u16 = 0x7F80;
    const F16: u16 = 0x7C00;
    const F32: u32 = 0x7F80_0000;
    const F64: u64 = 0x7FF0_0000_0000_0000;
    // Without an early end, which would keep the compiler from taking several at once.
    let half = |ones: u16| {
        let all = bytes.as_chunks().0.iter().map(|b| u16::from_ne_bytes(*b) & ones);
        !all.fold(false, |bad, bits| bad | (bits == ones))
    };
    match kind {
        Kind::Float => {
            let all = bytes.as_chunks().0.iter().map(|b| u32::from_ne_bytes(*b) & F32);
            !all.fold(false, |bad, bits| bad | (bits == F32))
        }
        Kind::Double => {
            let all = bytes.as_chunks().0.iter().map(|b| u64::from_ne_bytes(*b) & F64);
            !all.fold(false, |bad, bits| bad | (bits == F64))
        }
        Kind::Half => half(F16),
        Kind::BFloat16 => half(BF16),
        _ => true,
    }
}

impl InFile {
    /// The bytes from `at` on, counted from where the tensor begins.
    fn get(&self, what: &str, at: u64, bytes: &mut [u8]) -> Result<()> {
        read_exact_at(&self.file, bytes, self.offset + at)
            .map_err(|source| TensorError::Io { file: what.to_owned(), source })
    }
}

/// About [`PIECE`] bytes of whole rows.
fn whole_rows(row: usize) -> usize {
    (PIECE / row.max(1)).max(1) * row
}

/// Bytes of a file as a tensor, without a copy; `None` where they lie at an odd place, or can't be mapped.
#[cfg(unix)]
pub(crate) fn view_of(file: &File, start: u64, length: u64, kind: Kind, shape: &[i64]) -> Option<Tensor> {
    use std::os::fd::AsRawFd as _;

    if length == 0 || !start.is_multiple_of(kind.elt_size_in_bytes() as u64) {
        return None;
    }
    let (start, length) = (i64::try_from(start).ok()?, i64::try_from(length).ok()?);
    let open_file = format!("/dev/fd/{}", file.as_raw_fd());
    // libtorch maps from the file's beginning; the system reads what is touched.
    let bytes =
        Tensor::f_from_file(&open_file, false, start.checked_add(length)?, (Kind::Uint8, Device::Cpu));
    bytes.ok()?.f_narrow(0, start, length).ok()?.f_view_dtype(kind).ok()?.f_view(shape).ok()
}

#[cfg(not(unix))]
pub(crate) fn view_of(_: &File, _: u64, _: u64, _: Kind, _: &[i64]) -> Option<Tensor> {
    None
}

/// Reads at a place, whatever other threads read meanwhile.
#[cfg(unix)]
pub(crate) fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
pub(crate) fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                bytes = &mut bytes[n..];
                offset += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
