//! Sending one request to a registry until it is answered: protocol, authorization, redirects.
//!
//! [`Client`] is what all repositories share. A [`Call`] says what is asked; [`Client::request`] starts at the registry
//! and [`Client::follow`] anywhere. Both return the head of an answer that is neither a challenge nor a redirect, with
//! the [`Location`] that gave it; what the status means is the caller's business, and so is trying again.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use lru::LruCache;
use reqwest::header::{AUTHORIZATION, HeaderMap};
use reqwest::{Response, StatusCode};

use super::call::Call;
use super::challenge::{self, Challenge};
use super::course::Course;
use super::credentials::Credentials;
use super::endpoint::{Access, Endpoint, Role};
use super::error::{Complaint, Fault, Suspicion, answer, cannot, origin, refused};
use super::grant::{Grant, Grants, Need, Refused, advise};
use super::host::{Host, HostId, Scheme, Site};
use super::redirect::{self, Location};
use super::retry::{Policy, Retries};
use super::route::{Round, Route};
use super::token;
use super::transport::{Settings, Transport};
use super::{Options, Repository, Selector};
use crate::limits::{AUTHORIZATION_ROUNDS, REDIRECTS, REDIRECTS_KEPT};
use crate::oci::Digest;
use crate::source::{Error, ErrorKind};

/// What all repositories of all registries share: connections, tokens, and what was learned about hosts.
///
/// Cheap to clone. Its connections belong to the runtime that first used them.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    policy: Policy,
    transport: Transport,
    grants: Grants,
    /// Held only to find a host.
    hosts: Mutex<HashMap<Site, Arc<Host>>>,
    /// Where redirects led for each blob; held only to look one up.
    resolved: Mutex<LruCache<BlobKey, Location>>,
}

/// A blob at an endpoint. Two mirrors at one address are two if their paths differ, and redirect to places of their own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct BlobKey {
    host: HostId,
    ns: Option<String>,
    repository: String,
    digest: Digest,
}

impl BlobKey {
    pub(super) fn new(endpoint: &Endpoint, digest: Digest) -> Self {
        let Endpoint { host, ns, repository, .. } = endpoint;
        Self { host: host.id(), ns: ns.clone(), repository: repository.clone(), digest }
    }
}

impl Client {
    /// Makes a client. Does no I/O; credential files and certificates are read when they are first needed.
    pub fn new(options: Options) -> Result<Self, Error> {
        let settings = Settings {
            user_agent: options.user_agent.clone(),
            connect: options.connect_timeout,
            stall: options.stall_timeout,
        };
        let credentials = Credentials::new(options.auth_files.clone(), options.helper_timeout);
        let policy = Policy { attempts: options.attempts, first: options.first_pause, cap: options.longest_pause };
        let kept = NonZeroUsize::new(REDIRECTS_KEPT).unwrap_or(NonZeroUsize::MIN);
        Ok(Self {
            shared: Arc::new(Shared {
                policy,
                transport: Transport::new(settings)?.with_longest_pause(options.longest_pause),
                grants: Grants::new(credentials),
                hosts: Mutex::default(),
                resolved: Mutex::new(LruCache::new(kept)),
                options,
            }),
        })
    }

    /// The repository `repository` at `host` (`docker.io`, `localhost:5000`) as a source of what `selector` names, had from
    /// the registry itself.
    ///
    /// Does no I/O; names that cannot be part of a URL show at the first request.
    pub fn repository(&self, host: &str, repository: &str, selector: Selector) -> Repository {
        let host = self.host(&Site::of(host, self.options().plain_http));
        let name = host.name().to_owned();
        let endpoint = |access| Endpoint::own(Arc::clone(&host), repository.to_owned(), access);
        let (registry, push) = (endpoint(Access::Pull), endpoint(Access::Push));
        let route = Route::new((&name, repository), vec![registry], Some(push), None);
        Repository::new(self.clone(), Course::fixed(route), selector)
    }

    /// The same repository, had from where the user's files say it is.
    ///
    /// Reads the files, and reads them again while the repository is in use.
    pub async fn find(&self, host: &str, repository: &str, selector: Selector) -> Result<Repository, Error> {
        let course = Course::find(self, host, repository, &selector).await?;
        Ok(Repository::new(self.clone(), course, selector))
    }

    /// What lets requests pass.
    pub(super) fn grants(&self) -> &Grants {
        &self.shared.grants
    }

    /// True if both are clones of one client.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// A client that does not keep what it shares from being dropped.
    pub fn downgrade(&self) -> WeakClient {
        WeakClient(Arc::downgrade(&self.shared))
    }

    /// The host at `site`.
    pub(super) fn host(&self, site: &Site) -> Arc<Host> {
        let mut hosts = self.shared.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Arc::new(Host::new(site.clone()));
        Arc::clone(hosts.entry(site.clone()).or_insert_with(new))
    }

    pub(super) fn options(&self) -> &Options {
        &self.shared.options
    }

    pub(super) fn policy(&self) -> &Policy {
        &self.shared.policy
    }

    pub(super) fn transport(&self) -> &Transport {
        &self.shared.transport
    }

    /// Where the redirects of a blob led last time.
    pub(super) fn resolved(&self, key: &BlobKey) -> Option<Location> {
        self.shared.resolved.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Remembers where the redirects of a blob led; nothing means to ask the registry again.
    pub(super) fn remember(&self, key: &BlobKey, location: Option<Location>) {
        let mut resolved = self.shared.resolved.lock().unwrap_or_else(PoisonError::into_inner);
        match location {
            Some(location) => resolved.put(key.clone(), location),
            None => resolved.pop(key),
        };
    }

    /// Repeats `attempt` as long as its faults are worth it.
    pub(super) async fn persist<T, F>(&self, attempt: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let mut retries = Retries::new(self.policy());
        loop {
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(fault) => retries.pause(fault).await?,
            }
        }
    }

    /// Asks one endpoint after the other for `what` by `attempt`, and repeats that as long as the faults are worth it.
    pub(super) async fn persist_over<'a, T, F>(
        &self,
        what: &str,
        (route, role): (&'a Route, Role),
        attempt: impl Fn(&'a Endpoint) -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        self.persist_until(what, (route, role), attempt, |_| true).await
    }

    /// The same for what a mirror may not know of: an answer of one counts if it `says` something, or if nobody else fails or
    /// says more. The registry's own always counts.
    pub(super) async fn persist_until<'a, T, F>(
        &self,
        what: &str,
        (route, role): (&'a Route, Role),
        attempt: impl Fn(&'a Endpoint) -> F,
        says: impl Fn(&T) -> bool,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Fault>>,
    {
        let mut retries = Retries::new(self.policy());
        loop {
            let able = route.order(role);
            let mut round = Round::new(0..able.len());
            let mut little = None;
            while let Some(number) = round.next() {
                let Endpoint { host, is_own, .. } = able[number];
                let answer = round.turn(what, Some(host), attempt(able[number])).await;
                host.note(answer.as_ref().err().map(|fault| &fault.error));
                match answer {
                    Ok(value) if *is_own || says(&value) => return Ok(value),
                    Ok(value) => little = Some(value),
                    Err(fault) => round.failed(number, fault),
                }
            }
            match (round.verdict(role, |number| able[number].is_own), little) {
                (Some(fault), _) => {
                    route.note_failure();
                    retries.pause(fault).await?;
                }
                (None, Some(value)) => return Ok(value),
                (None, None) => return Err(route.nobody(role.describe())),
            }
        }
    }

    /// Asks an endpoint for `rest` below the repository, finding out how it speaks if that is not known.
    pub(super) async fn request(
        &self,
        endpoint: &Endpoint,
        rest: &[&str],
        call: &Call<'_>,
    ) -> Result<(Response, Location), Fault> {
        let mut first: Option<Fault> = None;
        let is_suspect = |fault: &Fault| fault.wrong_protocol != Suspicion::Absent;
        let schemes = endpoint.host.schemes();
        for (index, &scheme) in schemes.iter().enumerate() {
            let last = index + 1 == schemes.len();
            let mut start = endpoint.host.locate(scheme, &endpoint.repository, rest).map_err(Fault::lasting)?;
            if let Some(ns) = &endpoint.ns {
                start.url.query_pairs_mut().append_pair("ns", ns);
            }
            if let Some(message) = call.message.filter(|message| !message.query.is_empty()) {
                start.url.query_pairs_mut().extend_pairs(&message.query);
            }
            let result = match self.follow(endpoint, call, start.clone()).await {
                // A TLS port answers plain requests with a 400 that says so.
                Ok((response, at)) if !last && response.status() == StatusCode::BAD_REQUEST && at.url == start.url => {
                    Err(complain(call.what, response).await)
                }
                other => other,
            };
            match result {
                Ok((response, at)) => {
                    // After a broken connection this may be the wrong way to speak to it, which a refusal or a redirect shows.
                    // Plain HTTP is the wrong way until it is certain that there is no TLS: another server may listen there.
                    let is_downgrade =
                        |first: &Fault| scheme == Scheme::Plain && first.wrong_protocol != Suspicion::Certain;
                    match first {
                        Some(first) if response.status() == StatusCode::BAD_REQUEST => return Err(first),
                        Some(first) if at.moved || is_downgrade(&first) => {}
                        _ => endpoint.host.settle(scheme),
                    }
                    return Ok((response, at));
                }
                // Once it has answered in one way, a broken connection is no sign of another.
                Err(fault) if is_suspect(&fault) && !last && !endpoint.host.is_settled() => first = Some(fault),
                // If neither way works, the first one was the likelier.
                Err(fault) if is_suspect(&fault) || first.is_none() => return Err(first.unwrap_or(fault)),
                Err(fault) => {
                    return Err(first.filter(|_| fault.error.kind() == ErrorKind::Unreachable).unwrap_or(fault));
                }
            }
        }
        // There is always a scheme, so this is reached only after the first of two was wrong.
        Err(first.unwrap_or_else(|| Fault::lasting(Error::new(ErrorKind::Invalid, cannot(call.what)))))
    }

    /// Asks at `at`, and wherever that redirects to.
    pub(super) async fn follow(
        &self,
        endpoint: &Endpoint,
        call: &Call<'_>,
        mut at: Location,
    ) -> Result<(Response, Location), Fault> {
        for _ in 0..=REDIRECTS {
            let response = if at.trusted {
                self.authorized(endpoint, call, &at).await?
            } else {
                // A host is as well as the store that it sends us to.
                self.ask(endpoint, call, &at, call.headers()).await?
            };
            if !call.follows(response.status()) {
                return Ok((response, at));
            }
            at = redirect::next(call.what, &at, response.headers()).map_err(Fault::lasting)?;
        }
        let message = format!("{}: more than {REDIRECTS} redirects, last to {}", cannot(call.what), origin(&at.url));
        Err(Fault::lasting(Error::new(ErrorKind::Invalid, message)))
    }

    /// Sends one request, and notes how its host does. While we hold back ourselves, nobody is silent.
    async fn ask(
        &self,
        endpoint: &Endpoint,
        call: &Call<'_>,
        at: &Location,
        headers: HeaderMap,
    ) -> Result<Response, Fault> {
        let permit = self.transport().enter(at).await;
        let asked = endpoint.host.health().ask();
        let answer = self.transport().send(call, at, headers, permit).await;
        asked.heard(&answer);
        answer
    }

    /// Asks the registry, answering its challenges.
    ///
    /// A request is repeated only with another authorization than those refused: after the first challenge, with wider
    /// scopes, with a token newer than the one that was at hand, or when the user's credentials have changed.
    async fn authorized(&self, endpoint: &Endpoint, call: &Call<'_>, at: &Location) -> Result<Response, Fault> {
        let mut grant = self.grant_at_hand(endpoint, call, at).await?;
        let mut is_new = false;
        let mut rounds = 0;
        loop {
            let mut headers = call.headers();
            endpoint.host.add_headers(&mut headers);
            if let Some(grant) = &grant {
                headers.insert(AUTHORIZATION, token::header(call.what, &grant.header)?);
            }
            let response = self.ask(endpoint, call, at, headers).await?;
            let status = response.status();
            if !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
                return Ok(response);
            }
            endpoint.host.answered(at);
            let renewed = is_new && grant.as_ref().is_some_and(Grant::is_young);
            let next = if rounds < AUTHORIZATION_ROUNDS {
                self.grant_after(endpoint, call, at, &response, grant.as_ref(), renewed).await?
            } else {
                None
            };
            if next.is_none() {
                return Err(denied(endpoint, call.what, response, grant.as_ref()).await);
            }
            is_new = grant.is_some();
            grant = next;
            rounds += 1;
        }
    }

    /// The grant that the host's last challenge asks for, so that a known registry needs no second round trip.
    async fn grant_at_hand(&self, endpoint: &Endpoint, call: &Call<'_>, at: &Location) -> Result<Option<Grant>, Fault> {
        let Some(challenge) = endpoint.host.challenge() else {
            return Ok(None);
        };
        match self.grant(endpoint, call, at, &challenge, None).await {
            // The challenge was for something else; this repository may be public.
            Err(fault) if fault.error.kind() == ErrorKind::Denied => Ok(None),
            other => other,
        }
    }

    /// The grant to try after a refusal, if there is one that was not refused already.
    async fn grant_after(
        &self,
        endpoint: &Endpoint,
        call: &Call<'_>,
        at: &Location,
        response: &Response,
        refused: Option<&Grant>,
        renewed: bool,
    ) -> Result<Option<Grant>, Fault> {
        let forbidden = response.status() == StatusCode::FORBIDDEN;
        let challenge = match challenge::choose(response.headers()) {
            Ok(challenge) => {
                endpoint.host.learn(challenge.clone());
                challenge
            }
            Err(error) if forbidden => match (endpoint.host.challenge(), refused) {
                (Some(challenge), Some(_)) => challenge,
                _ => {
                    tracing::debug!(%error, "forbidden without a challenge");
                    return Ok(None);
                }
            },
            Err(error) => {
                let message = format!("{}: {} answered 401, but {error}", cannot(call.what), origin(&at.url));
                return Err(Fault::lasting(Error::new(ErrorKind::Denied, message)));
            }
        };
        let wider = match &challenge {
            Challenge::Bearer(bearer) => endpoint.demand(&bearer.scopes, refused.is_some()),
            Challenge::Basic => false,
        };
        let refused = refused.filter(|_| !wider);
        let refused = refused.map(|grant| Refused { grant, final_unless_credential_changed: forbidden || renewed });
        self.grant(endpoint, call, at, &challenge, refused).await
    }

    async fn grant(
        &self,
        endpoint: &Endpoint,
        call: &Call<'_>,
        at: &Location,
        challenge: &Challenge,
        refused: Option<Refused<'_>>,
    ) -> Result<Option<Grant>, Fault> {
        let scopes = endpoint.scopes();
        let need = Need {
            what: call.what,
            id: endpoint.host.id(),
            host: endpoint.host.name(),
            repository: &endpoint.repository,
            registry: &at.url,
            link: endpoint.host.link(),
            challenge,
            scopes: &scopes,
        };
        self.shared.grants.get(self.transport(), &need, refused).await
    }
}

/// A [`Client`] for as long as somebody else has it.
#[derive(Clone)]
pub struct WeakClient(Weak<Shared>);

impl PartialEq for WeakClient {
    /// True if both are of one client.
    fn eq(&self, other: &Self) -> bool {
        self.0.ptr_eq(&other.0)
    }
}

impl Eq for WeakClient {}

impl WeakClient {
    /// The client, if there is still one.
    pub fn upgrade(&self) -> Option<Client> {
        Some(Client { shared: self.0.upgrade()? })
    }
}

impl fmt::Debug for WeakClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WeakClient").finish()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

/// The fault of a final 401 or 403.
async fn denied(endpoint: &Endpoint, what: &str, response: Response, grant: Option<&Grant>) -> Fault {
    let (at, status) = (response.url().clone(), response.status());
    let complaint = Complaint::of(response).await;
    // Registries hide what does not exist behind a refusal (B-122).
    let message = format!("{}: access denied, or it does not exist: {}", cannot(what), answer(&at, status, &complaint));
    let fault = Fault::lasting(Error::new(ErrorKind::Denied, message));
    let (credential, troubles) =
        grant.map_or((None, &[][..]), |grant| (grant.credential.as_ref(), &grant.troubles[..]));
    advise(fault, endpoint.host.name(), credential, troubles)
}

/// The fault of an answer with an unwanted status.
pub(super) async fn complain(what: &str, response: Response) -> Fault {
    let (at, status, headers) = (response.url().clone(), response.status(), response.headers().clone());
    refused(what, &at, status, &headers, &Complaint::of(response).await)
}

/// The same for a 405: whoever runs the registry has it allow nobody to do this.
pub(super) async fn not_allowed(what: &str, response: Response, deed: &str) -> Fault {
    let mut fault = complain(what, response).await;
    let error = Error::new(ErrorKind::Denied, fault.error.to_string());
    fault.error = error.hint(format!("the registry does not allow {deed}; ask whoever runs it"));
    fault
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn b_097_a_host_that_we_do_not_ask_because_it_wished_so_is_not_silent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("somebody comes");
            let asked = stream.read(&mut [0; 512]).await.expect("he asks");
            assert!(asked > 0, "he asks");
            let head = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 50\r\nContent-Length: 0\r\n\r\n";
            stream.write_all(head).await.expect("he listens");
            std::future::pending::<()>().await;
        });
        let client = Client::new(Options::default()).expect("nothing from outside is needed");
        let host = client.host(&Site::of(&address.to_string(), true));
        let endpoint = Endpoint::own(Arc::clone(&host), "a".to_owned(), Access::Pull);
        let call = Call { what: "x", accept: None, range: None, message: None };
        let (refusal, _) = client.request(&endpoint, &["tags", "list"], &call).await.expect("an answer");
        assert_eq!((refusal.status(), host.health().silence()), (StatusCode::TOO_MANY_REQUESTS, None));
        let mut waits = std::pin::pin!(client.request(&endpoint, &["tags", "list"], &call));
        assert!(waits.as_mut().now_or_never().is_none(), "it is to come back later");
        assert_eq!(host.health().silence(), None, "nobody has asked it yet");
    }
}
