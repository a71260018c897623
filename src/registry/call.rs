//! One question to a registry: what is asked for, and what a request says beside its URL.

use std::ops::Range;

use bytes::Bytes;
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, HeaderMap, HeaderName, HeaderValue, RANGE};
use reqwest::{Method, StatusCode};

use super::redirect;

/// One question to a registry.
#[derive(Debug)]
pub(super) struct Call<'a> {
    /// What is asked for, for messages: `manifest docker.io/library/debian:13`.
    pub(super) what: &'a str,
    pub(super) accept: Option<&'static str>,
    /// The bytes wanted; all if absent.
    pub(super) range: Option<Range<u64>>,
    /// What is sent; nothing for a plain GET.
    pub(super) message: Option<&'a Message>,
}

/// What a request sends beside its URL.
#[derive(Debug, Clone)]
pub(super) struct Message {
    pub(super) method: Method,
    /// Added to the URL at which a request begins.
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Message {
    /// A request without a body.
    pub(super) fn bare(method: Method) -> Self {
        Self { method, query: Vec::new(), headers: HeaderMap::new(), body: Bytes::new() }
    }

    /// Adds a header. A value that HTTP cannot carry is left out; all values come from numbers, digests and constants.
    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }
}

impl<'a> Call<'a> {
    /// A request that sends `message`.
    pub(super) fn sending(what: &'a str, message: &'a Message) -> Self {
        Self { what, accept: None, range: None, message: Some(message) }
    }

    /// Whether a redirect with `status` is followed: one that would turn the request into a GET is not.
    pub(super) fn follows(&self, status: StatusCode) -> bool {
        let changes_nothing = |message: &Message| {
            matches!(message.method, Method::GET | Method::HEAD) || matches!(status.as_u16(), 307 | 308)
        };
        redirect::is_redirect(status) && self.message.is_none_or(changes_nothing)
    }

    /// The headers of the request. Compression is always declined: ranges and digests are those of the bytes stored.
    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = self.message.map_or_else(HeaderMap::new, |message| message.headers.clone());
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(accept) = self.accept {
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
        }
        if let Some(range) = &self.range
            && let Ok(value) = HeaderValue::try_from(format!("bytes={}-{}", range.start, range.end.saturating_sub(1)))
        {
            headers.insert(RANGE, value);
        }
        headers
    }
}
