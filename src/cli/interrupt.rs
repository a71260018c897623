//! Signals while the daemon works for a command: the command ends in order, so that the terminal is left as it was, no half
//! of a file is left behind, and the exit code says what happened. The connection closes with it, which cancels the
//! request in the daemon.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::stop::Stop;
use crate::daemon::{Failure, is_ignored};

/// Runs `work`, which blocks, until it is done, the user presses Ctrl-C, or somebody else wants the command to end; then it
/// is left to end with the process.
pub(super) fn or_interrupted<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Stop> + Send + 'static,
) -> Result<T, Stop> {
    let cannot = |error| Failure::io("cannot wait for signals", &error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(cannot)?;
    let outcome = runtime.block_on(async {
        let signals = ending().map_err(cannot)?;
        tokio::select! {
            done = tokio::task::spawn_blocking(work) => match done {
                Ok(outcome) => outcome,
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            },
            kind = first(signals) => Err(Stop::Interrupted(kind)),
        }
    });
    runtime.shutdown_background();
    outcome
}

/// The signals that end a command.
fn ending() -> io::Result<Vec<(SignalKind, Signal)>> {
    let mut kinds = vec![SignalKind::interrupt(), SignalKind::terminate()];
    // nohup(1) starts programs with it ignored, and means it.
    if !is_ignored(SignalKind::hangup()) {
        kinds.push(SignalKind::hangup());
    }
    kinds.into_iter().map(|kind| Ok((kind, signal(kind)?))).collect()
}

/// Waits for the first of `signals`.
async fn first(mut signals: Vec<(SignalKind, Signal)>) -> SignalKind {
    poll_fn(|context| {
        let mut is_told = |signal: &mut Signal| signal.poll_recv(context).is_ready();
        let told = signals.iter_mut().find_map(|(kind, signal)| is_told(signal).then_some(*kind));
        told.map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_ends_by_itself_gives_its_outcome() {
        assert_eq!(or_interrupted(|| Ok(7)).expect("it succeeds"), 7);
        assert!(matches!(or_interrupted::<()>(|| Err(Stop::OutputClosed)), Err(Stop::OutputClosed)));
    }
}
