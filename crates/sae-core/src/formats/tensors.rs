//! The tensors of one file, each asked for once by its name and shape, for readers whose names are not SAELens'.
//!
//! The shape is part of the request and [`Tensors::finish`] refuses what nothing asked for, so that errors speak of the file's
//! own names.

use std::{collections::BTreeSet, path::Path};

use tch::{Kind, Tensor};
use tch_ext::{SafetensorsFile, Stored, TensorError, TorchFile, TorchValue, expect_finite, kind_name};

use super::{OpenOptions, config::bad};
use crate::{Matrix, Result, autoencoder::commonest, matrix::held};

/// An axis: what it counts, for errors, and its size.
pub(crate) type Axis = (&'static str, i64);

/// The tensors of a file; what has been taken is no longer in it.
#[derive(Debug)]
pub(crate) struct Tensors<'o> {
    file: String,
    source: Source,
    left: BTreeSet<String>,
    options: &'o OpenOptions,
}

#[derive(Debug)]
enum Source {
    Safetensors(SafetensorsFile),
    Torch(TorchFile),
}

impl<'o> Tensors<'o> {
    /// Those of a safetensors file.
    ///
    /// # Errors
    /// The system's; a damaged file.
    pub(crate) fn safetensors(path: &Path, options: &'o OpenOptions) -> Result<Self> {
        let source = SafetensorsFile::open(path)?;
        let left = source.names().into_iter().collect();
        Ok(Self { file: source.name().to_owned(), source: Source::Safetensors(source), left, options })
    }

    /// Those of a state dict that `torch.save` wrote; beside tensors it may hold plain [values](Self::value).
    ///
    /// # Errors
    /// The system's; a damaged file, or one that asks for code; what is no dict of names.
    pub(crate) fn torch(path: &Path, options: &'o OpenOptions) -> Result<Self> {
        let source = TorchFile::open(path)?;
        let file = source.name().to_owned();
        let names = |(key, _): &(TorchValue, TorchValue)| key.as_str().map(str::to_owned);
        let left = source.root().as_dict().and_then(|entries| entries.iter().map(names).collect());
        let left = left.ok_or_else(|| bad(&file, "holds no dict of tensors by their names"))?;
        Ok(Self { file, source: Source::Torch(source), left, options })
    }

    /// The file.
    pub(crate) fn file(&self) -> &str {
        &self.file
    }

    /// Whether this name is (still) there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.left.contains(name)
    }

    /// The size that most of these axes have: so the odd one out is the one refused. 0 where there is none of them.
    pub(crate) fn size(&self, axes: &[(&str, usize)]) -> i64 {
        let size = |(name, axis): &(&str, usize)| self.shape(name)?.get(*axis).copied();
        commonest(&axes.iter().map(size).collect::<Vec<_>>())
    }

    fn shape(&self, name: &str) -> Option<Vec<i64>> {
        match &self.source {
            Source::Safetensors(file) => Some(file.info(name).ok()?.shape),
            Source::Torch(file) => Some(file.root().get(name)?.as_tensor()?.shape().to_vec()),
        }
    }

    /// Takes a plain value of a state dict.
    pub(crate) fn value(&mut self, name: &str) -> Option<TorchValue> {
        let Source::Torch(file) = &self.source else { return None };
        let value = file.root().get(name).filter(|_| self.left.contains(name)).cloned();
        self.left.remove(name);
        value
    }

    /// Takes what changes nothing, unread, if it is there.
    pub(crate) fn harmless(&mut self, name: &str) {
        self.left.remove(name);
    }

    /// Takes a tensor, unread, of this shape.
    ///
    /// # Errors
    /// It is missing, no tensor or of another shape.
    pub(crate) fn stored(&mut self, name: &str, axes: &[Axis]) -> Result<Stored> {
        if !self.left.remove(name) {
            return Err(TensorError::Missing { file: self.file.clone(), name: name.to_owned() }.into());
        }
        let what = format!("{}: {name}", self.file);
        let stored = match &mut self.source {
            Source::Safetensors(file) => file.stored(name)?,
            Source::Torch(file) => {
                let tensor = file.root().get(name).and_then(TorchValue::as_tensor);
                let tensor = tensor.ok_or_else(|| bad(&self.file, &format!("`{name}` is no tensor")))?;
                Stored::held(&what, file.tensor(tensor)?)
            }
        };
        if stored.shape().iter().eq(axes.iter().map(|(_, size)| size)) {
            return Ok(stored);
        }
        let axes = axes.iter().map(|(axis, size)| format!("{axis}={size}")).collect::<Vec<_>>();
        let expected = format!("[{}]", axes.join(", "));
        Err(TensorError::Shape { what, expected, got: stored.shape().to_vec() }.into())
    }

    /// Takes a matrix of this shape, or its transpose.
    ///
    /// # Errors
    /// As [`stored`](Self::stored); another dtype than a float's; values that are not finite.
    pub(crate) fn matrix(&mut self, name: &str, axes: [Axis; 2], transposed: bool) -> Result<Matrix> {
        let stored = self.stored(name, &axes)?;
        Matrix::open(stored, transposed, self.options.hold_up_to, self.options.device)
    }

    /// Takes a tensor of this shape, as float32 on the device.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    pub(crate) fn tensor(&mut self, name: &str, axes: &[Axis]) -> Result<Tensor> {
        let stored = self.stored(name, axes)?;
        let tensor = held(&stored)?.f_to_device(self.options.device)?;
        expect_finite(stored.what(), &tensor)?;
        Ok(tensor)
    }

    /// Takes a vector of this size, as float32 on the device.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    pub(crate) fn vector(&mut self, name: &str, axis: Axis) -> Result<Tensor> {
        self.tensor(name, &[axis])
    }

    /// A bias of a file that has none.
    pub(crate) fn zeros(&self, axis: Axis) -> Result<Tensor> {
        Ok(Tensor::f_zeros([axis.1], (Kind::Float, self.options.device))?)
    }

    /// Takes a number: a tensor without axes.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    pub(crate) fn number(&mut self, name: &str) -> Result<f64> {
        Ok(self.tensor(name, &[])?.f_double_value(&[])?)
    }

    /// Takes an integer: a tensor without axes.
    ///
    /// # Errors
    /// As [`stored`](Self::stored); another dtype than an integer's.
    pub(crate) fn integer(&mut self, name: &str) -> Result<i64> {
        let stored = self.stored(name, &[])?;
        if !matches!(stored.kind(), Kind::Int | Kind::Int64 | Kind::Int16) {
            let (what, got) = (stored.what().to_owned(), kind_name(stored.kind()).to_owned());
            return Err(TensorError::Dtype { what, expected: "an integer's".to_owned(), got }.into());
        }
        Ok(stored.tensor()?.f_int64_value(&[])?)
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// What nobody took.
    pub(crate) fn finish(self) -> Result<()> {
        if self.left.is_empty() {
            return Ok(());
        }
        Err(TensorError::Unexpected { file: self.file, names: self.left.into_iter().collect() }.into())
    }
}
