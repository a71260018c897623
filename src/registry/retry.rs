//! Trying again: how often, how long to wait, and what the server asked for.
//!
//! [`Retries`] counts the faults of one operation and sleeps between attempts: exponential with full jitter, so that
//! the readers of one outage do not return in step, or as long as `Retry-After` says, within a cap (B-097).

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

use super::error::{Fault, Retry};
use crate::source::Error;

/// Attempts at a host that refuses connections or has no address: enough for a restart in progress, short enough that
/// a mistyped name is reported while the user still looks.
const BRIEF_ATTEMPTS: u32 = 3;

/// How an operation is repeated.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    /// Attempts without progress before giving up, the first included.
    pub(super) attempts: u32,
    /// The longest pause after the first fault; doubles with each.
    pub(super) first: Duration,
    /// The longest pause of all, `Retry-After` included.
    pub(super) cap: Duration,
}

/// The faults of one operation so far.
#[derive(Debug)]
pub(super) struct Retries {
    policy: Policy,
    failed: u32,
}

impl Retries {
    pub(super) fn new(policy: &Policy) -> Self {
        Self { policy: policy.clone(), failed: 0 }
    }

    /// Notes progress: attempts are counted from here.
    pub(super) fn progress(&mut self) {
        self.failed = 0;
    }

    /// Sleeps before the next attempt, or returns the error of `fault` if there should be none.
    pub(super) async fn pause(&mut self, fault: Fault) -> Result<(), Error> {
        let Some(pause) = self.after(fault.retry) else {
            return Err(fault.error);
        };
        tracing::debug!(error = %fault.error, failed = self.failed, ?pause, "will try again");
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Counts a fault; the pause before the next attempt, if there is one.
    fn after(&mut self, retry: Retry) -> Option<Duration> {
        self.failed = self.failed.saturating_add(1);
        let (attempts, wanted) = match retry {
            Retry::Never => return None,
            Retry::Later(wanted) => (self.policy.attempts, wanted),
            Retry::Briefly => (self.policy.attempts.min(BRIEF_ATTEMPTS), None),
        };
        if self.failed >= attempts {
            return None;
        }
        let ceiling = self.policy.first.saturating_mul(1 << (self.failed - 1).min(16)).min(self.policy.cap);
        Some(wanted.unwrap_or_default().max(jitter(ceiling)).min(self.policy.cap))
    }
}

/// A random part of `ceiling`, at least half of it.
fn jitter(ceiling: Duration) -> Duration {
    // The standard library seeds each `RandomState` differently, which is all the randomness that jitter needs.
    let random = RandomState::new().hash_one(0_u8) % 1024;
    let half = ceiling / 2;
    half + half.mul_f64(random as f64 / 1024.0)
}

/// Reads a `Retry-After` value: seconds or a date (RFC 9110, section 10.2.3); dates in the past mean now.
pub(super) fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy() -> Policy {
        Policy { attempts: 5, first: Duration::from_millis(100), cap: Duration::from_secs(60) }
    }

    #[test]
    fn b_097_retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date");
        assert_eq!(parse_retry_after(" 7 ", now), Some(Duration::from_secs(7)));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:49:47 GMT", now), Some(Duration::from_secs(10)));
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now), Some(Duration::ZERO));
        assert_eq!(parse_retry_after("99999999999999999999999999", now), Some(Duration::from_secs(u64::MAX)));
        assert_eq!(parse_retry_after("-1", now), None);
        assert_eq!(parse_retry_after("soon", now), None);
    }

    #[test]
    fn b_097_pauses_grow_with_jitter_and_the_servers_wish_counts_up_to_the_cap() {
        let mut retries = Retries::new(&policy());
        let pauses: Vec<_> = std::iter::from_fn(|| retries.after(Retry::Later(None))).collect();
        assert_eq!(pauses.len(), 4, "five attempts have four pauses");
        for (pause, ceiling) in pauses.iter().zip([100, 200, 400, 800]) {
            let ceiling = Duration::from_millis(ceiling);
            assert!(*pause >= ceiling / 2 && *pause <= ceiling, "{pause:?} of {ceiling:?}");
        }
        let wish = |seconds| Retries::new(&policy()).after(Retry::Later(Some(Duration::from_secs(seconds))));
        assert_eq!(wish(7), Some(Duration::from_secs(7)));
        assert_eq!(wish(u64::MAX), Some(Duration::from_secs(60)));
    }

    #[test]
    fn b_098_lasting_faults_end_at_once_and_unreachable_hosts_soon() {
        assert_eq!(Retries::new(&policy()).after(Retry::Never), None);
        let mut retries = Retries::new(&policy());
        assert_eq!(std::iter::from_fn(|| retries.after(Retry::Briefly)).count(), 2);
        retries.progress();
        assert_eq!(std::iter::from_fn(|| retries.after(Retry::Briefly)).count(), 2);
    }

    proptest! {
        #[test]
        fn any_retry_after_parses_without_a_panic(value in "\\PC{0,40}") {
            let _: Option<Duration> = parse_retry_after(&value, SystemTime::now());
        }
    }
}
