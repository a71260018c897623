//! Signals: which end a daemon in order, and which must not end it at all.
//!
//! Most signals that a daemon does not catch kill it, and what it has mounted then hangs on a dead connection. So those that
//! mean "end" are caught before anything is mounted, and those that are sent by mistake, or mean something to other
//! daemons only, are caught for nothing.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals of one daemon, caught while this lives and, where nobody asks, ignored ever after.
#[derive(Debug)]
pub(super) struct Signals {
    ending: Vec<Signal>,
}

impl Signals {
    /// Begins to catch them. `is_attached` is for a daemon that runs in somebody's terminal, whose end is its own.
    pub(super) fn new(is_attached: bool) -> io::Result<Self> {
        let mut ending = vec![SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
        let mut ignored = vec![SignalKind::user_defined1(), SignalKind::user_defined2()];
        match is_attached {
            // nohup(1) starts programs with it ignored, and means it.
            true if is_ignored(SignalKind::hangup()) => {}
            true => ending.push(SignalKind::hangup()),
            false => ignored.push(SignalKind::hangup()),
        }
        for kind in ignored {
            // What is caught once stays caught for the process, whether anybody listens or not.
            drop(signal(kind)?);
        }
        Ok(Self { ending: ending.into_iter().map(signal).collect::<io::Result<_>>()? })
    }

    /// Returns when the daemon is told to end. Signals that came before count.
    pub(super) async fn end(&mut self) {
        poll_fn(|context| {
            let is_told = self.ending.iter_mut().any(|signal| signal.poll_recv(context).is_ready());
            if is_told { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// True if the process was started with a signal ignored (proc_pid_status(5)).
pub fn is_ignored(kind: SignalKind) -> bool {
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
