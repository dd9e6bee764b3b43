use std::{
    collections::{HashMap, HashSet},
    fmt,
    fs::File,
    io::{BufReader, Cursor, Read, Seek, SeekFrom, Write as _},
    path::Path,
    sync::Arc,
};

use safetensors::{Dtype, tensor::Metadata};
use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};
use tch::{Kind, TchError, Tensor};

use crate::{
    Member, Result, Stored, TensorError, Unsigned,
    atomic::open_ordinary,
    stored::{InFile, view_of},
    write_atomically,
};

/// The format's own limit on its header.
const MAX_HEADER: u64 = 100_000_000;

trait ReadSeek: Read + Seek + Send {}
impl<T: Read + Seek + Send> ReadSeek for T {}

/// A safetensors file, opened and checked: the header is sound, and the file is exactly as long as it says.
///
/// Tensors are read one at a time, so the peak of memory is what has been read plus one tensor.
pub struct SafetensorsFile {
    name: String,
    /// The open file, if it is one: what is mapped is what was checked, whatever stands at its path by now.
    file: Option<Arc<File>>,
    reader: Box<dyn ReadSeek>,
    metadata: Metadata,
    data_start: u64,
}

/// What a file's header says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The dtype.
    pub kind: Kind,
    /// The sizes.
    pub shape: Vec<i64>,
}

impl SafetensorsFile {
    /// Opens a file.
    ///
    /// # Errors
    /// The system's, or [`TensorError::Format`] for a header that is damaged or does not fit the file's length.
    pub fn open(path: &Path) -> Result<Self> {
        let file = open_ordinary(path)?;
        let again = file.try_clone().map_err(|e| TensorError::io(path, e))?;
        let opened = Self::from_reader(&path.display().to_string(), BufReader::new(file))?;
        Ok(Self { file: Some(Arc::new(again)), ..opened })
    }

    /// Reads a file that is already in memory; `name` stands for it in errors.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_bytes(name: &str, bytes: &'static [u8]) -> Result<Self> {
        Self::from_reader(name, Cursor::new(bytes))
    }

    fn from_reader(name: &str, mut reader: impl Read + Seek + Send + 'static) -> Result<Self> {
        let bad = |problem: String| TensorError::format(name, problem);
        let io = |source| TensorError::Io { file: name.to_owned(), source };
        let length = reader.seek(SeekFrom::End(0)).map_err(io)?;
        reader.rewind().map_err(io)?;
        if length < 8 {
            return Err(bad(format!("{length} bytes are too few for a safetensors file")));
        }
        let mut size = [0; 8];
        reader.read_exact(&mut size).map_err(io)?;
        let header = u64::from_le_bytes(size);
        if header > MAX_HEADER || header > length - 8 {
            return Err(bad(format!(
                "not a safetensors file, or truncated: it claims a header of {header} bytes"
            )));
        }
        let mut json = vec![0; header as usize];
        reader.read_exact(&mut json).map_err(io)?;
        let damaged = |e: serde_json::Error| bad(format!("damaged safetensors header: {e}"));
        let Names(names) = serde_json::from_slice(&json).map_err(damaged)?;
        if let Some(name) = doubled(names.iter().map(String::as_str)) {
            return Err(bad(format!("damaged safetensors header: `{name}` stands twice")));
        }
        if let Some(name) = names.iter().find(|name| name.contains(char::is_control)) {
            return Err(bad(format!("damaged safetensors header: {name:?} is no name")));
        }
        let metadata: Metadata = serde_json::from_slice(&json).map_err(damaged)?;
        let expected = 8 + header + metadata.data_len() as u64;
        if expected != length {
            return Err(bad(format!(
                "truncated or padded: its header describes {expected} bytes, but it has {length}"
            )));
        }
        Ok(Self {
            name: name.to_owned(),
            file: None,
            reader: Box::new(reader),
            metadata,
            data_start: 8 + header,
        })
    }

    /// The path, or the name given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.metadata.data_len() as u64
    }

    /// The names of all tensors, in the order in which they lie in the file.
    pub fn names(&self) -> Vec<String> {
        self.metadata.offset_keys()
    }

    /// The free text that the writer left (`__metadata__`).
    pub fn text(&self) -> Option<&HashMap<String, String>> {
        self.metadata.metadata().as_ref()
    }

    /// Dtype and shape of a tensor.
    ///
    /// # Errors
    /// [`TensorError::Missing`]; [`TensorError::Dtype`] for a dtype that libtorch does not have.
    pub fn info(&self, tensor: &str) -> Result<TensorInfo> {
        let info = self
            .metadata
            .info(tensor)
            .ok_or_else(|| TensorError::Missing { file: self.name.clone(), name: tensor.to_owned() })?;
        let kind = kind_of(info.dtype).ok_or_else(|| TensorError::Dtype {
            what: format!("{}: {tensor}", self.name),
            expected: "a dtype that libtorch has".to_owned(),
            got: format!("{:?}", info.dtype),
        })?;
        Ok(TensorInfo { kind, shape: info.shape.iter().map(|&n| n as i64).collect() })
    }

    /// Reads one tensor, in the dtype in which it is stored, on the CPU.
    ///
    /// # Errors
    /// As [`info`](Self::info), and the system's.
    pub fn read(&mut self, tensor: &str) -> Result<Tensor> {
        let TensorInfo { kind, shape } = self.info(tensor)?;
        let bytes = self.bytes_of(tensor)?;
        // A tensor without elements may still have sizes whose product no index holds: libtorch refuses it.
        Tensor::f_from_data_size(&bytes, &shape, kind).map_err(|e| self.refused(tensor, e))
    }

    /// Reads a tensor of integers as int64, on the CPU: also of the dtypes that [`read`](Self::read) refuses since tch can't
    /// name them ([`Unsigned`]).
    ///
    /// # Errors
    /// [`TensorError::Missing`]; [`TensorError::Dtype`] for what is neither [`Unsigned`] nor int64; the system's.
    pub fn read_integers(&mut self, tensor: &str) -> Result<Tensor> {
        let missing = || TensorError::Missing { file: self.name.clone(), name: tensor.to_owned() };
        let info = self.metadata.info(tensor).ok_or_else(missing)?;
        match Unsigned::of(info.dtype) {
            None if info.dtype == Dtype::I64 => self.read(tensor),
            None => Err(TensorError::Dtype {
                what: format!("{}: {tensor}", self.name),
                expected: "U16, U32 or I64".to_owned(),
                got: format!("{:?}", info.dtype),
            }),
            Some(unsigned) => {
                let shape: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
                let values = unsigned.read(&self.bytes_of(tensor)?);
                let flat = Tensor::f_from_slice(&values);
                flat.and_then(|t| t.f_reshape(shape)).map_err(|e| self.refused(tensor, e))
            }
        }
    }

    fn bytes_of(&mut self, tensor: &str) -> Result<Vec<u8>> {
        let Some(&(start, end)) = self.metadata.info(tensor).map(|i| &i.data_offsets) else {
            return Err(TensorError::Missing { file: self.name.clone(), name: tensor.to_owned() });
        };
        let io = |source| TensorError::Io { file: self.name.clone(), source };
        self.reader.seek(SeekFrom::Start(self.data_start + start as u64)).map_err(io)?;
        let mut bytes = Vec::new();
        if bytes.try_reserve_exact(end - start).is_err() {
            let what = format!("{}: {tensor}", self.name);
            return Err(TensorError::Memory { what, bytes: (end - start) as u64 });
        }
        bytes.resize(end - start, 0);
        self.reader.read_exact(&mut bytes).map_err(io)?;
        Ok(bytes)
    }

    fn refused(&self, tensor: &str, error: TchError) -> TensorError {
        TensorError::format(format!("{}: {tensor}", self.name), TensorError::from(error).to_string())
    }

    /// One tensor as the file holds it, without a copy: its pages are read when they are touched, and may be dropped again.
    ///
    /// What can't be mapped (a file in memory, a tensor at an odd place, more than the system maps) is read. The file must stay
    /// as it is while the tensor lives; a file that is replaced by renaming, as all careful writers do, does.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn map(&mut self, tensor: &str) -> Result<Tensor> {
        match self.mapped(tensor) {
            Some(mapped) => Ok(mapped),
            None => self.read(tensor),
        }
    }

    /// `None` where it can't be mapped.
    pub(crate) fn mapped(&self, tensor: &str) -> Option<Tensor> {
        let TensorInfo { kind, shape } = self.info(tensor).ok()?;
        let (start, end) = self.metadata.info(tensor)?.data_offsets;
        view_of(self.file.as_ref()?, self.data_start + start as u64, (end - start) as u64, kind, &shape)
    }

    /// One tensor, to be read when and as far as it is needed; of a file in memory it is read now.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn stored(&mut self, tensor: &str) -> Result<Stored> {
        let what = format!("{}: {tensor}", self.name);
        let TensorInfo { kind, shape } = self.info(tensor)?;
        match (&self.file, self.metadata.info(tensor)) {
            (Some(file), Some(info)) => {
                let offset = self.data_start + info.data_offsets.0 as u64;
                let place = InFile { file: Arc::clone(file), offset, checksum: None };
                Ok(Stored::in_file(&what, kind, &shape, place))
            }
            _ => Ok(Stored::held(&what, self.read(tensor)?)),
        }
    }
}

impl fmt::Debug for SafetensorsFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SafetensorsFile").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Writes tensors as a safetensors file, in the order given, each in its own dtype or as a [`Member`] says.
///
/// # Errors
/// The system's; [`TensorError::Dtype`] for a dtype that the format does not have, or that no [`Member`] is made from.
pub fn write_safetensors<'t>(
    path: &Path,
    tensors: impl IntoIterator<Item = (impl Into<String>, impl Into<Member<'t>>)>,
    text: HashMap<String, String>,
) -> Result<()> {
    let tensors: Vec<(String, Member<'_>)> =
        tensors.into_iter().map(|(name, t)| (name.into(), t.into())).collect();
    let mut infos = Vec::new();
    let mut offset = 0;
    for (name, member) in &tensors {
        let (dtype, element) = member.dtype(name, dtype_of)?;
        let tensor = member.tensor();
        let shape = tensor.size().iter().map(|&n| n as usize).collect();
        let end = offset + tensor.numel() * element;
        infos.push((
            name.clone(),
            safetensors::tensor::TensorInfo { dtype, shape, data_offsets: (offset, end) },
        ));
        offset = end;
    }
    let bad = |problem: String| TensorError::format(path.display().to_string(), problem);
    if let Some(name) = doubled(tensors.iter().map(|(name, _)| name.as_str()).chain([METADATA])) {
        return Err(bad(format!("can't hold two tensors named `{name}`")));
    }
    // Sorted, so that the same tensors give the same bytes.
    let header = Metadata::new(None, infos).map_err(|e| bad(e.to_string()))?;
    let mut header = serde_json::to_value(&header).map_err(|e| bad(e.to_string()))?;
    if let (false, Some(map)) = (text.is_empty(), header.as_object_mut()) {
        map.insert(METADATA.to_owned(), serde_json::json!(text));
    }
    let mut header = header.to_string().into_bytes();
    // The format asks for data aligned to eight bytes.
    header.resize(header.len().next_multiple_of(8), b' ');
    write_atomically(path, |file| {
        let io = |e| TensorError::io(path, e);
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(io)?;
        file.write_all(&header).map_err(io)?;
        for (name, member) in &tensors {
            let write = |piece: &[u8]| file.write_all(piece).map_err(io);
            match *member {
                Member::Tensor(tensor) => write_elements(tensor, write)?,
                Member::Unsigned(tensor, unsigned) => unsigned.write(name, tensor, write)?,
            }
        }
        Ok(())
    })
}

/// The key of the free text, which no tensor may have.
const METADATA: &str = "__metadata__";

/// The keys of a JSON object as they stand in the file. A map keeps the last of several equal ones and says nothing.
struct Names(Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Names;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Names, A::Error> {
                let mut names = Vec::new();
                while let Some((name, IgnoredAny)) = map.next_entry()? {
                    names.push(name);
                }
                Ok(Names(names))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// The first name that came before.
fn doubled<'n>(names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let mut seen = HashSet::new();
    names.into_iter().find(|name| !seen.insert(*name))
}

/// Gives the elements of a tensor in C order, in this machine's byte order (which is little-endian wherever libtorch runs),
/// piece by piece: a tensor that takes half the memory can be written too.
pub(crate) fn write_elements(tensor: &Tensor, mut write: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    const PIECE: usize = 4 << 20;
    /// Of what is not contiguous many rows go at a time, since their elements may lie side by side.
    const GATHERED: usize = 64 << 20;
    let tensor = tensor.f_detach()?;
    let element = tensor.f_kind()?.elt_size_in_bytes();
    let mut buffer = vec![0; PIECE.min(tensor.numel() * element)];
    let mut write_flat = |tensor: &Tensor| -> Result<()> {
        let (flat, n) = (tensor.f_view(-1)?, tensor.numel() as i64);
        let step = (PIECE / element) as i64;
        for start in (0..n).step_by(step as usize) {
            let count = step.min(n - start);
            let piece = buffer.get_mut(..count as usize * element).unwrap_or_default();
            flat.f_narrow(0, start, count)?.f_copy_data_u8(piece, count as usize)?;
            write(piece)?;
        }
        Ok(())
    };
    if tensor.is_contiguous() {
        return write_flat(&tensor);
    }
    let rows = tensor.size().first().copied().unwrap_or(1).max(1);
    let row = tensor.numel() * element / rows as usize;
    let step = ((GATHERED / row.max(1)) as i64).max(1);
    for start in (0..rows).step_by(step as usize) {
        write_flat(&tensor.f_narrow(0, start, step.min(rows - start))?.f_contiguous()?)?;
    }
    Ok(())
}

const DTYPES: [(Dtype, Kind); 10] = [
    (Dtype::F32, Kind::Float),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::F16, Kind::Half),
    (Dtype::F64, Kind::Double),
    (Dtype::I64, Kind::Int64),
    (Dtype::I32, Kind::Int),
    (Dtype::I16, Kind::Int16),
    (Dtype::I8, Kind::Int8),
    (Dtype::U8, Kind::Uint8),
    (Dtype::BOOL, Kind::Bool),
];

fn kind_of(dtype: Dtype) -> Option<Kind> {
    DTYPES.iter().find(|(d, _)| *d == dtype).map(|(_, k)| *k)
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    DTYPES.iter().find(|(_, k)| *k == kind).map(|(d, _)| *d)
}
