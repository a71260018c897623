//! The tag that stands in for the referrers API (distribution-spec, "Referrers Tag Schema"): `sha256-<hex>` names an
//! image index whose entries are the referrers, and whoever pushes one keeps it up to date.
//!
//! Nothing in the protocol makes read, change and write one step, so two pushers may each write a list without the
//! other's entry. Three things close the gap as far as it can be closed: a write is bound to what was read by `If-Match`,
//! which some registries heed; after a write there is a pause longer than a round of anybody who read before it; and then
//! the list is read again and everything is repeated if the own entry is missing. Entries of others, and what this program
//! does not know in them, are kept as they are.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, ETAG, IF_MATCH};
use reqwest::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::call::{Call, Message};
use super::client::{Client, complain};
use super::encoded;
use super::endpoint::Endpoint;
use super::error::{Fault, LEAVE_TO};
use super::referrers::{INDEX_TYPE, is_of};
use super::transport::Body;
use crate::limits::{INDEX_ENTRIES, MANIFEST_BYTES, REFERRER_ROUNDS};
use crate::oci::{Digest, IndexEntry, Manifest};
use crate::source::{Error, ErrorKind};

/// The pause before a written list is read again, at least; a random part is added, and twice the time of the round.
const SETTLING: Duration = Duration::from_millis(50);

/// The longest pause.
const LONGEST_SETTLING: Duration = Duration::from_secs(5);

/// The list as it was read.
struct List {
    /// The image index, whatever else is in it.
    document: Map<String, Value>,
    /// By what a registry knows this state, if it says so.
    tag: Option<String>,
    bytes: Bytes,
}

/// What is under the tag.
enum Read {
    List(List),
    Nothing,
    /// Something else, which is not ours to change.
    Foreign(Error),
}

/// The tag of a subject: its digest, cut to what a tag may have in the way that the specification lays down (B-163).
fn tag_of(subject: &Digest) -> String {
    let text = subject.to_string();
    let (algorithm, encoded) = text.split_once(':').unwrap_or(("", &text));
    let part = |text: &str, length: usize| -> String {
        let legal = |character: char| {
            if character.is_ascii_alphanumeric() || "._-".contains(character) { character } else { '-' }
        };
        text.chars().take(length).map(legal).collect()
    };
    format!("{}-{}", part(algorithm, 32), part(encoded, 64))
}

/// What came of writing a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Written {
    Yes,
    /// Somebody else wrote it since it was read.
    Outrun,
}

/// The entries of `artifact_type`, or all; empty if there is no list. One attempt.
pub(super) async fn list(
    client: &Client,
    target: &Endpoint,
    subject: &Digest,
    artifact_type: Option<&str>,
) -> Result<Vec<IndexEntry>, Fault> {
    let place = Place::new(client, target, subject);
    let entries = match place.read().await? {
        Read::List(list) => match Manifest::parse(&list.bytes, INDEX_TYPE) {
            Ok(Manifest::Index(index)) => index.entries,
            _ => Vec::new(),
        },
        Read::Foreign(why) => {
            // The tag may be somebody's own; then nothing refers to the subject.
            tracing::debug!("{why}");
            Vec::new()
        }
        Read::Nothing => Vec::new(),
    };
    Ok(entries.into_iter().filter(|entry| is_of(entry, artifact_type)).collect())
}

/// Adds `entry`, a descriptor; it is there once when this returns.
pub(super) async fn add(client: &Client, target: &Endpoint, subject: &Digest, entry: &Value) -> Result<(), Error> {
    let digest = entry.get("digest").cloned().unwrap_or_default();
    let change = |entries: &mut Vec<Value>| {
        entries.push(entry.clone());
    };
    Place::new(client, target, subject).keep(|entries| holds(entries, &digest), change).await.map(drop)
}

/// Takes the entry with `digest` out; true if it was there.
pub(super) async fn remove(
    client: &Client,
    target: &Endpoint,
    subject: &Digest,
    digest: &Digest,
) -> Result<bool, Error> {
    let digest = Value::from(digest.to_string());
    let change = |entries: &mut Vec<Value>| entries.retain(|entry| entry.get("digest") != Some(&digest));
    Place::new(client, target, subject).keep(|entries| !holds(entries, &digest), change).await
}

fn holds(entries: &[Value], digest: &Value) -> bool {
    entries.iter().any(|entry| entry.get("digest") == Some(digest))
}

/// The tag of one subject.
struct Place<'a> {
    client: &'a Client,
    target: &'a Endpoint,
    tag: String,
    what: String,
}

impl<'a> Place<'a> {
    fn new(client: &'a Client, target: &'a Endpoint, subject: &Digest) -> Self {
        let tag = tag_of(subject);
        let what = format!("referrers of {}@{subject} (tag {tag})", target.name());
        Self { client, target, tag, what }
    }

    /// Brings the list to a state that `is_right`, by `change` from whatever it is. True if anything was written.
    async fn keep(&self, is_right: impl Fn(&[Value]) -> bool, change: impl Fn(&mut Vec<Value>)) -> Result<bool, Error> {
        let mut written = false;
        for _ in 0..REFERRER_ROUNDS {
            let begun = Instant::now();
            let list = match self.client.persist(|| self.read()).await? {
                Read::List(list) => Some(list),
                Read::Nothing => None,
                Read::Foreign(why) => return Err(why),
            };
            let mut document = list.as_ref().map_or_else(empty, |list| list.document.clone());
            let Some(Value::Array(entries)) = document.get_mut("manifests") else { return Err(self.foreign()) };
            if is_right(entries) {
                return Ok(written);
            }
            change(entries);
            if entries.len() > INDEX_ENTRIES {
                return Err(Error::new(ErrorKind::Invalid, format!("{} are too many", self.what)));
            }
            let bytes = Bytes::from(Value::Object(document).to_string());
            let tag = list.and_then(|list| list.tag);
            written |= self.client.persist(|| self.write(&bytes, tag.as_deref())).await? == Written::Yes;
            // Who was outrun waits as well: of many who try again at once, only one succeeds.
            tokio::time::sleep(settling(begun.elapsed())).await;
        }
        let message = format!("cannot change {}: others change it all the time", self.what);
        Err(Error::new(ErrorKind::Unreachable, message).hint("try again later"))
    }

    /// Reads what is there.
    async fn read(&self) -> Result<Read, Fault> {
        let call = Call { what: &self.what, accept: Some(INDEX_TYPE), range: None, message: None };
        let (response, _) = self.client.request(self.target, &["manifests", &self.tag], &call).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(Read::Nothing),
            _ => return Err(complain(&self.what, response).await),
        }
        let tag = response.headers().get(ETAG).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let stall = self.client.transport().stall();
        let response = encoded::plain(&self.what, response, MANIFEST_BYTES, stall).await?;
        let bytes = Body::new(response, stall).whole(&self.what, MANIFEST_BYTES, stall).await?;
        // Parsed for its faults: what is ambiguous must not be written again.
        Ok(match (Manifest::parse(&bytes, INDEX_TYPE), serde_json::from_slice(&bytes)) {
            (Ok(Manifest::Index(_)), Ok(Value::Object(document))) => Read::List(List { document, tag, bytes }),
            (Err(error), _) => Read::Foreign(self.foreign().because(error)),
            _ => Read::Foreign(self.foreign()),
        })
    }

    async fn write(&self, bytes: &Bytes, tag: Option<&str>) -> Result<Written, Fault> {
        let mut message =
            Message { body: bytes.clone(), ..Message::bare(Method::PUT) }.header(CONTENT_TYPE, INDEX_TYPE);
        if let Some(tag) = tag {
            message = message.header(IF_MATCH, tag);
        }
        let what = format!("{LEAVE_TO}push {}", self.what);
        let call = Call::sending(&what, &message);
        let (response, _) = self.client.request(self.target, &["manifests", &self.tag], &call).await?;
        match response.status() {
            StatusCode::PRECONDITION_FAILED => Ok(Written::Outrun),
            status if status.is_success() => Ok(Written::Yes),
            _ => Err(complain(&what, response).await),
        }
    }

    fn foreign(&self) -> Error {
        Error::new(ErrorKind::Invalid, format!("{} are not in an image index", self.what))
    }
}

/// A list of nothing.
fn empty() -> Map<String, Value> {
    match json!({ "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [] }) {
        Value::Object(document) => document,
        _ => Map::new(),
    }
}

/// How long to wait after a write that took as long as `round` with its read: who read before it has written by then.
fn settling(round: Duration) -> Duration {
    let random = RandomState::new().hash_one(0_u8) % 1024;
    (SETTLING + SETTLING.mul_f64(random as f64 / 1024.0) + 2 * round).min(LONGEST_SETTLING)
}
