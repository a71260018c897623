//! Fetching documents: manifests and image indexes, by tag or digest (distribution-spec, "Pulling manifests").
//!
//! A document is small and read whole; its bytes are checked against the digest by which it was asked for, never
//! against what the registry says about them (B-066, B-067). What it means is decided elsewhere, except for schema 1,
//! which shows in the media type.

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use reqwest::{Response, StatusCode, Url};

use super::call::Call;
use super::client::{Client, complain};
use super::endpoint::{Endpoint, Role};
use super::error::{Complaint, Fault, answer, cannot, escape, refused};
use super::route::Route;
use super::transport::Body;
use super::{encoded, tags};
use crate::limits::{MANIFEST_BYTES, SHOWN_CHARACTERS};
use crate::oci::{Algorithm, Descriptor, Digest};
use crate::source::{Document, Error, ErrorKind};

/// Everything that can be mounted, and last anything else: some registries refuse requests without a wildcard, and an
/// unsupported document makes a better message than a refusal (B-040).
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
                      application/vnd.oci.image.manifest.v1+json, \
                      application/vnd.docker.distribution.manifest.list.v2+json, \
                      application/vnd.docker.distribution.manifest.v2+json, \
                      */*;q=0.1";

/// A document may take this many stall time-outs in all: it is small, so low speed is no excuse (D-072).
const DEADLINE_FACTOR: u32 = 4;

/// By what a document is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// A tag.
    Tag(&'a str),
    /// A tag that need not be there, so that nobody wants to know which ones are.
    Perhaps(&'a str),
    /// A digest.
    Digest(&'a Digest),
    /// A descriptor in an image index.
    Child(&'a Descriptor),
}

impl Wanted<'_> {
    fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Tag(_) | Self::Perhaps(_) => None,
            Self::Digest(digest) => Some(digest),
            Self::Child(descriptor) => Some(&descriptor.digest),
        }
    }

    /// The last part of the URL.
    fn reference(&self) -> String {
        match self {
            Self::Tag(tag) | Self::Perhaps(tag) => (*tag).to_owned(),
            Self::Digest(digest) => digest.to_string(),
            Self::Child(descriptor) => descriptor.digest.to_string(),
        }
    }

    /// What is needed of a host that is asked for it (B-145).
    fn role(&self) -> Role {
        if self.digest().is_some() { Role::Pull } else { Role::Resolve }
    }

    /// `manifest docker.io/library/debian:13`.
    fn describe(&self, route: &Route) -> String {
        let separator = if self.digest().is_some() { '@' } else { ':' };
        escape(&format!("manifest {}{separator}{}", route.name(), self.reference()), SHOWN_CHARACTERS)
    }
}

/// Fetches and checks the document `wanted`.
pub(super) async fn fetch(client: &Client, route: &Route, wanted: Wanted<'_>) -> Result<Document, Error> {
    let what = wanted.describe(route);
    if let Wanted::Child(descriptor) = wanted {
        if descriptor.size > MANIFEST_BYTES {
            let message =
                format!("{what} is too long: {} bytes, at most {MANIFEST_BYTES} are allowed", descriptor.size);
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        if let Some(bytes) = &descriptor.data {
            let media_type = descriptor.media_type.clone();
            return Ok(Document { media_type, digest: descriptor.digest, bytes: bytes.clone() });
        }
    }
    let what = what.as_str();
    let ask = |endpoint| async move { Asking { client, route, endpoint, wanted, what }.ask().await };
    client.persist_over(what, (route, wanted.role()), ask).await
}

struct Asking<'a> {
    client: &'a Client,
    route: &'a Route,
    endpoint: &'a Endpoint,
    wanted: Wanted<'a>,
    what: &'a str,
}

impl Asking<'_> {
    async fn ask(&self) -> Result<Document, Fault> {
        let response = self.get("manifests").await?;
        match response.status() {
            StatusCode::OK => self.accept(response).await,
            StatusCode::NOT_FOUND => {
                let at = response.url().clone();
                let complaint = Complaint::of(response).await;
                match self.ask_blobs().await {
                    Some(document) => Ok(document),
                    // What a mirror has besides is no help: it is the registry that decides which tags there are.
                    None if !self.endpoint.is_own => {
                        Err(refused(self.what, &at, StatusCode::NOT_FOUND, &HeaderMap::new(), &complaint))
                    }
                    None => Err(Fault::lasting(self.missing(&at, &complaint).await)),
                }
            }
            _ => Err(complain(self.what, response).await),
        }
    }

    /// Some registries keep a manifest that was pushed as a blob only there (B-070). The first answer stays the one
    /// to report, so nothing is said about this one.
    async fn ask_blobs(&self) -> Option<Document> {
        self.wanted.digest()?;
        let response = self.get("blobs").await.ok()?;
        match response.status() {
            StatusCode::OK => self.accept(response).await.ok(),
            _ => None,
        }
    }

    async fn get(&self, collection: &str) -> Result<Response, Fault> {
        let call = Call { what: self.what, accept: Some(ACCEPT), range: None, message: None };
        let reference = self.wanted.reference();
        let (response, _) = self.client.request(self.endpoint, &[collection, &reference], &call).await?;
        Ok(response)
    }

    async fn accept(&self, response: Response) -> Result<Document, Fault> {
        let stall = self.client.transport().stall();
        let response = encoded::plain(self.what, response, MANIFEST_BYTES, stall).await?;
        let headers = response.headers().clone();
        let body = Body::new(response, stall);
        let bytes = body.whole(self.what, MANIFEST_BYTES, stall.saturating_mul(DEADLINE_FACTOR)).await?;
        if self.wanted.digest().is_none() && !self.endpoint.is_own && !is_manifest(&bytes) {
            return Err(Fault::lasting(self.no_manifest(&headers)));
        }
        self.check(&headers, bytes).map_err(Fault::lasting)
    }

    /// The error for a mirror that has something else under a tag: the page of a portal, or of a server that has a page for
    /// every path. No digest tells it from the registry's answer, so its form has to.
    fn no_manifest(&self, headers: &HeaderMap) -> Error {
        let mirror = self.endpoint.host.name();
        let kind = escape(&media_type(headers), SHOWN_CHARACTERS);
        let kind = if kind.is_empty() { "something".to_owned() } else { kind };
        tracing::warn!(mirror, kind, "a mirror answers with what is no manifest");
        let message = format!("{}: the mirror {mirror} answered with {kind} that is no manifest", cannot(self.what));
        Error::new(ErrorKind::Invalid, message)
    }

    fn check(&self, headers: &HeaderMap, bytes: Bytes) -> Result<Document, Error> {
        let corrupt = |why: String| Error::new(ErrorKind::Corrupt, format!("{} is corrupt: {why}", self.what));
        if let Wanted::Child(descriptor) = self.wanted
            && descriptor.size != bytes.len() as u64
        {
            return Err(corrupt(format!("{} bytes instead of {}", bytes.len(), descriptor.size)));
        }
        let algorithm = self.wanted.digest().map_or(Algorithm::Sha256, Digest::algorithm);
        let digest = Digest::of(algorithm, &bytes);
        if let Some(expected) = self.wanted.digest()
            && *expected != digest
        {
            return Err(corrupt(format!("its digest is {digest}")));
        }
        // What its index says of it is as good as its digest; a header is what a host makes of it.
        let media_type = match self.wanted {
            Wanted::Child(descriptor) => descriptor.media_type.clone(),
            _ => media_type(headers),
        };
        if is_schema_1(&media_type, &bytes) {
            let message = format!("{} has the obsolete format of Docker schema 1", self.what);
            let hint = "push the image again with a current tool";
            return Err(Error::new(ErrorKind::Unsupported, message).hint(hint));
        }
        warn_of_digest(self.what, headers, &digest, &bytes);
        Ok(Document { media_type, digest, bytes })
    }

    /// The error for a document that is not there, with what is there in its place.
    async fn missing(&self, at: &Url, complaint: &Complaint) -> Error {
        let Self { route, wanted, .. } = self;
        let answer = answer(at, StatusCode::NOT_FOUND, complaint);
        let not_found = |message: String| Error::new(ErrorKind::NotFound, escape(&message, 2 * SHOWN_CHARACTERS));
        let no_repository = || not_found(format!("{} has no repository {}: {answer}", route.host, route.repository));
        if complaint.has("NAME_UNKNOWN") {
            return no_repository();
        }
        let Wanted::Tag(tag) = wanted else {
            if complaint.has("MANIFEST_UNKNOWN") {
                return not_found(format!("{} has no manifest {}: {answer}", route.name(), wanted.reference()));
            }
            return refused(self.what, at, StatusCode::NOT_FOUND, &HeaderMap::new(), complaint).error;
        };
        match tags::list(self.client, self.endpoint).await {
            tags::Listing::NoRepository => no_repository(),
            tags::Listing::Unknown => not_found(format!("{} has no tag {tag}: {answer}", route.name())),
            tags::Listing::Tags(tags) => {
                let error = not_found(format!("{} has no tag {tag}: {answer}", route.name()));
                error.hint(tags::suggest(tag, tags))
            }
        }
    }
}

/// The media type without its parameters (B-041).
fn media_type(headers: &HeaderMap) -> String {
    let value = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// True if this may be meant as a manifest or an index: all of them say by which version of their format, or which type
/// they have.
fn is_manifest(bytes: &[u8]) -> bool {
    let value = serde_json::from_slice::<serde_json::Value>(bytes).unwrap_or_default();
    value.get("schemaVersion").is_some() || value.get("mediaType").is_some()
}

/// Whether a document is in Docker's first format (B-042).
///
/// Static file servers call every document plain text, as old registries call schema 1 (B-041); what a plain text says
/// about itself decides.
fn is_schema_1(media_type: &str, bytes: &[u8]) -> bool {
    match media_type {
        "application/vnd.docker.distribution.manifest.v1+json"
        | "application/vnd.docker.distribution.manifest.v1+prettyjws" => true,
        "text/plain" => schema_version(bytes) != Some(2),
        "application/json" | "" => schema_version(bytes) == Some(1),
        _ => false,
    }
}

fn schema_version(bytes: &[u8]) -> Option<u64> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    value.get("schemaVersion")?.as_u64()
}

/// The header counts for nothing, but a wrong one tells of a broken proxy (B-066).
fn warn_of_digest(what: &str, headers: &HeaderMap, digest: &Digest, bytes: &[u8]) {
    let Some(given) = headers.get("docker-content-digest").and_then(|value| value.to_str().ok()) else {
        return;
    };
    let agrees = match given.parse::<Digest>() {
        Ok(given) => given == *digest || given.matches(bytes),
        Err(_) => false,
    };
    if !agrees {
        tracing::warn!(given = %escape(given, SHOWN_CHARACTERS), %digest, "Docker-Content-Digest of {what} is wrong");
    }
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn b_041_parameters_and_case_of_a_content_type_are_ignored() {
        let mut headers = HeaderMap::new();
        assert_eq!(media_type(&headers), "");
        let value = HeaderValue::from_static("Application/vnd.oci.image.index.v1+json ; charset=utf-8");
        headers.insert(CONTENT_TYPE, value);
        assert_eq!(media_type(&headers), "application/vnd.oci.image.index.v1+json");
    }

    #[test]
    fn b_147_a_page_is_told_from_a_manifest() {
        assert!(is_manifest(br#"{"schemaVersion":2}"#) && is_manifest(br#" {"mediaType":"x/y","blobs":[]}"#));
        for other in
            [&b"<!doctype html><title>schemaVersion</title>"[..], b"", b"[]", b"{}", br#"{"errors":[]}"#, b"\"x\""]
        {
            assert!(!is_manifest(other), "{other:?}");
        }
    }

    #[test]
    fn b_041_b_042_schema_1_is_recognised_by_media_type_or_content() {
        let (one, two) = (br#"{"schemaVersion":1}"#, br#"{"schemaVersion":2}"#);
        for media_type in [
            "application/vnd.docker.distribution.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
        ] {
            assert!(is_schema_1(media_type, two));
        }
        assert!(is_schema_1("text/plain", one) && is_schema_1("text/plain", b"{}") && is_schema_1("", one));
        assert!(!is_schema_1("text/plain", two) && !is_schema_1("application/json", b"{}"));
        assert!(!is_schema_1("application/vnd.oci.image.manifest.v1+json", one));
    }
}
