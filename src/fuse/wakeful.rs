//! Keeping processors from sleeping while a program starts on a mount.
//!
//! A program that starts asks for one thing after the other, and each time two processors are woken: one to answer, one to
//! go on. On 2 virtual processors (Linux 6.18, cpuidle haltpoll) a request of a sleeping program takes 51 to 147 µs, and 14
//! to 28 µs while `/dev/cpu_dma_latency` is held open with 0 written to it, because idle processors poll then
//! (Documentation/power/pm_qos_interface.rst). The second start of the python image from the cache took 1.93 instead of
//! 2.23 s (medians of 10; 0.95 instead of 1.15 times native ext4), the cold start with a profile 2.90 instead of 3.20 s.
//!
//! [`Pulse`] is what requests touch. [`Wakeful`] has it watched, and the device held while it beats.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// What takes the longest latency that is allowed, in µs. It holds as long as the descriptor is open: this process need not
/// live to take it back.
const DEVICE: &str = "/dev/cpu_dma_latency";

/// The processors that are online, as in `0-3,6`.
const ONLINE: &str = "/sys/devices/system/cpu/online";

/// How many processors there may be. Every idle one of the machine polls, so the price grows with their number and the
/// gain does not; siblings that share a core, and those that could clock higher while others sleep, become slower.
const MOST: usize = 16;

/// For how long no request comes before the device is let go.
const QUIET: Duration = Duration::from_millis(30);

/// For how long it is held at most for one mount: a start is over by then, or is not limited by this.
const BUDGET: Duration = Duration::from_secs(10);

/// A request came since somebody looked, or nobody looks.
const BEATING: u8 = 0;

/// The device is held, and no request came since that was looked at.
const LISTENING: u8 = 1;

/// The device is not held, and who watches is to be told of the next request.
const RESTING: u8 = 2;

/// Whether requests come.
#[derive(Debug, Default)]
pub(super) struct Pulse {
    state: AtomicU8,
    roused: Notify,
    /// Protects what is counted; held for that only, once in [`QUIET`] at most.
    account: Mutex<Account>,
}

#[derive(Debug, Default)]
struct Account {
    /// How long the device may still be held.
    left: Duration,
    /// How long it was held.
    held: Duration,
    /// The task that watches. Stays when it has found that there is no device.
    watcher: Option<AbortHandle>,
}

impl Pulse {
    /// Takes note of a request: one relaxed load, but for the first one after somebody looked.
    pub(super) fn beat(&self) {
        if self.state.load(Ordering::Relaxed) != BEATING && self.state.swap(BEATING, Ordering::Relaxed) == RESTING {
            self.roused.notify_one();
        }
    }

    /// How long the device was held.
    pub(super) fn held(&self) -> Duration {
        self.account().held
    }

    /// Holds `device` whenever requests come, until there is no time left for that. No timer runs while none comes.
    async fn watch(self: Arc<Self>, device: PathBuf) {
        loop {
            self.roused.notified().await;
            let held = hold(&device);
            if let Err(error) = &held {
                return tracing::debug!(device = %device.display(), %error, "processors may sleep while programs start");
            }
            if !self.quiet().await {
                return;
            }
        }
    }

    /// Returns when no request comes any more, or there is no time left; whether there is.
    async fn quiet(&self) -> bool {
        loop {
            self.state.store(LISTENING, Ordering::Relaxed);
            let since = Instant::now();
            tokio::time::sleep(QUIET).await;
            if !self.spend(since.elapsed()) {
                return false;
            }
            if self.state.compare_exchange(LISTENING, RESTING, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return true;
            }
        }
    }

    /// Counts `time` as held; false if none is left, and who watches is to end.
    fn spend(&self, time: Duration) -> bool {
        let mut account = self.account();
        account.held += time;
        account.left = account.left.saturating_sub(time);
        let is_left = account.left >= QUIET;
        if !is_left {
            account.watcher = None;
        }
        is_left
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds the device while one connection is asked for things, for each start on it. Ends with this.
#[derive(Debug)]
pub(super) struct Wakeful {
    pulse: Arc<Pulse>,
    runtime: Handle,
}

impl Wakeful {
    pub(super) fn new(pulse: Arc<Pulse>, runtime: Handle) -> Self {
        Self { pulse, runtime }
    }

    /// Expects a start. Does nothing where there are too many processors, or no device that may be written: in
    /// containers, for instance.
    pub(super) fn expect_start(&self) {
        let processors = std::fs::read_to_string(ONLINE).ok().and_then(|list| count(&list));
        self.expect_start_on(processors, Path::new(DEVICE));
    }

    fn expect_start_on(&self, processors: Option<usize>, device: &Path) {
        if processors.is_none_or(|processors| processors > MOST) {
            return tracing::debug!(?processors, "processors may sleep while programs start");
        }
        let mut account = self.pulse.account();
        account.left = BUDGET;
        if account.watcher.is_none() {
            // Here and not by the task, so that the first request is not overlooked.
            self.pulse.state.store(RESTING, Ordering::Relaxed);
            let watcher = self.runtime.spawn(Arc::clone(&self.pulse).watch(device.to_owned()));
            account.watcher = Some(watcher.abort_handle());
        }
    }
}

impl Drop for Wakeful {
    fn drop(&mut self) {
        if let Some(watcher) = self.pulse.account().watcher.take() {
            watcher.abort();
        }
    }
}

/// Has idle processors poll until the descriptor is closed. The device blocks never.
fn hold(device: &Path) -> io::Result<File> {
    let mut device = File::options().write(true).open(device)?;
    device.write_all(&0_i32.to_ne_bytes())?;
    Ok(device)
}

/// How many there are in a list such as `0-3,6`; none if it is not one.
fn count(list: &str) -> Option<usize> {
    list.trim_end().split(',').try_fold(0_usize, |sum, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        sum.checked_add(last.checked_sub(first)?)?.checked_add(1)
    })
}

#[cfg(test)]
mod tests;
