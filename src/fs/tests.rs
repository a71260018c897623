//! The file system in process: an image of one layer, served from memory, without FUSE and without a registry.
//!
//! Time passes only while nobody has anything to do: what the publisher waits for never comes before a test has looked.

use std::ops::Range;

use bytes::Bytes;
use proptest::prelude::*;
use tempfile::TempDir;

use super::read::{Serving, is_local, parts};
use super::*;
use crate::fetch::Options;
use crate::index::{Claim, ClaimedSpan, Expected, LayerIndex, SpanDigest, Start, Times, build};
use crate::oci::Digest;
use crate::source::{self, BlobReader, BoxFuture, ByteStream};
use crate::store::{Limits, Scratch};
use crate::tar::{Entry, Kind, Timestamp, Writer, Xattr};
use crate::tree::Merger;

/// A blob in memory that counts how often it is read.
#[derive(Debug)]
struct Memory(Bytes, std::sync::atomic::AtomicU64);

impl BlobReader for Memory {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, source::Error>> {
        self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let bytes = self.0.slice(range.start as usize..range.end as usize);
        Box::pin(async move { Ok(Box::pin(futures_util::stream::iter([Ok(bytes)])) as ByteStream) })
    }
}

/// A file system of one gzip layer, with the directory its store is in.
pub(super) struct Scene {
    pub(super) fs: Arc<FileSystem>,
    blob: Arc<Memory>,
    _cache: TempDir,
}

fn entry(path: &str, kind: Kind) -> Entry {
    let mtime = Timestamp { seconds: 50, nanos: 7 };
    Entry { path: path.into(), kind, mode: 0o755, uid: 1, gid: 2, mtime, xattrs: Vec::new() }
}

pub(super) fn file(path: &str, size: usize) -> Entry {
    entry(path, Kind::Regular { size: size as u64, segments: Vec::new(), content: None })
}

/// Bytes that do not repeat within a span and compress a little.
pub(super) fn content(size: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 & 0x3f
    };
    (0..size).map(|_| next()).collect()
}

pub(super) fn scene(entries: &[(Entry, Vec<u8>)]) -> Scene {
    let mut writer = Writer::new(Vec::new());
    for (entry, content) in entries {
        writer.append(entry, &content[..]).expect("written to memory");
    }
    let tar = writer.finish().expect("written to memory");
    // The fastest level writes a single block, in which no span can end.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut gzip, &tar).expect("written to memory");
    let blob = Bytes::from(gzip.finish().expect("written to memory"));
    let expected = Expected { layer: Digest::sha256(&blob), size: blob.len() as u64, diff_id: Digest::sha256(&tar) };
    let pieces = std::iter::once(Ok::<_, std::convert::Infallible>(blob.clone()));
    let index = build(pieces, expected).expect("a good layer");
    let mut merger = Merger::new();
    merger.layer(Some(expected.layer), index.entries()).expect("a good layer");
    let tree = Tree::open(Bytes::from(merger.finish())).expect("a good tree");
    let cache = tempfile::tempdir().expect("a temporary directory");
    let store = Arc::new(Store::open(&cache.path().join("cache")).expect("a new store"));
    let blob = Arc::new(Memory(blob, std::sync::atomic::AtomicU64::new(0)));
    let stored = store.blob(&expected.layer, expected.size).expect("a new blob");
    let reader = Arc::clone(&blob) as Arc<dyn BlobReader>;
    let layer = Arc::new(Layer::new(index, stored, Some(reader), "memory", store.scratch()));
    let fetcher = Fetcher::new(Options::default());
    Scene { fs: Arc::new(FileSystem::new(tree, vec![layer], fetcher, store)), blob, _cache: cache }
}

impl Scene {
    async fn open(&self, ino: Ino) -> Backing {
        match self.fs.open(ino).expect("a regular file") {
            Open::Ready(backing) => backing,
            Open::Later(pending) => pending.await,
        }
    }

    /// Reads a file and waits until its decoded copy is in the store.
    async fn publish(&self, ino: Ino) {
        self.open(ino).await;
        self.read(ino, 0, 1 << 20).await;
        self.fs.release(ino);
        self.published(ino).await;
    }

    /// Waits until the decoded copy of a file is in the store.
    async fn published(&self, ino: Ino) {
        let content = *self.fs.tree.node(self.fs.node_id(ino).expect("an inode")).content().expect("a digest");
        for _ in 0..500 {
            if self.fs.copies.store().file(&content).expect("a good store").is_some() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("the file is not published");
    }

    fn ino(&self, path: &str) -> Ino {
        let start = Ino::from(NodeId::ROOT);
        path.split('/').fold(start, |parent, name| self.fs.lookup(parent, name.as_bytes()).expect("it is there").ino)
    }

    async fn read(&self, ino: Ino, offset: u64, size: u32) -> Bytes {
        match self.fs.read(ino, offset, size).expect("a regular file") {
            Read::Ready(bytes) => bytes,
            Read::Later(pending) => pending.await.expect("a good source"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn names_attributes_and_links_are_answered_from_the_tree() {
    let mut decorated = file("d/f", 3);
    decorated.xattrs = vec![Xattr { name: b"user.a".to_vec(), value: b"1".to_vec() }];
    let link = entry("d/l", Kind::Symlink { target: b"f".to_vec() });
    let device = entry("d/n", Kind::CharDevice { major: 1, minor: 300 });
    let scene =
        scene(&[(entry("d", Kind::Directory), vec![]), (decorated, b"abc".to_vec()), (link, vec![]), (device, vec![])]);
    let (fs, f) = (&scene.fs, scene.ino("d/f"));
    let attr = fs.getattr(f).expect("an inode");
    assert_eq!((attr.size, attr.blocks, attr.mode, attr.uid, attr.gid), (3, 1, 0o755, 1, 2));
    assert_eq!(attr.mtime, Timestamp { seconds: 50, nanos: 7 });
    assert_eq!(fs.getattr(scene.ino("d/n")).expect("an inode").device, (1, 300));
    assert_eq!(fs.readlink(scene.ino("d/l")).expect("a link"), b"f");
    assert!(matches!(fs.readlink(f), Err(Error::WrongType)));
    assert!(matches!(fs.lookup(f, b"x"), Err(Error::NotDirectory)));
    assert!(matches!(fs.lookup(scene.ino("d"), b"x"), Err(Error::NotFound)));
    assert_eq!(fs.listxattr(f).expect("an inode"), b"user.a\0");
    assert_eq!(fs.getxattr(f, b"user.a").expect("an attribute"), b"1");
    assert!(matches!(fs.getxattr(f, b"user.b"), Err(Error::NoAttribute)));
    for unknown in [0, 99, u64::MAX] {
        assert!(matches!(fs.getattr(Ino(unknown)), Err(Error::Stale(_))), "{unknown}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_206_a_listing_goes_on_from_any_position() {
    let mut entries = vec![(entry("d", Kind::Directory), vec![])];
    entries.extend((0..100).map(|number| (file(&format!("d/{number:03}"), 0), vec![])));
    let scene = scene(&entries);
    let directory = scene.fs.directory(scene.ino("d")).expect("a directory");
    let all: Vec<_> = directory.entries(0).map(|entry| (entry.name.to_vec(), entry.ino, entry.next)).collect();
    assert_eq!(all.len(), 102);
    assert_eq!((&all[0].0[..], all[0].1), (&b"."[..], scene.ino("d")));
    assert_eq!((&all[1].0[..], all[1].1), (&b".."[..], Ino::from(NodeId::ROOT)));
    for (number, (_, _, next)) in all.iter().enumerate() {
        let rest: Vec<_> = directory.entries(*next).map(|entry| entry.name.to_vec()).collect();
        let expected: Vec<_> = all[number + 1..].iter().map(|(name, ..)| name.clone()).collect();
        assert_eq!(rest, expected, "after position {next}");
    }
    assert_eq!(directory.entries(u64::MAX).count(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_read_once_is_fetched_once() {
    let bytes = content(2_000_000);
    let scene = scene(&[(file("f", bytes.len()), bytes.clone())]);
    let ino = scene.ino("f");
    for _ in 0..3 {
        for offset in (0..bytes.len()).step_by(300_000) {
            let read = scene.read(ino, offset as u64, 300_000).await;
            assert!(read == bytes[offset..bytes.len().min(offset + 300_000)], "at {offset}");
        }
    }
    let spans = u64::from(scene.fs.layers()[0].index.span_count());
    assert!(scene.blob.1.load(std::sync::atomic::Ordering::Relaxed) <= spans, "one read a span at most");
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_read_is_published_and_served_from_its_copy() {
    let bytes = content(700_000);
    let scene = scene(&[(file("f", bytes.len()), bytes.clone())]);
    let (fs, ino) = (&scene.fs, scene.ino("f"));
    scene.open(ino).await;
    assert_eq!(fs.open_files(), 1);
    fs.release(ino);
    assert_eq!(fs.open_files(), 0);
    scene.publish(ino).await;
    assert!(scene.open(ino).await.is_some(), "the copy serves the next open");
    assert!(matches!(fs.read(ino, 5, 10), Ok(Read::Ready(read)) if read == bytes[5..15]));
    fs.release(ino);
}

#[tokio::test(start_paused = true)]
async fn every_read_finds_the_copy_without_an_open() {
    let bytes = content(700_000);
    let scene = scene(&[(file("f", bytes.len()), bytes.clone())]);
    let (fs, ino) = (&scene.fs, scene.ino("f"));
    let id = fs.node_id(ino).expect("an inode");
    let serving = || fs.serving(id, &fs.tree.node(id));
    scene.read(ino, 0, 1 << 20).await;
    assert!(matches!(serving(), Serving::Layer), "nothing is decoded yet");
    scene.published(ino).await;
    assert!(matches!(serving(), Serving::Copy(_)));
    assert!(scene.read(ino, 100, 1 << 20).await == bytes[100..]);
    // Eviction may come at any time; the layer has the same bytes, and the file is decoded again.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !fs.copies.store().drop_files().expect("it can be emptied").kept.is_empty() {
        assert!(std::time::Instant::now() < deadline, "who published it or read it keeps it");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    assert!(matches!(serving(), Serving::Layer));
    assert!(scene.read(ino, 0, 1 << 20).await == bytes);
    scene.published(ino).await;
    assert_eq!(fs.open_files(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_file_is_offered_for_publishing_once() {
    let scene = scene(&[(file("f", 5000), content(5000)), (file("short", 10), vec![1; 10])]);
    let (fs, ids) = (&scene.fs, ["f", "short"].map(|path| scene.fs.node_id(scene.ino(path)).expect("an inode")));
    for _ in 0..2 {
        scene.read(scene.ino("f"), 0, 100).await;
        scene.read(scene.ino("short"), 0, 100).await;
    }
    assert!(!fs.copies.claim(ids[0]), "the publisher has it");
    assert!(fs.copies.claim(ids[1]), "a file without a digest is not published");
    scene.published(scene.ino("f")).await;
    for _ in 0..500 {
        // Once it is done the file may be offered again, should its copy be evicted.
        if fs.copies.claim(ids[0]) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the publisher keeps it");
}

#[tokio::test(start_paused = true)]
async fn publishing_fetches_nothing() {
    // Longer than what is fetched as a whole when its beginning is read.
    let bytes = content(13 << 20);
    let scene = scene(&[(file("f", bytes.len()), bytes.clone())]);
    let (fs, ino) = (&scene.fs, scene.ino("f"));
    let id = fs.node_id(ino).expect("an inode");
    assert!(fs.layers()[0].index.span_count() > 1);
    scene.read(ino, 0, 10).await;
    let fetched = || scene.blob.1.load(std::sync::atomic::Ordering::Relaxed);
    let before = fetched();
    // The publisher has looked at the file when it can be offered anew.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !fs.copies.claim(id) {
        assert!(std::time::Instant::now() < deadline, "the publisher keeps a file that it cannot have");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(fetched(), before);
    assert_eq!(fs.copies.store().usage().expect("it can be looked at").files.count, 0);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_the_store_refused_is_published_later() {
    let scene = scene(&[(file("f", 5000), content(5000))]);
    let (fs, ino) = (&scene.fs, scene.ino("f"));
    let tmp = fs.copies.store().dir().join("tmp");
    std::fs::rename(&tmp, tmp.with_extension("away")).expect("it is a directory");
    scene.read(ino, 0, 100).await;
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    assert!(!fs.copies.claim(fs.node_id(ino).expect("an inode")), "nothing is tried for a while");
    std::fs::rename(tmp.with_extension("away"), &tmp).expect("it is a directory");
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    scene.publish(ino).await;
}

#[tokio::test(start_paused = true)]
async fn files_are_published_though_somebody_always_reads() {
    let scene = scene(&[(file("f", 700_000), content(700_000))]);
    let demand = scene.fs.fetcher.demand().clone();
    let reading = tokio::spawn(async move {
        loop {
            let _reader = demand.enter();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
    let ino = scene.ino("f");
    scene.read(ino, 0, 1 << 20).await;
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    scene.published(ino).await;
    reading.abort();
}

#[tokio::test(start_paused = true)]
async fn a_file_that_the_cache_has_no_room_for_is_left_in_its_layer() {
    let scene = scene(&[(file("f", 5000), content(5000))]);
    let (store, ino) = (scene.fs.copies.store(), scene.ino("f"));
    store.set_limits(Limits { max_bytes: Some(9999), min_free: None });
    scene.read(ino, 0, 100).await;
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    assert_eq!(store.usage().expect("it can be looked at").files.count, 0);
    store.set_limits(Limits { max_bytes: Some(10_000), min_free: None });
    scene.publish(ino).await;
}

#[tokio::test(start_paused = true)]
async fn handles_that_are_open_at_once_have_one_backing() {
    let bytes = content(700_000);
    let scene = scene(&[(file("f", bytes.len()), bytes.clone())]);
    let ino = scene.ino("f");
    assert!(scene.open(ino).await.is_none());
    scene.read(ino, 0, 1 << 20).await;
    scene.published(ino).await;
    assert!(scene.open(ino).await.is_none(), "the first handle decides");
    scene.fs.release(ino);
    scene.fs.release(ino);
    assert!(scene.open(ino).await.is_some());
    // What is open stays what it was when the store has it no more, and is not evicted in the first place.
    let dropped = scene.fs.copies.store().drop_files().expect("it can be emptied");
    assert_eq!((dropped.freed.count, dropped.kept.len()), (0, 1), "it is in use");
    assert!(scene.open(ino).await.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_all_there_is_serves_its_first_open() {
    copy_alone(true).await;
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_is_all_there_is_serves_its_first_read() {
    copy_alone(false).await;
}

async fn copy_alone(opens: bool) {
    let bytes = content(700_000);
    let scene = scene(&[(file("f", bytes.len()), bytes.clone())]);
    let ino = scene.ino("f");
    scene.publish(ino).await;
    // Another process's start: nothing is verified yet, the layer's bytes are gone and cannot be had.
    let Scene { fs, _cache: cache, .. } = scene;
    let (tree, dir) = (fs.tree.clone(), fs.copies.store().dir().to_owned());
    let index = fs.layers[0].index.clone();
    drop(fs);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let store = loop {
        match Store::open(&dir) {
            Ok(store) => break Arc::new(store),
            Err(crate::store::Error::Busy(_)) if std::time::Instant::now() < deadline => {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error}"),
        }
    };
    store.drop_blobs(&std::collections::HashSet::new()).expect("blobs can be dropped");
    let blob = store.blob(&index.layer(), index.compressed_size()).expect("an empty blob");
    let layer = Arc::new(Layer::new(index, blob, None, "nowhere", store.scratch()));
    let fs = Arc::new(FileSystem::new(tree, vec![layer], Fetcher::new(Options::default()), store));
    let scene = Scene { fs, blob: Arc::new(Memory(Bytes::new(), 0.into())), _cache: cache };
    if opens {
        assert!(scene.open(ino).await.is_some());
    } else {
        let read = scene.fs.read(ino, 0, 10).expect("a regular file");
        assert!(matches!(read, Read::Later(_)), "verifying it takes a while");
    }
    // Those who come together wait for the same verification.
    let reads = (0..8).map(|number| scene.read(ino, number * 1000, 1 << 20));
    for (number, read) in futures_util::future::join_all(reads).await.into_iter().enumerate() {
        assert!(read == bytes[number * 1000..]);
    }
    assert!(matches!(scene.fs.read(ino, 0, 10), Ok(Read::Ready(_))), "it is verified now");
}

#[tokio::test(start_paused = true)]
async fn d_026_a_mount_whose_index_turns_out_to_be_wrong_stops_serving() {
    let bytes = content(5000);
    let Scene { fs, blob, _cache: cache } = scene(&[(file("f", bytes.len()), bytes.clone()), (file("g", 0), vec![])]);
    let (truth, store) = (fs.layers[0].index.clone(), Arc::clone(fs.copies.store()));
    // It says that the file is set-uid root.
    let mut entries: Vec<_> = truth.entries().collect::<Result<_, _>>().expect("a good index");
    (entries[0].mode, entries[0].uid) = (0o4755, 0);
    let span = ClaimedSpan {
        compressed: 0..truth.compressed_size(),
        bit: 0,
        skip: 0,
        length: truth.uncompressed_size(),
        start: Start::Fresh,
        digest: SpanDigest::Compressed(Digest::sha256(&blob.0).bytes().try_into().expect("32 bytes")),
    };
    let claim = Claim {
        compression: truth.compression(),
        entries,
        spans: vec![span],
        uncompressed_size: truth.uncompressed_size(),
        fidelity: Times::Exact,
        prefetch_end: None,
    };
    let expected = Expected { layer: truth.layer(), size: truth.compressed_size(), diff_id: truth.diff_id() };
    let claim = LayerIndex::claimed(&expected, claim).expect("it is well-formed");
    let tree = Tree::open(Bytes::from(crate::tree::merge(&[&claim]).expect("it merges"))).expect("a good tree");
    let stored = store.blob(&expected.layer, expected.size).expect("a blob");
    let reader = Arc::clone(&blob) as Arc<dyn BlobReader>;
    let layer = Arc::new(Layer::new(claim, stored, Some(reader), "memory", store.scratch()));
    let fetcher = Fetcher::new(Options::default());
    let fs = Arc::new(FileSystem::new(tree, vec![Arc::clone(&layer)], fetcher.clone(), store));
    let scene = Scene { fs, blob, _cache: cache };
    let (root, ino) = (Ino(1), scene.ino("f"));
    assert!(scene.read(ino, 0, 1 << 20).await == bytes, "it is believed at first");
    assert_eq!(scene.fs.getattr(ino).expect("it is there").mode, 0o4755);
    let handle = scene.open(ino).await;
    let filled = crate::fetch::fill(&fetcher, &layer, crate::fetch::Urgency::Now).await;
    let error = filled.expect_err("it lies").to_string();
    assert!(error.ends_with("\"f\" has mode 0755, the claim says 4755"), "{error}");
    let errno = |error: Error| error.errno();
    assert_eq!(scene.fs.read(ino, 0, 10).map(drop).map_err(errno), Err(Errno::Io));
    assert_eq!(scene.fs.open(ino).map(drop).map_err(errno), Err(Errno::Io));
    assert_eq!(scene.fs.getattr(ino).map_err(errno), Err(Errno::Io));
    assert_eq!(scene.fs.lookup(root, b"g").map_err(errno), Err(Errno::Io));
    assert_eq!(scene.fs.open_files(), 1);
    scene.fs.release(ino);
    assert_eq!(scene.fs.open_files(), 0, "what is open can still be closed");
    drop(handle);
}

#[tokio::test(start_paused = true)]
async fn what_needs_a_window_that_is_not_here_is_not_local() {
    let bytes = content(3_000_000);
    let scene = scene(&[(file("f", bytes.len()), bytes.clone())]);
    assert!(scene.read(scene.ino("f"), 0, u32::MAX).await == bytes);
    let (truth, node) = (&scene.fs.layers[0], scene.fs.tree.node(scene.fs.node_id(scene.ino("f")).expect("an inode")));
    let (encoded, length) = (truth.index.as_bytes(), truth.index.metadata_len() as usize);
    let early = LayerIndex::open_claim(encoded.slice(..length)).expect("the metadata is enough");
    let early =
        Layer::new(early, Arc::clone(&truth.blob), truth.reader.clone(), "memory", Scratch::new(std::env::temp_dir()));
    let layers = [Arc::new(early)];
    let whole = parts(node.extents(), 0, node.size());
    assert!(is_local(&scene.fs.layers, &whole) && layers[0].index.span_ids().all(|span| layers[0].has(span)));
    assert!(!is_local(&layers, &whole), "its windows would have to be fetched");
    assert!(is_local(&layers, &parts(node.extents(), 0, 1)), "its beginning needs none");
    layers[0].index.set_windows(encoded.slice(length..)).expect("the right ones");
    assert!(is_local(&layers, &whole));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_read_gives_the_bytes_of_the_file(
        sizes in prop::collection::vec(0_usize..900_000, 1..4),
        reads in prop::collection::vec((0_usize..4, 0_u64..1_000_000, 0_u32..400_000), 1..20),
    ) {
        let files: Vec<_> = sizes.iter().enumerate().map(|(number, &size)| {
            (file(&format!("f{number}"), size), content(size + number)[number..].to_vec())
        }).collect();
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        runtime.block_on(async {
            let scene = scene(&files);
            for (number, offset, size) in reads {
                let number = number % files.len();
                let bytes = &files[number].1;
                let start = bytes.len().min(offset as usize);
                let end = bytes.len().min(start + size as usize);
                let read = scene.read(scene.ino(&format!("f{number}")), offset, size).await;
                assert!(read == bytes[start..end], "{number} at {offset} for {size}");
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_read_is_touched_and_nothing_beside_it() {
    let files: Vec<_> = ["a", "b", "c"].iter().map(|name| (file(name, 3_000_000), content(3_000_000))).collect();
    let scene = scene(&files);
    assert!(scene.fs.touched().ranges().is_empty());
    let node = scene.fs.tree().resolve(b"b", false).expect("it is there");
    if let Read::Later(pending) = scene.fs.read(Ino::from(node), 2_500_000, 4096).expect("a file") {
        pending.await.expect("it is fetched");
    }
    let ranges = scene.fs.touched().ranges();
    let index = &scene.fs.layers[0].index;
    let extent = scene.fs.tree().node(node).extents().next().expect("it has bytes");
    let at = extent.layer_offset + 2_500_000;
    let spans: Vec<_> = index.spans(at..at + 4096).map(|span| index.compressed(span)).collect();
    let mut expected = spans.clone();
    crate::fetch::join_ranges(&mut expected);
    assert_eq!(ranges, crate::fetch::Ranges::from([(index.layer(), expected)]));
    assert!(ranges[&index.layer()].iter().all(|range| range.end - range.start < index.compressed_size() / 2));
}
