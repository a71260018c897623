//! Outages: what readers and background work do while nobody answers for a source.
//!
//! One failed read says little: a blob may be damaged at its server, a connection may break. A place is taken to be *away*
//! when a read of it has failed for good, or was silent for long, and nothing of it was answered since that read began.
//! From then on nobody asks out of turn: of the readers that wait, one tries every few seconds, and the first answer, to
//! whomever, lets all of them go on. What nobody waits for rests, and tries now and then if there are no readers.
//!
//! How long a reader waits is its mount's affair ([`Patience`]), while what is known of a place ([`Outages`]) is shared by all.
//! A mount whose readers do not wait asks each time: it is to fail because of what is so now.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::large::LargeSpans;
use super::{Error, Fetcher, Layer};
use crate::index::SpanId;
use crate::limits;
use crate::source::{self, ErrorKind};

/// The pause before the first reader tries again; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// A registry that is back is noticed this soon while somebody waits for it.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// How often work that nobody waits for tries a place that is away.
pub(super) const REST: Duration = Duration::from_secs(30);

/// A place that gives nothing at all for so long is away, whatever becomes of the requests.
const SILENCE: Duration = Duration::from_secs(15);

/// How often a reader whose time is over looks whether its place is away.
const LOOK: Duration = Duration::from_millis(500);

/// What the readers of a mount do while their source is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnOutage {
    /// Each waits so long at most; without an end if none.
    Wait(Option<Duration>),
    /// They fail as soon as the source's own attempts are used up.
    Fail,
}

/// How long the readers of one mount wait for a source that is away, and who of them does.
#[derive(Debug)]
pub struct Patience {
    policy: OnOutage,
    /// When those that wait began to, in that order. Protects the table only.
    waiting: Mutex<Waiting>,
    /// True once nobody can wait any more.
    ended: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Waiting {
    since: BTreeMap<u64, Instant>,
    /// How many there ever were.
    entered: u64,
}

/// One that waits; ends when dropped.
#[derive(Debug)]
struct Waits<'a> {
    patience: &'a Patience,
    number: u64,
}

impl Patience {
    /// The patience of readers that do `policy`; nobody waits yet.
    pub fn new(policy: OnOutage) -> Self {
        Self { policy, waiting: Mutex::default(), ended: watch::Sender::new(false) }
    }

    /// What the readers do.
    pub fn policy(&self) -> OnOutage {
        self.policy
    }

    /// How long the reader has waited that waits longest; none if nobody does.
    pub fn longest_wait(&self) -> Option<Duration> {
        self.lock().since.values().next().map(Instant::elapsed)
    }

    /// Lets everybody go with an error who still waits: the mount is gone, and with it those who asked.
    pub fn end(&self) {
        self.ended.send_replace(true);
    }

    async fn ended(&self) {
        // The sender is this value's own, so it is there.
        drop(self.ended.subscribe().wait_for(|ended| *ended).await);
    }

    fn enter(&self, since: Instant) -> Waits<'_> {
        let mut waiting = self.lock();
        waiting.entered += 1;
        let number = waiting.entered;
        waiting.since.insert(number, since);
        Waits { patience: self, number }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.patience.lock().since.remove(&self.number);
    }
}

/// A place that does not answer.
#[derive(Debug, Clone)]
pub struct Outage {
    /// The host, or the source if that has none.
    pub place: Arc<str>,
    /// When it was first asked in vain.
    pub since: SystemTime,
    /// How long ago that was.
    pub lasting: Duration,
    /// The first failure.
    pub error: source::Error,
}

/// Which places are away.
#[derive(Debug, Default)]
pub(super) struct Outages {
    /// Protects the table; held for look-ups and changes only.
    places: Mutex<HashMap<Arc<str>, Place>>,
    /// Told when an outage begins or ends, and when another reader is the first in line.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Place {
    /// When something of it came last.
    answered: Option<Instant>,
    away: Option<Away>,
    /// How many ever waited for their turn.
    came: u64,
}

#[derive(Debug)]
struct Away {
    since: SystemTime,
    began: Instant,
    error: source::Error,
    /// How often somebody has tried in turn.
    tries: u32,
    /// When the next may.
    next: Instant,
    /// Those who wait for their turn, in the order in which they came.
    line: BTreeSet<u64>,
}

/// A place in the line; left when dropped.
#[derive(Debug)]
struct InLine<'a> {
    outages: &'a Outages,
    place: &'a Arc<str>,
    number: u64,
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        if let Some(away) = self.outages.lock().get_mut(self.place).and_then(|place| place.away.as_mut()) {
            away.line.remove(&self.number);
        }
        self.outages.changed.notify_waiters();
    }
}

impl Outages {
    /// Something of `place` came.
    pub(super) fn answered(&self, place: &Arc<str>) {
        let mut places = self.lock();
        if !places.contains_key(place) && places.len() >= limits::LINES {
            places.retain(|_, place| place.away.is_some());
        }
        let known = places.entry(Arc::clone(place)).or_default();
        known.answered = Some(Instant::now());
        let away = known.away.take();
        drop(places);
        if let Some(Away { began, tries, .. }) = away {
            tracing::info!(host = %place, lasted = ?began.elapsed(), tries, "it answers again, the outage is over");
            self.changed.notify_waiters();
        }
    }

    /// A read of `place` that began at `began` has failed, in a way that may pass.
    pub(super) fn failed(&self, place: &Arc<str>, began: Instant, error: &source::Error) {
        let mut places = self.lock();
        let known = places.entry(Arc::clone(place)).or_default();
        // What was answered meanwhile shows that it is there: the fault is that of one blob, or of one connection.
        if known.away.is_some() || known.answered.is_some_and(|answered| answered >= began) {
            return;
        }
        let since = SystemTime::now().checked_sub(began.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH);
        let next = Instant::now() + FIRST_PAUSE;
        known.away = Some(Away { since, began, error: error.clone(), tries: 0, next, line: BTreeSet::new() });
        drop(places);
        self.changed.notify_waiters();
        tracing::warn!(host = %place, %error, "an outage: reads of its images wait as long as their mounts say");
    }

    /// Nothing has come since `since` of what was asked of `place` then.
    pub(super) fn silent(&self, place: &Arc<str>, since: Instant) {
        if since.elapsed() >= SILENCE && !self.is_away(place) {
            let message = format!("{place} sent nothing for {} seconds", since.elapsed().as_secs());
            // Its own answer may have begun just after.
            let began = Instant::now().checked_sub(SILENCE).unwrap_or(since);
            self.failed(place, began, &source::Error::new(ErrorKind::Unreachable, message));
        }
    }

    /// The outage of `place`, if it is away.
    pub(super) fn of(&self, place: &Arc<str>) -> Option<Outage> {
        let places = self.lock();
        let Away { since, began, error, .. } = places.get(place)?.away.as_ref()?;
        Some(Outage { place: Arc::clone(place), since: *since, lasting: began.elapsed(), error: error.clone() })
    }

    pub(super) fn is_away(&self, place: &Arc<str>) -> bool {
        self.lock().get(place).is_some_and(|place| place.away.is_some())
    }

    /// Returns when `place` is not away, or when it is the caller's turn to try. Who has failed is behind those who have
    /// not tried yet: they may want what can be had.
    async fn turn(&self, place: &Arc<str>) {
        let Some(own) = self.stand_in_line(place) else { return };
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            let next = {
                let mut places = self.lock();
                let Some(away) = places.get_mut(place).and_then(|place| place.away.as_mut()) else { return };
                let now = Instant::now();
                // A number that is not in the line is that of an outage before this one.
                let is_first = away.line.first() == Some(&own.number) || !away.line.contains(&own.number);
                if is_first && away.next <= now {
                    // How the try ends nobody may ever say: the next turn comes by itself.
                    away.tries += 1;
                    away.next = now + pause(away.tries);
                    return;
                }
                is_first.then_some(away.next)
            };
            tokio::select! {
                () = changed => {}
                () = until(next) => {}
            }
        }
    }

    fn stand_in_line<'a>(&'a self, place: &'a Arc<str>) -> Option<InLine<'a>> {
        let mut places = self.lock();
        let known = places.get_mut(place)?;
        let away = known.away.as_mut()?;
        known.came += 1;
        let number = known.came;
        away.line.insert(number);
        Some(InLine { outages: self, place, number })
    }

    /// Returns when `place` is not away.
    async fn over(&self, place: &Arc<str>) {
        self.becomes(place, false).await;
    }

    /// Returns when `place` is away.
    pub(super) async fn begins(&self, place: &Arc<str>) {
        self.becomes(place, true).await;
    }

    async fn becomes(&self, place: &Arc<str>, away: bool) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.is_away(place) == away {
                return;
            }
            changed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pause after so many tries.
fn pause(tries: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << tries.min(16)).min(LONGEST_PAUSE)
}

/// Sleeps until `deadline`, for ever if there is none.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Returns once `span` can be had without its source: its bytes have come another way.
async fn comes(layer: &Layer, span: SpanId) {
    layer.blob.arrived(layer.index.compressed(span)).await;
    if layer.index.lacks_window(span) {
        // It can be made of all of the layer.
        layer.blob.arrived(0..layer.blob.size()).await;
    }
}

/// True if a source will be asked for what `span` lacks by somebody else than the planner, which notes what is answered.
fn is_unseen(layer: &Layer, span: SpanId) -> bool {
    layer.index.lacks_window(span) || (LargeSpans::is_large(&layer.index, span) && !layer.has(span))
}

impl Fetcher {
    /// The bytes `within` the decoded `span` for a reader, as [`Self::part`] has them, and as long as `patience` says they
    /// may be waited for. The reader counts as [waiting](super::Demand) while it is being served, not while it sits out an
    /// outage.
    pub async fn part_for(
        &self,
        patience: &Patience,
        layer: &Arc<Layer>,
        span: SpanId,
        within: Range<u64>,
    ) -> Result<Bytes, Error> {
        match patience.policy {
            OnOutage::Fail => self.demanded(layer, span, within).await,
            OnOutage::Wait(longest) => tokio::select! {
                outcome = self.outlast(patience, longest, layer, (span, within)) => outcome,
                () = patience.ended() => Err(Error::Interrupted),
            },
        }
    }

    async fn outlast(
        &self,
        patience: &Patience,
        longest: Option<Duration>,
        layer: &Arc<Layer>,
        (span, within): (SpanId, Range<u64>),
    ) -> Result<Bytes, Error> {
        let outages = self.outages();
        let arrived = Instant::now();
        let deadline = longest.and_then(|longest| arrived.checked_add(longest));
        let mut waits = None;
        let mut failures = 0;
        loop {
            if outages.is_away(&layer.place) && !self.is_at_hand(layer, span) {
                waits.get_or_insert_with(|| patience.enter(arrived));
                tokio::select! {
                    () = outages.turn(&layer.place) => {}
                    () = comes(layer, span) => {}
                    () = until(deadline) => return Err(self.given_up(layer)),
                }
            }
            let is_unseen = is_unseen(layer, span);
            let began = Instant::now();
            let error = tokio::select! {
                result = self.demanded(layer, span, within.clone()) => match result {
                    Err(Error::Source(error)) if error.is_transient() => error,
                    settled => {
                        if is_unseen && settled.is_ok() {
                            outages.answered(&layer.place);
                        }
                        return settled;
                    }
                },
                () = self.is_hopeless(layer, deadline) => return Err(self.given_up(layer)),
            };
            outages.failed(&layer.place, began, &error);
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(error.into());
            }
            waits.get_or_insert_with(|| patience.enter(arrived));
            failures += 1;
            if !outages.is_away(&layer.place) || self.is_at_hand(layer, span) {
                tokio::select! {
                    () = sleep(pause(failures)) => {}
                    () = until(deadline) => return Err(error.into()),
                }
            }
        }
    }

    /// Returns when the source of `layer` answers again, or when it is time for work that nobody waits for to try it.
    pub async fn rest(&self, layer: &Layer) {
        self.rest_for(layer, REST).await;
    }

    pub(super) async fn rest_for(&self, layer: &Layer, longest: Duration) {
        if self.is_away(layer) {
            tokio::select! {
                () = self.outages().over(&layer.place) => {}
                () = sleep(longest) => {}
            }
        } else {
            sleep(longest).await;
        }
    }

    /// The outage of the source of `layer`, if there is one.
    pub fn outage(&self, layer: &Layer) -> Option<Outage> {
        self.outages().of(&layer.place)
    }

    pub(super) fn is_away(&self, layer: &Layer) -> bool {
        self.outages().is_away(&layer.place)
    }

    async fn demanded(&self, layer: &Arc<Layer>, span: SpanId, within: Range<u64>) -> Result<Bytes, Error> {
        let _waiting = self.demand().enter();
        self.part(layer, span, within).await
    }

    /// True if the span can be had without the source, as far as is known.
    fn is_at_hand(&self, layer: &Layer, span: SpanId) -> bool {
        self.has_decoded(layer, span) || layer.is_at_hand(span) || layer.is_whole()
    }

    /// Returns when the time of a reader is over and its source is away. One that is being served takes the time it takes.
    async fn is_hopeless(&self, layer: &Layer, deadline: Option<Instant>) {
        until(deadline).await;
        while !self.is_away(layer) {
            sleep(LOOK).await;
        }
    }

    /// Why a reader has nothing when its time is over.
    fn given_up(&self, layer: &Layer) -> Error {
        self.outage(layer).map_or(Error::Interrupted, |outage| outage.error.into())
    }
}

#[cfg(test)]
mod tests;
