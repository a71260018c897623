//! Signals while the daemon works for a command: the command ends in order, so that the terminal is left as it was, no half
//! of a file is left behind, and the exit code says what happened. The connection closes with it, which cancels the
//! request in the daemon.

use super::stop::Stop;
use crate::daemon::{Failure, Signals};

/// Runs `work`, which blocks, until it is done, the user presses Ctrl-C, or somebody else wants the command to end; then it
/// is left to end with the process.
pub(super) fn or_interrupted<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Stop> + Send + 'static,
) -> Result<T, Stop> {
    let cannot = |error| Failure::io("cannot wait for signals", &error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(cannot)?;
    let outcome = runtime.block_on(async {
        let mut signals = Signals::of_command().map_err(cannot)?;
        tokio::select! {
            done = tokio::task::spawn_blocking(work) => match done {
                Ok(outcome) => outcome,
                Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
            },
            kind = signals.end() => Err(Stop::Interrupted(kind)),
        }
    });
    runtime.shutdown_background();
    outcome
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
