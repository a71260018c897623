//! Trying again: whether it is worth it, how often, how long to wait, and what the server asked for.
//!
//! What an attempt may end with is one table: [`of_status`] for answers, [`of_trouble`] for what comes instead of one (B-098).
//! [`Retries`] counts the faults of one operation and sleeps between attempts: exponential with full jitter, so that
//! the readers of one outage do not return in step, or as long as `Retry-After` says, within a cap (B-097).

use std::hash::{BuildHasher, RandomState};
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::error::{Fault, Retry, Trouble};
use crate::source::{Error, ErrorKind};

/// Attempts at a host that refuses connections or has no address: enough for a restart in progress, short enough that
/// a mistyped name is reported while the user still looks.
const BRIEF_ATTEMPTS: u32 = 3;

/// Attempts at a host that says nothing. Each takes half a minute with the usual options, and who gives a command wants to
/// know within a minute or so; a reader of a mount waits on as long as his mount says.
const SILENT_ATTEMPTS: u32 = 2;

/// Whether another attempt may fare better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    /// The answer will be the same.
    Never,
    /// After a pause.
    Later,
    /// After a pause, but nobody should wait long for a host that is not there at all.
    Briefly,
}

/// The statuses that are not what was hoped for, in the order in which they are looked up. All others say that the request
/// was wrong: the next one would be, too.
const STATUSES: [(RangeInclusive<u16>, ErrorKind, Again); 11] = [
    (401..=401, ErrorKind::Denied, Again::Never),
    (403..=403, ErrorKind::Denied, Again::Never),
    (404..=404, ErrorKind::NotFound, Again::Never),
    (408..=408, ErrorKind::Unreachable, Again::Later),
    (410..=410, ErrorKind::NotFound, Again::Never),
    (416..=416, ErrorKind::Corrupt, Again::Never),
    (429..=429, ErrorKind::Unreachable, Again::Later),
    // Not implemented, and a version of HTTP that is not spoken: both are about the request.
    (501..=501, ErrorKind::Invalid, Again::Never),
    (505..=505, ErrorKind::Invalid, Again::Never),
    // Of the others some may be for good, but servers use them for what is not.
    (500..=599, ErrorKind::Unreachable, Again::Later),
    // Proxies make up numbers beyond for lost connections and time-outs.
    (600..=999, ErrorKind::Unreachable, Again::Later),
];

/// What an answer with `status` means to who hoped for another, and whether to try again.
pub(super) fn of_status(status: StatusCode) -> (ErrorKind, Again) {
    let row = STATUSES.iter().find(|(codes, ..)| codes.contains(&status.as_u16()));
    row.map_or((ErrorKind::Invalid, Again::Never), |(_, kind, again)| (*kind, *again))
}

/// Whether to try again after a request that got no answer.
pub(super) fn of_trouble(trouble: Trouble) -> Again {
    match trouble {
        // It may be restarting, or it may not exist.
        Trouble::Refused | Trouble::NoConnection | Trouble::Name | Trouble::NotHttp => Again::Briefly,
        // Somebody has to do something about it.
        Trouble::Certificate | Trouble::SpeaksPlain => Again::Never,
        // It is there, or was a moment ago.
        Trouble::Timeout | Trouble::Tls | Trouble::Lost | Trouble::Other => Again::Later,
    }
}

impl Again {
    /// The same with what the server wished for.
    pub(super) fn after(self, wish: Option<Duration>) -> Retry {
        match self {
            Self::Never => Retry::Never,
            Self::Later => Retry::Later(wish),
            Self::Briefly => Retry::Briefly,
        }
    }
}

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
            Retry::Once => (self.policy.attempts.min(SILENT_ATTEMPTS), None),
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

/// How long an answer asks to wait, if it says so.
pub(super) fn wish(headers: &HeaderMap) -> Option<Duration> {
    parse_retry_after(headers.get(RETRY_AFTER)?.to_str().ok()?, SystemTime::now())
}

/// Reads a `Retry-After` value: seconds or a date (RFC 9110, section 10.2.3); dates in the past mean now.
fn parse_retry_after(value: &str, now: SystemTime) -> Option<Duration> {
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

    #[test]
    fn b_098_every_status_and_every_trouble_has_a_row_that_says_whether_to_try_again() {
        for code in 100..1000 {
            let status = StatusCode::from_u16(code).expect("three digits");
            let (kind, again) = of_status(status);
            let expected = match code {
                408 | 429 | 500 | 502 | 503 | 504 => Again::Later,
                501 | 505 => Again::Never,
                506.. => Again::Later,
                _ => Again::Never,
            };
            assert_eq!(again, expected, "{code}");
            // What is worth another attempt here is worth one to the callers, and the other way round.
            assert_eq!(Error::new(kind, "").is_transient(), again != Again::Never, "{code}");
        }
        let kinds =
            [401, 403, 404, 410, 416, 400, 418].map(|code| of_status(StatusCode::from_u16(code).expect("valid")).0);
        use ErrorKind::{Corrupt, Denied, Invalid, NotFound};
        assert_eq!(kinds, [Denied, Denied, NotFound, NotFound, Corrupt, Invalid, Invalid]);
        for (trouble, again) in [
            (Trouble::Refused, Again::Briefly),
            (Trouble::NoConnection, Again::Briefly),
            (Trouble::Name, Again::Briefly),
            (Trouble::NotHttp, Again::Briefly),
            (Trouble::Certificate, Again::Never),
            (Trouble::SpeaksPlain, Again::Never),
            (Trouble::Timeout, Again::Later),
            (Trouble::Tls, Again::Later),
            (Trouble::Lost, Again::Later),
            (Trouble::Other, Again::Later),
        ] {
            assert_eq!(of_trouble(trouble), again, "{trouble:?}");
        }
        let wish = Some(Duration::from_secs(3));
        assert_eq!(
            [Again::Never, Again::Later, Again::Briefly].map(|again| again.after(wish)),
            [Retry::Never, Retry::Later(wish), Retry::Briefly]
        );
    }

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
        let mut retries = Retries::new(&policy());
        assert_eq!(std::iter::from_fn(|| retries.after(Retry::Once)).count(), 1, "silence takes long enough");
    }

    proptest! {
        #[test]
        fn any_retry_after_parses_without_a_panic(value in "\\PC{0,40}") {
            let _: Option<Duration> = parse_retry_after(&value, SystemTime::now());
        }
    }
}
