use sha2::{Digest as _, Sha256};
use tch::{Device, Kind, Tensor};

use super::Result;

/// Numbers of each tensor that are looked at.
const SAMPLE: i64 = 4096;

/// What tells parameters from others without reading all of them: the SHA-256 of each tensor's name, shape and up to 4,096 of its
/// numbers, evenly spaced, as float32. A training step changes it; a change of a few single numbers of a large tensor may not.
///
/// # Errors
/// libtorch's.
pub fn fingerprint(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Result<String> {
    let mut sha256 = Sha256::new();
    for (name, tensor) in tensors {
        let all = tensor.f_detach()?.f_reshape([-1])?;
        let n = all.size1()?;
        let some = all.f_slice(0, 0, n, (n / SAMPLE).max(1))?;
        let some = some.f_to_kind(Kind::Float)?.f_to_device(Device::Cpu)?.f_contiguous()?;
        sha256.update((name.len() as u64).to_le_bytes());
        sha256.update(&name);
        for axis in tensor.size() {
            sha256.update(axis.to_le_bytes());
        }
        for number in Vec::<f32>::try_from(&some)? {
            sha256.update(number.to_le_bytes());
        }
    }
    Ok(format!("{:x}", sha256.finalize()))
}
