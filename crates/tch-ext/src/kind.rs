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
    let bad = || TensorError::Name(format!("`{text}` is no device: expected `cpu`, `cuda` or `cuda:N`"));
    match text {
        "cpu" => Ok(Device::Cpu),
        "cuda" => Ok(Device::Cuda(0)),
        _ => text.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Device::Cuda).ok_or_else(bad),
    }
}
