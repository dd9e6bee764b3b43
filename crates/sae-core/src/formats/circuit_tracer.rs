//! Being written.

use std::path::Path;

use super::{OpenOptions, Opened};
use crate::{Result, SaeError};

/// Opens a folder.
///
/// # Errors
/// A format that is not read yet.
pub fn open(path: &Path, _options: &OpenOptions) -> Result<Opened> {
    Err(SaeError::File { file: path.display().to_string(), problem: "not read yet".to_owned() })
}
