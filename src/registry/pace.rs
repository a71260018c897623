//! How fast one host may be asked: fewer requests at once when it says that there are too many, more again as it goes well.
//!
//! A registry that throttles counts the requests of this machine, not those of one transfer. So its `Retry-After` holds for
//! everybody who wants something of it (B-097), and so does the number of requests that it bears: halved by each 429, one
//! more after each round that went well, as TCP does with its window. Before the first 429 it does not limit anybody.
//!
//! [`Paces`] has a [`Pace`] for each host that is contacted, those of redirects and token servers included.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lru::LruCache;
use reqwest::{StatusCode, Url};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use super::error::origin;
use crate::limits::{HOST_REQUESTS, PACES_KEPT};

/// The pause that a 429 asks for which says nothing about it.
const USUAL_PAUSE: Duration = Duration::from_secs(1);

/// How long a request waits for others to end. It is sent then: the limit is a guess, and who holds what the others wait for
/// must not wait for them.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The paces of all hosts.
#[derive(Debug)]
pub(super) struct Paces {
    /// The longest pause that is made because a host asks for it.
    longest_pause: Duration,
    /// By scheme, host and port. Held to find one.
    hosts: Mutex<LruCache<String, Arc<Pace>>>,
}

/// The pace of one host.
#[derive(Debug)]
struct Pace {
    /// Held to read or change a few numbers.
    state: Mutex<State>,
    /// Told when a request has ended.
    freed: Notify,
}

#[derive(Debug)]
struct State {
    /// Requests at once.
    limit: f64,
    running: usize,
    paused_until: Option<Instant>,
    /// When the limit was lowered last. Requests sent before that say nothing new.
    lowered: Option<Instant>,
}

/// The right to one request, from before it is sent until its answer is read.
#[derive(Debug, Clone)]
pub(super) struct Permit(Arc<Held>);

#[derive(Debug)]
struct Held {
    pace: Arc<Pace>,
    sent: Instant,
}

impl Paces {
    /// Paces whose pauses end after `longest_pause`.
    pub(super) fn new(longest_pause: Duration) -> Self {
        let kept = NonZeroUsize::new(PACES_KEPT).unwrap_or(NonZeroUsize::MIN);
        Self { longest_pause, hosts: Mutex::new(LruCache::new(kept)) }
    }

    /// Waits until another request may be sent to the host of `url`.
    pub(super) async fn enter(&self, url: &Url) -> Permit {
        let pace = {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(hosts.get_or_insert(origin(url), Arc::default))
        };
        pace.enter().await
    }

    /// Notes the answer to a request.
    pub(super) fn heard(&self, permit: &Permit, status: StatusCode, retry_after: Option<Duration>) {
        let Held { pace, sent } = &*permit.0;
        let wish = match status {
            StatusCode::TOO_MANY_REQUESTS => Some(retry_after.unwrap_or(USUAL_PAUSE)),
            // Without a time it is a failure like others.
            StatusCode::SERVICE_UNAVAILABLE => retry_after,
            _ => None,
        };
        match wish {
            Some(wish) => pace.lock().slower(wish.min(self.longest_pause), *sent, Instant::now()),
            None if status.is_server_error() => {}
            None => pace.lock().faster(),
        }
    }
}

impl Default for Pace {
    fn default() -> Self {
        let state = State { limit: HOST_REQUESTS as f64, running: 0, paused_until: None, lowered: None };
        Self { state: Mutex::new(state), freed: Notify::new() }
    }
}

impl Pace {
    async fn enter(self: Arc<Self>) -> Permit {
        loop {
            // Whoever waited through one pause may find another.
            let Some(pause) = self.lock().pause(Instant::now()) else { break };
            sleep(pause).await;
        }
        if timeout(LONGEST_WAIT, self.room()).await.is_err() {
            tracing::debug!("a request goes out of turn");
            self.lock().running += 1;
        }
        Permit(Arc::new(Held { pace: self, sent: Instant::now() }))
    }

    /// Takes room for one request, waiting for it if need be.
    async fn room(&self) {
        while !self.lock().take() {
            // A request that ends now leaves its word for the next who comes here.
            self.freed.notified().await;
        }
        if self.lock().has_room() {
            self.freed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.pace.lock();
        state.running = state.running.saturating_sub(1);
        let has_room = state.has_room();
        drop(state);
        if has_room {
            self.pace.freed.notify_one();
        }
    }
}

impl State {
    fn pause(&self, now: Instant) -> Option<Duration> {
        self.paused_until.map(|until| until.saturating_duration_since(now)).filter(|pause| !pause.is_zero())
    }

    fn has_room(&self) -> bool {
        (self.running as f64) < self.limit.floor()
    }

    fn take(&mut self) -> bool {
        let has_room = self.has_room();
        self.running += usize::from(has_room);
        has_room
    }

    /// A request that was sent at `sent` was one too many.
    fn slower(&mut self, pause: Duration, sent: Instant, now: Instant) {
        self.paused_until = self.paused_until.max(Some(now + pause));
        if self.lowered.is_none_or(|lowered| lowered <= sent) {
            self.limit = (self.limit.min(self.running as f64) / 2.0).max(1.0);
            self.lowered = Some(now);
        }
    }

    /// A request was welcome.
    fn faster(&mut self) {
        self.limit = (self.limit + 1.0 / self.limit).min(HOST_REQUESTS as f64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url() -> Url {
        Url::parse("https://r.example/v2/x?secret=y").expect("a URL")
    }

    const TOO_MANY: StatusCode = StatusCode::TOO_MANY_REQUESTS;

    #[tokio::test(start_paused = true)]
    async fn b_097_a_wish_to_wait_holds_for_everybody_who_wants_something_of_the_host() {
        let paces = Paces::new(Duration::from_secs(60));
        let first = paces.enter(&url()).await;
        paces.heard(&first, TOO_MANY, Some(Duration::from_millis(300)));
        drop(first);
        let begun = Instant::now();
        let other = Url::parse("https://r.example/token").expect("a URL");
        let mut permits = Vec::new();
        for url in [url(), other] {
            permits.push(paces.enter(&url).await);
            drop(permits.pop());
        }
        assert!(begun.elapsed() >= Duration::from_millis(290), "{:?}", begun.elapsed());
        let begun = Instant::now();
        let elsewhere = Url::parse("https://r.example:8443/v2/").expect("a URL");
        drop(paces.enter(&elsewhere).await);
        assert!(begun.elapsed() < Duration::from_millis(100), "another port is another host");
    }

    #[tokio::test(start_paused = true)]
    async fn b_097_no_host_makes_anybody_wait_longer_than_allowed() {
        let paces = Paces::new(Duration::from_millis(100));
        let first = paces.enter(&url()).await;
        paces.heard(&first, StatusCode::SERVICE_UNAVAILABLE, Some(Duration::MAX));
        drop(first);
        let begun = Instant::now();
        drop(paces.enter(&url()).await);
        assert!((90..110).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_that_throttles_is_asked_less_at_once_and_more_again_as_it_goes_well() {
        let paces = Paces::new(Duration::ZERO);
        let mut running = Vec::new();
        for _ in 0..16 {
            running.push(paces.enter(&url()).await);
        }
        let limit = || {
            let mut hosts = paces.hosts.lock().expect("no test panics with it");
            hosts.get(&origin(&url())).expect("it was asked").lock().limit
        };
        assert_eq!(limit(), HOST_REQUESTS as f64);
        // Their answers come later than they were sent.
        sleep(Duration::from_millis(1)).await;
        for permit in &running {
            paces.heard(permit, TOO_MANY, None);
        }
        assert_eq!(limit(), 8.0, "sixteen together were too many once");
        // Nine of them have to end before there is room again.
        let place = url();
        let enter = paces.enter(&place);
        let mut enter = std::pin::pin!(enter);
        for _ in 0..8 {
            running.pop();
        }
        assert!(timeout(Duration::from_millis(50), enter.as_mut()).await.is_err());
        running.pop();
        drop(timeout(Duration::from_millis(500), enter).await.expect("there is room"));
        running.clear();
        for round in 0..8 {
            let before = limit();
            for _ in 0..8 + round {
                let permit = paces.enter(&url()).await;
                paces.heard(&permit, StatusCode::PARTIAL_CONTENT, None);
            }
            assert!(limit() > before + 0.9 && limit() < before + 1.1, "{} after {before}", limit());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failures_that_are_no_throttling_change_nothing() {
        let paces = Paces::new(Duration::from_secs(60));
        let permit = paces.enter(&url()).await;
        for status in [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::SERVICE_UNAVAILABLE, StatusCode::NOT_FOUND] {
            paces.heard(&permit, status, None);
        }
        assert!(timeout(Duration::from_millis(100), paces.enter(&url())).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_were_given_up_leave_their_room() {
        let paces = Arc::new(Paces::new(Duration::ZERO));
        let permit = paces.enter(&url()).await;
        paces.heard(&permit, TOO_MANY, None);
        for _ in 0..20 {
            assert!(timeout(Duration::from_millis(5), paces.enter(&url())).await.is_err(), "one at a time");
        }
        drop(permit);
        assert!(timeout(Duration::from_secs(1), paces.enter(&url())).await.is_ok());
    }
}
