//! Reading weights: a `params.npz`, and a checkpoint in the Hugging Face layout.

use std::path::Path;

use anyhow::{Context as _, Result};
use gemma_scope::{
    model::{Gemma2, LoadOptions},
    tch::{Device, Kind, Tensor},
    tensors::{NpzFile, write_npz},
};

use crate::{timing::Clock, work::On};

const D_IN: i64 = 2304;

/// The five arrays of a JumpReLU SAE.
pub(crate) fn npz(width: i64) -> Result<()> {
    let on = (Kind::Float, Device::Cpu);
    let arrays = [
        ("W_enc", Tensor::f_randn([D_IN, width], on)?),
        ("W_dec", Tensor::f_randn([width, D_IN], on)?),
        ("b_enc", Tensor::f_zeros([width], on)?),
        ("b_dec", Tensor::f_zeros([D_IN], on)?),
        ("threshold", Tensor::f_ones([width], on)?),
    ];
    let path = std::env::temp_dir().join(format!("gemma-scope-bench-{}.npz", std::process::id()));
    write_npz(&path, arrays.iter().map(|(name, t)| (*name, t)))?;
    let bytes = std::fs::metadata(&path)?.len();
    let timed = Clock::new(5, bytes as f64).time("ours.load_npz", || {
        let mut file = NpzFile::open(&path)?;
        let names = file.names();
        names.iter().map(|name| Ok(file.read(name)?)).collect::<Result<Vec<_>>>()
    });
    std::fs::remove_file(&path)?;
    timed
}

/// A whole model.
pub(crate) fn checkpoint(folder: &Path, on: On) -> Result<()> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|e| e == "safetensors") {
            bytes += entry.metadata()?.len();
        }
    }
    let options = LoadOptions { device: on.device, kind: on.kind };
    Clock::new(3, bytes as f64).time("ours.load_model", || Ok(Gemma2::load(folder, &options)?))
}
