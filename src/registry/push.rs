//! Putting manifests into a repository and taking them out (distribution-spec, "Pushing Manifests", "Deleting").

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderName};
use reqwest::{Method, Response, StatusCode};

use super::Selector;
use super::call::{Call, Message};
use super::client::{Client, complain, not_allowed};
use super::endpoint::Endpoint;
use super::error::{Complaint, Fault, LEAVE_TO, Retry, cannot, escape, origin, refused};
use crate::limits::SHOWN_CHARACTERS;
use crate::oci::Digest;
use crate::source::{Error, ErrorKind};

/// By which a registry says what it has taken.
const DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// By which a registry says that it has noted the subject of a manifest.
const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// Puts a manifest under its digest or a tag; true if the registry has noted its subject.
///
/// Repeating it does no harm, so a lost answer is no reason to give up.
pub(super) async fn manifest(
    client: &Client,
    target: &Endpoint,
    name: &Selector,
    media_type: &str,
    bytes: Bytes,
) -> Result<bool, Error> {
    let (reference, what) = match name {
        Selector::Tag(tag) => (tag.clone(), format!("{LEAVE_TO}push manifest {}:{tag}", target.name())),
        Selector::Digest(digest) => (digest.to_string(), format!("{LEAVE_TO}push manifest {}@{digest}", target.name())),
    };
    let what = escape(&what, SHOWN_CHARACTERS);
    let message = Message { body: bytes, ..Message::bare(Method::PUT) }.header(CONTENT_TYPE, media_type);
    let put = async || {
        let call = Call::sending(&what, &message);
        let (response, _) = client.request(target, &["manifests", &reference], &call).await?;
        if !response.status().is_success() {
            return Err(refusal(&what, response).await);
        }
        check_digest(&what, &response, &message.body)?;
        Ok(response.headers().contains_key(SUBJECT))
    };
    client.persist(put).await
}

/// Makes sure that the registry, if it says what it has taken, has taken the bytes that were sent (B-171).
fn check_digest(what: &str, response: &Response, sent: &[u8]) -> Result<(), Fault> {
    let given = response.headers().get(DIGEST).and_then(|value| value.to_str().ok());
    match given.map(str::parse::<Digest>) {
        Some(Ok(taken)) if !taken.matches(sent) => {
            let message = format!("{}: {} has taken {taken} in its place", cannot(what), origin(response.url()));
            Err(Fault::lasting(Error::new(ErrorKind::Corrupt, message)))
        }
        _ => Ok(()),
    }
}

/// The fault of a manifest that was not taken. Blobs that were pushed a moment ago may not be seen yet: registries that
/// keep them as files read half-written links when two clients push the same, and object stores take their time.
async fn refusal(what: &str, response: Response) -> Fault {
    let (at, status, headers) = (response.url().clone(), response.status(), response.headers().clone());
    let complaint = Complaint::of(response).await;
    let fault = refused(what, &at, status, &headers, &complaint);
    match complaint.has("MANIFEST_BLOB_UNKNOWN") || complaint.has("BLOB_UNKNOWN") {
        true => Fault { retry: Retry::Later(None), ..fault },
        false => fault,
    }
}

/// Removes a manifest.
pub(super) async fn remove(client: &Client, target: &Endpoint, digest: &Digest) -> Result<(), Error> {
    let what = format!("{LEAVE_TO}remove manifest {}@{digest}", target.name());
    let message = Message::bare(Method::DELETE);
    let ask = async || {
        let call = Call::sending(&what, &message);
        let (response, _) = client.request(target, &["manifests", &digest.to_string()], &call).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Ok(()),
            status if status.is_success() => Ok(()),
            StatusCode::METHOD_NOT_ALLOWED => Err(not_allowed(&what, response, "deletion").await),
            _ => Err(complain(&what, response).await),
        }
    };
    client.persist(ask).await
}
