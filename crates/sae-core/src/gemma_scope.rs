//! `params.npz`, the format of the Gemma Scope repositories: `W_enc` `[d_in, d_sae]`, `W_dec` `[d_sae, d_out]`, `b_enc`
//! `[d_sae]`, `b_dec` `[d_out]`, `threshold` `[d_sae]`.

use std::path::Path;

use tch::{Device, Kind, Tensor};
use tch_ext::{NpzFile, TensorError, expect_finite, expect_kind, kind_name, write_npz};

use crate::{JumpRelu, Result, SaeError};

const NAMES: [&str; 5] = ["W_enc", "W_dec", "b_enc", "b_dec", "threshold"];

/// Loads a `params.npz`.
///
/// The released files hold float32; float16 is read as well, and computed in float32.
///
/// # Errors
/// A member that is missing, superfluous, doubled, damaged, of another shape or dtype, or not finite.
pub fn load_gemma_scope(path: &Path, device: Device) -> Result<JumpRelu> {
    read_gemma_scope(NpzFile::open(path)?)?.to_device(device)
}

/// As [`load_gemma_scope`], from an archive that is already open.
///
/// # Errors
/// As [`load_gemma_scope`].
pub fn read_gemma_scope(mut npz: NpzFile) -> Result<JumpRelu> {
    let file = npz.name().to_owned();
    let unexpected: Vec<String> = npz.names().into_iter().filter(|n| !NAMES.contains(&n.as_str())).collect();
    if !unexpected.is_empty() {
        return Err(TensorError::Unexpected { file, names: unexpected }.into());
    }
    let mut take = |name: &str| -> Result<Tensor> {
        let tensor = npz.read(name)?;
        expect_kind(&format!("{file}: {name}"), &tensor, &[Kind::Float, Kind::Half])?;
        Ok(tensor.f_to_kind(Kind::Float)?)
    };
    let [w_enc, w_dec, b_enc, b_dec, threshold] = NAMES.map(&mut take);
    JumpRelu::new(w_enc?, b_enc?, w_dec?, b_dec?, threshold?).map_err(|error| in_file(&file, error))
}

/// Writes a `params.npz`, stored as `numpy.savez` does, in float32 (as released) or float16.
///
/// # Errors
/// The system's; a dtype that is neither; a value beyond float16's 65,504, which would become infinite.
pub fn save_gemma_scope(sae: &JumpRelu, path: &Path, kind: Kind) -> Result<()> {
    let cast = sae.parameters().map(|(name, t)| t.f_to_kind(kind).map(|t| (name, t)));
    let cast = cast.into_iter().collect::<Result<Vec<_>, _>>()?;
    for (name, tensor) in &cast {
        expect_kind(name, tensor, &[Kind::Float, Kind::Half])?;
        expect_finite(&format!("{name} as {}", kind_name(kind)), tensor)?;
    }
    Ok(write_npz(path, cast.iter().map(|(name, tensor)| (*name, tensor)))?)
}

/// Puts the file's name before the tensor's.
fn in_file(file: &str, error: SaeError) -> SaeError {
    match error {
        SaeError::Tensor(TensorError::Shape { what, expected, got }) => {
            TensorError::Shape { what: format!("{file}: {what}"), expected, got }.into()
        }
        SaeError::Tensor(TensorError::NotFinite { what, count }) => {
            TensorError::NotFinite { what: format!("{file}: {what}"), count }.into()
        }
        SaeError::File { problem, .. } => SaeError::File { file: file.to_owned(), problem },
        other => other,
    }
}
