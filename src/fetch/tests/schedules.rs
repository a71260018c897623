//! Single flight under schedules that no machine shows by itself: [`OnceMap`] on shuttle's locks and tasks.
//!
//! A few actors join, give up, claim, finish and abandon at random, on two keys, and shuttle decides who goes on at each
//! lock, task and await. Every event gets a time, so that what may be demanded of one is known from the others: who joins
//! while somebody waits gets the same result; who stays gets one; nothing stays in the table. A schedule in which
//! somebody waits for ever is reported by shuttle itself, with a text that repeats it ([`shuttle::replay`]).
//!
//! `OCIFS_TEST_SCHEDULES=N` tries N of them for each scheduler.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use shuttle::rand::Rng as _;
use shuttle::scheduler::{PctScheduler, RandomScheduler};

use once_map::OnceMap;

/// The file under test, with the names below in place of those of the standard library and of tokio.
#[expect(clippy::duplicate_mod, unreachable_pub, reason = "it is compiled for shuttle here")]
#[path = "../once_map.rs"]
mod once_map;

mod sync {
    pub(super) use shuttle::future::{AbortHandle, spawn};
    pub(super) use shuttle::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

    /// tokio's channel needs no runtime. What it does is one step to shuttle, so others may go between steps.
    pub(super) mod watch {
        pub(in super::super) use tokio::sync::watch::Receiver;

        #[derive(Debug)]
        pub(in super::super) struct Sender<T>(tokio::sync::watch::Sender<T>);

        impl<T> Sender<T> {
            pub(in super::super) fn send_replace(&self, value: T) -> T {
                shuttle::thread::yield_now();
                self.0.send_replace(value)
            }
        }

        impl<T> Drop for Sender<T> {
            fn drop(&mut self) {
                shuttle::thread::yield_now();
            }
        }

        pub(in super::super) fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
            let (sender, receiver) = tokio::sync::watch::channel(value);
            (Sender(sender), receiver)
        }
    }
}

const KEYS: u8 = 2;
const ACTORS: usize = 4;
const STEPS: usize = 3;

/// Results are numbers that occur once.
type Number = usize;

/// What has happened. Not one of shuttle's locks: looking on must not change the schedule.
#[derive(Debug, Default)]
struct Log {
    clock: AtomicUsize,
    /// Pieces of work whose future exists.
    live: AtomicUsize,
    /// When a result was about to be handed out.
    ended: Mutex<HashMap<Number, usize>>,
    waits: Mutex<Vec<Wait>>,
    claims: Mutex<Vec<Taken>>,
}

/// Somebody joined and stayed.
#[derive(Debug, Clone, Copy)]
struct Wait {
    key: u8,
    asked: usize,
    joined: usize,
    result: Option<Number>,
}

/// Somebody claimed, or could not.
#[derive(Debug, Clone, Copy)]
struct Taken {
    key: u8,
    asked: usize,
    /// What was promised and when the claim was there; none if it was refused.
    held: Option<(Number, usize)>,
    fate: Fate,
    /// When it began to end, or was refused.
    over: usize,
    /// When it was gone.
    gone: usize,
}

/// What becomes of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Finished,
    HandedOver,
    Dropped,
}

impl Log {
    fn now(&self) -> usize {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn end(&self, number: Number) {
        locked(&self.ended).insert(number, self.now());
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a future for as long as it exists.
struct Live(Arc<Log>);

impl Drop for Live {
    fn drop(&mut self) {
        self.0.live.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Work that takes a few steps.
fn work(log: &Arc<Log>) -> impl Future<Output = Number> + Send + 'static {
    log.live.fetch_add(1, Ordering::SeqCst);
    let live = Live(Arc::clone(log));
    async move {
        for _ in 0..shuttle::rand::thread_rng().gen_range(0..3) {
            shuttle::future::yield_now().await;
        }
        let number = live.0.now();
        live.0.end(number);
        number
    }
}

async fn act(map: Arc<OnceMap<u8, Number>>, log: Arc<Log>) {
    for _ in 0..STEPS {
        let (key, choice) =
            (shuttle::rand::thread_rng().gen_range(0..KEYS), shuttle::rand::thread_rng().gen_range(0..8));
        let asked = log.now();
        match choice {
            0..=2 => {
                let join = map.join(key, || work(&log));
                let joined = log.now();
                let result = join.await;
                locked(&log.waits).push(Wait { key, asked, joined, result });
            }
            3 => drop(map.join(key, || work(&log))),
            4 => give_up(map.join(key, || work(&log))).await,
            5 => claim(&map, &log, key, Fate::Finished, asked).await,
            6 => claim(&map, &log, key, Fate::HandedOver, asked).await,
            _ => claim(&map, &log, key, Fate::Dropped, asked).await,
        }
    }
}

/// Waits for a moment only.
async fn give_up(join: impl Future<Output = Option<Number>>) {
    let mut join = Box::pin(join);
    std::future::poll_fn(|context| Poll::Ready(join.as_mut().poll(context).is_ready())).await;
    shuttle::future::yield_now().await;
}

async fn claim(map: &OnceMap<u8, Number>, log: &Arc<Log>, key: u8, fate: Fate, asked: usize) {
    let claim = map.claim(key);
    let at = log.now();
    let Some(claim) = claim else {
        return locked(&log.claims).push(Taken { key, asked, held: None, fate, over: at, gone: at });
    };
    shuttle::future::yield_now().await;
    let (number, over) = (log.now(), log.now());
    match fate {
        Fate::Finished => {
            log.end(number);
            claim.finish(number);
        }
        Fate::HandedOver => claim.hand_over(work(log)),
        Fate::Dropped => drop(claim),
    }
    let gone = log.now();
    locked(&log.claims).push(Taken { key, asked, held: Some((number, at)), fate, over, gone });
}

/// One run of all actors, and what must be true of it.
fn scene() {
    let (map, log) = (Arc::new(OnceMap::default()), Arc::new(Log::default()));
    shuttle::future::block_on(async {
        let actors: Vec<_> =
            (0..ACTORS).map(|_| shuttle::future::spawn(act(Arc::clone(&map), Arc::clone(&log)))).collect();
        for actor in actors {
            actor.await.expect("nobody ends it");
        }
        // What was given up ends in its own time; if it does not, shuttle counts too many steps.
        while !map.is_empty() || log.live.load(Ordering::SeqCst) > 0 {
            shuttle::future::yield_now().await;
        }
    });
    check(&log);
}

fn check(log: &Log) {
    let (ended, waits, claims) = (locked(&log.ended), locked(&log.waits), locked(&log.claims));
    for wait in waits.iter() {
        let Some(result) = wait.result else {
            // Only a claim that was dropped leaves those without a result who joined it.
            let overlaps = |claim: &Taken| claim.asked < wait.joined && claim.gone > wait.asked;
            let abandoned =
                |claim: &Taken| claim.key == wait.key && claim.held.is_some() && claim.fate == Fate::Dropped;
            assert!(claims.iter().any(|claim| abandoned(claim) && overlaps(claim)), "{wait:?} got none: {claims:?}");
            continue;
        };
        let end = ended[&result];
        // As long as somebody waits there is one piece of work for all.
        let during = |asked: usize, done: usize| wait.joined < asked && done < end;
        for other in waits.iter().filter(|other| other.key == wait.key && during(other.asked, other.joined)) {
            assert_eq!(other.result, wait.result, "{other:?} beside {wait:?}, which ended at {end}");
        }
        for claim in claims.iter().filter(|claim| claim.key == wait.key) {
            let at = claim.held.map_or(claim.over, |(_, at)| at);
            assert!(claim.held.is_none() || !during(claim.asked, at), "{claim:?} beside {wait:?}");
        }
    }
    for (claim, (number, at)) in claims.iter().filter_map(|claim| Some((claim, claim.held?))) {
        let during = |asked: usize, done: usize| at < asked && done < claim.over;
        for wait in waits.iter().filter(|wait| wait.key == claim.key && during(wait.asked, wait.joined)) {
            let right = match claim.fate {
                Fate::Finished => wait.result == Some(number),
                Fate::HandedOver => wait.result.is_some(),
                Fate::Dropped => wait.result.is_none(),
            };
            assert!(right, "{wait:?} joined {claim:?}");
        }
        for other in claims.iter().filter(|other| other.key == claim.key && other.held.is_some()) {
            assert!(!during(other.asked, other.held.map_or(0, |(_, at)| at)), "{other:?} beside {claim:?}");
        }
    }
}

/// Work that only ends when it is ended.
fn endless(log: &Arc<Log>) -> impl Future<Output = Number> + Send + 'static {
    log.live.fetch_add(1, Ordering::SeqCst);
    let live = Live(Arc::clone(log));
    async move {
        let _live = live;
        std::future::pending().await
    }
}

/// Actors none of whom stays.
fn fickle_scene() {
    let (map, log) = (Arc::new(OnceMap::default()), Arc::new(Log::default()));
    shuttle::future::block_on(async {
        for _ in 0..ACTORS {
            let (map, log) = (Arc::clone(&map), Arc::clone(&log));
            drop(shuttle::future::spawn(async move {
                drop(map.join(0, || endless(&log)));
                give_up(map.join(0, || endless(&log))).await;
            }));
        }
        while Arc::strong_count(&map) > 1 || !map.is_empty() || log.live.load(Ordering::SeqCst) > 0 {
            shuttle::future::yield_now().await;
        }
    });
}

fn schedules() -> usize {
    std::env::var("OCIFS_TEST_SCHEDULES").ok().and_then(|text| text.parse().ok()).unwrap_or(3000)
}

#[test]
fn single_flight_holds_under_random_schedules() {
    let runner = shuttle::Runner::new(RandomScheduler::new(schedules()), shuttle::Config::default());
    runner.run(scene);
}

#[test]
fn single_flight_holds_under_schedules_with_few_preemptions() {
    let runner = shuttle::Runner::new(PctScheduler::new(3, schedules()), shuttle::Config::default());
    runner.run(scene);
}

#[test]
fn work_that_everybody_gives_up_ends_under_random_schedules() {
    let config = shuttle::Config::default();
    shuttle::Runner::new(RandomScheduler::new(schedules()), config).run(fickle_scene);
}
