//! How a host has been doing, and whether it is better left in peace.
//!
//! A host that fails rests: whoever has a choice passes it over, longer after each failure in a row. When the rest is over one
//! request finds out, and until that is answered the others pass the host over still. A host that answers nothing for a
//! moment, while it is being asked, is passed over too, so that the second request of an impatient reader goes to another
//! host and not to the same silence.
//!
//! A rest is advice. Where nobody else has what is wanted, the host is asked all the same.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use reqwest::Response;

use super::error::Fault;
use super::retry::{self, Again};

/// The rest after the first failure; it doubles with each in a row.
const FIRST_REST: Duration = Duration::from_secs(1);

/// The longest rest, also if the host asked for a longer one.
const LONGEST_REST: Duration = Duration::from_secs(60);

/// For how long one request may try a host whose rest is over before another may.
const TRIAL: Duration = Duration::from_secs(5);

/// A host that is asked and answers nothing for so long is passed over: less than the patience of a reader, who asks a second
/// time after two seconds or more.
const SILENCE: Duration = Duration::from_millis(1500);

/// The health of one host.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// Held to read or note a few numbers.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// In a row.
    failures: u32,
    /// When the last of them was noted. Requests sent before that say nothing new by failing too.
    failed: Option<Instant>,
    /// None if it is well.
    rests_until: Option<Instant>,
    /// Requests that have no answer yet.
    unanswered: usize,
    /// When the first of them was sent, or the last answer came if that was later.
    silent_since: Option<Instant>,
}

/// A request that has no answer yet. Dropped without a word, it was given up by who sent it, which says nothing.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    health: &'a Health,
    sent: Instant,
}

impl Health {
    /// True if whoever has a choice should ask another host first.
    pub(super) fn rests(&self) -> bool {
        self.lock().rests(Instant::now())
    }

    /// For how long the host has been asked and has said nothing; none if it is not being asked.
    pub(super) fn silence(&self) -> Option<Duration> {
        self.lock().silent_since.map(|since| since.elapsed())
    }

    /// Notes that the host is being asked.
    pub(super) fn ask(&self) -> Asked<'_> {
        let sent = Instant::now();
        self.lock().ask(sent);
        Asked { health: self, sent }
    }

    /// Notes that the host was given up because it said nothing.
    pub(super) fn said_nothing(&self) {
        let now = Instant::now();
        self.lock().failed(None, now, now);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked<'_> {
    /// Notes what came of the request. A host that answers is well, whether it has what was wanted or not.
    pub(super) fn heard(self, answer: &Result<Response, Fault>) {
        let (mut state, now) = (self.health.lock(), Instant::now());
        match answer {
            Ok(response) if retry::of_status(response.status()).1 == Again::Never => state.answered(now),
            Ok(response) => state.failed(retry::wish(response.headers()), self.sent, now),
            Err(_) => state.failed(None, self.sent, now),
        }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        let mut state = self.health.lock();
        state.unanswered = state.unanswered.saturating_sub(1);
        if state.unanswered == 0 {
            state.silent_since = None;
        }
    }
}

impl State {
    fn rests(&self, now: Instant) -> bool {
        let is_silent = self.silent_since.is_some_and(|since| now.saturating_duration_since(since) >= SILENCE);
        is_silent || self.rests_until.is_some_and(|until| now < until)
    }

    fn ask(&mut self, now: Instant) {
        self.unanswered += 1;
        self.silent_since.get_or_insert(now);
        // This is the request that finds out.
        self.rests_until = self.rests_until.map(|until| if until <= now { now + TRIAL } else { until });
    }

    fn answered(&mut self, now: Instant) {
        self.failures = 0;
        self.rests_until = None;
        self.silent_since = Some(now);
    }

    /// A request that was sent at `sent` failed; perhaps the host said for how long not to come back.
    fn failed(&mut self, wish: Option<Duration>, sent: Instant, now: Instant) {
        if self.failed.is_none_or(|failed| failed <= sent) {
            let rest = FIRST_REST.saturating_mul(1 << self.failures.min(16)).min(LONGEST_REST);
            self.failures = self.failures.saturating_add(1);
            self.failed = Some(now);
            self.rests_until = Some(now + rest);
        }
        let wished = wish.map(|wish| now + wish.min(LONGEST_REST));
        self.rests_until = self.rests_until.max(wished);
        self.silent_since = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host, and a clock that is turned by hand.
    struct Clock {
        state: State,
        now: Instant,
    }

    impl Clock {
        fn new() -> Self {
            Self { state: State::default(), now: Instant::now() }
        }

        fn after(&mut self, milliseconds: u64) -> &mut State {
            self.now += Duration::from_millis(milliseconds);
            &mut self.state
        }

        fn rests(&self) -> bool {
            self.state.rests(self.now)
        }

        /// A request that fails at once.
        fn fail(&mut self, wish: Option<Duration>) {
            self.state.ask(self.now);
            self.state.failed(wish, self.now, self.now);
            self.given_up();
        }

        fn given_up(&mut self) {
            self.state.unanswered -= 1;
            if self.state.unanswered == 0 {
                self.state.silent_since = None;
            }
        }

        /// How long the host rests from now on.
        fn rest(&self) -> Duration {
            self.state.rests_until.map_or(Duration::ZERO, |until| until.saturating_duration_since(self.now))
        }
    }

    #[test]
    fn b_147_a_host_rests_longer_after_each_failure_and_not_after_an_answer() {
        let mut host = Clock::new();
        assert!(!host.rests());
        let mut rests = Vec::new();
        for _ in 0..8 {
            host.fail(None);
            assert!(host.rests());
            let rest = host.rest();
            rests.push(rest.as_secs());
            host.now += rest;
            assert!(!host.rests(), "the rest is over");
        }
        assert_eq!(rests, [1, 2, 4, 8, 16, 32, 60, 60]);
        let now = host.now;
        host.state.ask(now);
        host.state.answered(now);
        host.given_up();
        assert!(!host.rests());
        host.fail(None);
        assert_eq!(host.rest(), FIRST_REST, "it begins anew");
    }

    #[test]
    fn b_147_when_a_rest_is_over_one_request_tries_and_the_others_pass_by() {
        let mut host = Clock::new();
        host.fail(None);
        let now = host.now + FIRST_REST;
        host.after(1000).ask(now);
        assert!(host.rests(), "somebody tries");
        host.after(1000);
        assert!(host.rests());
        let now = host.now;
        host.state.answered(now);
        host.given_up();
        assert!(!host.rests(), "it is well again");
    }

    #[test]
    fn b_147_a_trial_of_which_nothing_is_heard_does_not_keep_the_next_away() {
        let mut host = Clock::new();
        host.fail(None);
        let now = host.now + FIRST_REST;
        host.after(1000).ask(now);
        host.given_up();
        host.after(4900);
        assert!(host.rests());
        host.after(200);
        assert!(!host.rests());
    }

    #[test]
    fn b_097_a_host_rests_as_long_as_it_asks_for_within_bounds() {
        let mut host = Clock::new();
        host.fail(Some(Duration::from_secs(20)));
        assert_eq!(host.rest().as_secs(), 20);
        let mut host = Clock::new();
        host.fail(Some(Duration::MAX));
        assert_eq!(host.rest(), LONGEST_REST);
    }

    #[test]
    fn requests_that_fail_together_count_once() {
        let mut host = Clock::new();
        let now = host.now;
        (0..10).for_each(|_| host.state.ask(now));
        (0..10).for_each(|_| {
            host.state.failed(None, now, now + Duration::from_millis(1));
            host.given_up();
        });
        assert_eq!(host.rest(), FIRST_REST + Duration::from_millis(1));
    }

    #[test]
    fn a_host_that_is_asked_and_says_nothing_is_passed_over() {
        let mut host = Clock::new();
        let now = host.now;
        host.state.ask(now);
        host.after(1400);
        assert!(!host.rests());
        host.after(200);
        assert!(host.rests(), "the second request is for somebody else");
        let now = host.now;
        host.state.ask(now);
        host.state.answered(now);
        assert!(!host.rests(), "it was only slow");
        host.after(5000);
        host.given_up();
        host.given_up();
        assert!(!host.rests(), "nobody asks it any more");
    }
}
