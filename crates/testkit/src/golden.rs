use std::path::{Path, PathBuf};

use hooks::TokenBatch;
use tch::Tensor;
use tch_ext::SafetensorsFile;

/// A file or folder of `fixtures/`.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures").join(path)
}

/// What a reference implementation computed: the tensors of a safetensors file under `fixtures/`.
#[derive(Debug)]
pub struct Golden {
    file: SafetensorsFile,
}

impl Golden {
    /// Opens `fixtures/PATH`.
    pub fn open(path: &str) -> Self {
        let open = SafetensorsFile::open(&fixture(path));
        Self {
            file: open
                .unwrap_or_else(|e| panic!("{e}; regenerate with tools/golden, see fixtures/README.md")),
        }
    }

    /// The names of its tensors.
    pub fn names(&self) -> Vec<String> {
        self.file.names()
    }

    /// One tensor.
    pub fn get(&mut self, name: &str) -> Tensor {
        self.file.read(name).unwrap_or_else(|e| panic!("{e}"))
    }
}

/// Reads `{"input_ids": [[…]], "attention_mask": [[…]]}`, in which 0, 1 and 2 never count.
pub fn read_tokens(path: &str) -> TokenBatch {
    let text = std::fs::read_to_string(fixture(path)).expect("fixture");
    let json: serde_json::Value = serde_json::from_str(&text).expect("fixture is JSON");
    let rows = |key: &str| -> Option<Vec<Vec<i64>>> { serde_json::from_value(json.get(key)?.clone()).ok() };
    let ids = rows("input_ids").expect("input_ids");
    match rows("attention_mask") {
        Some(mask) => TokenBatch::with_mask(&ids, &mask, &[0, 1, 2]).expect("fixture is a batch"),
        None => TokenBatch::new(&ids, &[0, 1, 2]).expect("fixture is a batch"),
    }
}
