//! Who waits for bytes: lets background work use only what readers leave.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// Counts the reads that are waiting. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Demand {
    waiting: Arc<watch::Sender<usize>>,
}

/// One waiting read; ends when dropped.
#[derive(Debug)]
pub struct Waiting(Arc<watch::Sender<usize>>);

impl Default for Demand {
    fn default() -> Self {
        Self { waiting: Arc::new(watch::Sender::new(0)) }
    }
}

impl Demand {
    /// Marks a reader as waiting until the guard is dropped.
    pub fn enter(&self) -> Waiting {
        self.waiting.send_modify(|count| *count += 1);
        Waiting(Arc::clone(&self.waiting))
    }

    /// True while a reader waits.
    pub fn is_waiting(&self) -> bool {
        *self.waiting.borrow() > 0
    }

    /// Returns once no reader has waited for `quiet`.
    pub async fn idle_for(&self, quiet: Duration) {
        let mut waiting = self.waiting.subscribe();
        loop {
            if waiting.wait_for(|count| *count == 0).await.is_err() {
                return;
            }
            waiting.mark_unchanged();
            if tokio::time::timeout(quiet, waiting.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Returns as soon as a reader waits.
    pub async fn begins(&self) {
        let mut waiting = self.waiting.subscribe();
        if waiting.wait_for(|count| *count > 0).await.is_err() {
            tracing::debug!("the demand counter is gone: nobody can wait any more");
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}
