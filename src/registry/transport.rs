//! The HTTP stack: connection pools, time-outs, and bodies that cannot stall or grow without end.
//!
//! [`Transport`] keeps up to three pools apart by what they trust: requests to this machine (no proxy, certificates not
//! checked), plain HTTP, and TLS checked against the system's certificates, which are loaded only when TLS is first
//! used, so that nothing but TLS fails where there are none. A host of which the configuration says more has a pool of its
//! own ([`super::link`]). Redirects are never followed here. [`Body`] reads an
//! answer with low-speed detection in place of a total time-out, so that large transfers may take as long as they move.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use reqwest::header::{CONTENT_LENGTH, HeaderMap};
use reqwest::{Client, ClientBuilder, Method, RequestBuilder, Response, Url, redirect};
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout, timeout_at};

use super::address::Reach;
use super::call::{Call, Message};
use super::error::{Fault, Reason, Retry, cannot, origin, unanswered};
use super::pace::{Paces, Permit};
use super::redirect::Location;
use super::retry;
use super::warning::Warnings;
use crate::limits::LOW_SPEED;
use crate::source::{Error, ErrorKind};

/// Idle connections kept per host: as many as the widest window of parallel ranges.
const IDLE_CONNECTIONS: usize = 32;

/// The longest pause that a host is granted unless the options say otherwise.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Bytes of a request body that are handed to the connection at once; a peer that takes none of them is stalling.
const SENT_PIECE: usize = 64 << 10;

/// What the pools need to know.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    pub(super) user_agent: String,
    pub(super) connect: Duration,
    /// The longest silence of a peer.
    pub(super) stall: Duration,
}

/// How long the answer to a request is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// The longest silence, which includes the time for a connection.
    Asking,
    /// Longer: both after each other.
    Sending,
}

/// The connection pools.
pub(super) struct Transport {
    settings: Settings,
    local: Client,
    plain: Client,
    verified: OnceCell<Client>,
    warnings: Warnings,
    paces: Paces,
}

impl Transport {
    pub(super) fn new(settings: Settings) -> Result<Self, Error> {
        let failed = |error: reqwest::Error| {
            Error::new(ErrorKind::Invalid, "cannot set up the HTTP client").because(Reason::of(error))
        };
        // An empty set of certificates keeps these two from loading the system's.
        let local = builder(&settings).no_proxy().tls_certs_only([]).tls_danger_accept_invalid_certs(true);
        let plain = builder(&settings).tls_certs_only([]);
        Ok(Self {
            local: local.build().map_err(failed)?,
            plain: plain.build().map_err(failed)?,
            verified: OnceCell::new(),
            warnings: Warnings::default(),
            paces: Paces::new(LONGEST_PAUSE),
            settings,
        })
    }

    /// The same, which waits so long at most when a host asks to be left in peace.
    pub(super) fn with_longest_pause(self, pause: Duration) -> Self {
        Self { paces: Paces::new(pause), ..self }
    }

    /// The longest silence of a peer.
    pub(super) fn stall(&self) -> Duration {
        self.settings.stall
    }

    /// Sends a GET, and returns the head of the answer whatever its status.
    pub(super) async fn get(&self, what: &str, to: &Location, headers: HeaderMap) -> Result<Response, Fault> {
        let request = self.pool(what, to).await?.get(to.url.clone()).headers(headers);
        let permit = self.enter(to).await;
        self.answer(what, &to.url, request, (Patience::Asking, &AtomicUsize::new(0)), permit).await
    }

    /// Waits until the host may be asked.
    pub(super) async fn enter(&self, to: &Location) -> Permit {
        self.paces.enter(&to.url).await
    }

    /// Sends the request of `call`, and returns the head of the answer whatever its status.
    pub(super) async fn send(
        &self,
        call: &Call<'_>,
        to: &Location,
        headers: HeaderMap,
        permit: Permit,
    ) -> Result<Response, Fault> {
        let pool = self.pool(call.what, to).await?;
        let taken = Arc::new(AtomicUsize::new(0));
        let (request, patience) = match call.message {
            Some(message) => {
                let request = pool.request(message.method.clone(), to.url.clone()).headers(headers);
                (with_body(request, message, &taken), Patience::Sending)
            }
            None => (pool.get(to.url.clone()).headers(headers), Patience::Asking),
        };
        self.answer(call.what, &to.url, request, (patience, &taken), permit).await
    }

    /// Posts a form, and returns the head of the answer whatever its status.
    pub(super) async fn post(&self, what: &str, to: &Location, form: &[(&str, &str)]) -> Result<Response, Fault> {
        let request = self.pool(what, to).await?.post(to.url.clone()).form(form);
        let permit = self.enter(to).await;
        self.answer(what, &to.url, request, (Patience::Asking, &AtomicUsize::new(0)), permit).await
    }

    /// Waits for the answer to `request` as long as the peer takes its body, which counts in `taken`.
    async fn answer(
        &self,
        what: &str,
        url: &Url,
        request: RequestBuilder,
        (patience, taken): (Patience, &AtomicUsize),
        permit: Permit,
    ) -> Result<Response, Fault> {
        let Settings { stall, connect, .. } = self.settings;
        let (patience, retry) = match patience {
            Patience::Asking => (stall.max(connect), Retry::Once),
            // What a registry has to do with what it was sent takes its time.
            Patience::Sending => (stall.saturating_add(connect), Retry::Later(None)),
        };
        let mut sending = std::pin::pin!(request.send());
        let mut before = 0;
        loop {
            match timeout(patience, sending.as_mut()).await {
                Ok(Ok(mut response)) => {
                    self.warnings.note(url, response.headers());
                    self.paces.heard(&permit, response.status(), retry::wish(response.headers()));
                    // What has a body is under way until that is read. Whoever holds a refusal may have to ask again first.
                    if response.status().is_success() {
                        response.extensions_mut().insert(permit);
                    }
                    return Ok(response);
                }
                Ok(Err(error)) => return Err(unanswered(what, url, error)),
                Err(_) => match taken.load(Ordering::Relaxed) {
                    now if now > before => before = now,
                    _ => return Err(Fault { retry, ..silent(what, url, patience) }),
                },
            }
        }
    }

    async fn pool(&self, what: &str, to: &Location) -> Result<Client, Fault> {
        if let Some(link) = &to.link {
            return link.client(&self.settings).await.map_err(Fault::lasting);
        }
        let tls = to.url.scheme() == "https";
        let here = Reach::of(to.url.host_str().unwrap_or_default()) == Reach::Loopback;
        match (tls, to.verified) {
            (false, _) if here => Ok(self.local.clone()),
            (false, _) => Ok(self.plain.clone()),
            (true, false) => Ok(self.local.clone()),
            (true, true) => self.verified.get_or_try_init(|| self.load()).await.cloned().map_err(|error| {
                let message = format!("{}: TLS to {} is not possible here", cannot(what), origin(&to.url));
                let hint = "install the CA certificates (package ca-certificates), or name a bundle in SSL_CERT_FILE";
                let reason = Reason::of(error);
                Fault::lasting(Error::new(ErrorKind::Unreachable, message).because(reason).hint(hint))
            }),
        }
    }

    /// Builds the verifying pool; off the async threads, because it reads some hundred certificates from disk.
    async fn load(&self) -> Result<Client, reqwest::Error> {
        let settings = self.settings.clone();
        match tokio::task::spawn_blocking(move || builder(&settings).build()).await {
            Ok(built) => built,
            // Only if the runtime is shutting down; building here is then as good.
            Err(_) => builder(&self.settings).build(),
        }
    }
}

/// Adds the body of `message`, a long one in pieces that are counted in `taken` when the connection takes them.
///
/// The length is always stated: servers refuse uploads without it, and some answer 411 to an empty POST that has none.
fn with_body(request: RequestBuilder, message: &Message, taken: &Arc<AtomicUsize>) -> RequestBuilder {
    let body = message.body.clone();
    if body.is_empty() && matches!(message.method, Method::GET | Method::HEAD | Method::DELETE) {
        return request;
    }
    let request = request.header(CONTENT_LENGTH, body.len());
    if body.len() <= SENT_PIECE {
        return request.body(body);
    }
    let taken = Arc::clone(taken);
    let pieces = (0..body.len()).step_by(SENT_PIECE).map(move |start| {
        let end = (start + SENT_PIECE).min(body.len());
        taken.store(end, Ordering::Relaxed);
        Ok::<_, std::convert::Infallible>(body.slice(start..end))
    });
    request.body(reqwest::Body::wrap_stream(stream::iter(pieces)))
}

/// What all pools have in common.
pub(super) fn builder(settings: &Settings) -> ClientBuilder {
    Client::builder()
        .user_agent(&settings.user_agent)
        .redirect(redirect::Policy::none())
        .referer(false)
        .http1_only()
        .connect_timeout(settings.connect)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
}

fn silent(what: &str, url: &Url, patience: Duration) -> Fault {
    let message = format!("{}: {} sent nothing for {patience:?}", cannot(what), origin(url));
    Fault { retry: Retry::Once, ..Fault::passing(Error::new(ErrorKind::Unreachable, message)) }
}

/// The body of an answer while it arrives.
#[derive(Debug)]
pub(super) struct Body {
    response: Response,
    stall: Duration,
    /// Time spent waiting for the peer, and bytes received, since the last check of the speed.
    waited: Duration,
    received: u64,
}

impl Body {
    pub(super) fn new(response: Response, stall: Duration) -> Self {
        Self { response, stall, waited: Duration::ZERO, received: 0 }
    }

    /// The next piece, never empty, or nothing at the end.
    ///
    /// Only the time spent in here counts as the peer's: a consumer that takes its time is no reason to give up.
    pub(super) async fn piece(&mut self, what: &str) -> Result<Option<Bytes>, Fault> {
        loop {
            let begun = Instant::now();
            let piece = match timeout(self.stall, self.response.chunk()).await {
                Ok(Ok(piece)) => piece,
                Ok(Err(error)) => return Err(broken(what, self.response.url(), error)),
                Err(_) => return Err(silent(what, self.response.url(), self.stall)),
            };
            self.waited += begun.elapsed();
            let Some(piece) = piece else {
                return Ok(None);
            };
            self.received += piece.len() as u64;
            self.check_speed(what)?;
            if !piece.is_empty() {
                return Ok(Some(piece));
            }
        }
    }

    /// The whole body, if it has at most `limit` bytes and arrives within `deadline`.
    pub(super) async fn whole(mut self, what: &str, limit: u64, deadline: Duration) -> Result<Bytes, Fault> {
        let end = Instant::now() + deadline;
        let mut whole = Vec::new();
        loop {
            let Ok(piece) = timeout_at(end, self.piece(what)).await else {
                let message = format!("{}: {} takes more than {deadline:?}", cannot(what), origin(self.response.url()));
                return Err(Fault::passing(Error::new(ErrorKind::Unreachable, message)));
            };
            let Some(piece) = piece? else {
                return Ok(whole.into());
            };
            if whole.len() as u64 + piece.len() as u64 > limit {
                let message = format!("{}: the answer is longer than the {limit} bytes allowed", cannot(what));
                return Err(Fault::lasting(Error::new(ErrorKind::Invalid, message)));
            }
            whole.extend_from_slice(&piece);
        }
    }

    fn check_speed(&mut self, what: &str) -> Result<(), Fault> {
        if self.waited < self.stall {
            return Ok(());
        }
        let least = LOW_SPEED.saturating_mul(u64::try_from(self.waited.as_millis()).unwrap_or(u64::MAX)) / 1000;
        if self.received < least {
            let message = format!(
                "{}: {} sent {} bytes in {:?}",
                cannot(what),
                origin(self.response.url()),
                self.received,
                self.waited
            );
            return Err(Fault::passing(Error::new(ErrorKind::Unreachable, message)));
        }
        self.waited = Duration::ZERO;
        self.received = 0;
        Ok(())
    }
}

/// The start of a body, at most `limit` bytes and what arrives within `time`; a failure only makes it shorter.
pub(super) async fn read_prefix(mut response: Response, limit: u64, time: Duration) -> Vec<u8> {
    let end = Instant::now() + time;
    let mut prefix = Vec::new();
    while let Ok(Ok(Some(piece))) = timeout_at(end, response.chunk()).await {
        prefix.extend_from_slice(&piece);
        if prefix.len() as u64 >= limit {
            prefix.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
            break;
        }
    }
    prefix
}

fn broken(what: &str, url: &Url, error: reqwest::Error) -> Fault {
    let message = format!("{}: {} broke off in the middle", cannot(what), origin(url));
    Fault::passing(Error::new(ErrorKind::Unreachable, message).because(Reason::of(error)))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::registry::error::Suspicion;

    fn transport() -> Transport {
        let time = Duration::from_secs(5);
        let settings = Settings { user_agent: "test".to_owned(), connect: time, stall: time };
        Transport::new(settings).expect("nothing from outside is needed")
    }

    /// A server that answers whatever it is sent with `bytes`.
    async fn answering(bytes: &'static [u8], scheme: &str, verified: bool) -> Location {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut heard = [0; 512];
                // What is heard and whether the answer is taken does not matter.
                drop(stream.read(&mut heard).await);
                drop(stream.write_all(bytes).await);
            }
        });
        let url = Url::parse(&format!("{scheme}://{address}/")).expect("a valid URL");
        Location { url, trusted: true, verified, moved: false, link: None }
    }

    const PLAIN: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

    #[tokio::test]
    async fn b_142_a_server_without_tls_is_recognised_and_never_spoken_to_in_the_clear() {
        for verified in [true, false] {
            let to = answering(PLAIN, "https", verified).await;
            let fault = transport().get("x", &to, HeaderMap::new()).await.expect_err("it does not speak TLS");
            // Without certificates on this machine the verifying pool does not even start.
            if !fault.error.to_string().contains("not possible here") {
                assert!(fault.error.advice().is_some_and(|hint| hint.contains("--plain-http")), "{:?}", fault.error);
                assert_eq!(fault.retry, Retry::Never);
            }
        }
    }

    #[tokio::test]
    async fn b_141_a_server_of_another_protocol_is_recognised() {
        let alert = answering(b"\x15\x03\x01\x00\x02\x02\x46", "http", true).await;
        let fault = transport().get("x", &alert, HeaderMap::new()).await.expect_err("it does not speak HTTP");
        assert_eq!(fault.wrong_protocol, Suspicion::Vague, "{fault:?}");
        let closes = answering(b"", "http", true).await;
        let fault = transport().get("x", &closes, HeaderMap::new()).await.expect_err("it says nothing");
        assert!(fault.wrong_protocol == Suspicion::Vague && fault.error.is_transient(), "{fault:?}");
    }
}
