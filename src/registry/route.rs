//! Where a repository may be had: its endpoints in the order in which they are tried, and what to make of their faults.
//!
//! A [`Route`] lists the mirrors that the user configured and then the registry itself. One attempt is a [`Round`]: each
//! place is asked once, and whatever is wrong with it, the next one is asked (B-147). Only when all have failed is there a
//! fault to wait or to give up for; [`verdict`] makes one of many, so that the user reads what matters and what else went
//! wrong, and so that a mirror that comes back in a moment is waited for although the registry is gone for good.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::endpoint::{Capabilities, Endpoint, Role};
use super::error::{Fault, Retry, cannot};
use super::host::Host;
use crate::source::{Error, ErrorKind};

/// Faults of other places that an error tells of.
const TOLD: usize = 3;

/// How long a host has for its answer while another could be asked. Who has the bytes answers in milliseconds; a cache that
/// has to fetch them first is no faster than the host it fetches them from.
const TURN: Duration = Duration::from_secs(5);

/// The endpoints of one repository.
#[derive(Debug)]
pub(super) struct Route {
    /// The registry as people name it.
    pub(super) host: String,
    /// The repository as people name it.
    pub(super) repository: String,
    /// In the order of trying; the last is the registry itself, if it may be asked.
    endpoints: Vec<Endpoint>,
    /// Where the repository is written to; none where the configuration allows it nowhere.
    push: Option<Endpoint>,
    /// What the order follows from, if somebody configured it.
    rule: Option<String>,
    /// True if all endpoints have failed since somebody wanted to know.
    failed: AtomicBool,
}

impl Route {
    /// A route over `endpoints`.
    pub(super) fn new(
        (host, repository): (&str, &str),
        endpoints: Vec<Endpoint>,
        push: Option<Endpoint>,
        rule: Option<String>,
    ) -> Self {
        let failed = AtomicBool::new(false);
        Self { host: host.to_owned(), repository: repository.to_owned(), endpoints, push, rule, failed }
    }

    /// The same repository where it is written to, and nowhere else.
    pub(super) fn for_pushing(&self) -> Self {
        let writable = || self.push.as_ref().map(|push| push.again(Capabilities::ALL));
        Self::new((&self.host, &self.repository), writable().into_iter().collect(), writable(), self.rule.clone())
    }

    /// Notes that all who were asked for something have failed.
    pub(super) fn note_failure(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// True if that was noted since this was asked last.
    pub(super) fn has_failed(&self) -> bool {
        self.failed.swap(false, Ordering::Relaxed)
    }

    /// `registry.example.com/library/debian`, wherever it is had from.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// All endpoints in the order of trying.
    pub(super) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Those that may do what is needed, in the order of trying.
    pub(super) fn able(&self, role: Role) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().filter(move |endpoint| endpoint.may.does(role))
    }

    /// The same, those first that are not better left in peace.
    pub(super) fn order(&self, role: Role) -> Vec<&Endpoint> {
        let mut able: Vec<_> = self.able(role).collect();
        able.sort_by_key(|endpoint| endpoint.host.rests());
        able
    }

    /// Where the repository is written to.
    pub(super) fn push(&self) -> Result<&Endpoint, Error> {
        self.push.as_ref().ok_or_else(|| self.nobody("takes what is pushed to"))
    }

    /// The error if the configuration leaves nobody who does something with the repository.
    pub(super) fn nobody(&self, what: &str) -> Error {
        let message = format!("no host {what} {}", self.name());
        let error = Error::new(ErrorKind::Misconfigured, message);
        match &self.rule {
            Some(rule) => error.hint(format!("so says {rule}")),
            None => error,
        }
    }

    /// What the order follows from, if somebody configured it.
    pub(super) fn rule(&self) -> Option<&str> {
        self.rule.as_deref()
    }
}

/// One pass over the places that may have something, each asked once.
#[derive(Debug, Default)]
pub(super) struct Round {
    left: VecDeque<usize>,
    failed: Vec<(usize, Fault)>,
}

impl Round {
    /// A pass in this order.
    pub(super) fn new(places: impl IntoIterator<Item = usize>) -> Self {
        Self { left: places.into_iter().collect(), failed: Vec::new() }
    }

    /// The place to ask now; none after the last.
    pub(super) fn next(&mut self) -> Option<usize> {
        self.left.pop_front()
    }

    /// Waits for the answer of a place with this `host`, but if there is another place to ask, only for [`TURN`].
    pub(super) async fn turn<T>(
        &self,
        what: &str,
        host: Option<&Host>,
        answer: impl Future<Output = Result<T, Fault>>,
    ) -> Result<T, Fault> {
        if self.is_over() {
            return answer.await;
        }
        tokio::time::timeout(TURN, answer).await.unwrap_or_else(|_| {
            let name = host.map_or("a URL in its descriptor", Host::name);
            if let Some(host) = host {
                host.health().said_nothing();
            }
            let message = format!("{}: {name} did not answer within {TURN:?}", cannot(what));
            Err(Fault::passing(Error::new(ErrorKind::Unreachable, message)))
        })
    }

    /// Notes what came of asking a place.
    pub(super) fn failed(&mut self, place: usize, fault: Fault) {
        if !self.left.is_empty() {
            tracing::debug!(error = %fault.error, "trying the next host");
        }
        self.failed.push((place, fault));
    }

    /// True if there is nobody left to ask.
    pub(super) fn is_over(&self) -> bool {
        self.left.is_empty()
    }

    /// What to make of the faults, of which those of the place `is_own` are the registry's.
    pub(super) fn verdict(self, role: Role, is_own: impl Fn(usize) -> bool) -> Option<Fault> {
        verdict(role, self.failed.into_iter().map(|(place, fault)| (is_own(place), fault)).collect())
    }
}

/// One fault of many, each of the registry itself or not; none of none.
///
/// The registry's own counts if it says that there is no such tag, which nobody else may contradict, or if it may be gone in
/// a moment. Else one that may be gone in a moment, since trying again then helps. Else the registry's own, and if that
/// was not asked, one that says more than that something is not there.
fn verdict(role: Role, mut faults: Vec<(bool, Fault)>) -> Option<Fault> {
    let decides = |fault: &Fault| role == Role::Resolve && fault.error.kind() == ErrorKind::NotFound;
    let may_pass = |fault: &Fault| fault.retry != Retry::Never;
    let rank = |(is_own, fault): &(bool, Fault)| match (*is_own, fault) {
        (true, fault) if decides(fault) || may_pass(fault) => 4,
        (_, fault) if may_pass(fault) => 3,
        (true, _) => 2,
        (false, fault) if fault.error.kind() != ErrorKind::NotFound => 1,
        (false, _) => 0,
    };
    // The last of the best: of equals, the likeliest to have it.
    let (best, _) = faults.iter().enumerate().max_by_key(|(_, fault)| rank(fault))?;
    let retry = joined(&faults);
    let (_, mut fault) = faults.remove(best);
    if fault.retry != Retry::Never {
        fault.retry = retry;
    }
    if !faults.is_empty() {
        let told: Vec<_> = faults.iter().take(TOLD).map(|(_, other)| without_object(&other.error)).collect();
        let more = if faults.len() > TOLD { ", …" } else { "" };
        fault.error = fault.error.besides(&format!("{}{more}", told.join(", ")));
    }
    Some(fault)
}

/// When to try again: when the first of them may be back, and as often as the most patient of them is worth, but for one
/// that is silent.
fn joined(faults: &[(bool, Fault)]) -> Retry {
    faults.iter().map(|(_, fault)| fault.retry).fold(Retry::Never, |one, other| match (one, other) {
        (Retry::Never, retry) | (retry, Retry::Never) => retry,
        // A host that is not there does not say how long it will take.
        (Retry::Briefly | Retry::Once, Retry::Later(_)) | (Retry::Later(_), Retry::Briefly | Retry::Once) => {
            Retry::Later(None)
        }
        (Retry::Briefly, Retry::Briefly) => Retry::Briefly,
        // Each round waits for the one that is silent, and would wait as long again.
        (Retry::Briefly | Retry::Once, Retry::Briefly | Retry::Once) => Retry::Once,
        (Retry::Later(one), Retry::Later(other)) => Retry::Later(one.zip(other).map(|(one, other)| one.min(other))),
    })
}

/// What an error says beside what could not be had, which is the same for all.
fn without_object(error: &Error) -> String {
    let text = error.to_string();
    match text.split_once(": ") {
        Some((start, rest)) if start.starts_with("cannot ") => rest.to_owned(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::registry::error::Suspicion;

    fn fault(kind: ErrorKind, retry: Retry, from: &str) -> Fault {
        let error = Error::new(kind, format!("cannot get x: {from} failed"));
        Fault { error, retry, wrong_protocol: Suspicion::Absent }
    }

    fn gone(from: &str) -> Fault {
        fault(ErrorKind::NotFound, Retry::Never, from)
    }

    fn away(from: &str) -> Fault {
        fault(ErrorKind::Unreachable, Retry::Later(None), from)
    }

    fn denied(from: &str) -> Fault {
        fault(ErrorKind::Denied, Retry::Never, from)
    }

    /// The best of a mirror's and the registry's own fault.
    fn best(role: Role, mirror: Fault, own: Fault) -> String {
        let fault = verdict(role, vec![(false, mirror), (true, own)]).expect("two faults");
        assert_eq!(fault.error.is_transient(), fault.retry != Retry::Never, "{fault:?}");
        fault.error.to_string()
    }

    #[test]
    fn b_147_the_registrys_own_error_is_told_before_a_mirrors() {
        let text = best(Role::Pull, gone("m"), denied("r"));
        assert_eq!(text, "cannot get x: r failed (besides: m failed)");
        assert_eq!(best(Role::Pull, gone("m"), away("r")), "cannot get x: r failed (besides: m failed)");
        assert_eq!(best(Role::Pull, denied("m"), gone("r")), "cannot get x: r failed (besides: m failed)");
    }

    #[test]
    fn b_147_what_may_pass_is_told_before_what_will_not_but_for_a_tag_that_the_registry_does_not_have() {
        assert_eq!(best(Role::Pull, away("m"), gone("r")), "cannot get x: m failed (besides: r failed)");
        assert_eq!(best(Role::Resolve, away("m"), denied("r")), "cannot get x: m failed (besides: r failed)");
        assert_eq!(best(Role::Resolve, away("m"), gone("r")), "cannot get x: r failed (besides: m failed)");
    }

    #[test]
    fn b_147_of_mirrors_alone_one_that_says_more_than_not_found_is_told() {
        let fault = verdict(Role::Pull, vec![(false, denied("a")), (false, gone("b"))]).expect("two faults");
        assert_eq!(fault.error.to_string(), "cannot get x: a failed (besides: b failed)");
        assert!(verdict(Role::Pull, Vec::new()).is_none());
        assert_eq!(
            verdict(Role::Pull, vec![(false, gone("a"))]).expect("one").error.to_string(),
            gone("a").error.to_string()
        );
    }

    #[test]
    fn b_097_who_wants_the_shortest_pause_gets_it() {
        let slow = Fault { retry: Retry::Later(Some(Duration::from_secs(60))), ..away("r") };
        let fault = verdict(Role::Pull, vec![(false, away("m")), (true, slow)]).expect("two faults");
        assert_eq!((fault.retry, fault.error.to_string().contains("r failed (")), (Retry::Later(None), true));
    }

    #[test]
    fn b_096_beside_a_host_that_is_not_there_one_that_is_silent_is_tried_no_more_often() {
        let joined = |mirror, own| {
            let faults = [(false, mirror), (true, own)].map(|(own, retry)| (own, Fault { retry, ..away("x") }));
            super::joined(&faults)
        };
        assert_eq!(joined(Retry::Briefly, Retry::Once), Retry::Once);
        assert_eq!(joined(Retry::Once, Retry::Briefly), Retry::Once);
        assert_eq!(joined(Retry::Briefly, Retry::Briefly), Retry::Briefly);
        assert_eq!(joined(Retry::Once, Retry::Later(None)), Retry::Later(None));
    }

    #[test]
    fn a_round_asks_each_place_once() {
        let mut round = Round::new([2, 0]);
        assert_eq!((round.next(), round.is_over()), (Some(2), false));
        round.failed(2, gone("two"));
        assert_eq!((round.next(), round.is_over(), round.next()), (Some(0), true, None));
        round.failed(0, denied("zero"));
        let fault = round.verdict(Role::Pull, |place| place == 0).expect("two faults");
        assert_eq!(fault.error.to_string(), "cannot get x: zero failed (besides: two failed)");
    }
}
