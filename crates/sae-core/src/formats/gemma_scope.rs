//! `params.npz`, the format of the Gemma Scope repositories (arXiv 2408.05147): `W_enc` `[d_in, d_sae]`, `W_dec`
//! `[d_sae, d_out]`, `b_enc` `[d_sae]`, `b_dec` `[d_out]`, `threshold` `[d_sae]`. All are JumpReLU SAEs that subtract nothing
//! from their input and normalise nothing.
//!
//! Also read: lower-case `w_enc` and `w_dec`, and a `scaling_factor` that is 1 everywhere, as SAELens does.

use std::path::Path;

use tch::{Device, Kind, Tensor};
use tch_ext::{NpzFile, TensorError, expect_finite, expect_kind, kind_name, write_npz};

use super::{About, Format, OpenOptions, Opened};
use crate::{Matrix, Normalize, Result, Sae, SaeError, SparseAutoencoder as _};

/// Opens a `params.npz`. The released files hold float32; float16 is read as well, and computed in float32.
///
/// # Errors
/// A member that is missing, superfluous, doubled, damaged, of another shape or dtype, or not finite.
pub fn open(path: &Path, options: &OpenOptions) -> Result<Opened> {
    read(NpzFile::open(path)?, options)
}

/// As [`open`], from an archive that is already open.
///
/// # Errors
/// As [`open`].
pub fn read(mut npz: NpzFile, options: &OpenOptions) -> Result<Opened> {
    let file = npz.name().to_owned();
    let mut left = npz.names();
    let mut named = |names: &[&str]| -> Option<String> {
        let at = left.iter().position(|n| names.contains(&n.as_str()))?;
        Some(left.swap_remove(at))
    };
    let missing = |name: &str| TensorError::Missing { file: file.clone(), name: name.to_owned() };
    let w_enc = named(&["W_enc", "w_enc"]).ok_or_else(|| missing("W_enc"))?;
    let w_dec = named(&["W_dec", "w_dec"]).ok_or_else(|| missing("W_dec"))?;
    let scaling = named(&["scaling_factor"]);
    let [b_enc, b_dec, threshold] =
        ["b_enc", "b_dec", "threshold"].map(|name| named(&[name]).ok_or_else(|| missing(name)));
    let (b_enc, b_dec, threshold) = (b_enc?, b_dec?, threshold?);
    if !left.is_empty() {
        left.sort();
        return Err(TensorError::Unexpected { file, names: left }.into());
    }
    let mut vector = |name: &str| -> Result<Tensor> {
        let tensor = npz.read(name)?;
        expect_kind(&format!("{file}: {name}"), &tensor, &[Kind::Float, Kind::Half])?;
        Ok(tensor.f_to_kind(Kind::Float)?.f_to_device(options.device)?)
    };
    if let Some(name) = scaling
        && vector(&name)?.f_ne(1.0)?.f_any()?.f_int64_value(&[])? != 0
    {
        let problem = "a `scaling_factor` that is not 1 everywhere is not read".to_owned();
        return Err(SaeError::File { file, problem });
    }
    let (b_enc, b_dec, threshold) = (vector(&b_enc)?, vector(&b_dec)?, vector(&threshold)?);
    if threshold.f_lt(0.0)?.f_any()?.f_int64_value(&[])? != 0 {
        let problem = "`threshold` holds a negative one, which Gemma Scope's training can't give".to_owned();
        return Err(SaeError::File { file, problem });
    }
    let mut matrix = |name: &str| -> Result<Matrix> {
        let stored = npz.stored(name)?;
        if !matches!(stored.kind(), Kind::Float | Kind::Half) {
            let (what, got) = (stored.what().to_owned(), kind_name(stored.kind()).to_owned());
            return Err(TensorError::Dtype { what, expected: "F32 or F16".to_owned(), got }.into());
        }
        Matrix::open(stored, false, options.hold_up_to, options.device)
    };
    let (w_enc, w_dec) = (matrix(&w_enc)?, matrix(&w_dec)?);
    let sae =
        Sae::jumprelu(w_enc, b_enc, w_dec, b_dec, threshold).map_err(|error| super::in_file(&file, error))?;
    Ok(Opened { sae, about: About::new(Format::GemmaScope) })
}

/// Writes a `params.npz`, stored as `numpy.savez` does, in float32 (as released) or float16.
///
/// A pre-encoder bias is folded away, and ReLU and Gated SAEs are written as the JumpReLU SAEs that they equal.
///
/// # Errors
/// The system's; an SAE that the format can't express: TopK, one that normalises, one with a skip connection; a dtype that is neither; a value beyond float16's 65,504,
/// which would become infinite.
pub fn save(sae: &Sae, path: &Path, kind: Kind) -> Result<()> {
    let bad = |problem: &str| {
        let of = sae.architecture();
        Err(SaeError::Parts(format!("a `{of}` SAE {problem} can't be written as a params.npz")))
    };
    if sae.w_skip().is_some() {
        return bad("with a skip connection");
    }
    if sae.normalize() != Normalize::None {
        return bad(&format!("with the normalisation `{}`", sae.normalize().name()));
    }
    let plain = sae.to_device(Device::Cpu)?.fold_pre_encoder_bias()?.to_jumprelu()?;
    let mut tensors = plain.parameters()?;
    for (name, tensor) in &mut tensors {
        *tensor = tensor.f_to_kind(kind)?.f_to_device(Device::Cpu)?.f_contiguous()?;
        expect_kind(name, tensor, &[Kind::Float, Kind::Half])?;
        expect_finite(&format!("{name} as {}", kind_name(kind)), tensor)?;
    }
    Ok(write_npz(path, tensors.iter().map(|(name, tensor)| (*name, tensor)))?)
}
