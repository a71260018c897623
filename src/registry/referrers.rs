//! What refers to a manifest, by the referrers API (distribution-spec, "Listing Referrers").
//!
//! The answer is an image index in pages. A registry may have filtered it or not, and one without the API answers 404, or
//! whatever its router makes of an unknown path; [`list`] tells these apart and looks at every entry itself.

use reqwest::header::{HeaderMap, HeaderName, LINK};
use reqwest::{Method, StatusCode};

use super::call::{Call, Message};
use super::client::{Client, complain};
use super::encoded;
use super::endpoint::Endpoint;
use super::error::{Fault, cannot};
use super::redirect::Location;
use super::transport::Body;
use crate::limits::{INDEX_ENTRIES, MANIFEST_BYTES, REFERRER_PAGES, URL_BYTES};
use crate::oci::{Digest, IndexEntry, Manifest};
use crate::source::{Error, ErrorKind};

/// By which a registry says by what it has filtered.
const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");

/// The type of every answer.
pub(super) const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// A page, and where the next one is.
struct Page {
    entries: Vec<IndexEntry>,
    next: Option<Location>,
}

/// All entries of `artifact_type`, or of any; none if the registry has no such API. One attempt.
pub(super) async fn list(
    client: &Client,
    target: &Endpoint,
    subject: &Digest,
    artifact_type: Option<&str>,
) -> Result<Option<Vec<IndexEntry>>, Fault> {
    let what = format!("referrers of {}@{subject}", target.name());
    let mut found = Vec::new();
    let mut at = None;
    for _ in 0..REFERRER_PAGES {
        let asking = Asking { client, target, subject, artifact_type, what: &what };
        let Some(page) = asking.page(at.as_ref()).await? else {
            return Ok(at.map(|_| found));
        };
        let fitting = page.entries.into_iter();
        found.extend(fitting.filter(|entry| is_of(entry, artifact_type)));
        if page.next.is_none() || found.len() > INDEX_ENTRIES {
            return Ok(Some(found));
        }
        at = page.next;
    }
    tracing::warn!("{what} fill more than {REFERRER_PAGES} pages, the rest is passed over");
    Ok(Some(found))
}

/// True if an entry is of `artifact_type`, or any will do.
pub(super) fn is_of(entry: &IndexEntry, artifact_type: Option<&str>) -> bool {
    artifact_type.is_none_or(|wanted| entry.artifact_type.as_deref() == Some(wanted))
}

struct Asking<'a> {
    client: &'a Client,
    target: &'a Endpoint,
    subject: &'a Digest,
    artifact_type: Option<&'a str>,
    what: &'a str,
}

impl Asking<'_> {
    /// The page at `at`, or the first; none if there is no such thing.
    async fn page(&self, at: Option<&Location>) -> Result<Option<Page>, Fault> {
        let mut message = Message::bare(Method::GET);
        message.query.extend(self.artifact_type.map(|wanted| ("artifactType", wanted.to_owned())));
        let call = Call { accept: Some(INDEX_TYPE), ..Call::sending(self.what, &message) };
        let (response, at) = match at {
            Some(at) => self.client.follow(self.target, &call, at.clone()).await?,
            None => {
                let subject = self.subject.to_string();
                self.client.request(self.target, &["referrers", &subject], &call).await?
            }
        };
        let headers = response.headers().clone();
        match response.status() {
            StatusCode::OK => {}
            // Routers without the API answer these.
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST => return Ok(None),
            _ => return Err(complain(self.what, response).await),
        }
        let stall = self.client.transport().stall();
        let response = encoded::plain(self.what, response, MANIFEST_BYTES, stall).await?;
        let bytes = Body::new(response, stall).whole(self.what, MANIFEST_BYTES, stall).await?;
        let Ok(Manifest::Index(index)) = Manifest::parse(&bytes, INDEX_TYPE) else {
            // A page for people, as some servers send for every path.
            tracing::debug!("{} are no image index, the registry has no referrers API", self.what);
            return Ok(None);
        };
        let filtered = headers.get(FILTERS).and_then(|value| value.to_str().ok()).unwrap_or_default();
        tracing::debug!(entries = index.entries.len(), filtered, "{}", self.what);
        Ok(Some(Page { entries: index.entries, next: next(self.what, &at, &headers)? }))
    }
}

/// The place of the next page of a list, which must be at the same server: it is not to be continued by somebody else.
pub(super) fn next(what: &str, at: &Location, headers: &HeaderMap) -> Result<Option<Location>, Fault> {
    let links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(','));
    let Some(link) = links.filter_map(next_link).next() else { return Ok(None) };
    match at.url.join(link) {
        Ok(url) if link.len() <= URL_BYTES && url.origin() == at.url.origin() => {
            Ok(Some(Location { url, ..at.clone() }))
        }
        _ => {
            let message = format!("{}: the next page is not at the same server", cannot(what));
            Err(Fault::lasting(Error::new(ErrorKind::Invalid, message)))
        }
    }
}

/// The target of a link `<target>; rel="next"` (RFC 8288).
fn next_link(link: &str) -> Option<&str> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let is_next = parameters.split(';').any(|parameter| {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        name.trim().eq_ignore_ascii_case("rel") && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
    });
    is_next.then_some(target)
}

#[cfg(test)]
mod tests {
    use reqwest::Url;
    use reqwest::header::HeaderValue;

    use super::*;

    fn follow(link: &'static str) -> Result<Option<String>, Fault> {
        let url = Url::parse("https://r.example/v2/a/referrers/sha256:0?artifactType=x").expect("a valid URL");
        let at = Location { url, trusted: true, verified: true, moved: false, link: None };
        let headers = HeaderMap::from_iter([(LINK, HeaderValue::from_static(link))]);
        Ok(next("x", &at, &headers)?.map(|at| at.url.to_string()))
    }

    #[test]
    fn b_160_b_162_the_next_page_is_found_and_stays_at_its_server() {
        let next = follow("</v2/a/referrers/sha256:0?last=1>; rel=\"next\"").expect("allowed");
        assert_eq!(next.as_deref(), Some("https://r.example/v2/a/referrers/sha256:0?last=1"));
        assert_eq!(
            follow("<x>; rel=prev, </y>; title=\"a\"; rel=next").expect("y").as_deref(),
            Some("https://r.example/y")
        );
        for none in ["</y>; rel=\"prev\"", "</y>", "/y; rel=next", ""] {
            assert!(follow(none).expect("no link").is_none(), "{none}");
        }
        for elsewhere in ["<https://evil.example/x>; rel=next", "<http://r.example/x>; rel=next", "<//e/x>; rel=next"] {
            assert!(follow(elsewhere).is_err(), "{elsewhere}");
        }
    }
}
