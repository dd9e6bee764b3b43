use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufReader, Read as _, Seek as _},
};

use zip::{CompressionMethod, ZipArchive, result::ZipError};

use crate::{Result, TensorError, npz::count_records};

const ZIP_MAGIC: &[u8] = b"PK\x03\x04";
/// How a pickle begins; before PyTorch 1.6 a file was a row of them.
const PICKLE_MAGIC: &[u8] = b"\x80";

/// The zip archive: every member stored as it is, within the file, under a name of its own.
pub(super) struct Archive<'f> {
    name: String,
    zip: ZipArchive<BufReader<&'f mut File>>,
    members: BTreeMap<String, Member>,
    /// What all names begin with that matter: `archive/`, or what the file was once called.
    prefix: String,
}

/// Where the bytes of a member lie in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Member {
    index: usize,
    pub(super) start: u64,
    pub(super) size: u64,
    pub(super) checksum: u32,
}

impl<'f> Archive<'f> {
    /// `name` stands for the file in errors.
    pub(super) fn open(name: &str, file: &'f mut File) -> Result<Self> {
        let io = |source| TensorError::Io { file: name.to_owned(), source };
        let bad = |problem: String| TensorError::format(name, problem);
        let unreadable = |e: ZipError| bad(format!("not a readable `torch.save` file: {e}"));
        let mut magic = Vec::new();
        file.by_ref().take(ZIP_MAGIC.len() as u64).read_to_end(&mut magic).map_err(io)?;
        file.rewind().map_err(io)?;
        if magic != ZIP_MAGIC {
            return Err(bad(no_zip(&magic)));
        }
        let mut reader = BufReader::new(file);
        let directory = ZipArchive::new(&mut reader).map_err(unreadable)?.central_directory_start();
        let listed = count_records(&mut reader, directory).map_err(io)?;
        let mut zip = ZipArchive::new(reader).map_err(unreadable)?;
        if listed != zip.len() {
            return Err(bad(format!("lists {listed} members under {} names: one is doubled", zip.len())));
        }
        let mut members = BTreeMap::new();
        for index in 0..zip.len() {
            let member = zip.by_index_raw(index).map_err(unreadable)?;
            let (start, size) = (member.data_start(), member.size());
            let as_it_is = member.compression() == CompressionMethod::Stored
                && member.compressed_size() == size
                && !member.encrypted();
            if !as_it_is {
                let problem =
                    format!("member `{}` is compressed or encrypted, which is not read", member.name());
                return Err(bad(problem));
            }
            if start.checked_add(size).is_none_or(|end| end > directory) {
                return Err(bad(format!(
                    "member `{}` claims {size} bytes that are not there",
                    member.name()
                )));
            }
            let place = Member { index, start, size, checksum: member.crc32() };
            members.insert(member.name().to_owned(), place);
        }
        let prefix = prefix(&members).map_err(bad)?;
        Ok(Self { name: name.to_owned(), zip, members, prefix })
    }

    /// The bytes of a member that must not have more than `most`; `None` where there is no such member.
    pub(super) fn read(&mut self, member: &str, most: u64) -> Result<Option<Vec<u8>>> {
        let what = format!("{}: {member}", self.name);
        let bad = |problem: String| TensorError::format(&what, problem);
        let Some(&Member { index, size, .. }) = self.members.get(&format!("{}{member}", self.prefix)) else {
            return Ok(None);
        };
        if size > most {
            return Err(bad(format!("has {size} bytes, but {most} are the most that is read")));
        }
        // The file is at least that long, so a false size allocates nothing.
        let mut bytes = Vec::new();
        bytes
            .try_reserve_exact(size as usize)
            .map_err(|_| TensorError::Memory { what: what.clone(), bytes: size })?;
        let mut reader = self.zip.by_index(index).map_err(|e| bad(e.to_string()))?;
        reader.read_to_end(&mut bytes).map_err(|e| bad(e.to_string()))?;
        Ok(Some(bytes))
    }

    /// The storages, by key: the members `data/<key>`.
    pub(super) fn storages(self) -> BTreeMap<String, Member> {
        let data = format!("{}data/", self.prefix);
        let key = |name: String| name.strip_prefix(&data).map(str::to_owned);
        self.members.into_iter().filter_map(|(name, member)| Some((key(name)?, member))).collect()
    }
}

/// What to say of a file that is no zip archive.
fn no_zip(magic: &[u8]) -> String {
    if magic.starts_with(PICKLE_MAGIC) {
        let convert = "load it in Python with `torch.load` and save it with `torch.save`";
        return format!("is in the format of PyTorch before 1.6, which is not read: {convert}");
    }
    "not a `torch.save` file: it is no zip archive".to_owned()
}

/// What stands before the one `data.pkl` that is one folder deep.
fn prefix(members: &BTreeMap<String, Member>) -> Result<String, String> {
    let one_folder = |prefix: &&str| prefix.find('/').is_some_and(|at| at + 1 == prefix.len());
    let mut prefixes = members.keys().filter_map(|name| name.strip_suffix("data.pkl").filter(one_folder));
    match (prefixes.next(), prefixes.next()) {
        (Some(prefix), None) => Ok(prefix.to_owned()),
        (None, _) => Err("not a `torch.save` file: it holds no `data.pkl`".to_owned()),
        _ => Err("holds more than one `data.pkl`".to_owned()),
    }
}
