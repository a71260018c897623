//! Fill: completing the layers of one mount in the background, and waiting until that is done.
//!
//! A mount works without it, so it never ends one. What cannot be completed is kept as a [`Failure`], for `status` and
//! for who waits; the other layers are completed all the same. [`Filling`] is all of it for one mount.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytesize::ByteSize;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::AbortHandle;

use super::control::{Event, FillReport};
use super::events::{TELL, send, shown};
use super::{Code, Failure, lacking};
use crate::fetch::{self, Fetcher, Layer, Urgency};
use crate::fs::Chain;
use crate::image::{ImageLayer, Images, Streamed};
use crate::oci::Printable;
use crate::source::ErrorKind;
use crate::store::{self, Store};

/// The fill of one mount; ends when dropped.
#[derive(Debug)]
pub(super) struct Filling {
    fetcher: Fetcher,
    store: Arc<Store>,
    /// Each layer once, from the bottom.
    layers: Vec<Arc<Layer>>,
    state: Arc<watch::Sender<State>>,
    /// Told after each layer that was fetched, and at the end.
    grown: Arc<Notify>,
    /// Told when what was complete may not be so any more.
    again: Arc<Notify>,
    /// The task, once there is one. Protects only the handle.
    task: Mutex<Option<AbortHandle>>,
}

/// How far it is.
#[derive(Debug, Clone, Default)]
struct State {
    phase: Phase,
    /// Why a layer is not complete: the last failure, unless it has passed.
    failure: Option<Failure>,
}

/// How often it is looked whether the cache has room again, and the least that a cache which took nothing is left alone.
const LOOK: Duration = Duration::from_secs(5);

/// The most that it is left alone: each try fetches what it may not take either.
const LONGEST: Duration = Duration::from_secs(300);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Off,
    Running,
    /// For the source to come back, or for the cache to take something again.
    Waiting,
    Complete,
    Failed,
}

impl Drop for Filling {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
        // What the mount kept may go now.
        self.grown.notify_one();
    }
}

impl Filling {
    /// Not begun yet.
    pub(super) fn new(images: &Images, layers: &[ImageLayer], grown: Arc<Notify>) -> Self {
        let mut seen = HashSet::new();
        let distinct = layers.iter().filter(|layer| seen.insert(layer.descriptor.digest));
        let layers = distinct.map(|layer| Arc::clone(&layer.layer)).collect();
        let (fetcher, store) = (images.fetcher().clone(), Arc::clone(images.store()));
        Self { fetcher, store, layers, state: Arc::default(), grown, again: Arc::default(), task: Mutex::default() }
    }

    /// Begins, if that has not happened already.
    pub(super) fn start(&self, urgency: Urgency) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        if task.is_none() {
            self.state.send_modify(|state| state.phase = Phase::Running);
            let (fetcher, store) = (self.fetcher.clone(), Arc::clone(&self.store));
            let (state, grown) = (Arc::clone(&self.state), Arc::clone(&self.grown));
            let again = Arc::clone(&self.again);
            let worker = Worker { fetcher, store, state, grown, again, urgency };
            *task = Some(tokio::spawn(worker.run(self.layers.clone())).abort_handle());
        }
    }

    /// Looks again for what is missing, if it has ever begun: the cache has lost something.
    pub(super) fn look_again(&self) {
        self.state.send_if_modified(|state| {
            let was_complete = state.phase == Phase::Complete;
            state.phase = if was_complete { Phase::Running } else { state.phase };
            was_complete
        });
        self.again.notify_one();
    }

    /// Begins if need be, and returns once every layer is complete, or with the first failure. Tells progress to `events`.
    ///
    /// Dropping the future ends the waiting, not the fill.
    pub(super) async fn wait(&self, events: &mpsc::Sender<Event>) -> Result<(), Failure> {
        self.start(Urgency::Now);
        let mut states = self.state.subscribe();
        let mut tick = tokio::time::interval(TELL);
        let begun = self.progress();
        loop {
            send(events, Event::Progress(shown(since(begun, self.progress())))).await;
            let State { phase, failure } = states.borrow_and_update().clone();
            match failure {
                // Readers may have completed what it had given up.
                Some(_) if phase == Phase::Failed && self.is_settled() => return Ok(()),
                Some(failure) => return Err(failure),
                None if phase == Phase::Complete => return Ok(()),
                None => {}
            }
            tokio::select! {
                // The sender is this value's own, so it is there.
                _ = states.changed() => {}
                _ = tick.tick() => {}
            }
        }
    }

    /// What `status` tells.
    pub(super) fn report(&self) -> FillReport {
        let State { phase, failure } = self.state.borrow().clone();
        if matches!(phase, Phase::Off | Phase::Failed) && self.is_settled() {
            return FillReport { state: "complete".to_owned(), error: None };
        }
        let state = match phase {
            Phase::Off => "off",
            Phase::Running => "running",
            Phase::Waiting => "waiting",
            Phase::Complete => "complete",
            Phase::Failed => "failed",
        };
        let error = failure.map(|failure| [&[failure.error][..], &failure.causes].concat().join(": "));
        FillReport { state: state.to_owned(), error }
    }

    /// Returns once a layer is found to be something else than its index says; never, if that does not happen.
    pub(super) async fn condemned(&self) {
        let mut states = self.state.subscribe();
        let is_condemned = |_: &State| self.layers.iter().any(|layer| layer.condemned().is_some());
        // The sender is this value's own, so it is there.
        drop(states.wait_for(is_condemned).await);
    }

    /// True if nothing is left to be done, by whomever it was done.
    fn is_settled(&self) -> bool {
        self.layers.iter().all(|layer| is_settled(layer))
    }

    fn progress(&self) -> Streamed {
        let layers = self.layers.iter();
        Streamed {
            layers: self.layers.len(),
            finished: layers.clone().filter(|layer| is_settled(layer)).count(),
            total: layers.clone().map(|layer| layer.blob.size()).sum(),
            taken: layers.clone().map(|layer| layer.blob.present_bytes()).sum(),
            kept: 0,
            received: layers.map(|layer| layer.traffic.bytes()).sum(),
        }
    }
}

/// What has come since it was `begun`; what was here then is kept.
fn since(begun: Streamed, now: Streamed) -> Streamed {
    Streamed { kept: begun.taken, received: now.received.saturating_sub(begun.received), ..now }
}

/// The task of one fill.
struct Worker {
    fetcher: Fetcher,
    store: Arc<Store>,
    state: Arc<watch::Sender<State>>,
    grown: Arc<Notify>,
    again: Arc<Notify>,
    urgency: Urgency,
}

impl Worker {
    /// Completes the layers, and again whenever it is to look again.
    async fn run(self, layers: Vec<Arc<Layer>>) {
        loop {
            self.complete_all(layers.clone()).await;
            self.again.notified().await;
        }
    }

    /// Completes the layers from the bottom, one after the other.
    async fn complete_all(&self, layers: Vec<Arc<Layer>>) {
        let (layers, lacking): (Vec<_>, Vec<_>) =
            layers.into_iter().partition(|layer| layer.reader.is_some() || lacking::of(layer).missing == 0);
        let lacks: Vec<_> = lacking.iter().map(|layer| lacking::of(layer)).collect();
        let mut given_up = lacking::failure(&lacks, lacks.len() + layers.len());
        self.become_state(Phase::Running, given_up.clone());
        for layer in layers {
            if let Err(failure) = self.complete(&layer, given_up.as_ref()).await {
                given_up = Some(failure);
            }
            self.become_state(Phase::Running, given_up.clone());
        }
        let phase = if given_up.is_none() { Phase::Complete } else { Phase::Failed };
        self.become_state(phase, given_up);
    }

    /// Completes one layer, however long its source is away, or the cache takes nothing.
    async fn complete(&self, layer: &Arc<Layer>, given_up: Option<&Failure>) -> Result<(), Failure> {
        let mut pause = LOOK;
        while !is_settled(layer) {
            let present = layer.blob.present_bytes();
            match fetch::fill(&self.fetcher, layer, self.urgency).await {
                Ok(()) => {
                    tracing::info!(layer = %layer.index.layer(), "layer is complete");
                    self.grown.notify_one();
                }
                Err(fetch::Error::Source(error)) if error.kind() == ErrorKind::Unreachable => {
                    tracing::info!(layer = %layer.index.layer(), %error, "fill waits");
                    self.become_state(Phase::Waiting, Some(Failure::from(&error)));
                    self.fetcher.rest(layer).await;
                    self.become_state(Phase::Running, given_up.cloned());
                }
                Err(error) => {
                    let lack = self.lack_of_room(layer).await;
                    if lack.is_none() && !is_refused(&error) {
                        tracing::warn!(layer = %layer.index.layer(), error = %Chain(&error), "fill gives up");
                        return Err(Failure::from(&error));
                    }
                    let failure = lack.unwrap_or_else(|| Failure::from(&error));
                    tracing::warn!(layer = %layer.index.layer(), error = %failure, "fill waits");
                    self.become_state(Phase::Waiting, Some(failure));
                    pause = if layer.blob.present_bytes() > present { LOOK } else { pause };
                    tokio::time::sleep(pause).await;
                    pause = (2 * pause).min(LONGEST);
                    while self.lack_of_room(layer).await.is_some() {
                        tokio::time::sleep(LOOK).await;
                    }
                    self.become_state(Phase::Running, given_up.cloned());
                }
            }
        }
        Ok(())
    }

    /// The failure for a layer that is not complete because its file system is full; none if it has room for the rest.
    async fn lack_of_room(&self, layer: &Arc<Layer>) -> Option<Failure> {
        let (store, missing) = (Arc::clone(&self.store), lacking::of(layer).missing);
        let free = tokio::task::spawn_blocking(move || store.free_bytes().map(|free| (free, store))).await;
        let (free, store) = free.ok()?.ok().filter(|(free, _)| *free < missing)?;
        let shown = |bytes| ByteSize::b(bytes).display().iec();
        let dir = Printable::path(store.dir()).to_string();
        let what = format!("the cache has no room for the rest of layer {}", layer.index.layer());
        let why = format!("{} are missing and {} are free on the file system of {dir}", shown(missing), shown(free));
        Some(Failure::new(Code::Cache, what).because(why).hint("free some space; it goes on by itself then"))
    }

    fn become_state(&self, phase: Phase, failure: Option<Failure>) {
        self.state.send_replace(State { phase, failure });
    }
}

/// True if the cache did not take what was fetched. It may have had no room for a moment, or have been taken away.
fn is_refused(error: &fetch::Error) -> bool {
    matches!(error, fetch::Error::Store(error) if matches!(**error, store::Error::Io { .. }))
}

/// True if nothing is left to be done for a layer: all of it is here, and its index says what is so.
fn is_settled(layer: &Layer) -> bool {
    layer.blob.is_complete() && layer.is_proven()
}

#[cfg(test)]
mod tests {
    use super::super::control::Progress;
    use super::*;

    #[test]
    fn filling_is_shown_byte_by_byte_from_what_was_here_when_somebody_began_to_wait() {
        let at = |taken, received| Streamed { layers: 1, finished: 0, total: 100, taken, kept: 0, received };
        let begun = at(40, 25);
        let told = |now| {
            let Progress { taken, received, .. } = shown(since(begun, now));
            (taken, received)
        };
        assert_eq!(told(begun), (40, 0), "what came before is no speed");
        assert_eq!(told(at(40, 30)), (45, 5), "bytes of a range that is not all here");
        assert_eq!(told(at(60, 45)), (60, 20));
        assert_eq!(told(at(100, 95)), (100, 70), "what was sent twice is here once");
    }
}
