use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{BufReader, Cursor, Read, Seek, SeekFrom, Write as _},
    path::Path,
    sync::Arc,
};

use crc32fast::Hasher;
use tch::Tensor;
use zip::{CompressionMethod, ZipArchive, ZipWriter, write::SimpleFileOptions};

use crate::{
    Result, Stored, TensorError, expect_finite, npy,
    safetensors::bytes_of,
    stored::{Checksum, InFile, read_exact_at},
    write_atomically,
};

/// A deflated member larger than this is refused when it also expands more than [`MAX_EXPANSION`]-fold: weights hardly
/// compress, so such a member is a zip bomb. Smaller ones (a bias of zeros) may expand as they like.
const LARGE_MEMBER: u64 = 64 << 20;
const MAX_EXPANSION: u64 = 100;

trait ReadSeek: Read + Seek + Send {}
impl<T: Read + Seek + Send> ReadSeek for T {}

/// A NumPy `.npz` archive: a zip file of `.npy` arrays, stored or deflated, zip64 or not, read one array at a time.
///
/// Refused: a name that stands twice, an array whose header does not fit its bytes, a member that expands absurdly,
/// a failed checksum.
pub struct NpzFile {
    name: String,
    /// The open file, if it is one: what is read later is what was checked, whatever stands at its path by now.
    file: Option<Arc<File>>,
    archive: ZipArchive<Box<dyn ReadSeek>>,
    /// Bytes of the whole archive.
    length: u64,
    members: BTreeMap<String, usize>,
}

impl NpzFile {
    /// Opens an archive.
    ///
    /// # Errors
    /// The system's; [`TensorError::Format`] for what is no archive, or holds a name twice.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| TensorError::io(path, e))?;
        let again = file.try_clone().map_err(|e| TensorError::io(path, e))?;
        let opened = Self::from_reader(&path.display().to_string(), Box::new(BufReader::new(file)))?;
        Ok(Self { file: Some(Arc::new(again)), ..opened })
    }

    /// Reads an archive that is already in memory; `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(name: &str, bytes: &'static [u8]) -> Result<Self> {
        Self::from_reader(name, Box::new(Cursor::new(bytes)))
    }

    fn from_reader(name: &str, mut reader: Box<dyn ReadSeek>) -> Result<Self> {
        let bad = |problem: String| TensorError::format(name, problem);
        let io = |source| TensorError::Io { file: name.to_owned(), source };
        let unreadable = |e: zip::result::ZipError| bad(format!("not a readable npz archive: {e}"));
        let length = reader.seek(SeekFrom::End(0)).map_err(io)?;
        reader.rewind().map_err(io)?;
        let directory = ZipArchive::new(&mut reader).map_err(unreadable)?.central_directory_start();
        let listed = count_records(&mut reader, directory).map_err(io)?;
        let archive = ZipArchive::new(reader).map_err(unreadable)?;
        if listed != archive.len() {
            return Err(bad(format!("lists {listed} members under {} names: one is doubled", archive.len())));
        }
        let mut members = BTreeMap::new();
        for index in 0..archive.len() {
            let member = archive.name_for_index(index).unwrap_or_default();
            let array = member
                .strip_suffix(".npy")
                .ok_or_else(|| bad(format!("member `{member}` is not a `.npy` array")))?;
            if array.contains(char::is_control) {
                return Err(bad(format!("{array:?} is no name of an array")));
            }
            members.insert(array.to_owned(), index);
        }
        Ok(Self { name: name.to_owned(), file: None, archive, length, members })
    }

    /// The path, or the name given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The names of the arrays, without `.npy`, sorted.
    pub fn names(&self) -> Vec<String> {
        self.members.keys().cloned().collect()
    }

    /// Reads one array, in the dtype in which it is stored. Arrays in Fortran order come out in C order.
    ///
    /// # Errors
    /// [`TensorError::Missing`]; [`TensorError::Format`] for a damaged or lying member; [`TensorError::NotFinite`].
    pub fn read(&mut self, array: &str) -> Result<Tensor> {
        let what = format!("{}: {array}", self.name);
        let tensor = match self.in_file(array, &what)? {
            Some(stored) => stored.read()?,
            None => self.unpack(array, &what)?,
        };
        if tensor.is_floating_point() {
            expect_finite(&what, &tensor)?;
        }
        Ok(tensor)
    }

    fn unpack(&mut self, array: &str, what: &str) -> Result<Tensor> {
        let missing = || TensorError::Missing { file: self.name.clone(), name: array.to_owned() };
        let index = *self.members.get(array).ok_or_else(missing)?;
        let bad = |problem: String| TensorError::format(what, problem);
        let member = self.archive.by_index(index).map_err(|e| bad(e.to_string()))?;
        let (size, packed) = (member.size(), member.compressed_size());
        if !matches!(member.compression(), CompressionMethod::Stored | CompressionMethod::Deflated) {
            return Err(bad(format!("compression {} is not read", member.compression())));
        }
        if packed > self.length {
            return Err(bad(format!("claims {packed} bytes of an archive of {}", self.length)));
        }
        if size > LARGE_MEMBER && size / MAX_EXPANSION > packed {
            return Err(bad(format!("{packed} bytes that claim to expand to {size}: refused as a zip bomb")));
        }
        // Grows with what is really there, so a false size allocates little; one byte more would show an overrun.
        let mut bytes = Vec::with_capacity(size.min(packed.saturating_mul(4)) as usize);
        member.take(size.saturating_add(1)).read_to_end(&mut bytes).map_err(|e| bad(e.to_string()))?;
        if bytes.len() as u64 != size {
            return Err(bad(format!("the archive promises {size} bytes, but {} came", bytes.len())));
        }
        npy::parse(what, &bytes)
    }

    /// One array, to be read when and as far as it is needed.
    ///
    /// What is deflated, in Fortran order or in an archive in memory is read now. Otherwise the header alone is read: neither
    /// the checksum nor NaN are looked for before the array is read whole (see [`Stored`]).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn stored(&mut self, array: &str) -> Result<Stored> {
        let what = format!("{}: {array}", self.name);
        match self.in_file(array, &what)? {
            Some(stored) => Ok(stored),
            None => Ok(Stored::held(&what, self.read(array)?)),
        }
    }

    fn in_file(&mut self, array: &str, what: &str) -> Result<Option<Stored>> {
        let (Some(file), Some(&index)) = (&self.file, self.members.get(array)) else { return Ok(None) };
        let bad = |problem: String| TensorError::format(what, problem);
        let member = self.archive.by_index(index).map_err(|e| bad(e.to_string()))?;
        let (size, start) = (member.size(), member.data_start());
        if member.compression() != CompressionMethod::Stored || member.compressed_size() != size {
            return Ok(None);
        }
        if start.checked_add(size).is_none_or(|end| end > self.length) {
            return Err(bad(format!("claims {size} bytes of an archive of {}", self.length)));
        }
        let io = |source| TensorError::Io { file: what.to_owned(), source };
        let mut head = vec![0; size.min(npy::MAX_HEADER) as usize];
        read_exact_at(file, &mut head, start).map_err(io)?;
        let header = npy::parse_header(what, &head)?;
        header.check_length(what, size - header.data_start as u64)?;
        if header.fortran_order {
            return Ok(None);
        }
        let mut before = Hasher::new();
        before.update(&head[..header.data_start]);
        let checksum = Some(Checksum { before, expected: member.crc32() });
        let place = InFile { file: Arc::clone(file), offset: start + header.data_start as u64, checksum };
        Ok(Some(Stored::in_file(what, header.kind, &header.shape, place)))
    }
}

impl fmt::Debug for NpzFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NpzFile").field("name", &self.name).field("members", &self.names()).finish()
    }
}

/// Counts the records of a zip's central directory (PKWARE APPNOTE 4.3.12). `ZipArchive` keeps the last of several
/// members of one name and says nothing; which of them NumPy would take is chance, so they are counted here.
pub(crate) fn count_records(reader: &mut (impl Read + Seek), directory: u64) -> std::io::Result<usize> {
    const FIXED: usize = 46;
    reader.seek(SeekFrom::Start(directory))?;
    let mut reader = BufReader::new(&mut *reader);
    let mut count = 0;
    loop {
        let mut record = [0; FIXED];
        if reader.read_exact(&mut record).is_err() || !record.starts_with(b"PK\x01\x02") {
            break;
        }
        // The lengths of name, extra field and comment stand at 28, 30 and 32.
        let extra: i64 = record[28..34].chunks(2).map(|b| i64::from(b[0]) + 256 * i64::from(b[1])).sum();
        reader.seek_relative(extra)?;
        count += 1;
    }
    reader.into_inner().rewind()?;
    Ok(count)
}

/// Writes arrays as `numpy.savez` does: stored, little-endian, in C order; zip64 where a member needs it.
///
/// # Errors
/// The system's; [`TensorError::Dtype`] for a dtype without a NumPy name.
pub fn write_npz<'t>(path: &Path, arrays: impl IntoIterator<Item = (&'t str, &'t Tensor)>) -> Result<()> {
    let arrays: Vec<_> = arrays.into_iter().collect();
    let io = |e: std::io::Error| TensorError::io(path, e);
    write_atomically(path, |file| {
        // The bytes are put together by `zip`, which wants to seek back; `write_atomically` only streams.
        let mut archive = ZipWriter::new_stream(file);
        for (name, tensor) in &arrays {
            let tensor = tensor.f_detach()?.f_to_device(tch::Device::Cpu)?.f_contiguous()?;
            let kind = tensor.f_kind()?;
            let header = npy::header(kind, &tensor.size()).ok_or_else(|| TensorError::Dtype {
                what: (*name).to_owned(),
                expected: "F32, F16, F64 or I64".to_owned(),
                got: crate::kind_name(kind).to_owned(),
            })?;
            let bytes = bytes_of(&tensor)?;
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Stored)
                .large_file(bytes.len() as u64 > u64::from(u32::MAX) - 1024);
            archive.start_file(format!("{name}.npy"), options).map_err(|e| io(e.into()))?;
            archive.write_all(&header).map_err(io)?;
            archive.write_all(&bytes).map_err(io)?;
        }
        archive.finish().map_err(|e| io(e.into()))?;
        Ok(())
    })
}
