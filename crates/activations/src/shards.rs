use std::{
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hooks::HookPoint;
use tch::Tensor;

use crate::{
    ActivationError, Cursor, Manifest, Result, Rows, Site, Source, Store, manifest::shard_name,
    source::no_site_twice,
};

/// What is read of a harvest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardsOptions {
    /// The sites, in the order in which they are wanted; all that were harvested if not said.
    pub sites: Option<Vec<HookPoint>>,
    /// How often the shards are read; for ever if not said.
    pub epochs: Option<u64>,
    /// Shards that are read before they are asked for.
    pub read_ahead: usize,
}

impl Default for ShardsOptions {
    /// All sites, once, two shards ahead.
    fn default() -> Self {
        Self { sites: None, epochs: Some(1), read_ahead: 2 }
    }
}

/// The rows of a harvested folder, in the order in which they were harvested, in the dtype in which they are stored, on the CPU.
///
/// A thread reads ahead and compares each file's checksum before any of its rows is given out. A chunk is a shard.
#[derive(Debug)]
pub struct Shards {
    store: Store,
    manifest: Arc<Manifest>,
    sites: Vec<Site>,
    /// The place of each site among a shard's files.
    columns: Vec<usize>,
    epochs: Option<u64>,
    read_ahead: usize,
    at: Cursor,
    reader: Option<Receiver<Result<Vec<Bytes>>>>,
    waited: Duration,
}

impl Shards {
    /// Opens a harvested folder, whole or not: [`Manifest::complete`] says which. That every file is there and as long as it must be
    /// is seen at once, what is in it when it is read.
    ///
    /// # Errors
    /// [`ActivationError::Missing`] where there is no manifest or not all of its files; [`ActivationError::Manifest`];
    /// [`ActivationError::Shard`] for a file of another length; [`ActivationError::NotStored`] for a site that was not harvested;
    /// [`ActivationError::Empty`] for a harvest without rows.
    pub fn open(store: &Store, options: &ShardsOptions) -> Result<Self> {
        let manifest = Manifest::read(store)?;
        manifest.expect_present(store)?;
        if manifest.shards.is_empty() {
            return Err(ActivationError::Empty);
        }
        let stored: Vec<HookPoint> = manifest.sites.iter().map(|site| site.hook).collect();
        let wanted = options.sites.clone().unwrap_or_else(|| stored.clone());
        no_site_twice(&wanted)?;
        let column = |site: &HookPoint| {
            stored.iter().position(|s| s == site).ok_or_else(|| ActivationError::NotStored {
                place: store.name().to_owned(),
                site: *site,
                stored: stored.clone(),
            })
        };
        let columns = wanted.iter().map(column).collect::<Result<Vec<_>>>()?;
        let sites = columns.iter().filter_map(|column| manifest.sites.get(*column).copied()).collect();
        Ok(Self {
            store: store.clone(),
            manifest: Arc::new(manifest),
            sites,
            columns,
            epochs: options.epochs,
            read_ahead: options.read_ahead,
            at: Cursor::default(),
            reader: None,
            waited: Duration::ZERO,
        })
    }

    /// What the folder holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Chunks of all epochs.
    fn chunks(&self) -> u64 {
        (self.manifest.shards.len() as u64).saturating_mul(self.epochs.unwrap_or(u64::MAX))
    }

    fn rows_of(&self, chunk: u64) -> u64 {
        let count = self.manifest.shards.len() as u64;
        let shard = chunk.checked_rem(count).and_then(|i| self.manifest.shards.get(i as usize));
        shard.map_or(0, |shard| shard.rows)
    }

    /// The files of the chunk that comes next, from the thread that reads ahead.
    fn receive(&mut self) -> Result<Vec<Bytes>> {
        let reader = match self.reader.take() {
            Some(reader) => reader,
            None => self.start_reader()?,
        };
        let start = Instant::now();
        let files = reader.recv().map_err(|_| ActivationError::Thread("reads ahead"));
        self.waited += start.elapsed();
        let files = files??;
        self.reader = Some(reader);
        Ok(files)
    }

    fn start_reader(&self) -> Result<Receiver<Result<Vec<Bytes>>>> {
        let (send, receive) = sync_channel(self.read_ahead);
        let reader = Reader {
            store: self.store.clone(),
            manifest: Arc::clone(&self.manifest),
            columns: self.columns.clone(),
        };
        let chunks = self.at.chunk..self.chunks();
        thread::Builder::new()
            .name("shard reader".to_owned())
            .spawn(move || reader.read_all(chunks, &send))
            .map_err(|e| ActivationError::Storage {
                file: self.store.name().to_owned(),
                problem: e.to_string(),
            })?;
        Ok(receive)
    }
}

impl Source for Shards {
    fn sites(&self) -> &[Site] {
        &self.sites
    }

    fn next(&mut self) -> Result<Option<Rows>> {
        if self.at.chunk >= self.chunks() {
            return Ok(None);
        }
        let rows = self.rows_of(self.at.chunk) as i64;
        let kind = self.manifest.dtype.kind();
        let files = self.receive()?;
        let tensor =
            |(file, site): (Bytes, &Site)| Ok(Tensor::f_from_data_size(&file, &[rows, site.width], kind)?);
        let all = Rows::new(files.into_iter().zip(&self.sites).map(tensor).collect::<Result<_>>()?)?;
        let skipped = self.at.row as i64;
        self.at = Cursor { chunk: self.at.chunk + 1, row: 0 };
        if skipped == 0 { Ok(Some(all)) } else { all.narrow(skipped, rows - skipped).map(Some) }
    }

    fn seek(&mut self, at: Cursor) -> Result<()> {
        let bad =
            |problem: String| Err(ActivationError::Seek { what: self.store.name().to_owned(), at, problem });
        if at.chunk > self.chunks() || (at.chunk == self.chunks() && at.row > 0) {
            return bad(format!("there are {} chunks", self.chunks()));
        }
        if at.row > self.rows_of(at.chunk) {
            return bad(format!("that chunk has {} rows", self.rows_of(at.chunk)));
        }
        if at.chunk != self.at.chunk {
            // The thread ends by itself once nobody listens.
            self.reader = None;
        }
        self.at = at;
        Ok(())
    }

    fn cursor(&self) -> Cursor {
        self.at
    }

    fn waited(&self) -> Duration {
        self.waited
    }
}

/// Reads shards and compares them with the manifest.
struct Reader {
    store: Store,
    manifest: Arc<Manifest>,
    columns: Vec<usize>,
}

impl Reader {
    /// Sends chunk after chunk until nobody listens, or one is not as it should be.
    fn read_all(&self, chunks: std::ops::Range<u64>, send: &SyncSender<Result<Vec<Bytes>>>) {
        for chunk in chunks {
            let files = self.read(chunk);
            let failed = files.is_err();
            if send.send(files).is_err() || failed {
                return;
            }
        }
    }

    fn read(&self, chunk: u64) -> Result<Vec<Bytes>> {
        let number = chunk.checked_rem(self.manifest.shards.len() as u64).unwrap_or(0);
        let Some(shard) = self.manifest.shards.get(number as usize) else { return Ok(Vec::new()) };
        let file = |column: &usize| {
            let (Some(site), Some(file)) = (self.manifest.sites.get(*column), shard.files.get(*column))
            else {
                return Ok(Bytes::new());
            };
            let name = shard_name(site.hook, number, self.manifest.dtype);
            let contents = self.store.get(&name)?;
            file.expect(self.store.file(&name), &contents)?;
            Ok(contents)
        };
        self.columns.iter().map(file).collect()
    }
}
