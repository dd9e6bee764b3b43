use std::{cell::Cell, ops::Range};

use tch::{Device, Kind, Tensor};
use tch_ext::{Stored, TensorError, expect_finite, expect_kind};

use crate::{Result, SaeError};

/// A weight matrix of float32: in memory, or left in its file and read some rows or columns at a time.
#[derive(Debug)]
pub struct Matrix {
    place: Place,
    /// The dtype in the file, or in memory where it came from none.
    stored_as: Kind,
}

#[derive(Debug)]
enum Place {
    Held(Tensor),
    File {
        stored: Stored,
        /// The file holds the transpose.
        transposed: bool,
        /// The columns before this one have been read, and are finite.
        seen: Cell<i64>,
    },
}

impl From<Tensor> for Matrix {
    fn from(tensor: Tensor) -> Self {
        Self { stored_as: tensor.f_kind().unwrap_or(Kind::Float), place: Place::Held(tensor) }
    }
}

impl Matrix {
    /// A matrix that a file holds, or whose transpose it holds. Up to `hold_up_to` bytes (as float32) are brought into
    /// memory, and onto `device`; what lies in the file as float32, ready for use, is mapped and not copied. More is left in
    /// the file, which only the CPU can work from.
    ///
    /// # Errors
    /// Two axes, and F32, BF16, F16 or F64, are needed; a held matrix must be finite.
    pub fn open(stored: Stored, transposed: bool, hold_up_to: u64, device: Device) -> Result<Self> {
        let what = stored.what().to_owned();
        let &[rows, cols] = stored.shape() else {
            let got = stored.shape().to_vec();
            return Err(TensorError::Shape { what, expected: "two axes".to_owned(), got }.into());
        };
        let float32_bytes = (rows.unsigned_abs()).saturating_mul(cols.unsigned_abs()).saturating_mul(4);
        if float32_bytes > hold_up_to && device == Device::Cpu && !stored.is_held() {
            expect_readable(&what, stored.kind())?;
            let stored_as = stored.kind();
            return Ok(Self { place: Place::File { stored, transposed, seen: Cell::new(0) }, stored_as });
        }
        let tensor = held(&stored)?.f_to_device(device)?;
        expect_finite(&what, &tensor)?;
        let tensor = if transposed { tensor.f_tr()? } else { tensor };
        Ok(Self { place: Place::Held(tensor), stored_as: stored.kind() })
    }

    /// The sizes of its axes, which for a matrix that [`Sae::new`](crate::Sae::new) would refuse need not be two.
    pub(crate) fn axes(&self) -> Vec<i64> {
        match &self.place {
            Place::Held(tensor) => tensor.size(),
            Place::File { .. } => self.size().to_vec(),
        }
    }

    /// Rows and columns.
    pub fn size(&self) -> [i64; 2] {
        let (size, transposed) = match &self.place {
            Place::Held(tensor) => (tensor.size(), false),
            Place::File { stored, transposed, .. } => (stored.shape().to_vec(), *transposed),
        };
        match *size {
            [rows, cols] if transposed => [cols, rows],
            [rows, cols] => [rows, cols],
            _ => [0, 0],
        }
    }

    /// The dtype of the file that it was read from; it is computed with in float32.
    pub fn stored_as(&self) -> Kind {
        self.stored_as
    }

    /// The matrix, if it is in memory.
    pub fn held(&self) -> Option<&Tensor> {
        match &self.place {
            Place::Held(tensor) => Some(tensor),
            Place::File { .. } => None,
        }
    }

    /// Some columns: `[rows, len]`, float32.
    ///
    /// # Errors
    /// The system's; values of the file that are not finite.
    pub fn columns(&self, range: Range<i64>) -> Result<Tensor> {
        let (start, len) = self.within(&range, 1)?;
        match &self.place {
            Place::Held(tensor) => Ok(tensor.f_narrow(1, start, len)?),
            Place::File { stored, transposed, seen } => {
                let part = if *transposed {
                    stored.rows(start, len)?.f_tr()?
                } else {
                    stored.columns(start, len)?
                };
                if range.end <= seen.get() {
                    return Ok(part.f_to_kind(Kind::Float)?);
                }
                let part = checked(stored.what(), &part)?;
                if start <= seen.get() {
                    seen.set(range.end);
                }
                Ok(part)
            }
        }
    }

    /// Some rows: `[len, cols]`, float32.
    ///
    /// # Errors
    /// The system's; values of the file that are not finite.
    pub fn rows(&self, range: Range<i64>) -> Result<Tensor> {
        let (start, len) = self.within(&range, 0)?;
        match &self.place {
            Place::Held(tensor) => Ok(tensor.f_narrow(0, start, len)?),
            Place::File { stored, transposed, .. } => {
                let part = if *transposed {
                    stored.columns(start, len)?.f_tr()?
                } else {
                    stored.rows(start, len)?
                };
                checked(stored.what(), &part)
            }
        }
    }

    /// The rows at these indices (`[n]`, int64): `[n, cols]`, float32.
    ///
    /// # Errors
    /// As [`rows`](Self::rows); an index that is out of range.
    pub fn select_rows(&self, indices: &Tensor) -> Result<Tensor> {
        let (stored, transposed) = match &self.place {
            Place::Held(tensor) => return Ok(tensor.f_index_select(0, indices)?),
            Place::File { stored, transposed, .. } => (stored, *transposed),
        };
        let part = if transposed {
            let columns = Vec::<i64>::try_from(indices)?;
            if columns.is_empty() {
                return Ok(Tensor::f_zeros([0, self.size()[1]], (Kind::Float, Device::Cpu))?);
            }
            let columns = columns.iter().map(|i| stored.columns(*i, 1)).collect::<Result<Vec<_>, _>>()?;
            // The kernel that sums rows wants each in one piece.
            Tensor::f_cat(&columns, 1)?.f_tr()?.f_contiguous()?
        } else {
            stored.select_rows(indices)?
        };
        checked(stored.what(), &part)
    }

    /// All of it, in memory.
    ///
    /// # Errors
    /// As [`rows`](Self::rows).
    pub fn whole(&self) -> Result<Tensor> {
        match &self.place {
            // The tensor itself: to train it is to train the SAE.
            Place::Held(tensor) => Ok(tensor.shallow_clone()),
            Place::File { .. } => self.rows(0..self.size()[0]),
        }
    }

    /// Moves it to a device: what lies in a file is read for a device that is not the CPU.
    ///
    /// # Errors
    /// As [`whole`](Self::whole).
    pub fn to_device(&self, device: Device) -> Result<Self> {
        match &self.place {
            Place::Held(tensor) => {
                Ok(Self { place: Place::Held(tensor.f_to_device(device)?), stored_as: self.stored_as })
            }
            Place::File { stored, transposed, seen } if device == Device::Cpu => Ok(Self {
                place: Place::File {
                    stored: stored.shallow_clone(),
                    transposed: *transposed,
                    seen: seen.clone(),
                },
                stored_as: self.stored_as,
            }),
            Place::File { .. } => Ok(self.whole()?.f_to_device(device)?.into()),
        }
    }

    fn within(&self, range: &Range<i64>, axis: usize) -> Result<(i64, i64)> {
        let size = self.size()[axis];
        if range.start < 0 || range.end < range.start || range.end > size {
            return Err(SaeError::Range { start: range.start, end: range.end, size });
        }
        Ok((range.start, range.end - range.start))
    }
}

/// As float32, without NaN and infinity: float64's largest values become infinite.
fn checked(what: &str, part: &Tensor) -> Result<Tensor> {
    let part = part.f_to_kind(Kind::Float)?;
    expect_finite(what, &part)?;
    Ok(part)
}

fn expect_readable(what: &str, kind: Kind) -> Result<()> {
    if matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Half | Kind::Double) {
        return Ok(());
    }
    let expected = "F32, BF16, F16 or F64".to_owned();
    let got = tch_ext::kind_name(kind).to_owned();
    Err(TensorError::Dtype { what: what.to_owned(), expected, got }.into())
}

/// A stored tensor in memory, as float32.
pub(crate) fn held(stored: &Stored) -> Result<Tensor> {
    expect_readable(stored.what(), stored.kind())?;
    Ok(stored.tensor().map_err(|e| e.for_tensor(stored.what()))?.f_to_kind(Kind::Float)?)
}

/// Checks that a tensor is float32 and finite.
pub(crate) fn expect_parameter(name: &str, tensor: &Tensor) -> Result<()> {
    expect_kind(name, tensor, &[Kind::Float])?;
    Ok(expect_finite(name, tensor)?)
}
