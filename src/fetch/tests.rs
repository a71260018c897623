//! The fetcher against a source in memory that counts, delays, lies and stalls.

mod claims;
mod once_map;
mod schedules;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::*;
use crate::index::{Expected, LayerIndex, build};
use crate::limits;
use crate::source::{BoxFuture, ByteStream};
use crate::store::{Blob, Store};
use crate::tar::{Entry, Kind, Timestamp, Writer};

/// A source that remembers what it was asked.
#[derive(Debug, Default)]
pub(super) struct Memory {
    blob: Bytes,
    asked: Mutex<Vec<Range<u64>>>,
    delay: Duration,
    /// Flips a bit of the next answer.
    lies: AtomicBool,
    /// Never ends its first answer.
    stalls: AtomicBool,
    /// Answers nothing that begins here or further on, for as long as this is set.
    held: watch::Sender<Option<u64>>,
    host: Option<&'static str>,
}

impl BlobReader for Memory {
    fn size(&self) -> u64 {
        self.blob.len() as u64
    }

    fn host(&self) -> Option<&str> {
        self.host
    }

    fn read(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, source::Error>> {
        self.asked.lock().expect("no test panics with it").push(range.clone());
        let mut bytes = self.blob.slice(range.start as usize..range.end as usize);
        if self.lies.swap(false, Ordering::SeqCst) {
            let mut wrong = bytes.to_vec();
            let middle = wrong.len() / 2;
            wrong[middle] ^= 1;
            bytes = wrong.into();
        }
        let stalls = self.stalls.swap(false, Ordering::SeqCst);
        Box::pin(async move {
            tokio::time::sleep(self.delay).await;
            let mut held = self.held.subscribe();
            drop(held.wait_for(|held| held.is_none_or(|held| range.start < held)).await);
            let half = bytes.len() / 2;
            let pieces = futures_util::stream::iter([bytes.slice(..half), bytes.slice(half..)]).map(Ok);
            let stream: ByteStream = match stalls {
                false => Box::pin(pieces),
                true => Box::pin(pieces.take(1).chain(futures_util::stream::pending())),
            };
            Ok(stream)
        })
    }
}

impl Memory {
    pub(super) fn blob(&self) -> Bytes {
        self.blob.clone()
    }

    /// Answers nothing that begins at `from` or further on until this is called with none.
    fn hold(&self, from: Option<u64>) {
        self.held.send_replace(from);
    }

    fn asked(&self) -> Vec<Range<u64>> {
        self.asked.lock().expect("no test panics with it").clone()
    }
}

pub(super) struct Scene {
    fetcher: Fetcher,
    pub(super) layer: Arc<Layer>,
    pub(super) source: Arc<Memory>,
    tar: Vec<u8>,
    _cache: tempfile::TempDir,
}

/// A gzip layer of at least `spans` spans, of bytes with so many bits of noise: with 4 a span is longer than what is asked for
/// at once, with 1 it is much shorter.
pub(super) fn scene(spans: u32, bits: u32, source: Memory) -> Scene {
    let mut noise = vec![0; spans as usize * 1_100_000];
    let mut state = 1_u64;
    for byte in &mut noise {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (state >> (64 - bits)) as u8;
    }
    let mut writer = Writer::new(Vec::new());
    let kind = Kind::Regular { size: noise.len() as u64, segments: Vec::new(), content: None };
    let mtime = Timestamp { seconds: 0, nanos: 0 };
    let entry = Entry { path: b"noise".into(), kind, mode: 0o644, uid: 0, gid: 0, mtime, xattrs: Vec::new() };
    writer.append(&entry, &noise[..]).expect("written to memory");
    let tar = writer.finish().expect("written to memory");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    std::io::Write::write_all(&mut gzip, &tar).expect("written to memory");
    let blob = Bytes::from(gzip.finish().expect("written to memory"));
    let expected = Expected { layer: Digest::sha256(&blob), size: blob.len() as u64, diff_id: Digest::sha256(&tar) };
    let index = build(std::iter::once(Ok::<_, std::convert::Infallible>(blob.clone())), expected).expect("a layer");
    assert!(index.span_count() >= spans, "{} spans", index.span_count());
    let cache = tempfile::tempdir().expect("a temporary directory");
    let store = Store::open(&cache.path().join("cache")).expect("a new store");
    let source = Arc::new(Memory { blob, ..source });
    let stored = store.blob(&expected.layer, expected.size).expect("a new blob");
    let reader = Arc::clone(&source) as Arc<dyn BlobReader>;
    let layer = Arc::new(Layer::new(index, stored, Some(reader), "memory", store.scratch()));
    Scene { fetcher: Fetcher::new(Options::default()), layer, source, tar, _cache: cache }
}

impl Scene {
    pub(super) fn fetcher(&self) -> &Fetcher {
        &self.fetcher
    }

    /// The layer's uncompressed stream.
    pub(super) fn stream(&self) -> &[u8] {
        &self.tar
    }

    pub(super) fn span(&self, number: u32) -> SpanId {
        self.layer.index.span_ids().nth(number as usize).expect("a span of the layer")
    }

    fn wanted(&self, numbers: Range<u32>) -> Vec<(Arc<Layer>, SpanId)> {
        numbers.map(|number| (Arc::clone(&self.layer), self.span(number))).collect()
    }

    async fn check(&self, number: u32) {
        self.check_of(&self.layer, number).await;
    }

    /// The same of another opening of the layer.
    async fn check_of(&self, layer: &Arc<Layer>, number: u32) {
        let span = self.span(number);
        let bytes = self.fetcher.span(layer, span).await.expect("a span that can be had");
        let range = layer.index.decoded(span);
        assert!(bytes == self.tar[range.start as usize..range.end as usize], "span {number}");
    }

    fn is_local(&self, number: u32) -> bool {
        self.layer.blob.missing(self.layer.index.compressed(self.span(number))).is_empty()
    }
}

#[tokio::test]
async fn bytes_that_came_since_somebody_looked_are_not_asked_for_again() {
    let scene = scene(4, 4, Memory::default());
    let range = scene.layer.index.compressed(scene.span(2));
    let bytes = scene.source.blob.slice(range.start as usize..range.end as usize);
    scene.layer.blob.write(range.start, &bytes).expect("it can be written");
    let planner = &scene.fetcher.inner.planner;
    planner.bring(&scene.wanted(2..3), Priority::ReadAhead, false);
    assert!(matches!(planner.want(&scene.wanted(2..3), Priority::Demand).as_slice(), [None]));
    assert_eq!(planner.outstanding(), 0);
    assert!(scene.source.asked().is_empty());
    // What the disk does not give is asked for all the same.
    let again = planner.want_anyway(&scene.layer, scene.span(2)).bytes().await;
    assert_eq!(again.expect("the source has it"), bytes);
    assert_eq!(scene.source.asked(), [range]);
}

#[tokio::test(start_paused = true)]
async fn many_readers_of_one_span_make_one_request() {
    let scene = scene(4, 4, Memory { delay: Duration::from_millis(20), ..Memory::default() });
    futures_util::future::join_all((0..64).map(|_| scene.check(2))).await;
    assert_eq!(scene.source.asked().len(), 1);
}

/// A source that thinks for a while and then fails.
#[derive(Debug)]
struct Failing(u64);

impl BlobReader for Failing {
    fn size(&self) -> u64 {
        self.0
    }

    fn read(&self, _range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, source::Error>> {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Err(source::Error::new(source::ErrorKind::Unreachable, "gone"))
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_of_one_source_does_not_fail_with_a_reader_of_another() {
    let scene = scene(4, 4, Memory { delay: Duration::from_millis(100), ..Memory::default() });
    let (index, blob) = (scene.layer.index.clone(), Arc::clone(&scene.layer.blob));
    let failing = Arc::new(Failing(index.compressed_size()));
    let other = Arc::new(Layer::new(index, blob, Some(failing), "other", scene.layer.large.scratch.clone()));
    let span = scene.span(2);
    let (failed, ()) = tokio::join!(scene.fetcher.span(&other, span), scene.check(2));
    assert!(matches!(failed, Err(Error::Source(_))), "{failed:?}");
    assert!(scene.fetcher.cached(&other, span).is_some(), "what one has fetched is there for the other");
}

#[tokio::test]
async fn spans_wanted_together_are_asked_for_in_long_ranges_and_none_twice() {
    let scene = scene(12, 1, Memory::default());
    scene.fetcher.prefetch(&scene.wanted(0..12), Priority::Profile).await.expect("all can be had");
    let asked = scene.source.asked();
    assert!(asked.len() < 12, "{asked:?}");
    for number in 0..12 {
        assert!(scene.is_local(number));
        scene.check(number).await;
    }
    assert_eq!(scene.source.asked(), asked, "what is local is not asked for");
    let bytes: u64 = asked.iter().map(|range| range.end - range.start).sum();
    let whole = scene.layer.index.compressed(scene.span(11)).end - scene.layer.index.compressed(scene.span(0)).start;
    // Neighbours may share a byte, which is asked for twice if they are in different reads.
    assert!(bytes <= whole + asked.len() as u64, "{bytes} of {whole}");
}

#[tokio::test]
async fn a_reader_goes_before_everything_that_waits() {
    let scene = scene(16, 4, Memory::default());
    scene.source.hold(Some(0));
    let begin = |number| scene.layer.index.compressed(scene.span(number)).start;
    let begun = |number| scene.source.asked().iter().any(|range| range.contains(&begin(number)));
    let fill = scene.wanted(0..14);
    let looks = async {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !begun(15) {
            assert!(Instant::now() < deadline, "the reader waits for the others");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let before = (0..14).filter(|number| begun(*number)).count();
        assert!((1..8).contains(&before), "{before} spans come first");
        scene.source.hold(None);
    };
    let (filled, (), ()) = tokio::join!(scene.fetcher.prefetch(&fill, Priority::Fill), scene.check(15), looks);
    filled.expect("all can be had");
}

#[tokio::test]
async fn repositories_of_one_host_share_what_may_be_on_its_line() {
    let scene = scene(16, 4, Memory { host: Some("host"), ..Memory::default() });
    scene.source.hold(Some(0));
    let reader = Arc::clone(&scene.source) as Arc<dyn BlobReader>;
    let (index, blob) = (scene.layer.index.clone(), Arc::clone(&scene.layer.blob));
    let scratch = scene.layer.large.scratch.clone();
    let other = Arc::new(Layer::new(index, blob, Some(reader), "another repository", scratch));
    let of_other: Vec<_> = (8..16).map(|number| (Arc::clone(&other), scene.span(number))).collect();
    let looks = async {
        let some = scene.fetcher.outstanding();
        assert!(some > 0 && some < scene.layer.index.compressed(scene.span(7)).end, "not all of it goes out at once");
        let beside = scene.fetcher.prefetch(&of_other, Priority::Fill);
        let looks = async {
            assert_eq!(scene.fetcher.outstanding(), some, "the line has no room for another repository's either");
            scene.source.hold(None);
        };
        tokio::join!(beside, looks).0.expect("all can be had");
    };
    let fill = scene.wanted(0..8);
    let (filled, ()) = tokio::join!(scene.fetcher.prefetch(&fill, Priority::Fill), looks);
    filled.expect("all can be had");
    assert!((0..16).all(|number| scene.is_local(number)));
    assert_eq!(scene.fetcher.outstanding(), 0);
}

#[tokio::test]
async fn fill_lets_go_of_the_line_when_a_reader_comes_and_goes_on_afterwards() {
    let scene = scene(16, 4, Memory::default());
    scene.source.hold(Some(0));
    let last = scene.layer.index.compressed(scene.span(15));
    let until = async |is_so: &dyn Fn() -> bool, what: &str| {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_so() {
            assert!(Instant::now() < deadline, "{what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let reads = async {
        until(&|| scene.fetcher.outstanding() > 0, "nothing is filled").await;
        let _reader = scene.fetcher.demand().enter();
        tokio::join!(scene.check(15), async {
            let alone = || scene.fetcher.outstanding() == last.end - last.start;
            until(&alone, "the reader shares the line with fill").await;
            scene.source.hold(None);
        });
    };
    let (filled, ()) = tokio::join!(fill(&scene.fetcher, &scene.layer, Urgency::Idle), reads);
    filled.expect("the source is well");
    assert!(scene.layer.blob.is_complete());
}

#[tokio::test]
async fn what_several_stream_at_once_is_asked_for_once_and_goes_on_when_one_of_them_gives_up() {
    let scene = scene(32, 4, Memory { delay: Duration::from_millis(20), ..Memory::default() });
    let whole = 0..scene.layer.blob.size();
    assert!(whole.end > 2 * limits::READ_CHUNK, "there are several chunks");
    let (first, second, third) = (
        scene.layer.stream_to_disk(whole.clone()),
        scene.layer.stream_to_disk(whole.clone()),
        tokio::time::timeout(Duration::from_millis(10), scene.layer.stream_to_disk(whole.clone())),
    );
    let (first, second, third) = tokio::join!(first, second, third);
    first.expect("the source is well");
    second.expect("the source is well");
    assert!(third.is_err(), "it gives up");
    let mut asked = scene.source.asked();
    asked.sort_by_key(|range| range.start);
    assert!(asked.windows(2).all(|pair| pair[0].end == pair[1].start), "{asked:?}");
    assert!(scene.layer.blob.missing(whole).is_empty());
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_given_up_and_the_rest_is_not() {
    let scene = scene(16, 4, Memory::default());
    scene.source.hold(Some(scene.layer.index.compressed(scene.span(10)).start));
    let (all, some) = (scene.wanted(0..16), scene.wanted(0..3));
    {
        let given_up = scene.fetcher.prefetch(&all, Priority::Fill);
        let kept = scene.fetcher.prefetch(&some, Priority::Fill);
        tokio::pin!(given_up, kept);
        // Both have asked; one of them goes away.
        tokio::select! {
            biased;
            _ = &mut given_up => panic!("not everything is answered"),
            result = &mut kept => result.expect("the other gets what it wants"),
        }
    }
    scene.source.hold(None);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let reached = (0..16).filter(|number| scene.is_local(*number)).count();
    assert!((3..16).contains(&reached), "{reached}");
    scene.check(15).await;
}

#[tokio::test]
async fn bytes_that_were_wrong_are_fetched_again_and_never_served() {
    let scene = scene(3, 4, Memory { lies: AtomicBool::new(true), ..Memory::default() });
    scene.fetcher.prefetch(&scene.wanted(1..2), Priority::ReadAhead).await.expect("it is not looked at");
    assert!(scene.is_local(1));
    scene.check(1).await;
    assert_eq!(scene.source.asked().len(), 2);
}

#[tokio::test]
async fn what_others_have_mended_is_not_discarded_again() {
    let scene = scene(3, 4, Memory { lies: AtomicBool::new(true), ..Memory::default() });
    let range = scene.layer.index.compressed(scene.span(1));
    let decoders = &scene.fetcher.inner.decoders;
    let taken = decoders.acquire_many(decoders.available_permits() as u32).await.expect("nobody else decodes");
    tokio::join!(scene.check(1), async {
        while !scene.is_local(1) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        // The reader has wrong bytes, and somebody else who has them too finds out first.
        scene.layer.blob.discard(range.clone()).expect("a store that works");
        let right = &scene.source.blob[range.start as usize..range.end as usize];
        scene.layer.blob.write(range.start, right).expect("a store that works");
        drop(taken);
    });
    assert_eq!(scene.source.asked().len(), 1);
    assert!(scene.is_local(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn rotten_bytes_fail_no_reader_however_many_come_together() {
    let scene = scene(3, 4, Memory::default());
    let range = scene.layer.index.compressed(scene.span(1));
    for _ in 0..30 {
        scene.layer.blob.discard(range.clone()).expect("a store that works");
        let rotten = vec![0; (range.end - range.start) as usize];
        scene.layer.blob.write(range.start, &rotten).expect("a store that works");
        let fetcher = Fetcher::new(Options { decoders: 64, ..Options::default() });
        let done = AtomicBool::new(false);
        let runtime = tokio::runtime::Handle::current();
        tokio::task::block_in_place(|| {
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let _entered = runtime.enter();
                        while !done.load(Ordering::Relaxed) && fetcher.span_now(&scene.layer, scene.span(1)).is_none() {
                            std::hint::spin_loop();
                        }
                    });
                }
                let readers =
                    futures_util::future::join_all((0..16).map(|_| fetcher.span(&scene.layer, scene.span(1))));
                let results = runtime.block_on(readers);
                done.store(true, Ordering::Relaxed);
                for result in results {
                    result.expect("the source is well");
                }
            });
        });
    }
}

#[tokio::test]
async fn reading_a_file_brings_the_rest_of_it() {
    let scene = scene(6, 4, Memory::default());
    let file = 512..scene.tar.len() as u64 - 1024;
    scene.fetcher.read(&scene.layer, file.start..file.start + 100, file, |_| Vec::new());
    scene.check(0).await;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !(0..6).all(|number| scene.is_local(number)) {
        assert!(Instant::now() < deadline, "the file is not complete");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_stalls_is_asked_for_again_from_where_it_stopped() {
    let source = Memory { blob: Bytes::from_static(b"0123456789"), stalls: true.into(), ..Memory::default() };
    let source = Arc::new(source);
    let (traffic, patience) = (Traffic::default(), Duration::from_millis(20));
    let reader = Arc::clone(&source) as Arc<dyn BlobReader>;
    let watch = steady::Watch { outages: Arc::default(), place: "memory".into(), anew: steady::ANEW };
    let mut answer = steady::Steady::open(reader, 0..10, &traffic, patience, watch).await.expect("an answer");
    let mut bytes = Vec::new();
    while let Some(piece) = answer.next().await {
        bytes.extend_from_slice(&piece.expect("good pieces"));
    }
    assert_eq!(bytes, b"0123456789");
    assert_eq!(source.asked(), [0..10, 5..10]);
    assert_eq!((traffic.bytes(), traffic.requests()), (10, 2));
}

/// A source whose first answer stalls, at its beginning or in its middle, and then fails.
#[derive(Debug)]
struct Broken {
    memory: Memory,
    is_first: AtomicBool,
    begins: bool,
    /// How long the first answer takes to fail, and the others to begin.
    times: [Duration; 2],
}

impl BlobReader for Broken {
    fn size(&self) -> u64 {
        self.memory.size()
    }

    fn read(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, source::Error>> {
        let [fails, answers] = self.times;
        if !self.is_first.swap(false, Ordering::SeqCst) {
            return Box::pin(async move {
                tokio::time::sleep(answers).await;
                self.memory.read(range).await
            });
        }
        let failure = async move {
            tokio::time::sleep(fails).await;
            source::Error::new(source::ErrorKind::Unreachable, "gone")
        };
        let half = Ok(self.memory.blob.slice(..5));
        Box::pin(async move {
            if !self.begins {
                return Err(failure.await);
            }
            let failure = futures_util::stream::once(failure).map(Err);
            let stream: ByteStream = Box::pin(futures_util::stream::iter([half]).chain(failure));
            Ok(stream)
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_answer_that_fails_leaves_it_to_the_second() {
    let patience = Duration::from_millis(20);
    for (begins, second) in [(false, 0..10), (true, 5..10)] {
        let memory = Memory { blob: Bytes::from_static(b"0123456789"), ..Memory::default() };
        let source = Broken { memory, is_first: true.into(), begins, times: [patience * 2, patience * 4] };
        let (source, traffic) = (Arc::new(source), Traffic::default());
        let watch = steady::Watch { outages: Arc::default(), place: "memory".into(), anew: steady::ANEW };
        let reader = Arc::clone(&source) as Arc<dyn BlobReader>;
        let mut answer =
            steady::Steady::open(reader, 0..10, &traffic, patience, watch).await.expect("the second answers");
        let mut bytes = Vec::new();
        while let Some(piece) = answer.next().await {
            bytes.extend_from_slice(&piece.expect("good pieces"));
        }
        assert_eq!((&bytes[..], source.memory.asked()), (&b"0123456789"[..], vec![second]));
    }
}

/// A source that says nothing to the first so many requests, for ever.
#[derive(Debug)]
struct Silent {
    memory: Memory,
    to_go: AtomicU64,
}

impl BlobReader for Silent {
    fn size(&self) -> u64 {
        self.memory.size()
    }

    fn read(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, source::Error>> {
        let is_silent = self.to_go.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        if is_silent { Box::pin(std::future::pending()) } else { self.memory.read(range) }
    }
}

#[tokio::test(start_paused = true)]
async fn requests_to_a_source_that_is_away_are_made_anew_until_one_is_answered() {
    let memory = Memory { blob: Bytes::from_static(b"0123456789"), ..Memory::default() };
    let reader = Arc::new(Silent { memory, to_go: AtomicU64::new(4) });
    let (traffic, patience) = (Traffic::default(), Duration::from_millis(20));
    let (outages, place) = (Arc::new(outage::Outages::default()), Arc::from("memory"));
    let watch = steady::Watch { outages: Arc::clone(&outages), place: Arc::clone(&place), anew: patience };
    let answer = steady::Steady::open(Arc::clone(&reader) as _, 0..10, &traffic, patience, watch);
    let mut answer = std::pin::pin!(answer);
    assert!(tokio::time::timeout(patience * 10, answer.as_mut()).await.is_err());
    assert_eq!(traffic.requests(), 2, "one that is only slow is not asked again and again");
    outages.failed(&place, tokio::time::Instant::now(), &source::Error::new(source::ErrorKind::Unreachable, "gone"));
    let mut answer = tokio::time::timeout(Duration::from_secs(5), answer).await.expect("in time").expect("an answer");
    assert_eq!(traffic.requests(), 5);
    assert_eq!(answer.next().await.expect("bytes").expect("good bytes"), &b"01234"[..]);
}
