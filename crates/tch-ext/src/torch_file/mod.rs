//! PyTorch's own files: a zip archive of one pickle and of the bytes of each storage, without compression.
//! Source: PyTorch's `torch/serialization.py` and `caffe2/serialize/inline_container.h`.

mod archive;
mod pickle;
mod tree;
mod value;

use std::{collections::BTreeMap, fmt, fs::File, path::Path, sync::Arc};

use crc32fast::Hasher;
use tch::{Device, TchError, Tensor};

use self::archive::{Archive, Member};
pub use self::value::{TorchTensor, TorchValue};
use crate::{
    Result, Stored, TensorError,
    atomic::open_ordinary,
    stored::{Checksum, InFile},
};

/// The pickle holds names and shapes; what is larger is something else.
const MAX_PICKLE: u64 = 64 << 20;

/// A `torch.save` file (`.pt`, `.pth`, `.bin`) of PyTorch 1.6 or newer: state dicts and plain values, tensors read one at a time.
///
/// A pickle is a program that may call any function of Python's. This reads the few instructions that make tensors, dicts, lists,
/// tuples, texts and numbers; a file that asks for anything else is refused, and nothing is run. Refused too: names that
/// stand twice, compressed members, big-endian files, tensors that reach beyond their storage or have more elements than it.
pub struct TorchFile {
    name: String,
    /// The open file: what is read is what was checked, whatever stands at its path by now.
    file: Arc<File>,
    root: TorchValue,
    /// By key: `data/<key>`.
    storages: BTreeMap<String, Member>,
}

impl TorchFile {
    /// Opens a file and reads all of it but the tensors.
    ///
    /// # Errors
    /// The system's; [`TensorError::Format`] for what is damaged, of an older format, or asks for more than tensors and plain
    /// values.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let bad = |problem: String| TensorError::format(&name, problem);
        let mut file = open_ordinary(path)?;
        let mut archive = Archive::open(&name, &mut file)?;
        // Older writers say nothing, and were little-endian.
        if let Some(order) = archive.read("byteorder", 16)?.filter(|order| order != b"little") {
            return Err(bad(format!("its byte order is `{}`, which is not read", order.escape_ascii())));
        }
        let pickle = archive.read("data.pkl", MAX_PICKLE)?.unwrap_or_default();
        let storages = archive.storages();
        let (objects, root) = pickle::load(&pickle).map_err(bad)?;
        let root = tree::grow(&objects, root, pickle.len(), &storages).map_err(bad)?;
        Ok(Self { file: Arc::new(file), root, storages, name })
    }

    /// The path.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What was saved.
    pub fn root(&self) -> &TorchValue {
        &self.root
    }

    /// One tensor of this file, in the dtype in which it is stored, on the CPU, with the strides that it was saved with.
    ///
    /// Its storage is read and held against the archive's checksum.
    /// Nobody looks for NaN. Tensors that shared a storage share none here.
    ///
    /// # Errors
    /// The system's; [`TensorError::Memory`]; [`TensorError::Format`] for a failed checksum, or a tensor of another file that
    /// does not fit this one.
    pub fn tensor(&self, tensor: &TorchTensor) -> Result<Tensor> {
        let what = format!("{}: {}", self.name, tensor.label());
        let bad = |problem: String| TensorError::format(&what, problem);
        let refused = |e: TchError| bad(TensorError::from(e).to_string());
        let missing = || bad(format!("is stored in `data/{}`, which is missing", tensor.key));
        let storage = self.storages.get(&tensor.key).ok_or_else(missing)?;
        let span = tensor.span(storage.size).map_err(bad)?;
        if span.is_empty() {
            return Tensor::f_empty(&tensor.shape, (tensor.kind, Device::Cpu)).map_err(refused);
        }
        let checksum = Some(Checksum { before: Hasher::new(), expected: storage.checksum });
        let place = InFile { file: Arc::clone(&self.file), offset: storage.start, checksum };
        let storage = Stored::in_file(&what, tensor.kind, &[tensor.storage_len], place).tensor()?;
        let reached = storage.f_narrow(0, span.start, span.end - span.start).map_err(refused)?;
        reached.f_as_strided(&tensor.shape, &tensor.stride, None).map_err(refused)
    }
}

impl fmt::Debug for TorchFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TorchFile").field("name", &self.name).finish_non_exhaustive()
    }
}
