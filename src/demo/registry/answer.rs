//! From a request to its answer: what the distribution specification says for each [`Endpoint`].
//!
//! A [`Reply`] is an answer before any byte of it went out; faults change it, and [`super::body`] sends it.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, LINK,
};
use hyper::{Method, Response, StatusCode};
use serde_json::json;

use super::body::{self, Body, Flow};
use super::content::{Blob, Content, Manifest, tag_order};
use super::fault::{self, Fault, Pace};
use super::range::{self, Asked};
use super::request::{self, Endpoint, Request};
use super::{Shared, token};
use crate::limits::DEMO_REQUEST_BODY;
use crate::oci::Digest;

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

/// Answers one request, faults included.
pub(super) async fn answer(
    shared: &Shared,
    socket: Arc<OwnedFd>,
    incoming: hyper::Request<Incoming>,
) -> Response<Body> {
    let mut request = receive(incoming).await;
    shared.log.begin(&mut request);
    let faults = shared.faults.decide(&request);
    let mut reply = match token::refusal(&shared.tokens, shared.addr, &faults, &request) {
        Some(refusal) => refusal,
        None => route(shared, &request, &faults),
    };
    for fault in &faults {
        fault.change(&mut reply);
    }
    let pace = Pace::of(&faults);
    if !pace.delay.is_zero() {
        tokio::time::sleep(pace.delay).await;
    }
    shared.log.answered(request.number, reply.status.as_u16());
    let length = reply.range.end - reply.range.start;
    let flow = (request.method != Method::HEAD).then(|| Flow {
        payload: reply.payload,
        range: reply.range,
        pace,
        log: shared.log.clone(),
        number: request.number,
        socket,
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

/// Takes a request apart. A body that is too long or breaks off counts as none: no endpoint needs one but the tokens'.
async fn receive(incoming: hyper::Request<Incoming>) -> Request {
    let (parts, body) = incoming.into_parts();
    let body = match Limited::new(body, DEMO_REQUEST_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            tracing::debug!(%error, "the embedded registry ignores a request body");
            Bytes::new()
        }
    };
    let path = request::decode(parts.uri.path());
    Request {
        number: 0,
        attempt: 0,
        endpoint: Endpoint::of(&path),
        method: parts.method,
        path,
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body,
    }
}

fn route(shared: &Shared, request: &Request, faults: &[Fault]) -> Reply {
    if request.endpoint == Endpoint::Token {
        return token::issue(&shared.tokens, faults, request);
    }
    if request.method != Method::GET && request.method != Method::HEAD {
        let mut reply = Reply::error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "this registry can only be read");
        reply.set(ALLOW, "GET, HEAD");
        return reply;
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
        Endpoint::Token | Endpoint::Other => Reply::error(StatusCode::NOT_FOUND, "NOT_FOUND", "no such endpoint"),
    }
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
