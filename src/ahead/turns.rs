//! Whose bytes come next: what is needed earlier goes first, however late it is found out.
//!
//! The planner sends what it is given in that order. A module whose name is learned only when the one before it has come
//! would so wait behind everything that is known already, needed or not for a while. So no more is given to the planner than
//! the line holds, and the rest waits here, in the order of need.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// When something is needed, as far as is known: the place of what names it in what that is part of, and so on from the entry
/// point down. A program goes deep first, so what compares as less is needed earlier; the entry point itself is empty.
pub(super) type Order = Vec<u32>;

/// The order of part `number` of something.
pub(super) fn part(of: &Order, number: u32) -> Order {
    of.iter().copied().chain([number]).collect()
}

/// Hands out turns.
#[derive(Debug)]
pub(super) struct Turns {
    /// Protects the state; held for short computations.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Bytes that may still be asked for. A turn may take more than there are.
    free: i64,
    /// Turns asked for so far.
    count: u64,
    /// With the bytes that each is for.
    waiting: BTreeMap<(Order, u64), (i64, oneshot::Sender<Turn>)>,
}

/// The right to ask for some bytes; they count as asked for until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    bytes: i64,
}

impl Turns {
    /// Turns for at most about `window` bytes at a time.
    pub(super) fn new(window: u64) -> Arc<Self> {
        let free = i64::try_from(window.max(1)).unwrap_or(i64::MAX);
        Arc::new(Self { state: Mutex::new(State { free, count: 0, waiting: BTreeMap::new() }) })
    }

    /// Waits for the turn of what is needed at `order`; none if there are no more turns.
    pub(super) async fn wait(self: &Arc<Self>, order: &Order, bytes: u64) -> Option<Turn> {
        let (sender, turn) = oneshot::channel();
        {
            let mut state = self.lock();
            state.count += 1;
            let number = state.count;
            state.waiting.insert((order.clone(), number), (i64::try_from(bytes).unwrap_or(i64::MAX), sender));
        }
        self.hand_out();
        turn.await.ok()
    }

    fn hand_out(self: &Arc<Self>) {
        loop {
            let (sender, mut turn) = {
                let mut state = self.lock();
                if state.free <= 0 {
                    return;
                }
                let Some((_, (bytes, sender))) = state.waiting.pop_first() else { return };
                state.free = state.free.saturating_sub(bytes);
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
    fn give_back(&mut self, bytes: i64) {
        self.free = self.free.saturating_add(bytes);
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
        let turns = Turns::new(100);
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
        assert_eq!(turns.lock().free, 100);
    }
}
