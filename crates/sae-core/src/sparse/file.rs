use std::{collections::HashMap, path::Path};

use tch::{Device, Kind, Tensor};
use tch_ext::{SafetensorsFile, TensorError, expect_finite, expect_kind, write_safetensors};

use super::SparseFeatures;
use crate::{Result, SaeError};

const TENSORS: [&str; 3] = ["indptr", "indices", "values"];
const WIDTH: &str = "d_sae";

impl SparseFeatures {
    /// Writes a safetensors file of `indptr` `[n + 1]` and `indices` `[nnz]`, int64, and `values` `[nnz]`, float32: in SciPy
    /// `csr_array((values, indices, indptr), shape=(n, d_sae))`. Its text metadata hold `d_sae` and whatever `text` says beside.
    ///
    /// # Errors
    /// The system's; values that are not float32, or not finite; a `text` that has a `d_sae` of its own.
    pub fn save(&self, path: &Path, mut text: HashMap<String, String>) -> Result<()> {
        expect_kind("values", &self.values, &[Kind::Float])?;
        expect_finite("values", &self.values)?;
        if text.insert(WIDTH.to_owned(), self.d_sae.to_string()).is_some() {
            return Err(SaeError::Sparse(format!("the text `{WIDTH}` is written by itself")));
        }
        let parts =
            [&self.indptr, &self.indices, &self.values].map(|t| t.f_detach()?.f_to_device(Device::Cpu));
        let parts = parts.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(write_safetensors(path, TENSORS.into_iter().zip(&parts), text)?)
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// The system's; a file that is damaged, lacks a tensor or its `d_sae`, holds another tensor or another dtype, breaks an
    /// invariant of [`SparseFeatures`], or holds a value that is not finite.
    pub fn load(path: &Path) -> Result<Self> {
        let mut file = SafetensorsFile::open(path)?;
        let name = file.name().to_owned();
        let bad = |problem: String| SaeError::File { file: name.clone(), problem };
        let others: Vec<_> = file.names().into_iter().filter(|n| !TENSORS.contains(&n.as_str())).collect();
        if !others.is_empty() {
            return Err(TensorError::Unexpected { file: name, names: others }.into());
        }
        let d_sae = file.text().and_then(|text| text.get(WIDTH));
        let d_sae = d_sae.ok_or_else(|| bad(format!("has no `{WIDTH}` among its text metadata")))?;
        // As `save` writes it: no sign, no zeros in front.
        let d_sae = d_sae.parse().ok().filter(|n: &i64| n.to_string() == *d_sae);
        let d_sae = d_sae.ok_or_else(|| bad(format!("its `{WIDTH}` is no number")))?;
        let mut read = |tensor: &str, kind: Kind| -> Result<Tensor> {
            let what = format!("{name}: {tensor}");
            let got = file.info(tensor)?.kind;
            if got != kind {
                let [expected, got] = [kind, got].map(|k| tch_ext::kind_name(k).to_owned());
                return Err(TensorError::Dtype { what, expected, got }.into());
            }
            let read = file.read(tensor)?;
            if kind == Kind::Float {
                expect_finite(&what, &read)?;
            }
            Ok(read)
        };
        let indptr = read("indptr", Kind::Int64)?;
        let indices = read("indices", Kind::Int64)?;
        let values = read("values", Kind::Float)?;
        Self::new(indptr, indices, values, d_sae).map_err(|e| bad(e.to_string()))
    }
}
