//! A disk that is full: the file is named, what was written is kept, and the harvest goes on once there is room.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use activations::{Manifest, Shards, ShardsOptions, Store};
use futures_util::stream::BoxStream;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, local::LocalFileSystem, path::Path,
};

use crate::common::{all, harvested, live, options, refused, toy};
use crate::harvests::contents;

/// A folder with room for so many bytes; what is replaced or removed gives none back.
#[derive(Debug)]
struct Small {
    inner: LocalFileSystem,
    room: Arc<AtomicI64>,
}

impl fmt::Display for Small {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("small")
    }
}

impl Small {
    fn take(&self, bytes: usize) -> object_store::Result<()> {
        if self.room.fetch_sub(bytes as i64, Ordering::Relaxed) >= bytes as i64 {
            return Ok(());
        }
        // What the system says.
        let source = Box::new(std::io::Error::from_raw_os_error(28));
        Err(object_store::Error::Generic { store: "Small", source })
    }
}

#[async_trait::async_trait]
impl ObjectStore for Small {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.take(payload.content_length())?;
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.take(1)?;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

#[test]
fn a_full_disk_stops_the_harvest_and_room_lets_it_go_on() {
    let model = toy();
    let straight = tempfile::tempdir().unwrap();
    let want = Store::folder(straight.path()).unwrap();
    let want = harvested(&mut live(&model, 9, Some(1)), &want, &options(10)).unwrap();
    for step in [700, 1_500, 2_222, 4_096] {
        let folder = tempfile::tempdir().unwrap();
        let room = Arc::new(AtomicI64::new(0));
        let inner = LocalFileSystem::new_with_prefix(folder.path()).unwrap();
        let store = Store::new(Arc::new(Small { inner, room: room.clone() }), "", "the disk").unwrap();
        let (mut failures, mut most) = (0, 0);
        let manifest = loop {
            match harvested(&mut live(&model, 9, Some(1)), &store, &options(10)) {
                Ok(manifest) => break manifest,
                Err(error) => refused(Err::<(), _>(error), &["the disk/", "No space left on device"]),
            };
            failures += 1;
            assert!(failures < 100);
            // What is listed is there, and is what it should be; nothing that is not listed is left but a shard without its manifest.
            if let Ok(listed) = Manifest::read(&store) {
                assert!(listed.shards.len() >= most);
                most = listed.shards.len();
                assert_eq!(listed.shards[..], want.shards[..most]);
                if most > 0 {
                    let rows = all(&mut Shards::open(&store, &ShardsOptions::default()).unwrap());
                    assert_eq!(rows[0].size()[0] as u64, listed.stored_rows());
                }
                let files = contents(folder.path()).len();
                assert!(files == 1 + 3 * most || files == 1 + 3 * (most + 1), "{files} files, {most} shards");
            }
            // Somebody makes room, more each time: the manifest grows.
            room.store(step + 500 * failures, Ordering::Relaxed);
        };
        assert!(failures > 1);
        assert_eq!(manifest, want);
        assert_eq!(contents(folder.path()), contents(straight.path()));
    }
}
