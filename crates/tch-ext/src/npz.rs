use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom, Write as _},
    path::Path,
    sync::Arc,
};

use crc32fast::Hasher;
use flate2::bufread::DeflateDecoder;
use rayon::prelude::*;
use tch::Tensor;
use zip::{CompressionMethod, DateTime, ZipWriter, write::SimpleFileOptions};

use crate::{
    Result, Stored, TensorError,
    atomic::open_ordinary,
    npy,
    safetensors::write_elements,
    stored::{BAD_CHECKSUM, Checksum, InFile, read_exact_at},
    write_atomically,
    zip_records::{Record, Source, records},
};

/// A deflated member larger than this is refused when it also expands more than [`MAX_EXPANSION`]-fold: weights hardly
/// compress, so such a member is a zip bomb. Smaller ones (a bias of zeros) may expand as they like.
const LARGE_MEMBER: u64 = 64 << 20;
const MAX_EXPANSION: u64 = 100;

/// A NumPy `.npz` archive: a zip file of `.npy` arrays, stored or deflated, zip64 or not, read one array at a time.
///
/// Refused: a name that stands twice, members that overlap, a directory that says other things of a member than its own
/// header does, an array whose header does not fit its bytes, a member that expands absurdly, a failed checksum.
pub struct NpzFile {
    name: String,
    source: Source,
    members: BTreeMap<String, Record>,
}

impl NpzFile {
    /// Opens an archive.
    ///
    /// # Errors
    /// The system's; [`TensorError::Format`] for what is no archive, or whose records are damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_ordinary(path)?;
        Self::from_source(path.display().to_string(), Source::File(Arc::new(file)))
    }

    /// Reads an archive that is already in memory; `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(name: &str, bytes: &'static [u8]) -> Result<Self> {
        Self::from_source(name.to_owned(), Source::Memory(bytes))
    }

    fn from_source(name: String, source: Source) -> Result<Self> {
        let bad = |problem: String| TensorError::format(&name, problem);
        let mut members = BTreeMap::new();
        for record in records(&name, &source)? {
            let member = &record.name;
            let array = member
                .strip_suffix(".npy")
                .ok_or_else(|| bad(format!("member `{member}` is not a `.npy` array")))?;
            if array.contains(char::is_control) {
                return Err(bad(format!("{array:?} is no name of an array")));
            }
            members.insert(array.to_owned(), record);
        }
        Ok(Self { name, source, members })
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
    /// What is not deflated is read by several threads straight into the tensor, which hold it against its checksum and
    /// look for NaN on the way.
    ///
    /// # Errors
    /// [`TensorError::Missing`]; [`TensorError::Format`] for a damaged or lying member; [`TensorError::NotFinite`].
    pub fn read(&mut self, array: &str) -> Result<Tensor> {
        self.array(array)
    }

    /// Reads all arrays, by name, as [`read`](Self::read) does; several are inflated at a time.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_all(&self) -> Result<BTreeMap<String, Tensor>> {
        let read = |name: &String| Ok((name.clone(), self.array(name)?));
        if tch::get_num_threads() == 1 {
            return self.members.keys().map(read).collect();
        }
        self.members.par_iter().map(|(name, _)| read(name)).collect()
    }

    /// One array, to be read when and as far as it is needed.
    ///
    /// What is deflated, in Fortran order or in an archive in memory is read now. Otherwise the header alone is read: neither
    /// the checksum nor NaN are looked for before the array is read whole (see [`Stored`]).
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn stored(&mut self, array: &str) -> Result<Stored> {
        let (what, record) = self.record(array)?;
        match &self.source {
            Source::File(file) if !record.deflated => {
                let (stored, header) = in_file(&what, file, record)?;
                if header.fortran_order {
                    return Ok(Stored::held(&what, header.in_c_order(stored.read()?)?));
                }
                Ok(stored)
            }
            _ => Ok(Stored::held(&what, self.array(array)?)),
        }
    }

    fn record(&self, array: &str) -> Result<(String, &Record)> {
        let missing = || TensorError::Missing { file: self.name.clone(), name: array.to_owned() };
        Ok((format!("{}: {array}", self.name), self.members.get(array).ok_or_else(missing)?))
    }

    fn array(&self, array: &str) -> Result<Tensor> {
        let (what, record) = self.record(array)?;
        match &self.source {
            Source::File(file) if !record.deflated => {
                let (stored, header) = in_file(&what, file, record)?;
                header.in_c_order(stored.read()?)
            }
            source => unpack(&what, source, record),
        }
    }
}

impl fmt::Debug for NpzFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NpzFile").field("name", &self.name).field("members", &self.names()).finish()
    }
}

/// An array whose bytes lie in the file as they are, and its header.
fn in_file(what: &str, file: &Arc<File>, record: &Record) -> Result<(Stored, npy::Header)> {
    let io = |source| TensorError::Io { file: what.to_owned(), source };
    let mut head = vec![0; record.size.min(npy::MAX_HEADER) as usize];
    read_exact_at(file, &mut head, record.start).map_err(io)?;
    let header = npy::parse_header(what, &head)?;
    header.check_length(what, record.size - header.data_start as u64)?;
    let mut before = Hasher::new();
    before.update(head.get(..header.data_start).unwrap_or_default());
    let place = InFile {
        file: Arc::clone(file),
        offset: record.start + header.data_start as u64,
        checksum: Some(Checksum { before, expected: record.crc }),
    };
    Ok((Stored::in_file(what, header.kind, &header.sizes(), place), header))
}

/// An array that can only be read from its beginning to its end.
fn unpack(what: &str, source: &Source, record: &Record) -> Result<Tensor> {
    let bad = |problem: String| TensorError::format(what, problem);
    let (size, packed) = (record.size, record.packed);
    if size > LARGE_MEMBER && size / MAX_EXPANSION > packed {
        return Err(bad(format!("{packed} bytes that claim to expand to {size}: refused as a zip bomb")));
    }
    let bytes = BufReader::with_capacity(1 << 16, source.section(record.start, record.end()));
    if !record.deflated {
        return checked(what, bytes, record);
    }
    let mut inflated = DeflateDecoder::new(bytes);
    let tensor = checked(what, &mut inflated, record)?;
    match packed - inflated.total_in().min(packed) {
        0 => Ok(tensor),
        more => Err(bad(format!("{more} bytes stand behind the end of what is deflated"))),
    }
}

/// Reads an array that must take as many bytes as the archive promises, and give its checksum.
fn checked(what: &str, from: impl Read, record: &Record) -> Result<Tensor> {
    let bad = |problem: String| TensorError::format(what, problem);
    let size = record.size;
    let mut from = Counted { from, count: 0, sum: Hasher::new() };
    let tensor = npy::read(what, &mut from, size);
    // What the archive gets wrong goes before what the array does. One byte more shows an overrun.
    let rest = size.saturating_add(1) - from.count;
    let drained = io::copy(&mut from.by_ref().take(rest), &mut io::sink());
    drained.map_err(|e| bad(format!("can't be unpacked: {e}")))?;
    if from.count != size {
        return Err(bad(format!("the archive promises {size} bytes, but {} came", from.count)));
    }
    if from.sum.finalize() != record.crc {
        return Err(bad(BAD_CHECKSUM.to_owned()));
    }
    tensor
}

struct Counted<R> {
    from: R,
    count: u64,
    sum: Hasher,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(bytes)?;
        self.count += n as u64;
        self.sum.update(bytes.get(..n).unwrap_or_default());
        Ok(n)
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

/// Writes arrays as `numpy.savez` does: stored, little-endian, in C order; zip64 where a member needs it. The same arrays give
/// the same bytes, and the data of each begin at a multiple of 64 bytes of the file, where they can be mapped.
///
/// # Errors
/// The system's; [`TensorError::Dtype`] for a dtype without a NumPy name.
pub fn write_npz<'t>(path: &Path, arrays: impl IntoIterator<Item = (&'t str, &'t Tensor)>) -> Result<()> {
    let arrays: Vec<_> = arrays.into_iter().collect();
    let io = |e: io::Error| TensorError::io(path, e);
    write_atomically(path, |file| {
        let mut archive = ZipWriter::new(file);
        for (name, tensor) in &arrays {
            let kind = tensor.f_kind()?;
            let header = npy::header(kind, &tensor.size()).ok_or_else(|| TensorError::Dtype {
                what: (*name).to_owned(),
                expected: "F32, F16, F64 or I64".to_owned(),
                got: crate::kind_name(kind).to_owned(),
            })?;
            let bytes = (tensor.numel() * kind.elt_size_in_bytes()) as u64;
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Stored)
                .last_modified_time(DateTime::default())
                .with_alignment(npy::ALIGNMENT as u16)
                .large_file(bytes > u64::from(u32::MAX) - 1024);
            archive.start_file(format!("{name}.npy"), options).map_err(|e| io(e.into()))?;
            archive.write_all(&header).map_err(io)?;
            write_elements(tensor, |piece| archive.write_all(piece).map_err(io))?;
        }
        archive.finish().map_err(|e| io(e.into()))?;
        Ok(())
    })
}
