//! What the embedded registry was asked, and what it answered.
//!
//! The demo tells from it what was never fetched; tests count round trips by it. A [`Record`] exists from the arrival of its
//! request on and grows while the answer goes out, so that a stalled answer can be seen too.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::request::Request;
use crate::limits::DEMO_REQUESTS;

/// One request and what became of it.
#[derive(Debug, Clone)]
pub struct Record {
    /// What was asked.
    pub request: Request,
    /// The status that was answered; 0 while the answer has not begun.
    pub status: u16,
    /// Bytes of the body handed to the connection so far; those that a broken connection lost count too.
    pub sent: u64,
    /// When it arrived, since the start of the registry.
    pub arrived: Duration,
    /// When the last byte was handed to the connection, or the answer was cut; none while it is under way.
    pub ended: Option<Duration>,
}

/// The shared log.
#[derive(Debug, Clone)]
pub(super) struct Log {
    started: Instant,
    state: Arc<Mutex<State>>,
}

/// Records by number: the first in `records` has the number `first`.
#[derive(Debug, Default)]
struct State {
    first: u64,
    records: VecDeque<Record>,
    attempts: HashMap<(String, String), u64>,
}

impl Default for Log {
    fn default() -> Self {
        Self { started: Instant::now(), state: Arc::default() }
    }
}

impl Log {
    /// Numbers a request and begins its record.
    pub(super) fn begin(&self, request: &mut Request) {
        let arrived = self.started.elapsed();
        let mut state = self.lock();
        if state.attempts.len() >= DEMO_REQUESTS {
            state.attempts.clear();
        }
        let attempts = state.attempts.entry((request.method.to_string(), request.path.clone())).or_default();
        request.attempt = *attempts;
        *attempts += 1;
        request.number = state.first + state.records.len() as u64;
        if state.records.len() >= DEMO_REQUESTS {
            state.records.pop_front();
            state.first += 1;
        }
        state.records.push_back(Record { request: request.clone(), status: 0, sent: 0, arrived, ended: None });
    }

    pub(super) fn answered(&self, number: u64, status: u16) {
        self.change(number, |record| record.status = status);
    }

    pub(super) fn sent(&self, number: u64, bytes: u64) {
        self.change(number, |record| record.sent += bytes);
    }

    pub(super) fn ended(&self, number: u64) {
        let now = self.started.elapsed();
        self.change(number, |record| {
            record.ended.get_or_insert(now);
        });
    }

    pub(super) fn records(&self) -> Vec<Record> {
        self.lock().records.iter().cloned().collect()
    }

    pub(super) fn forget(&self) {
        let mut state = self.lock();
        state.first += state.records.len() as u64;
        state.records.clear();
    }

    /// A record that was forgotten meanwhile is none to change.
    fn change(&self, number: u64, change: impl FnOnce(&mut Record)) {
        let mut state = self.lock();
        let place = number.checked_sub(state.first).and_then(|place| usize::try_from(place).ok());
        if let Some(record) = place.and_then(|place| state.records.get_mut(place)) {
            change(record);
        }
    }

    /// Every change leaves a valid log, whatever panics in between.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
