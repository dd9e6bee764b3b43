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
