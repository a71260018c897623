//! Layers whose index is a claim: served as it says, and proven or condemned when all of their bytes are here.

use futures_util::future::join_all;

use super::*;
use crate::index::{Claim, ClaimedSpan, SpanDigest, Start, Times};
use crate::limits::READ_SPANS;
use crate::tar::Segment;

/// A layer of files in members that several of them share, and a claim about it as a table of contents makes one.
struct Scene {
    fetcher: Fetcher,
    store: Arc<Store>,
    source: Arc<Memory>,
    expected: Expected,
    claim: Claim,
    /// The contents of the files, in the order of their spans.
    files: Vec<Vec<u8>>,
    _cache: tempfile::TempDir,
}

const NAME: Digest = Digest::Sha256([7; 32]);

fn sha256(bytes: &[u8]) -> [u8; 32] {
    Digest::sha256(bytes).bytes().try_into().expect("32 bytes")
}

/// Noise that compresses to half.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed * 2 + 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 60) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// `count` files of `length` bytes, `together` of them in each member, from a source like `source`.
fn scene(count: u64, length: usize, together: usize, source: Memory) -> Scene {
    let files: Vec<_> = (0..count).map(|number| noise(number, length)).collect();
    let (mut tar, mut starts) = (Writer::new(Vec::new()), vec![]);
    let mut at = 0_usize;
    for (number, content) in files.iter().enumerate() {
        let kind = Kind::Regular { size: content.len() as u64, segments: Vec::new(), content: None };
        let mtime = Timestamp { seconds: 9, nanos: 0 };
        let path = format!("f{number:04}").into_bytes();
        tar.append(&Entry { path, kind, mode: 0o644, uid: 0, gid: 0, mtime, xattrs: Vec::new() }, &content[..])
            .expect("written to memory");
        starts.push(at + 512);
        at += 512 + content.len().next_multiple_of(512);
    }
    let tar = tar.finish().expect("written to memory");
    let (mut blob, mut spans, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    let mut begins: Vec<_> = starts.iter().step_by(together).copied().collect();
    begins[0] = 0;
    let mut stream = 0;
    for (number, begin) in begins.iter().enumerate() {
        let end = begins.get(number + 1).copied().unwrap_or(tar.len());
        let start = blob.len() as u64;
        let mut gzip = flate2::write::GzEncoder::new(&mut blob, flate2::Compression::default());
        std::io::Write::write_all(&mut gzip, &tar[*begin..end]).expect("written to memory");
        gzip.finish().expect("written to memory");
        for place in (number * together..files.len()).take(together) {
            let content = &files[place];
            let length = content.len() as u64;
            spans.push(ClaimedSpan {
                compressed: start..blob.len() as u64,
                bit: 0,
                skip: (starts[place] - begin) as u64,
                length,
                start: Start::Fresh,
                digest: SpanDigest::Decoded(sha256(content)),
            });
            let segments = vec![Segment { file_offset: 0, layer_offset: stream, length }];
            let kind = Kind::Regular { size: length, segments, content: Some(sha256(content)) };
            let path = format!("f{place:04}").into_bytes();
            let mtime = Timestamp { seconds: 9, nanos: 5 };
            entries.push(Entry { path, kind, mode: 0o644, uid: 0, gid: 0, mtime, xattrs: Vec::new() });
            stream += length;
        }
    }
    let expected = Expected { layer: Digest::sha256(&blob), size: blob.len() as u64, diff_id: Digest::sha256(&tar) };
    let compression = index::Compression::Gzip;
    let fidelity = Times::Seconds;
    let claim = Claim { compression, entries, spans, uncompressed_size: stream, fidelity, prefetch_end: None };
    let cache = tempfile::tempdir().expect("a temporary directory");
    let store = Arc::new(Store::open(&cache.path().join("cache")).expect("a new store"));
    let source = Arc::new(Memory { blob: blob.into(), ..source });
    Scene { fetcher: Fetcher::new(Options::default()), store, source, expected, claim, files, _cache: cache }
}

impl Scene {
    /// The layer as `claim` describes it, which is kept in the store.
    fn layer(&self, claim: Claim) -> Arc<Layer> {
        let index = LayerIndex::claimed(&self.expected, claim).expect("it is well-formed");
        self.store.put_claim(&self.expected.layer, &NAME, index.as_bytes()).expect("there is room");
        Arc::new(self.open(index, Some(Arc::clone(&self.source) as Arc<dyn BlobReader>)))
    }

    fn open(&self, index: LayerIndex, reader: Option<Arc<dyn BlobReader>>) -> Layer {
        let blob = self.store.blob(&self.expected.layer, self.expected.size).expect("a blob");
        let layer = Layer::new(index, blob, reader, "memory", self.store.scratch());
        layer.with_claim(Arc::clone(&self.store), NAME)
    }

    fn is_kept(&self) -> bool {
        self.store.claim(&self.expected.layer, &NAME).expect("a store that works").is_some()
    }

    /// The true index in the store, if there is one.
    fn truth(&self) -> Option<LayerIndex> {
        let mapped = self.store.index(&self.expected.layer).expect("a store that works")?;
        Some(LayerIndex::open(mapped.bytes().clone()).expect("a good index"))
    }

    async fn fill(&self, layer: &Arc<Layer>) -> Result<(), Error> {
        fill(&self.fetcher, layer, Urgency::Now).await
    }

    async fn read(&self, layer: &Arc<Layer>, number: usize) {
        let span = layer.index.span_ids().nth(number).expect("a span");
        let bytes = self.fetcher.span(layer, span).await.expect("a span that can be had");
        assert!(bytes == self.files[number], "file {number}");
    }
}

/// Bytes that were asked for.
fn asked(source: &Memory) -> u64 {
    source.asked().iter().map(|range| range.end - range.start).sum()
}

#[tokio::test]
async fn spans_that_share_their_bytes_are_fetched_once() {
    let scene = scene(60, 5000, 20, Memory { delay: Duration::from_millis(2), ..Memory::default() });
    let layer = scene.layer(scene.claim.clone());
    // One file brings its member for all that are in it, those before it and those after.
    scene.read(&layer, 33).await;
    assert_eq!(scene.source.asked(), [layer.index.compressed(layer.index.span_ids().nth(20).expect("a span"))]);
    join_all((0..60).map(|number| scene.read(&layer, number))).await;
    assert_eq!(scene.source.asked().len(), 3);
    assert!(asked(&scene.source) <= scene.expected.size);
}

#[tokio::test]
async fn spans_in_any_order_are_fetched_and_cut_right() {
    let scene = scene(97, 3000, 7, Memory::default());
    let mut claim = scene.claim.clone();
    // The stream goes back and forth in the blob, member by member and file by file.
    let order: Vec<usize> = (0..97).map(|number| number * 31 % 97).collect();
    claim.spans = order.iter().map(|number| claim.spans[*number].clone()).collect();
    claim.entries.clear();
    let layer = scene.layer(claim);
    let wanted: Vec<_> = layer.index.span_ids().map(|span| (Arc::clone(&layer), span)).collect();
    scene.fetcher.prefetch(&wanted, Priority::Profile).await.expect("all can be had");
    for (place, number) in order.iter().enumerate() {
        let bytes = scene.fetcher.span(&layer, wanted[place].1).await.expect("it is here");
        assert!(bytes == scene.files[*number], "file {number}");
    }
}

#[tokio::test]
async fn a_member_of_more_files_than_one_read_brings_is_no_trouble() {
    let scene = scene(READ_SPANS as u64 + 50, 1, READ_SPANS + 50, Memory::default());
    let layer = scene.layer(scene.claim.clone());
    scene.read(&layer, 20).await;
    scene.read(&layer, READ_SPANS + 49).await;
    assert_eq!(scene.source.asked().len(), 1);
}

#[tokio::test]
async fn a_claim_that_is_true_is_proven_by_fill_and_gives_way_to_the_true_index() {
    let scene = scene(12, 60_000, 3, Memory::default());
    let layer = scene.layer(scene.claim.clone());
    assert!(!layer.is_proven() && scene.is_kept() && scene.truth().is_none());
    scene.fill(&layer).await.expect("it is true");
    assert!(layer.is_proven() && layer.blob.is_complete() && layer.condemned().is_none());
    let truth = scene.truth().expect("it was kept");
    assert!(truth.is_proven() && !scene.is_kept());
    assert_eq!(truth.entry_count(), 12);
    scene.read(&layer, 5).await;
    // Another mount of the same claim is compared with what is known by now.
    let other = scene.layer(scene.claim.clone());
    scene.fill(&other).await.expect("it is true");
    assert!(other.is_proven() && !scene.is_kept());
}

#[tokio::test]
async fn every_lie_is_found_by_fill_and_ends_the_serving_of_the_layer() {
    type Lie = fn(&mut Claim);
    let lies: [(&str, Lie); 5] = [
        ("\"f0002\" has mode 0644, the claim says 4755", |claim| claim.entries[2].mode = 0o4755),
        ("\"f0002\" has 60000 bytes, the claim says 59999", |claim| {
            let Kind::Regular { size, segments, content } = &mut claim.entries[2].kind else { return };
            (*size, segments[0].length, *content) = (*size - 1, *size - 1, None);
        }),
        ("\"f0002\" the claim has \"f0003\" in its place", |claim| drop(claim.entries.remove(2))),
        ("\"more\" is not in the layer", |claim| {
            let more = Entry { path: b"more".to_vec(), kind: Kind::Fifo, ..claim.entries[2].clone() };
            claim.entries.push(more);
        }),
        // Each span verifies: they have their own digests.
        ("\"f0002\" has other bytes than the claim leads to", |claim| {
            claim.spans.swap(2, 8);
            for number in [2, 8] {
                let Kind::Regular { content, .. } = &mut claim.entries[number].kind else { return };
                *content = None;
            }
        }),
    ];
    for (what, lie) in lies {
        let scene = scene(12, 60_000, 3, Memory::default());
        let mut claim = scene.claim.clone();
        lie(&mut claim);
        let layer = scene.layer(claim);
        let span = layer.index.span_ids().next().expect("a span");
        assert!(scene.fetcher.span(&layer, span).await.is_ok(), "it is believed at first");
        let error = scene.fill(&layer).await.expect_err(what);
        assert!(matches!(&error, Error::Disproven { .. }) && error.to_string().ends_with(what), "{error}: {what}");
        assert!(layer.condemned().is_some() && !layer.is_proven());
        assert!(matches!(scene.fetcher.span(&layer, span).await, Err(Error::Disproven { .. })));
        assert!(scene.fetcher.cached(&layer, span).is_none() && scene.fetcher.span_now(&layer, span).is_none());
        assert!(!scene.is_kept(), "nobody believes it again");
        assert!(scene.truth().is_some_and(|truth| truth.is_proven()), "the next mount begins with the truth");
        assert!(layer.blob.is_complete(), "the bytes are right");
        assert!(matches!(scene.fill(&layer).await, Err(Error::Disproven { .. })), "it stays so");
    }
}

#[tokio::test]
async fn d_026_a_layer_that_first_contact_would_refuse_is_condemned() {
    let mut scene = scene(5, 1000, 2, Memory::default());
    scene.expected.diff_id = Digest::sha256(b"another stream");
    let layer = scene.layer(scene.claim.clone());
    let error = scene.fill(&layer).await.expect_err("the configuration names another stream");
    assert!(matches!(error, Error::Rejected { .. }), "{error}");
    assert!(layer.condemned().is_some() && scene.truth().is_none() && !scene.is_kept());
}

#[tokio::test]
async fn a_layer_whose_source_has_other_bytes_is_condemned_though_every_span_verifies() {
    let mut scene = scene(5, 1000, 2, Memory::default());
    // A header, which no span of the claim has.
    let mut blob = scene.source.blob().to_vec();
    blob[4] ^= 1;
    scene.source = Arc::new(Memory { blob: blob.into(), ..Memory::default() });
    let layer = scene.layer(scene.claim.clone());
    for number in 0..5 {
        scene.read(&layer, number).await;
    }
    let error = scene.fill(&layer).await.expect_err("it is another blob");
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert!(matches!(layer.condemned(), Some(Error::Corrupt { .. })) && !scene.is_kept());
}

#[tokio::test]
async fn d_025_a_lying_claim_takes_no_verified_byte_from_the_cache() {
    let scene = scene(6, 2000, 2, Memory::default());
    let honest = scene.layer(scene.claim.clone());
    scene.fill(&honest).await.expect("it is true");
    let mut claim = scene.claim.clone();
    claim.spans[3].digest = SpanDigest::Decoded([3; 32]);
    let layer = scene.layer(claim);
    let span = layer.index.span_ids().nth(3).expect("a span");
    let before = scene.source.asked().len();
    let error = scene.fetcher.span(&layer, span).await.expect_err("it has another digest");
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    assert!(layer.blob.is_complete() && scene.source.asked().len() == before);
    assert!(layer.condemned().is_none(), "a disk may rot, too");
    let error = scene.fill(&layer).await.expect_err("it lies");
    assert!(error.to_string().ends_with("\"f0003\" the claim has a wrong digest of its bytes"), "{error}");
}

#[tokio::test]
async fn rotten_bytes_under_a_claim_are_mended_by_its_proof() {
    let scene = scene(6, 2000, 2, Memory::default());
    let layer = scene.layer(scene.claim.clone());
    let mut blob = scene.source.blob().to_vec();
    let middle = blob.len() / 2;
    blob[middle] ^= 1;
    layer.blob.write(0, &blob).expect("there is room");
    layer.blob.complete(true).expect("whoever says so is believed");
    scene.fill(&layer).await.expect("the source is well");
    assert!(layer.is_proven());
    for number in 0..6 {
        scene.read(&layer, number).await;
    }
}

#[tokio::test]
async fn bytes_that_rot_after_they_were_proven_do_not_speak_against_another_claim() {
    let scene = scene(6, 2000, 2, Memory::default());
    scene.fill(&scene.layer(scene.claim.clone())).await.expect("it is true");
    let blobs = std::fs::read_dir(scene.store.dir().join("blobs")).expect("a directory");
    for path in blobs.map(|entry| entry.expect("an entry").path()) {
        let mut bytes = std::fs::read(&path).expect("it can be read");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).expect("it is ours");
    }
    let layer = scene.layer(scene.claim.clone());
    assert!(layer.blob.is_complete() && scene.truth().is_some());
    scene.fill(&layer).await.expect("the source is well");
    assert!(layer.is_proven() && layer.condemned().is_none());
    assert_eq!(layer.blob.read(0..scene.expected.size).expect("it is here"), Some(scene.source.blob()));
}

#[tokio::test]
async fn a_proof_that_nobody_waits_for_ends() {
    let scene = scene(6, 2000, 2, Memory::default());
    let layer = scene.layer(scene.claim.clone());
    layer.blob.write(0, &scene.source.blob()).expect("there is room");
    {
        let filling = fill(&scene.fetcher, &layer, Urgency::Idle);
        // A reader keeps it waiting, and then it is given up.
        let _reader = scene.fetcher.demand().enter();
        assert!(tokio::time::timeout(Duration::from_millis(100), filling).await.is_err());
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while Arc::strong_count(&layer) > 1 {
        assert!(Instant::now() < deadline, "it goes on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(!layer.is_proven());
}

/// A layer of ours whose index came from elsewhere, and its windows.
fn early() -> (super::Scene, LayerIndex, Bytes) {
    let scene = super::scene(3, 4, Memory::default());
    let (bytes, length) = (scene.layer.index.as_bytes().clone(), scene.layer.index.metadata_len() as usize);
    let index = LayerIndex::open_claim(bytes.slice(..length)).expect("the metadata is enough");
    (scene, index, bytes.slice(length..))
}

/// Gives the answers one after the other, each after a while, and counts.
fn source_of(answers: Vec<Result<Bytes, Error>>) -> (WindowSource, Arc<std::sync::atomic::AtomicUsize>) {
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let (counter, answers) = (Arc::clone(&count), Arc::new(answers));
    let source = move || {
        let number = counter.fetch_add(1, Ordering::SeqCst);
        let answer = answers[number.min(answers.len() - 1)].clone();
        let arriving = async move {
            tokio::time::sleep(Duration::from_millis(30)).await;
            answer
        };
        Box::pin(arriving) as BoxFuture<'static, Result<Bytes, Error>>
    };
    (Arc::new(source), count)
}

fn early_layer(scene: &super::Scene, index: LayerIndex, source: Option<WindowSource>) -> Arc<Layer> {
    let reader = Arc::clone(&scene.source) as Arc<dyn BlobReader>;
    let scratch = scene.layer.large.scratch.clone();
    let layer = Layer::new(index, Arc::clone(&scene.layer.blob), Some(reader), "memory", scratch);
    Arc::new(match source {
        Some(source) => layer.with_windows(source),
        None => layer,
    })
}

#[tokio::test]
async fn reads_that_need_windows_wait_for_them_together_and_others_do_not() {
    let (scene, index, windows) = early();
    let (source, count) = source_of(vec![Ok(windows)]);
    let layer = early_layer(&scene, index, Some(source));
    let spans: Vec<_> = layer.index.span_ids().collect();
    scene.fetcher.span(&layer, spans[0]).await.expect("it begins with the member");
    assert_eq!(count.load(Ordering::SeqCst), 0);
    scene.fetcher.prefetch(&scene.wanted(1..3), Priority::Fill).await.expect("all can be had");
    assert!(scene.fetcher.span_now(&layer, spans[1]).is_none() && !layer.index.has_windows());
    for bytes in join_all((0..20).map(|number| scene.fetcher.span(&layer, spans[1 + number % 2]))).await {
        bytes.expect("the windows came");
    }
    assert_eq!(count.load(Ordering::SeqCst), 1);
    let range = layer.index.decoded(spans[2]);
    let bytes = scene.fetcher.span(&layer, spans[2]).await.expect("it is here");
    assert!(bytes == scene.tar[range.start as usize..range.end as usize]);
    layer.windows().await.expect("they are here");
}

#[tokio::test]
async fn windows_that_fail_to_come_are_asked_for_again() {
    let (scene, index, windows) = early();
    let (source, count) = source_of(vec![Err(failure(source::ErrorKind::Unreachable)), Ok(windows)]);
    let layer = early_layer(&scene, index.clone(), Some(source));
    scene.fetcher.span(&layer, scene.span(1)).await.expect_err("they did not come");
    scene.check_of(&layer, 1).await;
    assert_eq!(count.load(Ordering::SeqCst), 2);
    assert!(!layer.blob.is_complete());
    // The index they came for is shared; another one still lacks them, and has nobody to bring them.
    let alone = LayerIndex::open_claim(index.as_bytes().clone()).expect("the metadata is enough");
    let alone = early_layer(&scene, alone, None);
    assert!(matches!(alone.windows().await, Err(Error::Index(_))));
}

#[tokio::test]
async fn wrong_windows_are_refused() {
    let (scene, index, windows) = early();
    let (source, _) = source_of(vec![Ok(vec![0; windows.len()].into())]);
    let layer = early_layer(&scene, index, Some(source));
    assert!(matches!(layer.windows().await, Err(Error::Index(_))));
    assert!(!layer.index.has_windows());
    scene.check_of(&layer, 1).await;
}

#[tokio::test]
async fn one_of_our_indexes_from_elsewhere_is_proven_without_its_windows() {
    let (scene, index, _) = early();
    let layer = early_layer(&scene, index, None);
    layer.blob.write(0, &scene.source.blob()).expect("there is room");
    fill(&scene.fetcher, &layer, Urgency::Now).await.expect("it says the same as the truth");
    assert!(layer.is_proven() && layer.index.has_windows(), "the truth has them");
    scene.check_of(&layer, 1).await;
}

fn failure(kind: source::ErrorKind) -> Error {
    Error::Source(source::Error::new(kind, "the windows"))
}

#[tokio::test]
async fn windows_that_nobody_has_are_made_of_the_layer_once_for_all_readers() {
    let (scene, index, _) = early();
    let (source, _) = source_of(vec![Err(failure(source::ErrorKind::NotFound))]);
    let layer = early_layer(&scene, index, Some(source));
    join_all((1..3).cycle().take(20).map(|number| scene.check_of(&layer, number))).await;
    assert!(layer.is_proven() && layer.blob.is_complete());
    // Two spans may share a byte.
    let twice = asked(&scene.source) - layer.blob.size();
    assert!(twice < u64::from(layer.index.span_count()), "{twice} bytes were fetched twice");
}

#[tokio::test]
async fn windows_that_do_not_come_now_are_made_only_of_a_layer_that_is_whole() {
    let (scene, index, _) = early();
    let (source, _) = source_of(vec![Err(failure(source::ErrorKind::Unreachable))]);
    let layer = early_layer(&scene, index, Some(source));
    let error = scene.fetcher.span(&layer, scene.span(1)).await.expect_err("they may come later");
    assert!(matches!(error, Error::Source(error) if error.is_transient()));
    assert!(!layer.blob.is_complete());
    layer.blob.write(0, &scene.source.blob()).expect("there is room");
    scene.check_of(&layer, 1).await;
}

#[tokio::test]
async fn windows_are_made_offline_of_a_layer_that_is_whole_and_of_no_other() {
    let (scene, index, _) = early();
    let offline = |index: &LayerIndex| {
        let scratch = scene.layer.large.scratch.clone();
        Arc::new(Layer::new(index.clone(), Arc::clone(&scene.layer.blob), None, "memory", scratch))
    };
    let layer = offline(&index);
    let range = layer.index.compressed(scene.span(1));
    layer.blob.write(range.start, &scene.source.blob()[range.start as usize..range.end as usize]).expect("room");
    scene.fetcher.span(&layer, scene.span(1)).await.expect_err("it is not whole, and nobody may be asked");
    layer.blob.write(0, &scene.source.blob()).expect("there is room");
    scene.check_of(&layer, 1).await;
}

#[tokio::test]
async fn a_claim_that_differs_and_whose_windows_nobody_has_is_condemned() {
    let scene = scene(12, 60_000, 3, Memory::default());
    let mut claim = scene.claim.clone();
    claim.spans[1].start = Start::Window(vec![1; 100]);
    let index = LayerIndex::claimed(&scene.expected, claim).expect("it is well-formed");
    let metadata = index.as_bytes().slice(..index.metadata_len() as usize);
    let early = || LayerIndex::open_claim(metadata.clone()).expect("the metadata is enough");
    for (kind, is_condemned) in [(source::ErrorKind::Unreachable, false), (source::ErrorKind::NotFound, true)] {
        let (source, _) = source_of(vec![Err(failure(kind))]);
        let reader = Arc::clone(&scene.source) as Arc<dyn BlobReader>;
        let layer = Arc::new(scene.open(early(), Some(reader)).with_windows(source));
        scene.fill(&layer).await.expect_err("it cannot be compared");
        assert_eq!(layer.condemned().is_some(), is_condemned, "{kind:?}");
    }
    assert!(scene.truth().is_some() && !scene.is_kept());
}

/// A source beside which somebody else fills the same blob with something else, and is always faster.
#[derive(Debug)]
struct Beset {
    source: Arc<Memory>,
    blob: Arc<Blob>,
}

impl BlobReader for Beset {
    fn size(&self) -> u64 {
        self.source.size()
    }

    fn read(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, source::Error>> {
        let garbage = vec![0xee; self.size() as usize];
        self.blob.write(0, &garbage).expect("there is room");
        self.source.read(range)
    }
}

impl Scene {
    /// Its source, beside that of an image that lists the layer and has garbage in its place.
    fn beset(&self) -> Arc<dyn BlobReader> {
        let blob = self.store.blob(&self.expected.layer, self.expected.size).expect("a blob");
        Arc::new(Beset { source: Arc::clone(&self.source), blob })
    }
}

#[tokio::test]
async fn a_true_claim_is_proven_though_another_image_fills_the_layer_with_garbage() {
    let scene = scene(12, 60_000, 3, Memory::default());
    let index = LayerIndex::claimed(&scene.expected, scene.claim.clone()).expect("it is well-formed");
    scene.store.put_claim(&scene.expected.layer, &NAME, index.as_bytes()).expect("there is room");
    let layer = Arc::new(scene.open(index, Some(scene.beset())));
    scene.fill(&layer).await.expect("its own source is well");
    assert!(layer.is_proven() && layer.condemned().is_none() && layer.blob.is_complete());
    assert_eq!(scene.source.asked().last().map(|range| range.end), Some(scene.expected.size));
    for number in 0..12 {
        scene.read(&layer, number).await;
    }
    assert_eq!(layer.blob.read(0..scene.expected.size).expect("it is here"), Some(scene.source.blob()));
}

#[tokio::test]
async fn the_image_with_the_garbage_is_condemned_whoever_wrote_the_layer() {
    let mut scene = scene(12, 60_000, 3, Memory::default());
    let right = scene.source.blob();
    scene.source = Arc::new(Memory { blob: vec![0xee; right.len()].into(), ..Memory::default() });
    let liar = scene.layer(scene.claim.clone());
    // All but one byte of it came from an honest source.
    liar.blob.write(0, &right[..right.len() - 1]).expect("there is room");
    let error = scene.fill(&liar).await.expect_err("its source does not have the layer");
    assert!(matches!(error, Error::Corrupt { .. }) && liar.condemned().is_some(), "{error}");
}

#[tokio::test]
async fn first_contact_succeeds_though_another_image_fills_the_layer_with_garbage() {
    let scene = scene(12, 600_000, 3, Memory::default());
    let progress = Arc::new(Progress::default());
    let reader = Some(scene.beset());
    let index = first_contact(&scene.store, reader, scene.expected, Arc::clone(&progress)).await;
    assert_eq!(index.expect("its own source is well").entry_count(), 12);
    assert_eq!(progress.taken.load(Ordering::Relaxed), scene.expected.size);
    let blob = scene.store.blob(&scene.expected.layer, scene.expected.size).expect("a blob");
    assert!(blob.is_complete());
    assert_eq!(blob.read(0..scene.expected.size).expect("it is here"), Some(scene.source.blob()));
}

#[tokio::test]
async fn a_first_contact_of_which_one_answer_was_damaged_is_made_again() {
    let scene = scene(12, 60_000, 3, Memory { lies: true.into(), ..Memory::default() });
    let reader = Some(Arc::clone(&scene.source) as Arc<dyn BlobReader>);
    first_contact(&scene.store, reader, scene.expected, Arc::default()).await.expect("the second time it is the layer");
    assert_eq!(asked(&scene.source), 2 * scene.expected.size);
    let blob = scene.store.blob(&scene.expected.layer, scene.expected.size).expect("a blob");
    assert_eq!(blob.read(0..scene.expected.size).expect("it is here"), Some(scene.source.blob()));
}

#[tokio::test]
async fn a_first_contact_that_hashed_other_bytes_than_it_left_does_not_call_them_complete() {
    let scene = scene(3, 600_000, 3, Memory::default());
    // One read, all of which somebody else writes before its answer is there.
    assert!(scene.expected.size < crate::limits::READ_CHUNK);
    first_contact(&scene.store, Some(scene.beset()), scene.expected, Arc::default()).await.expect("it is the layer");
    let blob = scene.store.blob(&scene.expected.layer, scene.expected.size).expect("a blob");
    assert!(!blob.is_complete() && blob.present_bytes() == 0, "the garbage is found and forgotten");
    assert!(scene.truth().is_some());
}
