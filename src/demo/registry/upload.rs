//! Uploads: sessions that bytes are added to, until a digest ends them (distribution-spec, "Pushing Blobs").

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hyper::header::{CONTENT_RANGE, HeaderMap, LOCATION, RANGE};
use hyper::{Method, StatusCode};

use super::Shared;
use super::answer::Reply;
use super::request::{Endpoint, Request};
use crate::limits::{DEMO_UPLOAD_BODY, DEMO_UPLOADS};
use crate::oci::Digest;

/// The uploads under way.
#[derive(Debug, Default)]
pub(super) struct Uploads(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    count: u64,
    sessions: HashMap<String, Vec<u8>>,
}

impl Uploads {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a session. Too many, and all that are under way are forgotten, as in a restart.
    fn open(&self) -> String {
        let mut state = self.lock();
        if state.sessions.len() >= DEMO_UPLOADS {
            state.sessions.clear();
        }
        state.count += 1;
        let name = format!("upload-{}", state.count);
        state.sessions.insert(name.clone(), Vec::new());
        name
    }

    /// Adds bytes to a session, if it is at `start`; answers how many it has then.
    fn add(&self, session: &str, start: Option<usize>, bytes: &[u8]) -> Result<usize, Box<Reply>> {
        let mut state = self.lock();
        let Some(held) = state.sessions.get_mut(session) else { return Err(Box::new(unknown())) };
        if start.is_some_and(|start| start != held.len()) || held.len() + bytes.len() > DEMO_UPLOAD_BODY {
            let status = StatusCode::RANGE_NOT_SATISFIABLE;
            let why = "the chunk does not follow the one before";
            return Err(Box::new(Reply::error(status, "BLOB_UPLOAD_INVALID", why)));
        }
        held.extend_from_slice(bytes);
        Ok(held.len())
    }

    fn end(&self, session: &str) -> Option<Vec<u8>> {
        self.lock().sessions.remove(session)
    }
}

/// Answers a request to an upload, or where uploads begin.
pub(super) fn answer(shared: &Shared, request: &Request, repository: &str, session: Option<&str>) -> Reply {
    let Some(session) = session else { return begin(shared, request, repository) };
    match request.method {
        Method::GET | Method::HEAD => match shared.uploads.add(session, None, &[]) {
            Ok(length) => progress(StatusCode::NO_CONTENT, repository, session, length),
            Err(refusal) => *refusal,
        },
        Method::PATCH => match shared.uploads.add(session, start(request), &request.body) {
            Ok(length) => progress(StatusCode::ACCEPTED, repository, session, length),
            Err(refusal) => *refusal,
        },
        Method::PUT => match shared.uploads.add(session, start(request), &request.body) {
            Ok(_) => end(shared, request, repository, session),
            Err(refusal) => *refusal,
        },
        Method::DELETE => match shared.uploads.end(session) {
            Some(_) => Reply::new(StatusCode::NO_CONTENT, HeaderMap::new(), Bytes::new()),
            None => unknown(),
        },
        _ => Reply::error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "an upload knows GET, PATCH, PUT and DELETE"),
    }
}

/// A request whose body broke off: what an upload got of it stays, everything else is not done.
pub(super) fn broken_off(shared: &Shared, request: &Request) -> Reply {
    if let Endpoint::Upload { session: Some(session), .. } = &request.endpoint
        && let Err(refusal) = shared.uploads.add(session, start(request), &request.body)
    {
        return *refusal;
    }
    Reply::error(StatusCode::BAD_REQUEST, "SIZE_INVALID", "the request broke off")
}

/// Opens a session, unless the blob can be mounted. Blobs belong to every repository here, so any `from` will do.
fn begin(shared: &Shared, request: &Request, repository: &str) -> Reply {
    if request.method != Method::POST {
        return Reply::error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "uploads begin with POST");
    }
    let mounted = request.parameters("mount").pop().and_then(|digest| digest.parse::<Digest>().ok());
    if let Some(digest) = mounted
        && request.parameters("from").pop().is_some_and(|from| shared.content.has_repository(&from))
        && shared.content.blob(&digest).is_some()
    {
        return created(repository, &digest);
    }
    let session = shared.uploads.open();
    progress(StatusCode::ACCEPTED, repository, &session, 0)
}

fn end(shared: &Shared, request: &Request, repository: &str, session: &str) -> Reply {
    let Some(digest) = request.parameters("digest").pop().and_then(|digest| digest.parse::<Digest>().ok()) else {
        return Reply::error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "no digest that can be verified");
    };
    let Some(bytes) = shared.uploads.end(session) else { return unknown() };
    if !shared.content.put_blob(digest, bytes.into()) {
        return Reply::error(StatusCode::BAD_REQUEST, "DIGEST_INVALID", "the blob has another digest");
    }
    created(repository, &digest)
}

fn created(repository: &str, digest: &Digest) -> Reply {
    let mut reply = Reply::new(StatusCode::CREATED, HeaderMap::new(), Bytes::new());
    reply.set(LOCATION, &format!("/v2/{repository}/blobs/{digest}"));
    reply
}

fn progress(status: StatusCode, repository: &str, session: &str, length: usize) -> Reply {
    let mut reply = Reply::new(status, HeaderMap::new(), Bytes::new());
    reply.set(LOCATION, &format!("/v2/{repository}/blobs/uploads/{session}?state={length}"));
    reply.set(RANGE, &format!("0-{}", length.saturating_sub(1)));
    reply
}

fn unknown() -> Reply {
    Reply::error(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "upload unknown to registry")
}

/// Where a chunk says that it begins.
fn start(request: &Request) -> Option<usize> {
    request.header(CONTENT_RANGE.as_str())?.split_once('-')?.0.trim().parse().ok()
}
