use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::Path,
};

use tch::{Device, Kind, Tensor};

use crate::{Result, SafetensorsFile, TensorError, expect_finite, expect_kind, expect_shape};

/// Weights by name, from one safetensors file or from the shards that an index names.
///
/// The shape is part of the request, and [`finish`](Self::finish) refuses what nothing asked for: a checkpoint is either
/// what the model expects, or an error that names the tensor.
pub struct WeightSource {
    name: String,
    files: Vec<SafetensorsFile>,
    /// Tensor name to the file that holds it.
    tensors: BTreeMap<String, usize>,
    taken: BTreeSet<String>,
    progress: Option<Progress>,
    bytes_taken: u64,
}

/// Told the bytes taken and those that there are, after each tensor.
type Progress = Box<dyn FnMut(u64, u64) + Send>;

impl fmt::Debug for WeightSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WeightSource")
            .field("name", &self.name)
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl WeightSource {
    /// Opens a folder in the Hugging Face layout: `model.safetensors`, or `model.safetensors.index.json` and its shards.
    ///
    /// # Errors
    /// The system's; [`TensorError::Format`] for an index that does not fit the shards.
    pub fn open_folder(folder: &Path) -> Result<Self> {
        let index = folder.join("model.safetensors.index.json");
        let single = folder.join("model.safetensors");
        if single.exists() || !index.exists() {
            let file = SafetensorsFile::open(&single)?;
            return Self::new(&single.display().to_string(), vec![file]);
        }
        let wanted = read_index(&index)?;
        let shards: BTreeSet<&String> = wanted.values().collect();
        let files =
            shards.iter().map(|shard| SafetensorsFile::open(&folder.join(shard))).collect::<Result<_>>()?;
        let source = Self::new(&folder.display().to_string(), files)?;
        for (tensor, shard) in &wanted {
            let held =
                source.tensors.get(tensor).and_then(|&i| source.files.get(i)).map(SafetensorsFile::name);
            if held != Some(folder.join(shard).display().to_string().as_str()) {
                let problem = format!("says that `{tensor}` is in `{shard}`, which does not hold it");
                return Err(TensorError::format(index.display().to_string(), problem));
            }
        }
        Ok(source)
    }

    /// Reads weights that are already in memory; `name` stands for the file in errors.
    ///
    /// # Errors
    /// [`TensorError::Format`].
    pub fn from_bytes(name: &str, bytes: &'static [u8]) -> Result<Self> {
        Self::new(name, vec![SafetensorsFile::from_bytes(name, bytes)?])
    }

    fn new(name: &str, files: Vec<SafetensorsFile>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for tensor in file.names() {
                if tensors.insert(tensor.clone(), i).is_some() {
                    return Err(TensorError::format(
                        file.name(),
                        format!("`{tensor}` is also in another shard"),
                    ));
                }
            }
        }
        Ok(Self {
            name: name.to_owned(),
            files,
            tensors,
            taken: BTreeSet::new(),
            progress: None,
            bytes_taken: 0,
        })
    }

    /// Calls `progress(bytes taken, bytes in all)` after each tensor, as the files count them.
    #[must_use]
    pub fn with_progress(mut self, progress: impl FnMut(u64, u64) + Send + 'static) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }

    /// The bytes of all tensors, as they are stored.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(SafetensorsFile::bytes).sum()
    }

    /// The file, or the folder of the shards.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }

    /// Takes a tensor that must have these axes and be finite, as `kind` on `device`. Stored may be F32, BF16 or F16.
    ///
    /// On the CPU, in the dtype in which it is stored, it is mapped and not copied. Otherwise the copy is all that stays: the
    /// file's pages are given back before the next tensor is taken.
    ///
    /// # Errors
    /// [`TensorError::Missing`], [`Shape`](TensorError::Shape), [`Dtype`](TensorError::Dtype),
    /// [`NotFinite`](TensorError::NotFinite), [`Memory`](TensorError::Memory), or the system's.
    pub fn take(&mut self, tensor: &str, axes: &[(&str, i64)], kind: Kind, device: Device) -> Result<Tensor> {
        let (got, unread) = self.take_unread(tensor, axes, kind, device)?;
        if let Some(unread) = unread {
            unread.check()?;
        }
        Ok(got)
    }

    /// As [`take`](Self::take), but what is mapped is not read: the second value is then what is left to check, before the
    /// tensor is first used.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn take_unread(
        &mut self,
        tensor: &str,
        axes: &[(&str, i64)],
        kind: Kind,
        device: Device,
    ) -> Result<(Tensor, Option<Unread>)> {
        let file = self.tensors.get(tensor).and_then(|&i| self.files.get_mut(i));
        let file =
            file.ok_or_else(|| TensorError::Missing { file: self.name.clone(), name: tensor.to_owned() })?;
        let what = format!("{}: {tensor}", file.name());
        let stored = file.map(tensor).map_err(|e| e.for_tensor(&what))?;
        expect_shape(&what, &stored, axes)?;
        expect_kind(&what, &stored, &[Kind::Float, Kind::BFloat16, Kind::Half])?;
        let bytes = (stored.numel() * stored.f_kind()?.elt_size_in_bytes()) as u64;
        let (got, unread) = if device == Device::Cpu && stored.f_kind()? == kind {
            let unread = Unread { what, tensor: stored.shallow_clone() };
            (stored, Some(unread))
        } else {
            let file = &*file;
            let again = || file.mapped(tensor).unwrap_or_else(|| stored.shallow_clone());
            let got = copied(&stored.size(), again, kind, device, &what);
            (got.map_err(|e| e.for_tensor(&what))?, None)
        };
        if self.taken.insert(tensor.to_owned()) {
            self.bytes_taken += bytes;
        }
        let (taken, all) = (self.bytes_taken, self.bytes());
        if let Some(progress) = &mut self.progress {
            progress(taken, all);
        }
        Ok((got, unread))
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`TensorError::Unexpected`] names the tensors that were never taken.
    pub fn finish(self) -> Result<()> {
        let names: Vec<String> = self.tensors.into_keys().filter(|name| !self.taken.contains(name)).collect();
        if names.is_empty() { Ok(()) } else { Err(TensorError::Unexpected { file: self.name, names }) }
    }
}

/// A mapped tensor whose values nobody has looked at yet.
#[derive(Debug)]
pub struct Unread {
    what: String,
    tensor: Tensor,
}

impl Unread {
    /// Reads it.
    ///
    /// # Errors
    /// [`TensorError::NotFinite`] names the file and the tensor.
    pub fn check(&self) -> Result<()> {
        expect_finite(&self.what, &self.tensor)
    }
}

/// A finite tensor in another dtype or on another device.
///
/// Piece by piece, so that what was converted is checked while it is in the processor's cache, and after the cast, which
/// makes infinities of what float16 does not reach. `stored` is asked for the tensor again and again: what is mapped anew
/// gives back the pages that were read.
fn copied(
    size: &[i64],
    stored: impl Fn() -> Tensor,
    kind: Kind,
    device: Device,
    what: &str,
) -> Result<Tensor> {
    const PIECE: i64 = 1 << 20;
    const PIECES_A_MAP: i64 = 32;
    let got = Tensor::f_empty(size, (kind, device))?;
    let to = got.f_view(-1)?;
    let mut from = stored().f_reshape(-1)?;
    let n = to.numel() as i64;
    let mut suspicious = false;
    for (i, start) in (0..).zip((0..n).step_by(PIECE as usize)) {
        if i % PIECES_A_MAP == PIECES_A_MAP - 1 {
            from = stored().f_reshape(-1)?;
        }
        let len = PIECE.min(n - start);
        let mut piece = to.f_narrow(0, start, len)?;
        piece.f_copy_(&from.f_narrow(0, start, len)?)?;
        // A sum in float16 overflows too soon; bfloat16 reaches as far as float32.
        let sum_kind = if kind == Kind::Half { Kind::Float } else { kind };
        suspicious |= !piece.f_sum(sum_kind)?.f_double_value(&[])?.is_finite();
    }
    if suspicious {
        expect_finite(what, &got)?;
    }
    Ok(got)
}

/// Tensor name to shard, from `{"metadata": …, "weight_map": {tensor: file}}`.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let name = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|e| TensorError::io(path, e))?;
    let json: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| TensorError::format(&name, format!("not JSON: {e}")))?;
    let map = json.get("weight_map").and_then(|m| m.as_object());
    let map = map.ok_or_else(|| TensorError::format(&name, "has no `weight_map`"))?;
    map.iter()
        .map(|(tensor, shard)| match shard.as_str() {
            Some(file) if !file.contains(['/', '\\']) => Ok((tensor.clone(), file.to_owned())),
            _ => Err(TensorError::format(&name, format!("`{tensor}` names no file of this folder: {shard}"))),
        })
        .collect()
}
