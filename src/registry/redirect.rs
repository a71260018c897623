//! Where a redirect, a token realm or a foreign URL may lead, and what may travel along.
//!
//! A [`Location`] is a URL with two rights: to carry the registry's credentials, and to skip certificate checks. Both
//! belong to the registry's own origin only; leaving it drops them for good (B-081, D-030). The rules about addresses
//! guard the network this machine is in; [`super::address::Reach`] tells what a host text denotes.

use std::sync::Arc;

use reqwest::header::{HeaderMap, LOCATION};
use reqwest::{StatusCode, Url};

use super::address::Reach;
use super::error::{cannot, origin};
use super::link::Link;
use crate::limits::URL_BYTES;
use crate::source::{Error, ErrorKind};

/// A URL with what may travel to it.
#[derive(Clone)]
pub(super) struct Location {
    pub(super) url: Url,
    /// True while on the registry's own origin: its credentials may be sent.
    pub(super) trusted: bool,
    /// False only for a loopback registry's own origin, where certificates are not checked (B-141).
    pub(super) verified: bool,
    /// True if a redirect led here.
    pub(super) moved: bool,
    /// How to connect, if not like to all others.
    pub(super) link: Option<Arc<Link>>,
}

impl std::fmt::Debug for Location {
    /// The query is left out: it may be a signature.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Location")
            .field("origin", &origin(&self.url))
            .field("trusted", &self.trusted)
            .finish_non_exhaustive()
    }
}

/// The statuses that redirect a GET.
pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// The place to which the answer of `from` redirects.
pub(super) fn next(what: &str, from: &Location, headers: &HeaderMap) -> Result<Location, Error> {
    let refuse = |why: &str| {
        let message = format!("{}: {} redirects to {why}", cannot(what), origin(&from.url));
        Err(Error::new(ErrorKind::Invalid, message))
    };
    let Some(target) = headers.get(LOCATION).and_then(|value| str::from_utf8(value.as_bytes()).ok()) else {
        return refuse("nowhere");
    };
    let url = match from.url.join(target) {
        Ok(url) if target.len() <= URL_BYTES => url,
        _ => return refuse("an invalid address"),
    };
    if let Err(why) = allowed(&from.url, &url) {
        return refuse(&format!("{}, {why}", origin(&url)));
    }
    let same = url.origin() == from.url.origin();
    let link = if same { from.link.clone() } else { from.link.as_ref().and_then(Link::abroad) };
    Ok(Location { trusted: from.trusted && same, verified: from.verified || !same, moved: true, url, link })
}

/// Whether `from` may send us to `to`.
///
/// Private networks are allowed, because registries inside one do keep their blobs in an object store beside them that
/// is known by its address; the bytes are verified by digest wherever they come from, and no credentials go along.
fn allowed(from: &Url, to: &Url) -> Result<(), &'static str> {
    match (from.scheme(), to.scheme()) {
        ("https", "http") => return Err("which would give up TLS"),
        ("http" | "https", "http" | "https") => {}
        _ => return Err("which is not HTTP"),
    }
    if !to.username().is_empty() || to.password().is_some() {
        return Err("with a user name in the address");
    }
    if to.origin() == from.origin() {
        return Ok(());
    }
    match (reach(from), reach(to)) {
        (_, Reach::Public | Reach::Private) | (Reach::Loopback, Reach::Loopback) => Ok(()),
        (_, Reach::Loopback) => Err("which is this machine"),
        (_, Reach::LinkLocal) => Err("which is a link-local address"),
    }
}

/// The token server's URL, if `registry` may send its user's credentials there (D-032).
///
/// A registry may name any token server by TLS; the text of its address must not be internal unless the registry
/// itself is on this machine or the token server is the registry.
pub(super) fn realm(registry: &Url, realm: &str) -> Result<Url, &'static str> {
    let url = match Url::parse(realm) {
        Ok(url) if realm.len() <= URL_BYTES && url.host_str().is_some() => url,
        _ => return Err("is not an absolute URL"),
    };
    realm_at(registry, &url)?;
    Ok(url)
}

/// The rule of [`realm`] for a URL that is parsed already, such as one that a token server redirects to.
pub(super) fn realm_at(registry: &Url, url: &Url) -> Result<(), &'static str> {
    match (registry.scheme(), url.scheme()) {
        (_, "https") | ("http", "http") => {}
        (_, "http") => return Err("is not encrypted"),
        _ => return Err("is not an HTTP URL"),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("has a user name in the address");
    }
    let same = url.host_str() == registry.host_str() && url.port_or_known_default() == registry.port_or_known_default();
    match (reach(registry), reach(url)) {
        _ if same => Ok(()),
        (_, Reach::Public) | (Reach::Loopback, Reach::Loopback) => Ok(()),
        _ => Err("is an internal address"),
    }
}

/// A foreign layer's URL, if it may be fetched (B-071, D-031): the image's author wrote it, not the registry.
pub(super) fn foreign(registry: &Url, url: &str, private: bool) -> Result<Url, &'static str> {
    let url = match Url::parse(url) {
        Ok(parsed) if url.len() <= URL_BYTES => parsed,
        _ => return Err("is not an absolute URL"),
    };
    foreign_at(registry, &url, private)?;
    Ok(url)
}

/// The rule of [`foreign`] for a URL that is parsed already.
pub(super) fn foreign_at(registry: &Url, url: &Url, private: bool) -> Result<(), &'static str> {
    match (registry.scheme(), url.scheme()) {
        (_, "https") | ("http", "http") => {}
        (_, "http") => return Err("is not encrypted"),
        _ => return Err("is not an HTTP URL"),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("has a user name in the address");
    }
    if private || reach(url) == Reach::Public { Ok(()) } else { Err("is an internal address") }
}

fn reach(url: &Url) -> Reach {
    Reach::of(url.host_str().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("a valid URL")
    }

    fn follow(from: &str, to: &str) -> Result<Location, Error> {
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, HeaderValue::from_str(to).expect("a header value"));
        next("blob x", &Location { url: url(from), trusted: true, verified: false, moved: false, link: None }, &headers)
    }

    #[test]
    fn b_080_locations_may_be_absolute_or_relative() {
        let at = "https://r.example/v2/a/blobs/x";
        assert_eq!(follow(at, "/other?q=1").expect("allowed").url, url("https://r.example/other?q=1"));
        assert_eq!(follow(at, "y").expect("allowed").url, url("https://r.example/v2/a/blobs/y"));
        assert_eq!(follow(at, "//cdn.example/y").expect("allowed").url, url("https://cdn.example/y"));
        assert!(follow(at, "https://").is_err());
        let start = Location { url: url(at), trusted: true, verified: true, moved: false, link: None };
        assert!(next("x", &start, &HeaderMap::new()).is_err());
    }

    #[test]
    fn b_081_d_030_credentials_stay_with_scheme_host_and_port_and_never_come_back() {
        let at = "https://r.example/v2/";
        for (to, trusted) in [
            ("https://r.example/x", true),
            ("https://r.example:443/x", true),
            ("https://r.example:444/x", false),
            ("https://sub.r.example/x", false),
            ("https://example/x", false),
        ] {
            let location = follow(at, to).expect("allowed");
            assert_eq!((location.trusted, location.verified), (trusted, !trusted), "{to}");
        }
        let away = follow(at, "https://cdn.example/").expect("allowed");
        let mut headers = HeaderMap::new();
        headers.insert(LOCATION, HeaderValue::from_static("https://r.example/"));
        assert!(!next("x", &away, &headers).expect("allowed").trusted);
    }

    #[test]
    fn d_030_d_035_redirects_into_this_machine_or_out_of_tls_are_refused() {
        let at = "https://r.example/v2/";
        for to in [
            "http://r.example/x",
            "file:///etc/passwd",
            "https://127.0.0.1/",
            "https://localhost:2375/",
            "https://169.254.169.254/latest",
            "https://u:p@cdn.example/",
        ] {
            assert!(follow(at, to).is_err(), "{to}");
        }
        assert!(follow(at, "https://10.0.0.5:9000/bucket").is_ok());
        assert!(follow("http://localhost:5000/v2/", "http://127.0.0.1:9000/bucket").is_ok());
        assert!(follow("http://localhost:5000/v2/", "http://169.254.169.254/").is_err());
    }

    #[test]
    fn d_032_a_realm_is_encrypted_and_not_internal_unless_it_is_the_registry_itself() {
        let public = url("https://r.example/v2/");
        for good in ["https://auth.example/token?x=y", "https://r.example/token", "https://sub.r.example:8443/t"] {
            assert!(realm(&public, good).is_ok(), "{good}");
        }
        for bad in [
            "http://auth.example/token",
            "http://r.example/token",
            "https://169.254.169.254/token",
            "https://10.0.0.1/token",
            "https://localhost/token",
            "https://[::ffff:127.0.0.1]/token",
            "file:///token",
            "gopher://auth.example/",
            "/token",
            "https://u:p@auth.example/",
            "",
        ] {
            assert!(realm(&public, bad).is_err(), "{bad}");
        }
        assert!(realm(&url("https://10.0.0.1:5000/v2/"), "https://10.0.0.1:5000/token").is_ok());
        assert!(realm(&url("https://10.0.0.1:5000/v2/"), "https://10.0.0.2/token").is_err());
        assert!(realm(&url("http://127.0.0.1:5000/v2/"), "http://127.0.0.1:5001/token").is_ok());
    }

    #[test]
    fn d_031_foreign_urls_are_public_and_encrypted_unless_the_registry_is_not() {
        let public = url("https://r.example/v2/");
        assert!(foreign(&public, "https://layers.example/x", false).is_ok());
        for bad in [
            "http://layers.example/x",
            "https://192.168.0.1/x",
            "https://localhost/x",
            "ftp://h/x",
            "x",
            "https://a@h/",
        ] {
            assert!(foreign(&public, bad, false).is_err(), "{bad}");
        }
        let plain = url("http://localhost:5000/v2/");
        assert!(foreign(&plain, "http://layers.example/x", false).is_ok());
        assert!(foreign(&plain, "http://localhost:5001/x", false).is_err());
        assert!(foreign(&plain, "http://localhost:5001/x", true).is_ok());
    }
}
