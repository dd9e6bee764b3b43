use tch::{Device, Kind};

use crate::{Result, TensorError};

/// The short name of a dtype, as safetensors writes it: `F32`, `BF16`, ….
pub fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Float => "F32",
        Kind::BFloat16 => "BF16",
        Kind::Half => "F16",
        Kind::Double => "F64",
        Kind::Int64 => "I64",
        Kind::Int => "I32",
        Kind::Int16 => "I16",
        Kind::Int8 => "I8",
        Kind::Bool => "BOOL",
        Kind::Uint8 => "U8",
        _ => "another dtype",
    }
}

/// Reads a device's name: `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// Any other text.
pub fn parse_device(text: &str) -> Result<Device> {
    let bad = || {
        let shown = text.replace(char::is_control, "\u{FFFD}");
        TensorError::Name(format!("`{shown}` is no device: expected `cpu`, `cuda` or `cuda:N`"))
    };
    match text {
        "cpu" => Ok(Device::Cpu),
        "cuda" => Ok(Device::Cuda(0)),
        _ => text.strip_prefix("cuda:").and_then(device_index).map(Device::Cuda).ok_or_else(bad),
    }
}

/// libtorch counts devices in a signed byte: a larger index would wrap around to another device.
fn device_index(text: &str) -> Option<usize> {
    let index = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<i8>().ok())?;
    index.and_then(|n| usize::try_from(n).ok())
}

/// Reads a dtype's name on the command line: `f32` or `bf16`.
///
/// # Errors
/// Any other text.
pub fn parse_kind(text: &str) -> Result<Kind> {
    match text {
        "f32" => Ok(Kind::Float),
        "bf16" => Ok(Kind::BFloat16),
        _ => {
            let shown = text.replace(char::is_control, "\u{FFFD}");
            Err(TensorError::Name(format!("`{shown}` is no dtype: expected `f32` or `bf16`")))
        }
    }
}

/// Makes a device ready: CUDA is brought into the process when it is first asked for.
///
/// # Errors
/// [`TensorError::Device`] for CUDA that can't be had, or an index that is not there.
pub fn open_device(device: Device) -> Result<Device> {
    let Device::Cuda(index) = device else { return Ok(device) };
    let bad = |problem: String| TensorError::Device { device: format!("cuda:{index}"), problem };
    native::load_cuda().map_err(bad)?;
    let count = tch::Cuda::device_count();
    if i64::try_from(index).is_ok_and(|index| index < count) {
        Ok(device)
    } else {
        Err(bad(format!("there are {count} CUDA devices, counted from 0")))
    }
}
