use std::time::Duration;

use hooks::HookPoint;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::{ActivationError, Result};

/// One stream of vectors: where they come from, and how many numbers each has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// The hook point.
    pub hook: HookPoint,
    /// Numbers a row; all heads side by side where the site has heads.
    pub width: i64,
}

/// Rows of the same tokens at several sites: row i of each tensor belongs to the same token.
#[derive(Debug)]
pub struct Rows {
    /// One tensor a site, `[rows, width]`, in the order of the source's sites.
    pub at: Vec<Tensor>,
}

impl Rows {
    /// Puts tensors together.
    ///
    /// # Errors
    /// [`ActivationError::Rows`] for no tensors, for one that has no rows and columns, and for unequal numbers of rows.
    pub fn new(at: Vec<Tensor>) -> Result<Self> {
        let sizes: Vec<Vec<i64>> = at.iter().map(Tensor::size).collect();
        let Some(first) = sizes.first() else { return Err(ActivationError::NoSites) };
        match sizes.iter().find(|size| size.len() != 2 || size.first() != first.first()) {
            Some(size) => Err(ActivationError::Rows(format!(
                "rows of the same tokens must be [rows, width] with as many rows at each site, but are {first:?} and {size:?}"
            ))),
            None => Ok(Self { at }),
        }
    }

    /// How many rows each site has.
    pub fn rows(&self) -> i64 {
        self.at.first().and_then(|t| t.size().first().copied()).unwrap_or(0)
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows() == 0
    }

    /// `length` rows from `start` on: a view.
    ///
    /// # Errors
    /// libtorch's, for rows that are not there.
    pub fn narrow(&self, start: i64, length: i64) -> Result<Self> {
        self.each(|t| Ok(t.f_narrow(0, start, length)?))
    }

    /// The rows in another dtype; those that are in it already are shared.
    ///
    /// # Errors
    /// libtorch's.
    pub fn to_kind(&self, kind: Kind) -> Result<Self> {
        self.each(|t| Ok(t.f_to_kind(kind)?))
    }

    /// The rows on another device; those that are there already are shared.
    ///
    /// # Errors
    /// libtorch's.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        self.each(|t| Ok(t.f_to_device(device)?))
    }

    fn each(&self, of: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        Ok(Self { at: self.at.iter().map(of).collect::<Result<_>>()? })
    }
}

/// Where a source stands: the next row it gives is row `row` of chunk `chunk`.
///
/// A chunk is what a source makes at once, a token batch or a shard, counted from 0 over all epochs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cursor {
    /// Chunks before it.
    pub chunk: u64,
    /// Rows of the chunk before it.
    pub row: u64,
}

/// Rows in a fixed order, for ever or for some epochs, that can be taken up anywhere.
///
/// The order depends on what the source was made of alone: two sources of the same text and model give the same rows.
pub trait Source {
    /// What [`next`](Self::next) gives, in order.
    fn sites(&self) -> &[Site];

    /// The rows of exactly one chunk, or what is left of it after [`seek`](Self::seek); none may be left, or none may count.
    /// `None` behind the last chunk.
    ///
    /// # Errors
    /// The source's. It stands where it stood, so it may be asked again.
    fn next(&mut self) -> Result<Option<Rows>>;

    /// Goes to a place, forward or back.
    ///
    /// # Errors
    /// [`ActivationError::Seek`] for a place that is not there; the source's.
    fn seek(&mut self, at: Cursor) -> Result<()>;

    /// Where the next row comes from.
    fn cursor(&self) -> Cursor;

    /// How long [`next`](Self::next) has waited for storage in all: zero for what computes.
    fn waited(&self) -> Duration {
        Duration::ZERO
    }
}

impl<S: Source + ?Sized> Source for Box<S> {
    fn sites(&self) -> &[Site] {
        (**self).sites()
    }

    fn next(&mut self) -> Result<Option<Rows>> {
        (**self).next()
    }

    fn seek(&mut self, at: Cursor) -> Result<()> {
        (**self).seek(at)
    }

    fn cursor(&self) -> Cursor {
        (**self).cursor()
    }

    fn waited(&self) -> Duration {
        (**self).waited()
    }
}

impl<S: Source + ?Sized> Source for &mut S {
    fn sites(&self) -> &[Site] {
        (**self).sites()
    }

    fn next(&mut self) -> Result<Option<Rows>> {
        (**self).next()
    }

    fn seek(&mut self, at: Cursor) -> Result<()> {
        (**self).seek(at)
    }

    fn cursor(&self) -> Cursor {
        (**self).cursor()
    }

    fn waited(&self) -> Duration {
        (**self).waited()
    }
}

/// The first site that stands twice.
pub(crate) fn no_site_twice(sites: &[HookPoint]) -> Result<()> {
    if sites.is_empty() {
        return Err(ActivationError::NoSites);
    }
    let mut seen = std::collections::BTreeSet::new();
    match sites.iter().find(|site| !seen.insert(**site)) {
        Some(twice) => Err(ActivationError::Twice(*twice)),
        None => Ok(()),
    }
}
