//! Signals: which end a daemon or a command in order, and which must not end a daemon at all.
//!
//! Most signals that a daemon does not catch kill it, and what it has mounted then hangs on a dead connection. So those that
//! mean "end" are caught before anything is mounted, and those that are sent by mistake, or mean something to other
//! daemons only, are caught for nothing.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end a program in order, caught while this lives and, where nobody asks, ignored ever after.
#[derive(Debug)]
pub struct Signals {
    ending: Vec<(SignalKind, Signal)>,
}

impl Signals {
    /// Begins to catch those of a command. Must be called in a runtime.
    pub fn of_command() -> io::Result<Self> {
        Self::catch([SignalKind::interrupt(), SignalKind::terminate()].into_iter().chain(hangup()))
    }

    /// Begins to catch those of a daemon. `is_attached` is for one that runs in somebody's terminal, whose end is its own.
    pub(super) fn of_daemon(is_attached: bool) -> io::Result<Self> {
        let mut ignored = vec![SignalKind::user_defined1(), SignalKind::user_defined2()];
        if !is_attached {
            ignored.push(SignalKind::hangup());
        }
        for kind in ignored {
            // What is caught once stays caught for the process, whether anybody listens or not.
            drop(signal(kind)?);
        }
        let ending = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
        Self::catch(ending.into_iter().chain(hangup().filter(|_| is_attached)))
    }

    fn catch(kinds: impl Iterator<Item = SignalKind>) -> io::Result<Self> {
        Ok(Self { ending: kinds.map(|kind| Ok((kind, signal(kind)?))).collect::<io::Result<_>>()? })
    }

    /// Returns when the program is told to end, and by what. Signals that came before count.
    pub async fn end(&mut self) -> SignalKind {
        poll_fn(|context| {
            let mut is_told = |signal: &mut Signal| signal.poll_recv(context).is_ready();
            let told = self.ending.iter_mut().find_map(|(kind, signal)| is_told(signal).then_some(*kind));
            told.map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// The signal that a terminal is gone, if the program may be ended by it: nohup(1) starts programs with it ignored, and
/// means it.
fn hangup() -> Option<SignalKind> {
    Some(SignalKind::hangup()).filter(|kind| !is_ignored(*kind))
}

/// True if the process was started with a signal ignored (proc_pid_status(5)).
fn is_ignored(kind: SignalKind) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_is_ignored_from_the_start_is_known() {
        // Rust programs begin with SIGPIPE ignored, and nothing here ignores SIGCHLD.
        assert!(is_ignored(SignalKind::pipe()));
        assert!(!is_ignored(SignalKind::child()));
    }
}
