//! A claim that turns out to be a lie, seen from a process: what the kernel remembers of the mount is taken back.

use std::fs;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use ocifs::fetch::{Fetcher, Layer, Options, Urgency, fill};
use ocifs::fs::{FileSystem, Ino};
use ocifs::fuse;
use ocifs::index::{Claim, ClaimedSpan, Compression, Expected, LayerIndex, SpanDigest, Start, Times};
use ocifs::oci::Digest;
use ocifs::source::{BlobReader, BoxFuture, ByteStream, Error};
use ocifs::store::Store;
use ocifs::tar::{Entry, Kind, Segment, Timestamp, Writer};
use ocifs::tree::Tree;

use crate::support::{require_fuse, require_root};

#[derive(Debug)]
struct Memory(Bytes);

impl BlobReader for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, Error>> {
        let bytes = self.0.slice(range.start as usize..range.end as usize);
        Box::pin(async move { Ok(Box::pin(futures_util::stream::iter([Ok(bytes)])) as ByteStream) })
    }
}

fn entry(path: &str, kind: Kind) -> Entry {
    let mtime = Timestamp { seconds: 5, nanos: 0 };
    Entry { path: path.as_bytes().to_vec(), kind, mode: 0o755, uid: 0, gid: 0, mtime, xattrs: Vec::new() }
}

/// A tar layer of a directory, a file and a link, and a claim that makes the file set-uid.
fn layer() -> (Bytes, Expected, LayerIndex) {
    let content = [7; 3000];
    let segments = vec![Segment { file_offset: 0, layer_offset: 1024, length: 3000 }];
    let file = Kind::Regular { size: 3000, segments, content: None };
    let link = Kind::Symlink { target: b"file".to_vec() };
    let mut entries = vec![entry("dir", Kind::Directory), entry("dir/file", file), entry("dir/link", link)];
    let mut writer = Writer::new(Vec::new());
    for entry in &entries {
        let content = if matches!(entry.kind, Kind::Regular { .. }) { &content[..] } else { &[] };
        writer.append(entry, content).expect("written to memory");
    }
    let blob = Bytes::from(writer.finish().expect("written to memory"));
    let digest = Digest::sha256(&blob);
    let expected = Expected { layer: digest, size: blob.len() as u64, diff_id: digest };
    entries[1].mode = 0o4755;
    let span = ClaimedSpan {
        compressed: 0..expected.size,
        bit: 0,
        skip: 0,
        length: expected.size,
        start: Start::Fresh,
        digest: SpanDigest::Decoded(digest.bytes().try_into().expect("32 bytes")),
    };
    let claim = Claim {
        compression: Compression::None,
        entries,
        spans: vec![span],
        uncompressed_size: expected.size,
        fidelity: Times::Seconds,
        prefetch_end: None,
    };
    let index = LayerIndex::claimed(&expected, claim).expect("it is well-formed");
    (blob, expected, index)
}

/// What a process sees of the mount: the mode of the file, its length, and the names beside it.
fn look(dir: &Path) -> Vec<Result<u64, ErrorKind>> {
    use std::os::unix::fs::MetadataExt as _;
    let stat = fs::metadata(dir.join("dir/file")).map(|metadata| u64::from(metadata.mode()));
    let read = fs::read(dir.join("dir/link")).map(|bytes| bytes.len() as u64);
    let list = fs::read_dir(dir.join("dir")).and_then(|names| names.collect::<Result<Vec<_>, _>>());
    let outcomes = [stat, read, list.map(|names| names.len() as u64)];
    outcomes.into_iter().map(|outcome| outcome.map_err(|error| error.kind())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn d_026_a_mount_of_a_lie_stops_serving_even_what_the_kernel_remembers() {
    if !require_fuse() || !require_root() {
        return;
    }
    for io in [fuse::Io::Cached, fuse::Io::Passthrough] {
        let scratch = tempfile::tempdir().expect("a temporary directory");
        let point = scratch.path().join("mount");
        fs::create_dir(&point).expect("there is room");
        let store = Arc::new(Store::open(&scratch.path().join("cache")).expect("a new cache"));
        let (blob, expected, index) = layer();
        let tree = Tree::open(Bytes::from(ocifs::tree::merge(&[&index]).expect("it merges"))).expect("a good tree");
        let last = Ino(u64::from(tree.node_count()));
        let stored = store.blob(&expected.layer, expected.size).expect("a blob");
        let layer = Layer::new(index, stored, Some(Arc::new(Memory(blob))), "memory", store.scratch());
        let layer = Arc::new(layer.with_claim(Arc::clone(&store), Digest::sha256(b"claim")));
        let fetcher = Fetcher::new(Options::default());
        let files = Arc::new(FileSystem::new(tree, vec![Arc::clone(&layer)], fetcher.clone(), store));
        let options = fuse::Options { source: "ocifs", access: fuse::Access::Owner, io, low_latency: false };
        let (runtime, dir) = (tokio::runtime::Handle::current(), point.clone());
        let mounted = tokio::task::spawn_blocking(move || {
            fuse::Mount::new(files, runtime, &dir, options, &fuse::Places::default())
        })
        .await;
        let mount = Arc::new(mounted.expect("it does not panic").expect("it can be mounted"));
        let see = || {
            let point = point.clone();
            async { tokio::task::spawn_blocking(move || look(&point)).await.expect("it does not panic") }
        };
        let believed = see().await;
        fill(&fetcher, &layer, Urgency::Now).await.expect_err("it lies");
        let watched = Arc::clone(&mount);
        tokio::task::spawn_blocking(move || watched.connection().forget(last)).await.expect("it does not panic");
        let after = see().await;
        tokio::task::spawn_blocking(move || mount.unmount(true)).await.expect("it does not panic").expect("it ends");
        assert_eq!(believed, [Ok(0o104_755), Ok(3000), Ok(2)]);
        assert!(after.iter().all(|outcome| outcome.is_err()), "{after:?}");
    }
}
