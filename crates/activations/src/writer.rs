use std::sync::mpsc::Receiver;

use bytes::Bytes;
use tch::Tensor;

use crate::{
    ActivationError, Cursor, Manifest, Moments, Result, Rows, Shard, Site, Store,
    manifest::{ShardFile, shard_name},
};

/// A manifest of up to so many bytes is written with each shard.
const SMALL_MANIFEST: usize = 1 << 20;
/// A larger one is written once so many times its bytes are in shards, so that it stays a small part of what is written.
const SHARDS_A_MANIFEST: u64 = 64;

/// A shard on its way to the writer, in the dtype in which it is stored, on the CPU.
#[derive(Debug)]
pub(crate) struct Unwritten {
    pub(crate) number: u64,
    pub(crate) rows: u64,
    pub(crate) from: Cursor,
    pub(crate) next: Cursor,
    pub(crate) pieces: Vec<Rows>,
}

/// Writes shards and lists them.
#[derive(Debug)]
pub(crate) struct Writer {
    store: Store,
    manifest: Manifest,
    /// The manifest's length when it was last written.
    length: usize,
    /// Bytes of shards that it does not list yet.
    unlisted: u64,
}

impl Writer {
    pub(crate) fn new(store: &Store, manifest: Manifest) -> Self {
        Self { store: store.clone(), manifest, length: 0, unlisted: 0 }
    }

    /// Writes what comes, until nothing more does. Of a failure nothing is left but what was listed before.
    pub(crate) fn write_all(mut self, shards: &Receiver<Unwritten>) -> Result<Manifest> {
        for shard in shards {
            if let Err(error) = self.write(&shard) {
                self.tidy_up(&shard);
                if self.unlisted > 0 {
                    // What was written whole before should not be made again; what failed is what must be said.
                    let _listed = self.list();
                }
                return Err(error);
            }
        }
        if self.unlisted > 0 {
            self.list()?;
        }
        Ok(self.manifest)
    }

    fn write(&mut self, shard: &Unwritten) -> Result<()> {
        let mut files = Vec::new();
        for (column, site) in self.manifest.sites.iter().enumerate() {
            let (contents, sums) = contents(shard, column, site)?;
            let file = ShardFile::of(&contents, &sums);
            self.store.put(&self.name(*site, shard.number), Bytes::from(contents))?;
            files.push(file);
        }
        self.unlisted += files.iter().map(|file| file.bytes).sum::<u64>();
        self.manifest.shards.push(Shard { rows: shard.rows, from: shard.from, next: shard.next, files });
        if self.length <= SMALL_MANIFEST || self.unlisted >= SHARDS_A_MANIFEST * self.length as u64 {
            self.list()?;
        }
        Ok(())
    }

    fn list(&mut self) -> Result<()> {
        self.length = self.manifest.write(&self.store)?;
        self.unlisted = 0;
        Ok(())
    }

    /// Removes what was written of a shard that is not listed; whether that succeeds changes nothing.
    fn tidy_up(&mut self, shard: &Unwritten) {
        if self.manifest.shards.len() as u64 > shard.number {
            // It was written whole, only the manifest was not.
            return;
        }
        for site in &self.manifest.sites {
            let _removed = self.store.remove(&self.name(*site, shard.number));
        }
    }

    fn name(&self, site: Site, number: u64) -> String {
        shard_name(site.hook, number, self.manifest.dtype)
    }
}

/// The bytes of a shard at one site, and the sums of its rows.
fn contents(shard: &Unwritten, column: usize, site: &Site) -> Result<(Vec<u8>, Moments)> {
    let mut sums = Moments::default();
    let mut bytes = Vec::new();
    for piece in &shard.pieces {
        let Some(rows) = piece.at.get(column) else {
            return Err(ActivationError::Rows(format!("a chunk has no rows at `{}`", site.hook)));
        };
        sums.add(&Moments::of(rows)?);
        append(&mut bytes, rows)?;
    }
    if !sums.square.is_finite() {
        let problem =
            format!("the activations at `{}` hold NaN or infinity: shard {}", site.hook, shard.number);
        return Err(ActivationError::Rows(format!("{problem} is not written")));
    }
    Ok((bytes, sums))
}

/// Appends a tensor's elements in C order, in this machine's byte order: little-endian wherever libtorch runs.
fn append(bytes: &mut Vec<u8>, rows: &Tensor) -> Result<()> {
    let rows = rows.f_contiguous()?;
    let (start, count) = (bytes.len(), rows.numel());
    bytes.resize(start + count * rows.f_kind()?.elt_size_in_bytes(), 0);
    rows.f_copy_data_u8(bytes.get_mut(start..).unwrap_or_default(), count)?;
    Ok(())
}
