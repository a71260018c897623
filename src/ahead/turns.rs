//! Whose bytes come next: what is needed earlier goes first, however late it is found out.
//!
//! The planner sends what it is given in that order. A module whose name is learned only when the one before it has come
//! would so wait behind everything that is known already, needed or not for a while. So no more is given to the planner than
//! the line holds, and the rest waits here, in the order of need.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::fetch::{Error, Fetcher, Layer, Priority};
use crate::index::SpanId;
use crate::limits::AHEAD_DEPTH;

/// When something is needed, as far as is known: the place of what names it in what that is part of, and so on from the entry
/// point down. A program goes deep first, so what compares as less is needed earlier; the entry point itself is empty.
pub(super) type Order = Vec<u32>;

/// The first number of the order of what is needed after all else, if at all.
pub(super) const LAST: u32 = u32::MAX;

/// The order of part `number` of something.
pub(super) fn part(of: &Order, number: u32) -> Order {
    of.iter().copied().chain([number]).take(AHEAD_DEPTH).collect()
}

/// Hands out turns.
pub(super) struct Turns {
    window: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Protects the state; held for short computations.
    state: Mutex<State>,
}

impl std::fmt::Debug for Turns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turns").field("state", &self.state).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct State {
    /// Bytes that are asked for.
    taken: u64,
    /// Turns asked for so far.
    count: u64,
    /// With the bytes that each is for.
    waiting: BTreeMap<(Order, u64), (u64, oneshot::Sender<Turn>)>,
}

/// The right to ask for some bytes; they count as asked for until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    bytes: u64,
}

impl Turns {
    /// Turns for at most about as many bytes at a time as `window` says; it is asked each time.
    pub(super) fn new(window: impl Fn() -> u64 + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { window: Box::new(window), state: Mutex::default() })
    }

    /// Fetches `spans`, needed at `order`, in their turn; they take `bytes` of the line that nobody else has taken.
    pub(super) async fn fetch(
        self: &Arc<Self>,
        fetcher: &Fetcher,
        order: &Order,
        bytes: u64,
        spans: &[(Arc<Layer>, SpanId)],
    ) -> Result<(), Error> {
        let turn = if bytes > 0 { self.wait(order, bytes).await } else { None };
        let fetched = fetcher.prefetch(spans, Priority::Profile).await;
        // What a source does not give now must not stand before what others give.
        drop(turn);
        match fetched {
            Ok(()) => Ok(()),
            Err(_) => fetcher.prefetch_in_the_end(spans, Priority::Profile).await,
        }
    }

    /// Waits for the turn of what is needed at `order`; none if there are no more turns.
    async fn wait(self: &Arc<Self>, order: &Order, bytes: u64) -> Option<Turn> {
        let (sender, turn) = oneshot::channel();
        {
            let mut state = self.lock();
            state.count += 1;
            let number = state.count;
            state.waiting.insert((order.clone(), number), (bytes, sender));
        }
        self.hand_out();
        turn.await.ok()
    }

    fn hand_out(self: &Arc<Self>) {
        let window = (self.window)();
        loop {
            let (sender, mut turn) = {
                let mut state = self.lock();
                if state.taken >= window {
                    return;
                }
                let Some((_, (bytes, sender))) = state.waiting.pop_first() else { return };
                state.taken = state.taken.saturating_add(bytes);
                (sender, Turn { turns: Arc::clone(self), bytes })
            };
            // Who does not wait any more leaves it to the next; not by dropping it, which would come here again.
            if let Err(unwanted) = sender.send(turn) {
                turn = unwanted;
                let bytes = std::mem::take(&mut turn.bytes);
                self.lock().give_back(bytes);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn give_back(&mut self, bytes: u64) {
        self.taken = self.taken.saturating_sub(bytes);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.turns.lock().give_back(self.bytes);
            self.turns.hand_out();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_needed_earlier_goes_first_however_late_it_asks() {
        let turns = Turns::new(|| 100);
        let first = turns.wait(&vec![5], 300).await.expect("nobody is before it");
        let came = Arc::new(Mutex::new(Vec::new()));
        let mut tasks = tokio::task::JoinSet::new();
        for order in [vec![3], vec![1, 2], vec![1], vec![], vec![1, 1, 7]] {
            let (turns, came) = (Arc::clone(&turns), Arc::clone(&came));
            tasks.spawn(async move {
                let turn = turns.wait(&order, 100).await.expect("a turn for everybody");
                came.lock().expect("no test panics with it").push(order);
                drop(turn);
            });
            tokio::task::yield_now().await;
        }
        // One that gives up takes nothing with it.
        let given_up = tokio::time::timeout(std::time::Duration::from_millis(1), turns.wait(&vec![0], 50)).await;
        assert!(given_up.is_err() && came.lock().expect("no test panics with it").is_empty());
        drop(first);
        while tasks.join_next().await.is_some() {}
        assert_eq!(
            *came.lock().expect("no test panics with it"),
            [vec![], vec![1], vec![1, 1, 7], vec![1, 2], vec![3]]
        );
        assert_eq!(turns.lock().taken, 0);
    }
}
