//! Uploading a blob: in chunks that go on where they broke off (distribution-spec, "Pushing Blobs").
//!
//! What makes uploads hard is that a registry may have more or less of a chunk than was sent when the connection breaks,
//! and that registries differ in what they offer: chunks, only whole bodies, or mounting from a repository beside. An
//! [`Upload`] is one blob on its way; it takes one [`step`](Upload::step) after the other in a [`Session`], and every
//! fault leads to one of three: ask the registry where it is, begin a new session, or give up. Only bytes that the
//! registry never had before count as progress, so that no answer makes this go on for ever.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, LOCATION, RANGE};
use reqwest::{Method, StatusCode};

use super::call::{Call, Message};
use super::client::{Client, complain, not_allowed};
use super::endpoint::Endpoint;
use super::error::{Fault, LEAVE_TO, Retry, cannot};
use super::redirect::{self, Location};
use super::retry::Retries;
use crate::limits::{PUSH_CHUNK, PUSH_CHUNK_LARGEST, RESUME_PROGRESS};
use crate::oci::{Algorithm, Digest};
use crate::source::{Error, ErrorKind};

/// The least length of a chunk that the registry takes.
const LEAST_CHUNK: HeaderName = HeaderName::from_static("oci-chunk-min-length");

/// How long giving up an upload may take: it has failed, and somebody waits to be told why.
const ABANDON_TIME: Duration = Duration::from_secs(5);

/// How a blob came to be in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// The registry took it from another of its repositories.
    Mounted,
    /// Its bytes were sent.
    Sent,
}

/// True if the repository has the blob.
pub(super) async fn exists(client: &Client, target: &Endpoint, digest: &Digest) -> Result<bool, Error> {
    let what = format!("{LEAVE_TO}look for blob {}@{digest}", target.name());
    let message = Message::bare(Method::HEAD);
    let ask = async || {
        let call = Call::sending(&what, &message);
        let response = match client.request(target, &["blobs", &digest.to_string()], &call).await {
            Ok((response, _)) => response,
            // The answer to HEAD has no body that would say why. If pushing is forbidden as well, the answer to that does.
            Err(fault) if fault.error.kind() == ErrorKind::Denied => return Ok(false),
            Err(fault) => return Err(fault),
        };
        match response.status() {
            StatusCode::OK => Ok(true),
            // Some servers know GET only; what is there already is then sent once more.
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Ok(false),
            _ => Err(complain(&what, response).await),
        }
    };
    client.persist(ask).await
}

/// A blob on its way.
pub(super) struct Upload<'a> {
    client: &'a Client,
    target: &'a Endpoint,
    what: String,
    digest: Digest,
    bytes: Bytes,
    /// A repository of the same registry that has the blob.
    from: Option<&'a str>,
    /// Bytes that the registry has, for whoever shows progress.
    sent: &'a AtomicU64,
}

/// How the bytes are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Piece by piece, each answered.
    Chunks,
    /// In the request that ends the upload.
    Whole,
}

/// An upload as the registry knows it.
struct Session {
    /// Where to go on; changes with every answer.
    at: Location,
    /// Bytes that the registry has.
    next: usize,
    /// False after a fault: the registry must be asked what it has.
    is_known: bool,
    chunk: usize,
}

/// Where an upload stands between two steps.
struct State {
    way: Way,
    session: Option<Session>,
    /// The repository that the blob may be mounted from, until that is refused.
    from: Option<String>,
}

impl<'a> Upload<'a> {
    pub(super) fn new(
        client: &'a Client,
        target: &'a Endpoint,
        digest: Digest,
        bytes: Bytes,
        from: Option<&'a str>,
        sent: &'a AtomicU64,
    ) -> Self {
        let what = format!("{LEAVE_TO}push blob {}@{digest}", target.name());
        Self { client, target, what, digest, bytes, from, sent }
    }

    /// Brings the blob there.
    pub(super) async fn run(&self) -> Result<Pushed, Error> {
        let mut retries = Retries::new(self.client.policy());
        let mut state = State { way: Way::Chunks, session: None, from: self.from.map(str::to_owned) };
        if self.bytes.len() <= PUSH_CHUNK {
            state.way = Way::Whole;
        }
        let mut furthest = 0;
        loop {
            match self.step(&mut state).await {
                Ok(Some(pushed)) => {
                    self.sent.store(self.bytes.len() as u64, Ordering::Relaxed);
                    return Ok(pushed);
                }
                Ok(None) => {
                    let next = state.session.as_ref().map_or(0, |session| session.next);
                    self.sent.store(next as u64, Ordering::Relaxed);
                    if next as u64 >= furthest + RESUME_PROGRESS {
                        furthest = next as u64;
                        retries.progress();
                    }
                }
                Err(fault) => {
                    if let Err(error) = retries.pause(fault).await {
                        self.abandon(state).await;
                        return Err(error);
                    }
                }
            }
        }
    }

    /// Tells the registry that nothing more comes, so that it need not keep what it has until it is tired of waiting.
    async fn abandon(&self, state: State) {
        let Some(session) = state.session else { return };
        let message = Message::bare(Method::DELETE);
        let call = Call::sending(&self.what, &message);
        match tokio::time::timeout(ABANDON_TIME, self.client.follow(self.target, &call, session.at)).await {
            Ok(Ok(_)) => {}
            Ok(Err(fault)) => tracing::debug!(error = %fault.error, "an upload that failed is left behind"),
            Err(_) => tracing::debug!("an upload that failed is left behind"),
        }
    }

    /// The next request; tells how the blob came there when that was the last.
    async fn step(&self, state: &mut State) -> Result<Option<Pushed>, Fault> {
        let Some(session) = &mut state.session else { return self.begin(state).await };
        if !session.is_known {
            return self.ask(state).await.map(|()| None);
        }
        if state.way == Way::Chunks && session.next < self.bytes.len() {
            return self.send_chunk(state).await.map(|()| None);
        }
        self.end(state).await
    }

    /// Opens a session, or has the blob mounted. A registry that cannot mount opens a session all the same.
    async fn begin(&self, state: &mut State) -> Result<Option<Pushed>, Fault> {
        let mut message = Message::bare(Method::POST);
        if let Some(from) = &state.from {
            self.target.also_reads(from);
            message.query = vec![("mount", self.digest.to_string()), ("from", from.clone())];
        }
        if self.digest.algorithm() != Algorithm::Sha256 {
            // Registries hash what arrives, and begin with the usual algorithm unless they are told.
            message.query.push(("digest-algorithm", self.digest.algorithm().name().to_owned()));
        }
        let call = Call::sending(&self.what, &message);
        let answered = self.client.request(self.target, &["blobs", "uploads", ""], &call).await;
        if let (Err(fault), Some(from)) = (&answered, &state.from)
            && fault.error.kind() == ErrorKind::Denied
        {
            tracing::debug!(error = %fault.error, from, "the blob cannot be mounted, it is sent");
            self.target.reads_only_itself();
            state.from = None;
            return Ok(None);
        }
        let (response, at) = answered?;
        match response.status() {
            StatusCode::CREATED if state.from.is_some() => Ok(Some(Pushed::Mounted)),
            StatusCode::ACCEPTED => {
                let at = redirect::next(&self.what, &at, response.headers()).map_err(Fault::lasting)?;
                let chunk = least_chunk(response.headers()).max(PUSH_CHUNK);
                state.session = Some(Session { at, next: 0, is_known: true, chunk });
                Ok(None)
            }
            StatusCode::METHOD_NOT_ALLOWED => Err(not_allowed(&self.what, response, "pushing").await),
            _ => Err(complain(&self.what, response).await),
        }
    }

    /// Asks how much the registry has. A session that it does not know any more is given up.
    async fn ask(&self, state: &mut State) -> Result<(), Fault> {
        let Some(session) = &mut state.session else { return Ok(()) };
        let message = Message::bare(Method::GET);
        let call = Call::sending(&self.what, &message);
        let answered = self.client.follow(self.target, &call, session.at.clone()).await;
        match answered {
            Ok((response, at)) if response.status().is_success() => {
                session.move_on(&self.what, at, response.headers())?;
                session.next = kept(response.headers()).unwrap_or(0);
                session.is_known = true;
                if session.next > self.bytes.len() {
                    state.session = None;
                }
                Ok(())
            }
            Ok((response, _)) => {
                let fault = complain(&self.what, response).await;
                if fault.retry != Retry::Never {
                    return Err(fault);
                }
                // The fault that led here was counted, so beginning anew is bounded.
                tracing::debug!(error = %fault.error, "the upload begins anew");
                state.session = None;
                Ok(())
            }
            Err(fault) => Err(fault),
        }
    }

    /// Sends the next chunk.
    async fn send_chunk(&self, state: &mut State) -> Result<(), Fault> {
        let Some(session) = &mut state.session else { return Ok(()) };
        let range = session.next..session.next.saturating_add(session.chunk).min(self.bytes.len());
        let message = Message { body: self.bytes.slice(range.clone()), ..Message::bare(Method::PATCH) }
            .header(CONTENT_TYPE, "application/octet-stream")
            // Without a unit, unlike in HTTP.
            .header(CONTENT_RANGE, &format!("{}-{}", range.start, range.end - 1));
        let call = Call::sending(&self.what, &message);
        session.is_known = false;
        let (response, at) = self.client.follow(self.target, &call, session.at.clone()).await?;
        let status = response.status();
        match status {
            _ if status.is_success() => {
                session.move_on(&self.what, at, response.headers())?;
                let kept = kept(response.headers()).unwrap_or(range.end);
                if kept != range.end {
                    return Err(self.kept_only(kept, &range));
                }
                session.next = kept;
                session.is_known = true;
                Ok(())
            }
            // Taken off the line, or restarted: what it has is asked for.
            StatusCode::RANGE_NOT_SATISFIABLE if range.start > 0 => Err(passing(complain(&self.what, response).await)),
            _ if range.start == 0 && refuses_chunks(status) => {
                let fault = complain(&self.what, response).await;
                tracing::debug!(error = %fault.error, "the registry takes no chunks, the blob is sent as a whole");
                *state = State { way: Way::Whole, session: None, from: state.from.take() };
                Ok(())
            }
            StatusCode::NOT_FOUND => {
                state.session = None;
                Err(passing(complain(&self.what, response).await))
            }
            _ => Err(complain(&self.what, response).await),
        }
    }

    /// Sends what is left and names the digest.
    async fn end(&self, state: &mut State) -> Result<Option<Pushed>, Fault> {
        let Some(session) = &mut state.session else { return Ok(None) };
        let message = Message { body: self.bytes.slice(session.next..), ..Message::bare(Method::PUT) }
            .header(CONTENT_TYPE, "application/octet-stream");
        let call = Call::sending(&self.what, &message);
        let mut at = session.at.clone();
        at.url.query_pairs_mut().append_pair("digest", &self.digest.to_string());
        session.is_known = false;
        let (response, _) = match self.client.follow(self.target, &call, at).await {
            Ok(answered) => answered,
            // It may have arrived, and only the answer was lost.
            Err(fault) if fault.retry != Retry::Never => {
                return match exists(self.client, self.target, &self.digest).await {
                    Ok(true) => Ok(Some(Pushed::Sent)),
                    _ => Err(fault),
                };
            }
            Err(fault) => return Err(fault),
        };
        let status = response.status();
        if status.is_success() {
            return Ok(Some(Pushed::Sent));
        }
        let fault = complain(&self.what, response).await;
        if matches!(status.as_u16(), 400 | 404 | 416) {
            // What the registry put together is not the blob: the bytes are sent again, but not for ever.
            state.session = None;
            return Err(Fault { retry: Retry::Briefly, ..fault });
        }
        Err(fault)
    }

    fn kept_only(&self, kept: usize, sent: &Range<usize>) -> Fault {
        let message =
            format!("{}: the registry kept {kept} bytes after it was sent those to {}", cannot(&self.what), sent.end);
        Fault::passing(Error::new(ErrorKind::Invalid, message))
    }
}

impl Session {
    /// Takes the place that an answer names; one that names none leaves it where it was.
    fn move_on(&mut self, what: &str, from: Location, headers: &HeaderMap) -> Result<(), Fault> {
        self.at = match headers.contains_key(LOCATION) {
            true => redirect::next(what, &from, headers).map_err(Fault::lasting)?,
            false => from,
        };
        Ok(())
    }
}

/// The same fault, worth another attempt.
fn passing(fault: Fault) -> Fault {
    Fault { retry: Retry::Later(None), ..fault }
}

/// Statuses by which registries refuse a first chunk that they would take as a whole.
fn refuses_chunks(status: StatusCode) -> bool {
    matches!(status.as_u16(), 400 | 404 | 405 | 411 | 415 | 416 | 501)
}

/// Bytes that the registry says it has: `Range: 0-<last>`, which some write with a unit.
///
/// Registries write `0-0` for no byte as well as for one; whole chunks are sent, so it means none.
fn kept(headers: &HeaderMap) -> Option<usize> {
    let range = headers.get(RANGE)?.to_str().ok()?.trim();
    let last: usize = range.strip_prefix("bytes=").unwrap_or(range).strip_prefix("0-")?.parse().ok()?;
    if last == 0 { Some(0) } else { last.checked_add(1) }
}

/// The least chunk that the registry asks for, within what is sent at once.
fn least_chunk(headers: &HeaderMap) -> usize {
    let stated = headers.get(LEAST_CHUNK).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    stated.unwrap_or(0).min(PUSH_CHUNK_LARGEST)
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn b_167_what_a_registry_has_of_an_upload_is_read_with_and_without_a_unit() {
        for (written, bytes) in [
            ("0-0", Some(0)),
            ("0-1", Some(2)),
            ("bytes=0-99", Some(100)),
            (" 0-4194303 ", Some(4_194_304)),
            ("1-5", None),
            ("0-", None),
            ("0-99999999999999999999999", None),
            ("0-18446744073709551615", None),
        ] {
            assert_eq!(kept(&headers(RANGE, written)), bytes, "{written}");
        }
        assert_eq!(kept(&HeaderMap::new()), None);
    }

    #[test]
    fn b_166_a_least_chunk_is_bounded() {
        assert_eq!(least_chunk(&headers(LEAST_CHUNK, "5242880")), 5 << 20);
        assert_eq!(least_chunk(&headers(LEAST_CHUNK, "99999999999999")), PUSH_CHUNK_LARGEST);
        assert_eq!(least_chunk(&headers(LEAST_CHUNK, "-1")), 0);
    }
}
