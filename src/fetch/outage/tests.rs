//! Outages in a time of their own, which passes only while nobody has anything to do: no pause is longer than it says.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::FutureExt;

use super::*;
use crate::fetch::Priority;
use crate::fetch::tests::{Memory, Scene, scene};
use crate::source::{BlobReader, BoxFuture, ByteStream, ErrorKind};

/// A source that can be away.
#[derive(Debug)]
struct Flaky {
    memory: Arc<Memory>,
    away: AtomicBool,
    asked: AtomicUsize,
    /// While it is away it says nothing at all.
    silent: AtomicBool,
    /// Of these bytes it knows nothing good, however well it is.
    broken: Option<Range<u64>>,
    /// How often it was asked for them since it last was for others.
    refused: AtomicUsize,
    /// The most of these.
    most_refused: AtomicUsize,
}

impl BlobReader for Flaky {
    fn size(&self) -> u64 {
        self.memory.size()
    }

    fn host(&self) -> Option<&str> {
        Some("r.example")
    }

    fn read(&self, range: Range<u64>) -> BoxFuture<'_, Result<ByteStream, source::Error>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let is_broken = self.broken.as_ref().is_some_and(|broken| broken.start < range.end && range.start < broken.end);
        if self.silent.load(Ordering::SeqCst) {
            return Box::pin(std::future::pending());
        }
        if is_broken {
            self.refused.fetch_add(1, Ordering::SeqCst);
        } else {
            self.most_refused.fetch_max(self.refused.swap(0, Ordering::SeqCst), Ordering::SeqCst);
        }
        if is_broken || self.away.load(Ordering::SeqCst) {
            return Box::pin(async {
                sleep(Duration::from_millis(5)).await;
                Err(gone())
            });
        }
        self.memory.read(range)
    }
}

fn gone() -> source::Error {
    source::Error::new(ErrorKind::Unreachable, "connection refused")
}

/// A layer of a source that is away.
fn away(broken: Option<fn(&Scene) -> Range<u64>>) -> (Scene, Arc<Layer>, Arc<Flaky>) {
    let scene = scene(6, 4, Memory::default());
    let flaky = Arc::new(Flaky {
        memory: Arc::clone(&scene.source),
        away: AtomicBool::new(true),
        asked: AtomicUsize::new(0),
        silent: AtomicBool::new(false),
        broken: broken.map(|broken| broken(&scene)),
        refused: AtomicUsize::new(0),
        most_refused: AtomicUsize::new(0),
    });
    let (index, blob) = (scene.layer.index.clone(), Arc::clone(&scene.layer.blob));
    let layer = Layer::new(
        index,
        blob,
        Some(Arc::clone(&flaky) as _),
        "r.example/it",
        crate::store::Scratch::new(std::env::temp_dir()),
    );
    (scene, Arc::new(layer), flaky)
}

fn patient(seconds: Option<u64>) -> Patience {
    Patience::new(OnOutage::Wait(seconds.map(Duration::from_secs)))
}

async fn read(scene: &Scene, layer: &Arc<Layer>, patience: &Patience, number: u32) -> Result<Bytes, Error> {
    let span = scene.span(number);
    let decoded = layer.index.decoded(span);
    scene.fetcher().part_for(patience, layer, span, 0..decoded.end - decoded.start).await
}

#[tokio::test(start_paused = true)]
async fn readers_go_on_by_themselves_when_the_source_is_back() {
    let (scene, layer, flaky) = away(None);
    let patience = patient(None);
    let readers = futures_util::future::join_all((0..6).map(|number| read(&scene, &layer, &patience, number)));
    let heals = async {
        sleep(Duration::from_millis(1200)).await;
        assert!(scene.fetcher().outage(&layer).is_some_and(|outage| &*outage.place == "r.example"));
        assert!(patience.longest_wait() >= Some(Duration::from_millis(1000)), "{patience:?}");
        assert!(!scene.fetcher().demand().is_waiting(), "who sits out an outage is in nobody's way");
        flaky.away.store(false, Ordering::SeqCst);
        Instant::now()
    };
    let (bytes, healed) = tokio::join!(readers, heals);
    assert!(healed.elapsed() < Duration::from_secs(1), "at 1.75 s: {:?}", healed.elapsed());
    for (number, bytes) in bytes.into_iter().enumerate() {
        let range = layer.index.decoded(scene.span(number as u32));
        assert!(bytes.expect("it is back") == scene.stream()[range.start as usize..range.end as usize]);
    }
    assert!(scene.fetcher().outage(&layer).is_none() && patience.longest_wait().is_none());
}

#[tokio::test(start_paused = true)]
async fn many_readers_of_a_source_that_is_away_ask_it_no_more_often_than_one() {
    let (scene, layer, flaky) = away(None);
    let patience = patient(None);
    assert!(read(&scene, &layer, &Patience::new(OnOutage::Fail), 0).await.is_err());
    flaky.asked.store(0, Ordering::SeqCst);
    let readers = futures_util::future::join_all((0..60).map(|number| read(&scene, &layer, &patience, number % 6)));
    assert!(tokio::time::timeout(Duration::from_secs(2), readers).await.is_err(), "it is away");
    // At 0.25 s, 0.75 s and 1.75 s after the failure.
    let asked = flaky.asked.load(Ordering::SeqCst);
    assert_eq!(asked, 3);
    assert!(patience.longest_wait().is_none(), "nobody waits any more");
}

#[tokio::test(start_paused = true)]
async fn patience_ends_when_it_was_said_to() {
    let (scene, layer, _flaky) = away(None);
    for (policy, least, most) in [(OnOutage::Fail, 0, 100), (OnOutage::Wait(Some(Duration::from_secs(1))), 1000, 1100)]
    {
        let began = Instant::now();
        let failed = read(&scene, &layer, &Patience::new(policy), 1).await;
        assert!(matches!(&failed, Err(Error::Source(error)) if error.is_transient()), "{failed:?}");
        let took = began.elapsed().as_millis();
        assert!((least..most).contains(&took), "{policy:?}: {took} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_a_mount_that_is_gone() {
    let (scene, layer, _flaky) = away(None);
    let patience = patient(None);
    let gone = async {
        let deadline = Instant::now() + Duration::from_secs(20);
        while patience.longest_wait().is_none() {
            assert!(Instant::now() < deadline, "it does not wait");
            sleep(Duration::from_millis(10)).await;
        }
        patience.end();
    };
    let (outcome, ()) = tokio::join!(read(&scene, &layer, &patience, 2), gone);
    assert!(matches!(outcome, Err(Error::Interrupted)), "{outcome:?}");
    assert!(patience.longest_wait().is_none());
}

#[tokio::test(start_paused = true)]
async fn what_is_here_is_read_at_once_while_the_source_is_away() {
    let (scene, layer, flaky) = away(None);
    flaky.away.store(false, Ordering::SeqCst);
    read(&scene, &layer, &patient(None), 3).await.expect("it is well");
    flaky.away.store(true, Ordering::SeqCst);
    assert!(read(&scene, &layer, &Patience::new(OnOutage::Fail), 5).await.is_err());
    scene.fetcher().inner.cache.clear();
    let asked = flaky.asked.load(Ordering::SeqCst);
    let local = tokio::time::timeout(Duration::from_secs(20), read(&scene, &layer, &patient(None), 3)).await;
    assert!(local.is_ok_and(|bytes| bytes.is_ok()) && flaky.asked.load(Ordering::SeqCst) == asked);
}

/// How long nobody tries a place that was postponed.
const FAR: Duration = Duration::from_secs(60);

/// Lets nobody in line try `place` for as long as that.
fn postpone(outages: &Outages, place: &Arc<str>) {
    if let Some(away) = outages.lock().get_mut(place).and_then(|place| place.away.as_mut()) {
        away.next = Instant::now() + FAR;
    }
    outages.changed.notify_waiters();
}

/// Reads a span whose source is away, and brings its bytes another way after `pause`; how long it then took.
async fn brought_after(pause: Duration, silent: bool) -> Duration {
    let (scene, layer, flaky) = away(None);
    assert!(read(&scene, &layer, &Patience::new(OnOutage::Fail), 5).await.is_err());
    flaky.silent.store(silent, Ordering::SeqCst);
    let patience = patient(None);
    let brought = async {
        sleep(pause).await;
        postpone(scene.fetcher().outages(), &layer.place);
        let range = layer.index.compressed(scene.span(3));
        let bytes = scene.source.blob().slice(range.start as usize..range.end as usize);
        layer.blob.write(range.start, &bytes).expect("there is room");
        Instant::now()
    };
    let (bytes, brought) = tokio::join!(read(&scene, &layer, &patience, 3), brought);
    let range = layer.index.decoded(scene.span(3));
    assert!(bytes.expect("it is here") == scene.stream()[range.start as usize..range.end as usize]);
    assert!(scene.fetcher().outage(&layer).is_some(), "it is still away");
    brought.elapsed()
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_source_that_is_away_sees_bytes_that_come_another_way_at_once() {
    // It tries at 0.25 and 0.75 seconds.
    let took = brought_after(Duration::from_millis(600), false).await;
    assert!(took < Duration::from_secs(1), "in line: {took:?}");
    let took = brought_after(Duration::from_millis(600), true).await;
    assert!(took < Duration::from_secs(1), "asking: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn one_blob_that_cannot_be_had_is_no_outage_while_others_can() {
    let (scene, layer, flaky) = away(Some(|scene| scene.layer.index.compressed(scene.span(5))));
    flaky.away.store(false, Ordering::SeqCst);
    let patience = patient(None);
    let others = async {
        for number in 0..4 {
            flaky.refused.store(0, Ordering::SeqCst);
            read(&scene, &layer, &patient(None), number).await.expect("nothing is wrong with it");
            sleep(Duration::from_millis(300)).await;
        }
    };
    let mut broken = std::pin::pin!(read(&scene, &layer, &patience, 5));
    tokio::select! {
        outcome = &mut broken => panic!("it never can: {outcome:?}"),
        outcome = tokio::time::timeout(Duration::from_secs(60), others) => outcome.expect("nobody is held up"),
    }
    // The broken one is before another only if it was in line already: the next answer shows that the source is there.
    let most = flaky.most_refused.load(Ordering::SeqCst);
    assert!(most <= 1, "{most} turns of the broken one were waited for");
    patience.end();
    assert!(matches!(broken.await, Err(Error::Interrupted)));
}

#[tokio::test(start_paused = true)]
async fn background_work_rests_and_goes_on_afterwards() {
    let (scene, layer, flaky) = away(None);
    let wanted: Vec<_> = (0..6).map(|number| (Arc::clone(&layer), scene.span(number))).collect();
    let ahead = scene.fetcher().prefetch_in_the_end(&wanted, Priority::Profile);
    let mut ahead = std::pin::pin!(ahead);
    assert!(tokio::time::timeout(Duration::from_millis(500), ahead.as_mut()).await.is_err());
    let asked = flaky.asked.load(Ordering::SeqCst);
    assert!(tokio::time::timeout(Duration::from_millis(1000), ahead.as_mut()).await.is_err());
    assert_eq!(flaky.asked.load(Ordering::SeqCst), asked, "it rests");
    flaky.away.store(false, Ordering::SeqCst);
    // Somebody else finds out that it is back.
    read(&scene, &layer, &Patience::new(OnOutage::Fail), 0).await.expect("it is back");
    tokio::time::timeout(Duration::from_secs(5), ahead).await.expect("it goes on").expect("all can be had");
    assert!(wanted.iter().all(|(layer, span)| layer.has(*span)));
}

#[tokio::test]
async fn an_outage_is_no_reason_to_give_up_what_background_work_wants_however_long_it_lasts() {
    for gave_before in [false, true] {
        let (scene, layer, flaky) = away(None);
        if gave_before {
            flaky.away.store(false, Ordering::SeqCst);
            read(&scene, &layer, &Patience::new(OnOutage::Fail), 5).await.expect("it is there");
            flaky.away.store(true, Ordering::SeqCst);
        }
        let wanted: Vec<_> = (0..3).map(|number| (Arc::clone(&layer), scene.span(number))).collect();
        let ahead = scene.fetcher().persist(&wanted, Priority::Profile, Duration::from_millis(1));
        let heals = async {
            // Twice as often as would do to give up all of them.
            while flaky.asked.load(Ordering::SeqCst) < 100 {
                sleep(Duration::from_millis(1)).await;
            }
            flaky.away.store(false, Ordering::SeqCst);
        };
        let both = async { tokio::join!(ahead, heals).0 };
        tokio::time::timeout(Duration::from_secs(20), both).await.expect("it ends").expect("all can be had");
        assert!(wanted.iter().all(|(layer, span)| layer.has(*span)));
    }
}

#[tokio::test(start_paused = true)]
async fn spans_that_cannot_be_had_are_given_up_in_the_end_however_many_there_are() {
    let (scene, layer, flaky) = away(Some(|scene| {
        // Their first and last bytes belong to their neighbours as well.
        let compressed = |number| scene.layer.index.compressed(scene.span(number));
        compressed(1).start + 1..compressed(3).end - 1
    }));
    flaky.away.store(false, Ordering::SeqCst);
    let wanted: Vec<_> = (0..6).map(|number| (Arc::clone(&layer), scene.span(number))).collect();
    let ahead = scene.fetcher().persist(&wanted, Priority::Profile, Duration::from_millis(10));
    tokio::time::timeout(Duration::from_secs(300), ahead).await.expect("it ends").expect("nothing else is wrong");
    let here: Vec<_> = (0..6).filter(|number| layer.has(scene.span(*number))).collect();
    assert_eq!(here, [0, 4, 5]);
}

#[tokio::test(start_paused = true)]
async fn a_span_that_cannot_be_had_holds_up_no_other_and_is_given_up_in_the_end() {
    let (scene, layer, flaky) = away(Some(|scene| {
        // Its first and last bytes belong to its neighbours as well.
        let range = scene.layer.index.compressed(scene.span(1));
        range.start + 1..range.end - 1
    }));
    flaky.away.store(false, Ordering::SeqCst);
    let wanted: Vec<_> = (0..6).map(|number| (Arc::clone(&layer), scene.span(number))).collect();
    let began = Instant::now();
    let ahead = scene.fetcher().persist(&wanted, Priority::Profile, Duration::from_millis(10));
    tokio::time::timeout(Duration::from_secs(20), ahead).await.expect("it ends").expect("nothing else is wrong");
    // 10, 20, 40, 80 ms, and 160 from then on.
    assert!(began.elapsed() >= Duration::from_millis(470), "the pauses grow: {:?}", began.elapsed());
    let here: Vec<_> = (0..6).filter(|number| layer.has(scene.span(*number))).collect();
    assert_eq!(here, [0, 2, 3, 4, 5]);
}

#[test]
fn an_answer_that_came_meanwhile_disproves_an_outage_and_a_later_one_ends_it() {
    let (outages, place): (_, Arc<str>) = (Outages::default(), "r.example".into());
    let began = Instant::now();
    outages.answered(&place);
    outages.failed(&place, began, &gone());
    assert!(!outages.is_away(&place));
    outages.failed(&place, Instant::now() + Duration::from_millis(1), &gone());
    assert!(outages.is_away(&place));
    assert!(outages.of(&place).is_some_and(|outage| outage.error.to_string() == "connection refused"));
    assert!(outages.over(&place).now_or_never().is_none());
    outages.answered(&place);
    assert!(!outages.is_away(&place) && outages.of(&place).is_none());
}

#[test]
fn silence_is_an_outage_unless_others_are_answered() {
    let (outages, place): (_, Arc<str>) = (Outages::default(), "r.example".into());
    let Some(long_ago) = Instant::now().checked_sub(2 * SILENCE) else { return };
    outages.silent(&place, Instant::now());
    assert!(!outages.is_away(&place), "not for so short a time");
    outages.answered(&place);
    outages.silent(&place, long_ago);
    assert!(!outages.is_away(&place), "somebody else was answered");
    outages.silent(&"other".into(), long_ago);
    assert!(outages.is_away(&"other".into()));
}

#[test]
fn the_table_of_places_is_bounded_but_forgets_no_outage() {
    let outages = Outages::default();
    outages.failed(&"away".into(), Instant::now(), &gone());
    for number in 0..3 * limits::LINES {
        outages.answered(&format!("host-{number}").into());
    }
    assert!(outages.lock().len() <= limits::LINES + 1 && outages.is_away(&"away".into()));
}

#[test]
fn pauses_grow_to_a_few_seconds() {
    let pauses: Vec<_> = (0..8).map(|tries| pause(tries).as_millis()).collect();
    assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 4000, 4000, 4000]);
    assert_eq!(pause(u32::MAX), LONGEST_PAUSE);
}
