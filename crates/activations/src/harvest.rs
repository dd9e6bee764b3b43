use std::{
    ops::ControlFlow,
    sync::mpsc::sync_channel,
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tch::Device;

use crate::{
    ActivationError, Dtype, Manifest, Result, Rows, Source, Store,
    manifest::MANIFEST,
    writer::{Unwritten, Writer},
};

/// What is harvested, and how it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HarvestOptions {
    /// The model's name.
    pub model: String,
    /// What tells the model from others of its name: a checksum of its weights.
    pub model_fingerprint: String,
    /// What tells the text from others: a checksum of it and of all that decides which tokens are made of it.
    pub text_fingerprint: String,
    /// How numbers are stored.
    pub dtype: Dtype,
    /// Rows of a shard.
    pub shard_rows: u64,
    /// How many rows in all; all that the source gives if not said.
    pub rows: Option<u64>,
    /// Shards that may wait for the writer before the source must.
    pub queue: usize,
}

impl Default for HarvestOptions {
    /// float32, shards of 2¹⁴ rows, everything, one shard waiting.
    fn default() -> Self {
        Self {
            model: String::new(),
            model_fingerprint: String::new(),
            text_fingerprint: String::new(),
            dtype: Dtype::F32,
            shard_rows: 1 << 14,
            rows: None,
            queue: 1,
        }
    }
}

/// How far a harvest is.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct HarvestProgress {
    /// Rows that the source has given, those of earlier runs included.
    pub rows: u64,
    /// Shards handed to the writer, those of earlier runs included.
    pub shards: u64,
    /// How long the source had to wait for the writer in this run.
    pub waited: Duration,
}

/// Writes what a source gives as shards, with a manifest, and goes on with what is there already.
///
/// A thread converts, sums, checks and writes; the source waits where it is more than `queue` shards behind. The manifest lists a
/// shard once all of its files are written, so a harvest that is killed, or finds the disk full, goes on behind the last shard that is
/// listed, with byte-identical files. Where `progress` says `Break`, what is made is written, and the harvest ends incomplete.
///
/// # Errors
/// [`ActivationError::Settings`] for a folder that was begun with other settings; [`ActivationError::Missing`] and
/// [`ActivationError::Shard`] for one in which a shard is gone or cut short; [`ActivationError::Storage`] with the file that
/// could not be written; the source's. All shards made before are kept and listed.
pub fn harvest(
    source: &mut (impl Source + ?Sized),
    store: &Store,
    options: &HarvestOptions,
    mut progress: impl FnMut(&HarvestProgress) -> ControlFlow<()>,
) -> Result<Manifest> {
    if options.shard_rows == 0 || i64::try_from(options.shard_rows).is_err() {
        return Err(ActivationError::Options(format!("a shard can't have {} rows", options.shard_rows)));
    }
    let manifest = take_up(source, store, options)?;
    if manifest.complete {
        return Ok(manifest);
    }
    let (send, receive) = sync_channel(options.queue);
    let (done_shards, done_rows) = (manifest.shards.len() as u64, manifest.stored_rows());
    thread::scope(|scope| {
        let writer = Writer::new(store, manifest);
        let writer = thread::Builder::new()
            .name("harvest writer".to_owned())
            .spawn_scoped(scope, move || writer.write_all(&receive))
            .map_err(|e| ActivationError::Storage { file: store.file(MANIFEST), problem: e.to_string() })?;
        let mut waited = Duration::ZERO;
        let mut hand_over = |shard: Unwritten| {
            let start = Instant::now();
            // A writer that is gone says why when it is joined.
            let taken = send.send(shard).is_ok();
            waited += start.elapsed();
            (taken, waited)
        };
        let mut shards =
            Shards { options, rows: done_rows, shards: done_shards, pieces: Vec::new(), have: 0 };
        let made = shards.make(source, &mut hand_over, &mut progress);
        drop(send);
        let mut manifest = writer.join().map_err(|_| ActivationError::Thread("writes the shards"))??;
        if made? {
            manifest.complete = true;
            manifest.write(store)?;
        }
        Ok(manifest)
    })
}

/// The manifest to go on from, with the source where its last shard ends.
fn take_up(source: &mut (impl Source + ?Sized), store: &Store, options: &HarvestOptions) -> Result<Manifest> {
    let asked = Manifest::begin(source.sites(), options);
    let found = match Manifest::read(store) {
        Err(ActivationError::Missing { .. }) => {
            // A storage that can't be written says so before the model runs.
            asked.write(store)?;
            return Ok(asked);
        }
        found => found?,
    };
    found.expect_same(&asked, store.name())?;
    found.expect_present(store)?;
    if let (Some(last), false) = (found.shards.last(), found.complete) {
        source.seek(last.next)?;
    }
    Ok(found)
}

/// Cuts what a source gives into shards.
struct Shards<'o> {
    options: &'o HarvestOptions,
    rows: u64,
    shards: u64,
    pieces: Vec<Rows>,
    have: u64,
}

impl Shards<'_> {
    /// `true` once all is made, `false` where it was stopped.
    fn make(
        &mut self,
        source: &mut (impl Source + ?Sized),
        hand_over: &mut impl FnMut(Unwritten) -> (bool, Duration),
        progress: &mut impl FnMut(&HarvestProgress) -> ControlFlow<()>,
    ) -> Result<bool> {
        let limit = self.options.rows.unwrap_or(u64::MAX);
        let mut from = source.cursor();
        let mut waited = Duration::ZERO;
        while self.rows < limit {
            let mut at = source.cursor();
            let Some(rows) = source.next()? else { break };
            let rows = rows.to_kind(self.options.dtype.kind())?.to_device(Device::Cpu)?;
            let mut used = 0;
            while used < rows.rows() && self.rows < limit {
                let room = (self.options.shard_rows - self.have).min(limit - self.rows);
                let take = i64::try_from(room).unwrap_or(i64::MAX).min(rows.rows() - used);
                self.pieces.push(rows.narrow(used, take)?);
                (used, self.have, self.rows) =
                    (used + take, self.have + take as u64, self.rows + take as u64);
                at.row += take as u64;
                if self.have == self.options.shard_rows {
                    let next = if used == rows.rows() { source.cursor() } else { at };
                    let (taken, so_far) = hand_over(self.shard(from, next));
                    waited = so_far;
                    if !taken {
                        return Ok(false);
                    }
                    from = next;
                }
            }
            let (rows, shards) = (self.rows, self.shards);
            if progress(&HarvestProgress { rows, shards, waited }).is_break() {
                return Ok(false);
            }
        }
        // Behind the last row nobody goes on, so where exactly it stood does not matter.
        Ok(self.have == 0 || hand_over(self.shard(from, source.cursor())).0)
    }

    fn shard(&mut self, from: crate::Cursor, next: crate::Cursor) -> Unwritten {
        let number = self.shards;
        self.shards += 1;
        Unwritten {
            number,
            rows: std::mem::take(&mut self.have),
            from,
            next,
            pieces: std::mem::take(&mut self.pieces),
        }
    }
}
