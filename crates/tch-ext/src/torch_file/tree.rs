//! From the objects of a pickle, which hold each other as they like, to a tree that is as large as it looks.

use std::{
    collections::{BTreeMap, HashSet},
    mem,
};

use super::{
    archive::Member,
    pickle::{Id, Object, Objects, shown},
    value::{TorchTensor, TorchValue, label},
};

/// A list that holds itself has no bottom.
const MAX_DEPTH: usize = 100;
/// The memory that the tree may take: a list of two references to a list of two references … doubles with every few bytes.
const MAX_BYTES: usize = 512 << 20;
/// What it may take whatever the pickle's length, and for each byte of it: a `None` is one byte there, and a whole
/// [`TorchValue`] here.
const FREE_BYTES: usize = 16 << 20;
const BYTES_A_BYTE: usize = 256;
/// libtorch's own limit on axes.
const MAX_AXES: usize = 64;

/// Builds the tree under `root`, of a pickle of `length` bytes. `storages` are the file's, by key.
///
/// # Errors
/// A sentence about the file.
pub(super) fn grow(
    objects: &Objects,
    root: Id,
    length: usize,
    storages: &BTreeMap<String, Member>,
) -> Result<TorchValue, String> {
    let left = FREE_BYTES.saturating_add(length.saturating_mul(BYTES_A_BYTE)).min(MAX_BYTES);
    Tree { objects, storages, left, path: Vec::new() }.value(root)
}

struct Tree<'o> {
    objects: &'o Objects,
    storages: &'o BTreeMap<String, Member>,
    /// Bytes of memory that it may still take.
    left: usize,
    /// The keys that lead to where we are.
    path: Vec<String>,
}

impl<'o> Tree<'o> {
    fn value(&mut self, id: Id) -> Result<TorchValue, String> {
        if self.path.len() > MAX_DEPTH {
            return Err(format!("its values lie more than {MAX_DEPTH} deep in each other"));
        }
        self.pay(mem::size_of::<TorchValue>())?;
        let objects = self.objects;
        Ok(match objects.get(id) {
            Object::None => TorchValue::None,
            Object::Bool(b) => TorchValue::Bool(*b),
            Object::Int(n) => TorchValue::Int(*n),
            Object::Float(x) => TorchValue::Float(*x),
            Object::Str(text) => TorchValue::Str(self.owned(text)?),
            Object::List(items) => TorchValue::List(self.items(items)?),
            Object::Tuple(items) => TorchValue::Tuple(self.items(items)?),
            Object::Dict(entries) => TorchValue::Dict(self.entries(entries)?),
            &Object::Tensor { storage, offset, shape, stride } => {
                TorchValue::Tensor(self.tensor(storage, offset, shape, stride)?)
            }
            Object::Storage { .. } => return Err("holds a storage that belongs to no tensor".to_owned()),
            Object::Global(global) => return Err(format!("holds `{}` as a value", global.name())),
        })
    }

    fn pay(&mut self, bytes: usize) -> Result<(), String> {
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or("its values take far more memory than its pickle has bytes")?;
        Ok(())
    }

    fn owned(&mut self, text: &str) -> Result<String, String> {
        self.pay(text.len())?;
        Ok(text.to_owned())
    }

    /// What is at `id`, which is found under this name.
    fn under(&mut self, name: String, id: Id) -> Result<TorchValue, String> {
        self.path.push(name);
        let value = self.value(id)?;
        self.path.pop();
        Ok(value)
    }

    fn items(&mut self, items: &[Id]) -> Result<Vec<TorchValue>, String> {
        items.iter().enumerate().map(|(i, &id)| self.under(i.to_string(), id)).collect()
    }

    fn entries(&mut self, entries: &'o [(Id, Id)]) -> Result<Vec<(TorchValue, TorchValue)>, String> {
        let (mut words, mut numbers) = (HashSet::new(), HashSet::new());
        let mut grown = Vec::new();
        for &(key, value) in entries {
            let (name, new) = match self.objects.get(key) {
                Object::Str(text) => (shown(text).to_owned(), words.insert(text.as_str())),
                Object::Int(n) => (n.to_string(), numbers.insert(*n)),
                // Others are rare, and nobody looks a tensor up by them.
                Object::None | Object::Bool(_) | Object::Float(_) | Object::Tuple(_) => {
                    ("?".to_owned(), true)
                }
                _ => return Err("has a dict with a key that is no plain value".to_owned()),
            };
            if !new {
                return Err(format!("has a dict in which `{name}` stands twice"));
            }
            let key = self.under("key".to_owned(), key)?;
            grown.push((key, self.under(name, value)?));
        }
        Ok(grown)
    }

    fn tensor(&mut self, storage: Id, offset: Id, shape: Id, stride: Id) -> Result<TorchTensor, String> {
        let name = self.path.join(".");
        let bad = |problem: &str| format!("{}: {problem}", label(&name));
        let &Object::Storage { kind, key, len } = self.objects.get(storage) else {
            return Err(bad("has no storage"));
        };
        let key = self.objects.text(key).ok_or_else(|| bad("has a storage without a name"))?;
        let Some(storage) = self.storages.get(key) else {
            return Err(bad(&format!("is stored in `data/{}`, which is missing", shown(key))));
        };
        let whole = |id: Id| self.objects.int(id).filter(|n| *n >= 0);
        let several = |id: Id| -> Option<Vec<i64>> {
            let items = self.objects.tuple(id).filter(|items| items.len() <= MAX_AXES)?;
            items.iter().map(|&item| whole(item)).collect()
        };
        let (Some(offset), Some(shape), Some(stride)) = (whole(offset), several(shape), several(stride))
        else {
            return Err(bad("has an offset, sizes or strides that are none"));
        };
        if shape.len() != stride.len() {
            return Err(bad(&format!("has {} sizes, but {} strides", shape.len(), stride.len())));
        }
        let (axes, key) = (shape.len(), key.to_owned());
        let tensor = TorchTensor { name, kind, shape, stride, offset, key, storage_len: len };
        tensor.span(storage.size).map_err(|problem| format!("{}: {problem}", tensor.label()))?;
        self.pay(tensor.name.len() + tensor.key.len() + 2 * axes * mem::size_of::<i64>())?;
        Ok(tensor)
    }
}
