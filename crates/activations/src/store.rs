use std::{collections::BTreeMap, fmt, path, sync::Arc, thread};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::{
    ObjectStore, ObjectStoreExt as _, PutPayload, WriteMultipart, local::LocalFileSystem, memory::InMemory,
    path::Path,
};
use tokio::runtime::{Builder, Runtime};

use crate::{ActivationError, Result, error::one_line};

/// Parts of an upload that are on their way at once.
const PARTS_AT_A_TIME: usize = 4;

/// Where a harvest lies: a local folder, memory, or an S3-compatible bucket.
///
/// Files appear whole or not at all. No environment variable is read: what a bucket needs is handed over.
#[derive(Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    prefix: Path,
    name: String,
    part_bytes: usize,
    runtime: Arc<Background>,
}

impl Store {
    /// A local folder, which is made when the first file is written. Files are flushed to the disk before they get their names, so that
    /// what a manifest lists outlives a power cut.
    ///
    /// # Errors
    /// [`ActivationError::Storage`] for a path that is no text.
    pub fn folder(folder: &path::Path) -> Result<Self> {
        let name = folder.display().to_string();
        let bad =
            |problem: String| ActivationError::Storage { file: name.clone(), problem: one_line(&problem) };
        let whole = folder.canonicalize().or_else(|_| path::absolute(folder));
        let whole = whole.map_err(|e| bad(e.to_string()))?;
        let prefix = Path::from_absolute_path(&whole).map_err(|e| bad(e.to_string()))?;
        Self::with_prefix(Arc::new(LocalFileSystem::new().with_fsync(true)), prefix, name.clone())
    }

    /// Memory, for tests and for what is small: gone with the last clone of the store.
    ///
    /// # Errors
    /// [`ActivationError::Storage`] where the system gives no room for the store's own thread.
    pub fn memory() -> Result<Self> {
        Self::new(Arc::new(InMemory::new()), "", "memory")
    }

    /// Any storage of `object_store`'s; `prefix` comes before each file's name, and `name` stands for the place in errors.
    ///
    /// # Errors
    /// [`ActivationError::Storage`] for a prefix that is none.
    pub fn new(storage: Arc<dyn ObjectStore>, prefix: &str, name: &str) -> Result<Self> {
        let bad = |e: object_store::path::Error| ActivationError::Storage {
            file: name.to_owned(),
            problem: one_line(&e.to_string()),
        };
        Self::with_prefix(storage, Path::parse(prefix).map_err(bad)?, name.to_owned())
    }

    /// A folder's path, or `s3://bucket/prefix` with options: `aws_access_key_id`, `aws_secret_access_key`, `aws_region`,
    /// `aws_endpoint`, `aws_allow_http` and so on, as `object_store` names them, in any case. Folders take no options.
    ///
    /// # Errors
    /// [`ActivationError::Options`] for an option that is none, or a URL that is none of these.
    pub fn open(place: &str, options: impl IntoIterator<Item = (String, String)>) -> Result<Self> {
        match place.split_once("://") {
            None => Self::folder(path::Path::new(place)),
            Some(("s3", _)) => open_s3(place, options),
            Some((scheme, _)) => Err(ActivationError::Options(format!(
                "`{}` is neither a folder nor s3://bucket/prefix: `{scheme}` is not known",
                one_line(place)
            ))),
        }
    }

    /// Whether S3 storage has an option of this name. An environment's `AWS_*` variables hold others too.
    #[must_use]
    pub fn is_s3_option(key: &str) -> bool {
        #[cfg(feature = "aws")]
        return key.to_lowercase().parse::<object_store::aws::AmazonS3ConfigKey>().is_ok();
        #[cfg(not(feature = "aws"))]
        return key.is_empty();
    }

    /// The same store with uploads in parts of so many bytes; smaller files go in one piece. 32 MiB if not said.
    #[must_use]
    pub fn with_part_bytes(mut self, bytes: usize) -> Self {
        self.part_bytes = bytes.max(1);
        self
    }

    fn with_prefix(inner: Arc<dyn ObjectStore>, prefix: Path, name: String) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(|e| {
            ActivationError::Storage { file: name.clone(), problem: one_line(&e.to_string()) }
        })?;
        let runtime = Arc::new(Background(Some(runtime)));
        Ok(Self { inner, prefix, name, part_bytes: 32 << 20, runtime })
    }

    /// The folder or URL.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A file's name in errors.
    pub(crate) fn file(&self, file: &str) -> String {
        format!("{}/{file}", self.name)
    }

    /// A file's contents.
    pub(crate) fn get(&self, file: &str) -> Result<Bytes> {
        let path = self.path(file);
        self.wait(file, async || self.inner.get(&path).await?.bytes().await)
    }

    /// Writes a file, or puts it in the place of another.
    pub(crate) fn put(&self, file: &str, contents: Bytes) -> Result<()> {
        let path = self.path(file);
        self.wait(file, async || {
            if contents.len() <= self.part_bytes {
                self.inner.put(&path, PutPayload::from_bytes(contents.clone())).await?;
                return Ok(());
            }
            let upload = self.inner.put_multipart(&path).await?;
            let mut upload = WriteMultipart::new_with_chunk_size(upload, self.part_bytes);
            let mut rest = contents.clone();
            while !rest.is_empty() {
                if let Err(error) = upload.wait_for_capacity(PARTS_AT_A_TIME).await {
                    // What was said first is what is wrong.
                    let _aborted = upload.abort().await;
                    return Err(error);
                }
                upload.put(rest.split_to(self.part_bytes.min(rest.len())));
            }
            upload.finish().await.map(drop)
        })
    }

    /// Removes a file.
    pub(crate) fn remove(&self, file: &str) -> Result<()> {
        let path = self.path(file);
        self.wait(file, async || self.inner.delete(&path).await)
    }

    /// All files there, by name, with their bytes.
    pub(crate) fn sizes(&self) -> Result<BTreeMap<String, u64>> {
        let under = (!self.prefix.as_ref().is_empty()).then_some(&self.prefix);
        let found: Vec<_> = self.wait("", async || self.inner.list(under).try_collect().await)?;
        let name = |path: &Path| {
            let parts: Vec<_> =
                path.prefix_match(&self.prefix)?.map(|part| part.as_ref().to_owned()).collect();
            Some(parts.join("/"))
        };
        Ok(found.iter().filter_map(|meta| Some((name(&meta.location)?, meta.size))).collect())
    }

    fn path(&self, file: &str) -> Path {
        file.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// Runs one operation to its end, on a thread of its own: the caller may be inside a runtime, where none may wait.
    fn wait<T: Send>(
        &self,
        file: &str,
        operation: impl AsyncFnOnce() -> object_store::Result<T> + Send,
    ) -> Result<T> {
        let said = |problem: String| ActivationError::Storage { file: self.file(file), problem };
        let runtime = self.runtime.0.as_ref();
        let done = thread::scope(|scope| {
            let work = move || runtime.map(|runtime| runtime.block_on(operation()));
            let thread = thread::Builder::new().spawn_scoped(scope, work);
            thread.map_err(|e| said(one_line(&e.to_string())))?.join().map_err(|_| lost())
        })?;
        match done.ok_or_else(lost)? {
            Ok(done) => Ok(done),
            Err(object_store::Error::NotFound { .. }) => {
                Err(ActivationError::Missing { file: self.file(file) })
            }
            Err(error) => Err(said(one_line(&error.to_string()))),
        }
    }
}

fn lost() -> ActivationError {
    ActivationError::Thread("speaks to the storage")
}

#[cfg(feature = "aws")]
fn open_s3(url: &str, options: impl IntoIterator<Item = (String, String)>) -> Result<Store> {
    use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};

    let bad =
        |problem: String| ActivationError::Options(format!("{}: {}", one_line(url), one_line(&problem)));
    // What object_store's client takes for its TLS; an earlier choice of the program's stays.
    let _already_chosen = rustls::crypto::ring::default_provider().install_default();
    let mut builder = AmazonS3Builder::new().with_url(url);
    for (key, value) in options {
        let known: AmazonS3ConfigKey = key
            .to_lowercase()
            .parse()
            .map_err(|_| bad(format!("`{}` is no option of S3 storage", one_line(&key))))?;
        builder = builder.with_config(known, value);
    }
    let storage = builder.build().map_err(|e| bad(e.to_string()))?;
    let (_, rest) = url.split_once("://").unwrap_or_default();
    let (_bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    Store::new(Arc::new(storage), prefix.trim_end_matches('/'), url.trim_end_matches('/'))
}

#[cfg(not(feature = "aws"))]
fn open_s3(url: &str, _options: impl IntoIterator<Item = (String, String)>) -> Result<Store> {
    Err(ActivationError::Options(format!("{}: built without S3 storage (feature `aws`)", one_line(url))))
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A runtime that may be dropped anywhere, inside another runtime too.
struct Background(Option<Runtime>);

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
