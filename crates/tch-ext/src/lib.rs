//! What we wish [`tch`] had: errors that name the tensor, strict readers for safetensors and npz, writers that leave no
//! half file, the names of dtypes and devices, and a faster `x Wᵀ`.
//!
//! Nothing here knows what a transformer or an autoencoder is. You probably want the `gemma-scope` facade instead.

mod atomic;
mod error;
mod kind;
mod linear;
mod npy;
mod npz;
mod safetensors;
mod shape;
mod stored;
mod torch_file;
mod unsigned;
mod weights;
mod zip_records;

pub use atomic::write_atomically;
pub use error::{Result, TensorError};
pub use kind::{kind_name, open_device, parse_device, parse_kind};
pub use linear::linear;
pub use native::keep_freed_memory;
pub use npz::{NpzFile, write_npz};
pub use safetensors::{SafetensorsFile, TensorInfo, write_safetensors};
pub use shape::{expect_finite, expect_kind, expect_shape};
pub use stored::Stored;
pub use torch_file::{TorchFile, TorchTensor, TorchValue};
pub use unsigned::{Member, Unsigned};
pub use weights::{Unread, WeightSource};
