//! Who waits for bytes: lets background work use only what readers leave.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Counts the reads that are waiting. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Demand {
    state: Arc<watch::Sender<State>>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    /// Reads that wait now.
    waiting: usize,
    /// When one began or ended last, or read without waiting.
    changed: Instant,
}

/// One waiting read; ends when dropped.
#[derive(Debug)]
pub struct Waiting(Arc<watch::Sender<State>>);

impl Default for Demand {
    fn default() -> Self {
        // Nothing has happened yet, but whoever starts a daemon is about to read.
        Self { state: Arc::new(watch::Sender::new(State { waiting: 0, changed: Instant::now() })) }
    }
}

impl Demand {
    /// Marks a reader as waiting until the guard is dropped.
    pub fn enter(&self) -> Waiting {
        self.state.send_modify(|state| *state = State { waiting: state.waiting + 1, changed: Instant::now() });
        Waiting(Arc::clone(&self.state))
    }

    /// True while a reader waits.
    pub fn is_waiting(&self) -> bool {
        self.state.borrow().waiting > 0
    }

    /// Notes a read that did not have to wait.
    pub fn note(&self) {
        // Nobody is woken for it: whoever waits for quiet looks at the time when its own time is up.
        self.state.send_if_modified(|state| {
            state.changed = Instant::now();
            false
        });
    }

    /// Returns once no reader has read or waited for `quiet`; at once if that is so already.
    pub async fn idle_for(&self, quiet: Duration) {
        let mut states = self.state.subscribe();
        loop {
            let State { waiting, changed } = *states.borrow_and_update();
            let until = changed + quiet;
            if waiting > 0 {
                if states.wait_for(|state| state.waiting == 0).await.is_err() {
                    return;
                }
            } else if until > Instant::now() {
                tokio::time::sleep_until(until).await;
            } else {
                return;
            }
        }
    }

    /// Returns as soon as a reader waits.
    pub async fn begins(&self) {
        let mut states = self.state.subscribe();
        if states.wait_for(|state| state.waiting > 0).await.is_err() {
            tracing::debug!("the demand counter is gone: nobody can wait any more");
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.send_modify(|state| {
            *state = State { waiting: state.waiting.saturating_sub(1), changed: Instant::now() };
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_millis(100);

    #[tokio::test(start_paused = true)]
    async fn idle_begins_only_when_the_last_reader_has_been_gone_for_long_enough() {
        let demand = Demand::default();
        let (first, second) = (demand.enter(), demand.enter());
        let idle = demand.idle_for(QUIET);
        tokio::pin!(idle);
        drop(first);
        let early = tokio::time::timeout(QUIET * 2, &mut idle).await;
        assert!(early.is_err() && demand.is_waiting(), "one reader still waits");
        let gone = Instant::now();
        drop(second);
        idle.await;
        assert!(gone.elapsed() >= QUIET, "the quiet time was not over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_demand_that_is_idle_already_does_not_wait_again() {
        let demand = Demand::default();
        demand.idle_for(QUIET).await;
        let again = demand.idle_for(QUIET);
        tokio::select! {
            biased;
            () = again => {}
            () = std::future::ready(()) => panic!("it waits again"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_need_not_wait_is_no_quiet_either() {
        let demand = Demand::default();
        demand.idle_for(QUIET).await;
        let noted = Instant::now();
        demand.note();
        demand.idle_for(QUIET).await;
        assert!(noted.elapsed() >= QUIET && !demand.is_waiting());
    }

    #[tokio::test(start_paused = true)]
    async fn begins_waits_for_a_reader() {
        let demand = Demand::default();
        assert!(tokio::time::timeout(QUIET, demand.begins()).await.is_err());
        let _reader = demand.enter();
        demand.begins().await;
    }
}
