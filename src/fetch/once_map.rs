//! Single flight: work that several callers want at once is done once.
//!
//! The work runs as a task of its own, so a caller that gives up does not take it from the others. It ends early only
//! when nobody waits for it any more.

use std::collections::HashMap;
use std::hash::Hash;

use super::sync::{AbortHandle, Arc, Mutex, MutexGuard, PoisonError, Weak, spawn, watch};

/// Work in progress by key. The result is handed to everyone who joined and is not kept.
#[derive(Debug)]
pub struct OnceMap<K, V> {
    /// Protects the table of flights only; taken for look-ups and changes of the table, never across an await.
    flights: Arc<Mutex<HashMap<K, Flight<V>>>>,
}

#[derive(Debug)]
struct Flight<V> {
    result: watch::Receiver<Option<V>>,
    /// Held by every waiter; the last one to give up aborts the work.
    interest: Weak<Interest>,
}

#[derive(Debug, Default)]
struct Interest(Mutex<Option<AbortHandle>>);

impl Drop for Interest {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.0).take() {
            // A finished task is not affected.
            task.abort();
        }
    }
}

impl<K, V> Default for OnceMap<K, V> {
    fn default() -> Self {
        Self { flights: Arc::default() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K, V> OnceMap<K, V>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Waits for the result of the work under `key`, starting it with `work` if nobody has. Joining happens in the call
    /// itself, not at the first poll. `None` if the work ended without a result (it panicked, or the runtime stops).
    pub fn join<W, F>(&self, key: K, work: W) -> impl Future<Output = Option<V>> + Send + use<K, V, W, F>
    where
        W: FnOnce() -> F,
        F: Future<Output = V> + Send + 'static,
    {
        let (mut result, interest) = self.enter(key, work);
        async move {
            let value = match result.wait_for(Option::is_some).await {
                Ok(value) => value.clone(),
                Err(_) => None,
            };
            drop(interest);
            value
        }
    }

    /// Takes the work under `key` for the calling thread, unless somebody is at it. Others who join meanwhile wait for
    /// [`Claim::finish`] or [`Claim::hand_over`]; without either they get none.
    pub fn claim(&self, key: K) -> Option<Claim<K, V>> {
        let mut flights = lock(&self.flights);
        if flights.get(&key).is_some_and(|flight| flight.interest.strong_count() > 0) {
            return None;
        }
        let (result, receiver) = watch::channel(None);
        let interest = Arc::new(Interest::default());
        flights.insert(key.clone(), Flight { result: receiver, interest: Arc::downgrade(&interest) });
        let landing = Landing { flights: Arc::clone(&self.flights), key, interest: Arc::downgrade(&interest) };
        Some(Claim { landing, result, interest })
    }

    fn enter<F>(&self, key: K, work: impl FnOnce() -> F) -> (watch::Receiver<Option<V>>, Arc<Interest>)
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&key)
            && let Some(interest) = flight.interest.upgrade()
        {
            return (flight.result.clone(), interest);
        }
        let (sender, receiver) = watch::channel(None);
        let interest = Arc::new(Interest::default());
        let flight = Flight { result: receiver.clone(), interest: Arc::downgrade(&interest) };
        flights.insert(key.clone(), flight);
        drop(flights);
        let landing = Landing { flights: Arc::clone(&self.flights), key, interest: Arc::downgrade(&interest) };
        // Not under the lock: a runtime that is going down drops the task at once, and the landing with it.
        run(work(), landing, sender, &interest);
        (receiver, interest)
    }
}

/// Runs `work` as a task for as long as there is `interest`.
fn run<K, V, F>(work: F, landing: Landing<K, V>, result: watch::Sender<Option<V>>, interest: &Interest)
where
    K: Eq + Hash + Send + 'static,
    V: Send + Sync + 'static,
    F: Future<Output = V> + Send + 'static,
{
    let task = spawn(async move {
        let value = work.await;
        drop(landing);
        result.send_replace(Some(value));
    });
    *lock(&interest.0) = Some(task.abort_handle());
}

/// Work that a thread does itself.
#[derive(Debug)]
pub struct Claim<K: Eq + Hash, V> {
    landing: Landing<K, V>,
    result: watch::Sender<Option<V>>,
    /// Keeps the flight joinable.
    interest: Arc<Interest>,
}

impl<K: Eq + Hash, V> Claim<K, V> {
    /// Hands the result to everyone who joined.
    pub fn finish(self, value: V) {
        let Self { landing, result, interest: _joinable } = self;
        drop(landing);
        result.send_replace(Some(value));
    }

    /// Lets `work` find the result for those who joined. If nobody has, it does not begin.
    pub fn hand_over<F>(self, work: F)
    where
        K: Send + 'static,
        V: Send + Sync + 'static,
        F: Future<Output = V> + Send + 'static,
    {
        let is_alone = {
            let mut flights = lock(&self.landing.flights);
            let is_alone = Arc::strong_count(&self.interest) == 1;
            if is_alone {
                flights.remove(&self.landing.key);
            }
            is_alone
        };
        if !is_alone {
            run(work, self.landing, self.result, &self.interest);
        }
    }
}

/// Takes a flight out of the table when its work ends, however it ends.
#[derive(Debug)]
struct Landing<K: Eq + Hash, V> {
    flights: Arc<Mutex<HashMap<K, Flight<V>>>>,
    key: K,
    interest: Weak<Interest>,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        let mut flights = lock(&self.flights);
        // An abandoned flight may have been replaced by a new one under the same key, which must stay.
        if flights.get(&self.key).is_some_and(|flight| flight.interest.ptr_eq(&self.interest)) {
            flights.remove(&self.key);
        }
    }
}

#[cfg(test)]
impl<K, V> OnceMap<K, V> {
    /// True if nothing is left in the table.
    pub(super) fn is_empty(&self) -> bool {
        lock(&self.flights).is_empty()
    }
}
