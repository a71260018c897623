//! Which tags there are, to say it when one is not (distribution-spec, "Listing tags").

use std::cmp::Reverse;
use std::time::Duration;

use reqwest::StatusCode;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::call::Call;
use super::client::Client;
use super::endpoint::Endpoint;
use super::error::{Complaint, Fault, escape};
use super::redirect::Location;
use super::transport::Body;
use super::{encoded, referrers};
use crate::limits::{TAG_LIST_BYTES, TAG_PAGES};

/// How many tags a hint names.
const SHOWN: usize = 10;

/// The longest that a hint may delay an error.
const PATIENCE: Duration = Duration::from_secs(10);

/// What could be learned about a repository's tags.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Listing {
    /// Those on the pages that were read.
    Tags(Vec<String>),
    /// The repository does not exist.
    NoRepository,
    /// Nothing: registries need not list tags, nor allow it.
    Unknown,
}

#[derive(Deserialize)]
struct Wire {
    tags: Option<Vec<String>>,
}

/// Asks for the tags, once for each page, as long as that is worth it for a hint. What fails after the first page only makes
/// the list shorter.
pub(super) async fn list(client: &Client, target: &Endpoint) -> Listing {
    let what = format!("tags of {}", target.name());
    let end = Instant::now() + PATIENCE;
    let (mut tags, mut next) = (Vec::new(), None);
    for number in 0..TAG_PAGES {
        let page = match timeout_at(end, page(client, target, &what, next.take())).await {
            Ok(Ok(page)) => page,
            Ok(Err(fault)) => {
                tracing::debug!(error = %fault.error, "no more tags for the hint");
                Page::end(Listing::Unknown)
            }
            Err(_) => Page::end(Listing::Unknown),
        };
        match page.listing {
            Listing::Tags(more) => tags.extend(more),
            other if number == 0 => return other,
            _ => break,
        }
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    Listing::Tags(tags)
}

/// One page, and where the next one is.
struct Page {
    listing: Listing,
    next: Option<Location>,
}

impl Page {
    fn end(listing: Listing) -> Self {
        Self { listing, next: None }
    }
}

/// The page at `at`, or the first. An empty or short page need not be the last; where the list goes on, the registry says.
async fn page(client: &Client, target: &Endpoint, what: &str, at: Option<Location>) -> Result<Page, Fault> {
    let call = Call { what, accept: None, range: None, message: None };
    let (response, at) = match at {
        Some(at) => client.follow(target, &call, at).await?,
        None => client.request(target, &["tags", "list"], &call).await?,
    };
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND if Complaint::of(response).await.has("NAME_UNKNOWN") => {
            return Ok(Page::end(Listing::NoRepository));
        }
        _ => return Ok(Page::end(Listing::Unknown)),
    }
    let stall = client.transport().stall();
    let response = encoded::plain(what, response, TAG_LIST_BYTES, stall).await?;
    let next = referrers::next(what, &at, response.headers());
    let body = Body::new(response, stall).whole(what, TAG_LIST_BYTES, PATIENCE).await?;
    let next = next.unwrap_or_else(|fault| {
        tracing::debug!(error = %fault.error, "the list of tags ends here");
        None
    });
    // A page that leads to itself would come again and again.
    Ok(Page { listing: parse(&body), next: next.filter(|next| next.url != at.url) })
}

fn parse(body: &[u8]) -> Listing {
    match serde_json::from_slice::<Wire>(body) {
        Ok(wire) => Listing::Tags(wire.tags.unwrap_or_default()),
        Err(_) => Listing::Unknown,
    }
}

/// A hint with the tags most like `wanted`.
pub(super) fn suggest(wanted: &str, mut tags: Vec<String>) -> String {
    if tags.is_empty() {
        return "the repository has no tags".to_owned();
    }
    let alike = |tag: &String| tag.bytes().zip(wanted.bytes()).take_while(|(a, b)| a.eq_ignore_ascii_case(b)).count();
    tags.sort_by_cached_key(|tag| (Reverse(alike(tag)), tag.clone()));
    let more = if tags.len() > SHOWN { ", …" } else { "" };
    tags.truncate(SHOWN);
    let shown: Vec<_> = tags.iter().map(|tag| escape(tag, 128)).collect();
    format!("tags that exist: {}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn b_160_a_list_may_be_null_unsorted_or_broken() {
        assert_eq!(parse(br#"{"name":"x","tags":null}"#), Listing::Tags(Vec::new()));
        assert_eq!(parse(br#"{"tags":["b","a"]}"#), Listing::Tags(tags(&["b", "a"])));
        assert_eq!(parse(b"<html>"), Listing::Unknown);
    }

    #[test]
    fn the_tags_most_like_the_wanted_one_are_suggested_and_escaped() {
        assert_eq!(suggest("latst", tags(&["1", "v2", "latest"])), "tags that exist: latest, 1, v2");
        assert_eq!(suggest("x", tags(&["a\x1b"])), r"tags that exist: a\u{1b}");
        assert_eq!(suggest("x", Vec::new()), "the repository has no tags");
        let many: Vec<_> = (0..50).map(|number| format!("t{number:02}")).collect();
        let hint = suggest("t4", many);
        assert!(hint.starts_with("tags that exist: t40, t41") && hint.ends_with("t49, …"), "{hint}");
    }
}
