//! What a zip archive says of its members (PKWARE APPNOTE, section 4.3). It says it twice, before each member and in the
//! directory at its end; readers that believe one or the other see different archives, so the two must agree here.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    sync::Arc,
};

use zip::{CompressionMethod, ZipArchive, read::ZipFile, result::ZipError};

use crate::{Result, TensorError, npz::count_records, stored::read_exact_at};

/// What can be read at any place by any thread.
#[derive(Debug)]
pub(crate) enum Source {
    /// The open file: what is read later is what was checked, whatever stands at its path by now.
    File(Arc<File>),
    /// A file in memory.
    Memory(&'static [u8]),
}

/// A member that lies within the archive and overlaps no other.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) name: String,
    pub(crate) deflated: bool,
    /// Where its local header begins.
    header: u64,
    /// Where its bytes begin.
    pub(crate) start: u64,
    /// How many there are.
    pub(crate) packed: u64,
    /// How many they make; as many, if it is not deflated.
    pub(crate) size: u64,
    pub(crate) crc: u32,
}

impl Record {
    pub(crate) fn end(&self) -> u64 {
        self.start + self.packed
    }
}

/// The members, as they lie in the archive; `file` stands for it in errors.
pub(crate) fn records(file: &str, source: &Source) -> Result<Vec<Record>> {
    let bad = |problem: String| TensorError::format(file, problem);
    let io = |source| TensorError::Io { file: file.to_owned(), source };
    let unreadable = |e: ZipError| bad(format!("not a readable npz archive: {e}"));
    let length = source.length().map_err(io)?;
    let mut reader = BufReader::new(source.section(0, length));
    let mut archive = ZipArchive::new(&mut reader).map_err(unreadable)?;
    let directory = archive.central_directory_start();
    let mut records = Vec::new();
    for index in 0..archive.len() {
        let name = archive.name_for_index(index).unwrap_or_default().to_owned();
        let what = format!("{file}: {}", name.strip_suffix(".npy").unwrap_or(&name));
        let member = archive.by_index_raw(index).map_err(|e| TensorError::format(&what, e.to_string()))?;
        records.push(record(name, &member, source).map_err(|problem| TensorError::format(what, problem))?);
    }
    drop(archive);
    let listed = count_records(&mut reader, directory).map_err(io)?;
    if listed != records.len() {
        return Err(bad(format!("lists {listed} members under {} names: one is doubled", records.len())));
    }
    records.sort_by_key(|record| record.header);
    let next = records.iter().skip(1).map(|record| record.header).chain([directory]);
    for (record, next) in records.iter().zip(next) {
        if record.end() > next {
            return Err(bad(format!("`{}` reaches into what lies behind it", record.name)));
        }
    }
    Ok(records)
}

/// What the directory says of a member, if its local header says the same.
fn record<R: Read>(name: String, member: &ZipFile<'_, R>, source: &Source) -> Result<Record, String> {
    let deflated = match member.compression() {
        CompressionMethod::Stored => false,
        CompressionMethod::Deflated => true,
        other => return Err(format!("compression {other} is not read")),
    };
    let (header, packed, size) = (member.header_start(), member.compressed_size(), member.size());
    if !deflated && packed != size {
        return Err(format!("{packed} bytes, not compressed, that are to make {size}"));
    }
    let mut local = vec![0; LOCAL];
    let cut = |e: io::Error| format!("its local header can't be read: {e}");
    source.read_exact_at(&mut local, header).map_err(cut)?;
    let (name_end, end) = (
        LOCAL + number(&local, 26, 2) as usize,
        LOCAL + (number(&local, 26, 2) + number(&local, 28, 2)) as usize,
    );
    local.resize(end, 0);
    source.read_exact_at(&mut local, header).map_err(cut)?;
    if local.get(LOCAL..name_end) != Some(member.name_raw()) {
        return Err("its local header has another name than the directory".to_owned());
    }
    let flags = number(&local, 6, 2);
    if member.encrypted() || flags & ENCRYPTED != 0 {
        return Err("is encrypted".to_owned());
    }
    if number(&local, 8, 2) != if deflated { 8 } else { 0 } {
        return Err("its local header has another compression than the directory".to_owned());
    }
    // A writer that could not seek back left these empty, and wrote them behind the data.
    let later = flags & DESCRIPTOR_FOLLOWS != 0;
    let [local_packed, local_size] = sizes(&local, name_end).ok_or("its zip64 field is damaged")?;
    for (local, central) in
        [(local_packed, packed), (local_size, size), (number(&local, 14, 4), member.crc32().into())]
    {
        if local != central && !(later && local == 0) {
            return Err(format!("its local header says {local} where the directory says {central}"));
        }
    }
    let start = header.checked_add(end as u64).ok_or("lies beyond the archive")?;
    start.checked_add(packed).ok_or_else(|| format!("claims {packed} bytes"))?;
    Ok(Record { name, deflated, header, start, packed, size, crc: member.crc32() })
}

/// How long a local header is without name and extra fields.
const LOCAL: usize = 30;
/// Flags of a local header.
const ENCRYPTED: u64 = 1;
const DESCRIPTOR_FOLLOWS: u64 = 8;

/// The packed and the plain size in a local header, from its zip64 field where that has them.
fn sizes(local: &[u8], name_end: usize) -> Option<[u64; 2]> {
    const IN_ZIP64: u64 = u32::MAX as u64;
    let (mut packed, mut size) = (number(local, 18, 4), number(local, 22, 4));
    let mut fields = local.get(name_end..)?;
    while let Some((head, rest)) = fields.split_first_chunk::<4>() {
        let (body, rest) = rest.split_at_checked(number(head, 2, 2) as usize)?;
        fields = rest;
        if number(head, 0, 2) != 1 {
            continue;
        }
        let mut eight = body.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b));
        for value in [&mut size, &mut packed] {
            if *value == IN_ZIP64 {
                *value = eight.next()?;
            }
        }
    }
    Some([packed, size])
}

fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    let bytes = bytes.get(at..at + length).unwrap_or_default();
    bytes.iter().rev().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

impl Source {
    fn length(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => file.as_ref().seek(SeekFrom::End(0)),
            Self::Memory(bytes) => Ok(bytes.len() as u64),
        }
    }

    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => read_exact_at(file, bytes, offset),
            Self::Memory(all) => {
                let from =
                    usize::try_from(offset).ok().and_then(|start| all.get(start..)?.get(..bytes.len()));
                bytes.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }

    /// The bytes from `start` to `end`, one after the other.
    pub(crate) fn section(&self, start: u64, end: u64) -> Section<'_> {
        Section { source: self, start, at: start, end }
    }
}

/// A part of a source with a place of its own in it.
#[derive(Debug)]
pub(crate) struct Section<'s> {
    source: &'s Source,
    start: u64,
    at: u64,
    end: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let there = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let n = there.min(bytes.len());
        let bytes = bytes.split_at_mut(n).0;
        self.source.read_exact_at(bytes, self.at)?;
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }
}

impl Seek for Section<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(n) => self.start.checked_add(n),
            SeekFrom::End(n) => self.end.checked_add_signed(n),
            SeekFrom::Current(n) => self.at.checked_add_signed(n),
        };
        self.at = at.filter(|at| *at >= self.start).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at - self.start)
    }
}
