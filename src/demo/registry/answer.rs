//! From a request to its answer: what the distribution specification says for each [`Endpoint`].
//!
//! A [`Reply`] is an answer before any byte of it went out; faults change it, and [`super::body`] sends it.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, LINK,
    LOCATION,
};
use hyper::{Method, Response, StatusCode};
use serde_json::json;

use super::body::{self, Body, Flow};
use super::content::{Blob, Content, Manifest, tag_order};
use super::fault::{self, Fault, Pace};
use super::head::Slowly;
use super::range::{self, Asked};
use super::request::{self, Endpoint, Request};
use super::{Shared, referrers, token, upload};
use crate::limits::{DEMO_REQUEST_BODY, DEMO_UPLOAD_BODY, MANIFEST_BYTES};
use crate::oci::{Algorithm, Digest};

/// Says what the content of an answer hashes to.
const DIGEST_HEADER: HeaderName = HeaderName::from_static("docker-content-digest");

/// Says which protocol this is; old clients look for it.
const VERSION_HEADER: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// An answer before it is sent.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) payload: Blob,
    /// The bytes of `payload` that make the body.
    pub(super) range: Range<u64>,
    /// Whether `Content-Length` is sent.
    pub(super) states_length: bool,
}

impl Reply {
    pub(super) fn new(status: StatusCode, headers: HeaderMap, body: impl Into<Bytes>) -> Self {
        let payload = Blob::Memory(body.into());
        Self { status, headers, range: 0..payload.size(), payload, states_length: true }
    }

    /// An error in the form of the specification ("Error codes").
    pub(super) fn error(status: StatusCode, code: &str, message: &str) -> Self {
        let body = json!({ "errors": [{ "code": code, "message": message, "detail": null }] });
        let mut reply = Self::new(status, HeaderMap::new(), body.to_string());
        reply.set(CONTENT_TYPE, "application/json");
        reply
    }

    /// Sets a header. Text that HTTP does not allow, which only a test can come up with, is left out.
    pub(super) fn set(&mut self, name: HeaderName, value: &str) {
        match HeaderValue::from_str(value) {
            Ok(value) => drop(self.headers.insert(name, value)),
            Err(error) => tracing::debug!(%name, %error, "the embedded registry cannot send this header"),
        }
    }
}

/// What faults can do to the connection a request came by.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    pub(super) socket: Arc<OwnedFd>,
    pub(super) head: Slowly,
}

/// Answers one request, faults included.
pub(super) async fn answer(
    shared: &Shared,
    connection: Connection,
    incoming: hyper::Request<Incoming>,
) -> Response<Body> {
    let (parts, body) = incoming.into_parts();
    let mut request = take_apart(parts);
    shared.log.begin(&mut request);
    let faults = shared.faults.decide(&request);
    let hangs_up = fault::hangs_up(&faults);
    let received = receive(&request, body, hangs_up).await;
    request.body = received.bytes;
    let mut reply = match token::refusal(&shared.tokens, shared.addr, &faults, &request) {
        Some(refusal) => refusal,
        None if !received.is_whole => upload::broken_off(shared, &request),
        None => route(shared, &request, &faults),
    };
    if hangs_up.is_some()
        && let Err(error) = rustix::net::shutdown(&connection.socket, rustix::net::Shutdown::Both)
    {
        tracing::debug!(%error, "the client went away first");
    }
    for fault in &faults {
        fault.change(&mut reply);
    }
    let pace = Pace::of(&faults);
    if !pace.delay.is_zero() {
        tokio::time::sleep(pace.delay).await;
    }
    if let Some((bytes, every)) = pace.head {
        connection.head.send(bytes, every);
    }
    shared.log.answered(request.number, reply.status.as_u16());
    let length = reply.range.end - reply.range.start;
    let flow = (request.method != Method::HEAD).then(|| Flow {
        payload: reply.payload,
        range: reply.range,
        pace,
        log: shared.log.clone(),
        number: request.number,
        socket: connection.socket,
    });
    if flow.is_none() {
        shared.log.ended(request.number);
    }
    let mut response = Response::new(flow.map_or_else(body::empty, Flow::into_body));
    *response.status_mut() = reply.status;
    *response.headers_mut() = reply.headers;
    if reply.states_length {
        response.headers_mut().entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(length));
    }
    response.headers_mut().insert(VERSION_HEADER, HeaderValue::from_static("registry/2.0"));
    response
}

/// What came of a request's body.
struct Received {
    bytes: Bytes,
    /// False if it broke off, or was too long.
    is_whole: bool,
}

/// Reads the body of a request, up to what its endpoint needs or a fault allows.
async fn receive(request: &Request, mut body: Incoming, hangs_up: Option<u64>) -> Received {
    let limit = match &request.endpoint {
        Endpoint::Upload { .. } => DEMO_UPLOAD_BODY,
        Endpoint::Manifest { .. } => usize::try_from(MANIFEST_BYTES).unwrap_or(usize::MAX),
        _ => DEMO_REQUEST_BODY,
    };
    let limit = hangs_up.map_or(limit, |after| limit.min(usize::try_from(after).unwrap_or(limit)));
    let mut bytes = Vec::new();
    loop {
        match body.frame().await {
            None => return Received { bytes: bytes.into(), is_whole: true },
            Some(Ok(frame)) => {
                let piece = frame.into_data().unwrap_or_default();
                let fits = piece.len().min(limit - bytes.len());
                bytes.extend_from_slice(&piece[..fits]);
                if fits < piece.len() {
                    return Received { bytes: bytes.into(), is_whole: false };
                }
            }
            Some(Err(error)) => {
                tracing::debug!(%error, "a request's body broke off");
                return Received { bytes: bytes.into(), is_whole: false };
            }
        }
    }
}

fn take_apart(parts: hyper::http::request::Parts) -> Request {
    let path = request::decode(parts.uri.path());
    Request {
        number: 0,
        attempt: 0,
        endpoint: Endpoint::of(&path),
        method: parts.method,
        path,
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body: Bytes::new(),
    }
}

fn route(shared: &Shared, request: &Request, faults: &[Fault]) -> Reply {
    if request.endpoint == Endpoint::Token {
        return token::issue(&shared.tokens, faults, request);
    }
    if let Endpoint::Upload { repository, session } = &request.endpoint {
        return if is_repository_name(repository) {
            upload::answer(shared, request, repository, session.as_deref())
        } else {
            Reply::error(StatusCode::BAD_REQUEST, "NAME_INVALID", "invalid repository name")
        };
    }
    if request.is_write() {
        return change(&shared.content, request, shared.referrers.load(Ordering::Relaxed) > 0);
    }
    if let Some(repository) = request.endpoint.repository()
        && let Some(refusal) = check_repository(&shared.content, repository)
    {
        return refusal;
    }
    match &request.endpoint {
        Endpoint::Base => base(),
        Endpoint::Manifest { repository, reference } => manifest(&shared.content, repository, reference),
        Endpoint::Blob { digest, .. } => {
            let ranged = request.range().filter(|_| request.method == Method::GET);
            blob(&shared.content, digest, fault::asked_range(faults, ranged).as_deref())
        }
        Endpoint::Tags { repository } => tags(&shared.content, repository, request),
        Endpoint::Referrers { repository, digest } => match shared.referrers.load(Ordering::Relaxed) {
            0 => Reply::error(StatusCode::NOT_FOUND, "NOT_FOUND", "no such endpoint"),
            page => referrers::list(&shared.content, repository, digest, request, page),
        },
        Endpoint::Token | Endpoint::Upload { .. } | Endpoint::Other => {
            Reply::error(StatusCode::NOT_FOUND, "NOT_FOUND", "no such endpoint")
        }
    }
}

/// Puts or removes a manifest, the only things that can be changed but by an upload.
fn change(content: &Content, request: &Request, notes_subjects: bool) -> Reply {
    match (&request.endpoint, &request.method) {
        (Endpoint::Manifest { repository, .. }, _) if !is_repository_name(repository) => {
            Reply::error(StatusCode::BAD_REQUEST, "NAME_INVALID", "invalid repository name")
        }
        (Endpoint::Manifest { repository, reference }, &Method::PUT) => {
            put_manifest(content, request, repository, reference, notes_subjects)
        }
        (Endpoint::Manifest { repository, reference }, &Method::DELETE) => match reference.parse() {
            Ok(digest) if content.remove_manifest(repository, &digest) => {
                Reply::new(StatusCode::ACCEPTED, HeaderMap::new(), Bytes::new())
            }
            _ => Reply::error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown to registry"),
        },
        _ => {
            let mut reply = Reply::error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "this can only be read");
            reply.set(ALLOW, "GET, HEAD");
            reply
        }
    }
}

/// Takes a manifest, whatever is in it. `If-Match` is heeded, so that two writers of one tag can see each other.
fn put_manifest(
    content: &Content,
    request: &Request,
    repository: &str,
    reference: &str,
    notes_subjects: bool,
) -> Reply {
    let digest = reference.parse::<Digest>().ok();
    if digest.is_some_and(|digest| !digest.matches(&request.body)) {
        return Reply::error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "the manifest has another digest");
    }
    let tag = digest.is_none().then_some(reference);
    if let (Some(wanted), Some(tag)) = (request.header("if-match"), tag) {
        let now = content.tagged(repository, tag).map(|manifest| format!("\"{}\"", manifest.digest));
        if now.as_deref() != Some(wanted) {
            let message = "the tag was moved meanwhile";
            return Reply::error(StatusCode::PRECONDITION_FAILED, "MANIFEST_INVALID", message);
        }
    }
    let media_type = request.header(CONTENT_TYPE.as_str()).unwrap_or_default();
    let algorithm = digest.map_or(Algorithm::Sha256, |digest| digest.algorithm());
    let added = content.add_manifest_as(algorithm, repository, tag, media_type, request.body.clone());
    let mut reply = Reply::new(StatusCode::CREATED, HeaderMap::new(), Bytes::new());
    reply.set(LOCATION, &format!("/v2/{repository}/manifests/{}", added.digest));
    reply.set(DIGEST_HEADER, &added.digest.to_string());
    if notes_subjects && let Some(subject) = referrers::subject_of(&request.body, media_type) {
        reply.set(HeaderName::from_static("oci-subject"), &subject.to_string());
    }
    reply
}

fn base() -> Reply {
    let mut reply = Reply::new(StatusCode::OK, HeaderMap::new(), "{}");
    reply.set(CONTENT_TYPE, "application/json");
    reply
}

fn check_repository(content: &Content, repository: &str) -> Option<Reply> {
    if content.has_repository(repository) {
        return None;
    }
    Some(if is_repository_name(repository) {
        Reply::error(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "repository name not known to registry")
    } else {
        Reply::error(StatusCode::BAD_REQUEST, "NAME_INVALID", "invalid repository name")
    })
}

/// The grammar of `<name>` in the specification ("Pulling manifests").
fn is_repository_name(name: &str) -> bool {
    let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    name.len() <= 255
        && name.split('/').all(|component| {
            let separators = component.split(|letter: char| letter.is_ascii() && is_alphanumeric(letter as u8));
            component.bytes().next().is_some_and(is_alphanumeric)
                && component.bytes().last().is_some_and(is_alphanumeric)
                && separators.filter(|separator| !separator.is_empty()).all(|separator| {
                    matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
                })
        })
}

fn manifest(content: &Content, repository: &str, reference: &str) -> Reply {
    let found = if reference.contains(':') {
        match reference.parse::<Digest>() {
            Ok(digest) => content.manifest(repository, &digest),
            Err(error) => return Reply::error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", &error.to_string()),
        }
    } else {
        content.tagged(repository, reference)
    };
    match found {
        Some(Manifest { media_type, digest, bytes }) => {
            let mut reply = Reply::new(StatusCode::OK, HeaderMap::new(), bytes);
            reply.set(CONTENT_TYPE, &media_type);
            name_content(&mut reply, &digest);
            reply
        }
        None => Reply::error(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "manifest unknown to registry"),
    }
}

fn blob(content: &Content, digest: &str, range: Option<&str>) -> Reply {
    let digest = match digest.parse::<Digest>() {
        Ok(digest) => digest,
        Err(error) => return Reply::error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", &error.to_string()),
    };
    let Some(payload) = content.blob(&digest) else {
        return Reply::error(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "blob unknown to registry");
    };
    let size = payload.size();
    let (status, range) = match range::parse(range, size) {
        Asked::Whole => (StatusCode::OK, 0..size),
        Asked::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Asked::Unsatisfiable => {
            let status = StatusCode::RANGE_NOT_SATISFIABLE;
            let mut reply = Reply::error(status, "SIZE_INVALID", "the range is beyond the end of the blob");
            reply.set(CONTENT_RANGE, &format!("bytes */{size}"));
            return reply;
        }
    };
    let mut reply = Reply { status, headers: HeaderMap::new(), payload, range, states_length: true };
    if status == StatusCode::PARTIAL_CONTENT {
        let (first, last) = (reply.range.start, reply.range.end - 1);
        reply.set(CONTENT_RANGE, &format!("bytes {first}-{last}/{size}"));
    }
    reply.set(CONTENT_TYPE, "application/octet-stream");
    reply.set(ACCEPT_RANGES, "bytes");
    name_content(&mut reply, &digest);
    reply
}

fn name_content(reply: &mut Reply, digest: &Digest) {
    reply.set(DIGEST_HEADER, &digest.to_string());
    reply.set(ETAG, &format!("\"{digest}\""));
}

/// Lists tags as the specification has it ("Listing Tags"): `n` at most, those after `last`, and a `Link` to the rest.
fn tags(content: &Content, repository: &str, request: &Request) -> Reply {
    let mut tags = content.tags(repository);
    if let Some(last) = request.parameters("last").pop() {
        tags.retain(|tag| tag_order(tag) > tag_order(&last));
    }
    let mut link = None;
    if let Some(n) = request.parameters("n").pop() {
        let Ok(n) = n.parse::<usize>() else {
            let message = "n is not a number";
            return Reply::error(StatusCode::BAD_REQUEST, "PAGINATION_NUMBER_INVALID", message);
        };
        let more = tags.len() > n;
        tags.truncate(n);
        // With n=0 there is no last tag to go on from, and the specification forbids the link.
        link = tags
            .last()
            .filter(|_| more)
            .map(|last| format!("</v2/{repository}/tags/list?n={n}&last={last}>; rel=\"next\""));
    }
    let body = json!({ "name": repository, "tags": tags });
    let mut reply = Reply::new(StatusCode::OK, HeaderMap::new(), body.to_string());
    reply.set(CONTENT_TYPE, "application/json");
    if let Some(link) = link {
        reply.set(LINK, &link);
    }
    reply
}
