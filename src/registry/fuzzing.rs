//! What a registry's headers and the user's files are read by, for tests/fuzz: none of it can be reached from outside
//! without a connection.

use reqwest::Url;
use reqwest::header::{CONTENT_RANGE, HeaderMap, HeaderValue, LINK, WWW_AUTHENTICATE};

use super::hosts::{self, HostFiles, Wanted};
use super::redirect::Location;
use super::{Selector, challenge as challenges, range, referrers};

/// The headers, each line of `value` one of this name.
fn headers(name: &reqwest::header::HeaderName, value: &[u8]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for value in value.split(|byte| *byte == b'\n').filter_map(|line| HeaderValue::from_bytes(line).ok()) {
        headers.append(name, value);
    }
    headers
}

/// Reads what a registry wants before it answers.
pub fn challenge(value: &[u8]) {
    drop(challenges::choose(&headers(&WWW_AUTHENTICATE, value)));
}

/// Reads where a list goes on. It never goes on at another server.
pub fn next_page(value: &[u8]) {
    let url = Url::parse("https://r.example/v2/a/referrers/sha256:0").expect("a URL");
    let at = Location { url, trusted: true, verified: true, moved: false, link: None };
    if let Ok(Some(next)) = referrers::next("x", &at, &headers(&LINK, value)) {
        assert_eq!(next.url.origin(), at.url.origin());
    }
}

/// Judges an answer to a request for some bytes.
pub fn content_range(value: &[u8]) {
    let headers = headers(&CONTENT_RANGE, value);
    drop(range::judge(reqwest::StatusCode::PARTIAL_CONTENT, &headers, &(5..10), 100, true));
}

/// Finds how an image is reached. Blocks.
pub fn plan(files: &HostFiles, host: &str, repository: &str) {
    for selector in [Selector::Tag("1.2".to_owned()), Selector::Digest(crate::oci::Digest::sha256(b"x"))] {
        let wanted = Wanted { host, repository, selector: &selector, plain_http: false };
        if let Ok(plan) = hosts::plan(files, &wanted) {
            assert!(!plan.places.is_empty());
        }
    }
}
