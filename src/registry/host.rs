//! One registry host: by which name it is known and contacted, and what was learned about it.
//!
//! A [`Site`] is what the configuration says of a host, as a value. [`Host`] remembers how the host speaks, what it
//! demands before it answers and whether it serves ranges, so that each of these costs a round trip once per process and
//! not once per request.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName};

use super::address::Reach;
use super::challenge::Challenge;
use super::error::escape;
use super::health::Health;
use super::link::{Link, Wishes};
use super::redirect::Location;
use super::secret::Secret;
use crate::limits::SHOWN_CHARACTERS;
use crate::source::{Error, ErrorKind};

/// The names of Docker Hub; the last one is where it answers.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// How a host is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Scheme {
    /// HTTP without TLS.
    Plain,
    /// TLS with verified certificates.
    Tls,
    /// TLS with any certificate: for this machine, and where the user said so.
    TlsUnverified,
}

/// How a host is contacted. Hosts of equal sites are one host.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Site {
    /// What people and credential files call it (`docker.io`, `localhost:5000`).
    pub(super) name: String,
    /// Where it answers: a host, perhaps with a port.
    pub(super) contact: String,
    /// The path at which its API begins, in parts.
    pub(super) root: Vec<String>,
    /// The ways to speak to it, the likeliest first; at least one.
    pub(super) schemes: Vec<Scheme>,
    /// What each request to it says in addition; the values may be secrets.
    pub(super) headers: Vec<(String, Secret)>,
    pub(super) wishes: Wishes,
}

impl Site {
    /// The registry that users call `name`, as it is contacted unless the configuration says otherwise.
    pub(super) fn of(name: &str, plain_http: bool) -> Self {
        Self {
            name: usual_name(name),
            contact: contact(name),
            root: vec!["v2".to_owned()],
            schemes: if plain_http { vec![Scheme::Plain] } else { usual_schemes(name) },
            headers: Vec::new(),
            wishes: Wishes::default(),
        }
    }

    /// True for this machine.
    pub(super) fn is_here(&self) -> bool {
        Reach::of(split_port(&self.contact).0) == Reach::Loopback
    }
}

/// What a host has done for this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostState {
    /// The name that people use.
    pub name: String,
    /// Bytes of blobs that it sent.
    pub received: u64,
    /// What was wrong when it was asked last; none if it did what was asked.
    pub trouble: Option<String>,
    /// For how long it has been asked and has said nothing; none if it is not being asked.
    pub silence: Option<Duration>,
}

/// Tells hosts apart: two that are contacted in different ways are two, even if they have one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct HostId(u64);

/// A registry host.
#[derive(Debug)]
pub(super) struct Host {
    id: HostId,
    site: Site,
    /// How it is connected to, if not like all others.
    link: Option<Arc<Link>>,
    scheme: OnceLock<Scheme>,
    /// The last challenge; held only to copy it.
    challenge: Mutex<Option<Challenge>>,
    rangeless: AtomicBool,
    health: Health,
    /// Bytes of blobs that it sent.
    received: AtomicU64,
    /// What was wrong when it was asked last, if anything was; held only to copy it.
    trouble: Mutex<Option<String>>,
}

impl Host {
    /// The host at `site`, of which nothing is known.
    pub(super) fn new(site: Site) -> Self {
        static HOSTS: AtomicU64 = AtomicU64::new(0);
        Self {
            id: HostId(HOSTS.fetch_add(1, Ordering::Relaxed)),
            link: Link::new(&site.wishes),
            site,
            scheme: OnceLock::new(),
            challenge: Mutex::new(None),
            rangeless: AtomicBool::new(false),
            health: Health::default(),
            received: AtomicU64::new(0),
            trouble: Mutex::default(),
        }
    }

    /// Counts bytes of blobs that it sent.
    pub(super) fn sent(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Notes whether it has done what was asked of it, for whoever asks how it is.
    pub(super) fn note(&self, error: Option<&Error>) {
        let trouble = error.map(ToString::to_string);
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// True if whoever has a choice should ask another host first.
    pub(super) fn rests(&self) -> bool {
        self.health.rests()
    }

    /// How it is.
    pub(super) fn state(&self) -> HostState {
        HostState {
            name: self.name().to_owned(),
            received: self.received.load(Ordering::Relaxed),
            trouble: self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            silence: self.health.silence(),
        }
    }

    /// What it is told from others by.
    pub(super) fn id(&self) -> HostId {
        self.id
    }

    /// The name that people use.
    pub(super) fn name(&self) -> &str {
        &self.site.name
    }

    /// How it is connected to, if not like all others.
    pub(super) fn link(&self) -> Option<&Arc<Link>> {
        self.link.as_ref()
    }

    /// Adds to a request what the user wants said to this host, where the request does not speak of it itself.
    pub(super) fn add_headers(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.site.headers {
            // The configuration was read with the same rules.
            if let (Ok(name), Some(value)) = (HeaderName::from_bytes(name.as_bytes()), value.header()) {
                headers.entry(name).or_insert(value);
            }
        }
    }

    /// How it has been doing.
    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    /// The ways to speak to the host that are still possible, the likeliest first.
    pub(super) fn schemes(&self) -> &[Scheme] {
        self.scheme.get().map_or(self.site.schemes.as_slice(), std::slice::from_ref)
    }

    /// Whether it is known how the host speaks.
    pub(super) fn is_settled(&self) -> bool {
        self.scheme.get().is_some()
    }

    /// Notes that the host demanded something at `at`, which a host that is spoken to in the wrong way cannot do. Whether one
    /// that may speak TLS as well is to be spoken to in the clear from now on does not follow from that.
    pub(super) fn answered(&self, at: &Location) {
        let scheme = match (at.url.scheme(), at.verified) {
            ("http", _) => Scheme::Plain,
            (_, true) => Scheme::Tls,
            (_, false) => Scheme::TlsUnverified,
        };
        if !at.moved && (scheme != Scheme::Plain || self.site.schemes.first() == Some(&Scheme::Plain)) {
            self.settle(scheme);
        }
    }

    /// Notes that the host answered to `scheme`; the first note stays.
    pub(super) fn settle(&self, scheme: Scheme) {
        self.scheme.get_or_init(|| scheme);
    }

    /// The challenge last met here.
    pub(super) fn challenge(&self) -> Option<Challenge> {
        self.challenge.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what the host demands.
    pub(super) fn learn(&self, challenge: Challenge) {
        *self.challenge.lock().unwrap_or_else(PoisonError::into_inner) = Some(challenge);
    }

    /// False once a ranged request was answered with the whole blob.
    pub(super) fn serves_ranges(&self) -> bool {
        !self.rangeless.load(Ordering::Relaxed)
    }

    /// Notes that ranged requests are answered with whole blobs.
    pub(super) fn lacks_ranges(&self) {
        self.rangeless.store(true, Ordering::Relaxed);
    }

    /// The place of the API's root followed by the repository's and the other parts of a path.
    ///
    /// The parts come from references and documents, so they are put in as parts: none can leave its place (D-006). The
    /// last may be empty, for a path that ends in a slash.
    pub(super) fn locate(&self, scheme: Scheme, repository: &str, rest: &[&str]) -> Result<Location, Error> {
        let invalid = |what: &str, text: &str| {
            Error::new(ErrorKind::Invalid, format!("invalid {what} {:?}", escape(text, SHOWN_CHARACTERS)))
        };
        let prefix = if scheme == Scheme::Plain { "http" } else { "https" };
        let contact = &self.site.contact;
        let root = Url::parse(&format!("{prefix}://{contact}/"));
        let mut url = root.map_err(|error| invalid("registry host", contact).because(error))?;
        let plain_host = url.path() == "/" && url.username().is_empty() && url.password().is_none();
        if !plain_host || url.query().is_some() || url.fragment().is_some() {
            return Err(invalid("registry host", contact));
        }
        let root = self.site.root.iter().map(String::as_str);
        let names = repository.split('/').chain(rest.iter().copied());
        let to_check = rest.strip_suffix(&[""]).unwrap_or(rest);
        for name in repository.split('/').chain(to_check.iter().copied()) {
            // The URL parser drops tabs and line breaks, so these could hide dots.
            if matches!(name, "" | "." | "..") || name.contains(char::is_control) {
                return Err(invalid("repository name", repository));
            }
        }
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(root).extend(names);
        }
        let verified = scheme != Scheme::TlsUnverified;
        Ok(Location { url, trusted: true, verified, moved: false, link: self.link.clone() })
    }
}

/// True for all names of Docker Hub.
pub(super) fn is_docker_hub(name: &str) -> bool {
    DOCKER_HUB.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// The name of a host that stands for all of its names.
pub(super) fn usual_name(name: &str) -> String {
    if is_docker_hub(name) { DOCKER_HUB[0].to_owned() } else { name.to_ascii_lowercase() }
}

/// All names of a host, the usual one first.
pub(super) fn all_names(name: &str) -> Vec<String> {
    if is_docker_hub(name) { DOCKER_HUB.map(str::to_owned).to_vec() } else { vec![name.to_ascii_lowercase()] }
}

/// The host to which requests go.
pub(super) fn contact(name: &str) -> String {
    if is_docker_hub(name) { DOCKER_HUB[2].to_owned() } else { name.to_ascii_lowercase() }
}

/// How a host may be spoken to (B-141).
///
/// Registries on this machine mostly speak plain HTTP, so that is tried first there and costs nothing; containerd asks
/// in the other order, with the same outcome. No secret is at stake: credentials follow a challenge, never precede it.
/// A TLS port means TLS. Nothing else is ever downgraded, unless the user said so.
pub(super) fn usual_schemes(name: &str) -> Vec<Scheme> {
    let (host, port) = split_port(name);
    if Reach::of(host) == Reach::Loopback && port != Some("443") {
        vec![Scheme::Plain, Scheme::TlsUnverified]
    } else {
        vec![Scheme::Tls]
    }
}

/// A host and its port, if there is one.
pub(super) fn split_port(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => (host, Some(port)),
        _ => (name, None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn located(host: &str, repository: &str, rest: &[&str]) -> Option<String> {
        Host::new(Site::of(host, false))
            .locate(Scheme::Tls, repository, rest)
            .ok()
            .map(|location| location.url.to_string())
    }

    #[test]
    fn docker_hub_is_contacted_at_its_registry() {
        for name in ["docker.io", "index.docker.io", "registry-1.docker.io", "Docker.io"] {
            let host = Host::new(Site::of(name, false));
            assert_eq!((host.name(), contact(name).as_str()), ("docker.io", "registry-1.docker.io"));
        }
    }

    #[test]
    fn b_141_plain_http_is_for_this_machine_or_on_demand() {
        const HERE: &[Scheme] = &[Scheme::Plain, Scheme::TlsUnverified];
        for name in ["localhost:5000", "localhost", "127.0.0.1:5000", "127.1.2.3", "[::1]:5000"] {
            assert_eq!(Host::new(Site::of(name, false)).schemes(), HERE, "{name}");
        }
        for name in ["localhost:443", "[::1]:443", "r.example", "r.example:5000", "10.0.0.1:5000", "docker.io"] {
            assert_eq!(Host::new(Site::of(name, false)).schemes(), &[Scheme::Tls], "{name}");
            assert_eq!(Host::new(Site::of(name, true)).schemes(), &[Scheme::Plain], "{name}");
        }
        let host = Host::new(Site::of("localhost:5000", false));
        host.settle(Scheme::TlsUnverified);
        host.settle(Scheme::Plain);
        assert_eq!(host.schemes(), &[Scheme::TlsUnverified]);
    }

    #[test]
    fn d_006_names_cannot_leave_their_place_in_the_url() {
        assert_eq!(
            located("r.example:5000", "a/b", &["manifests", "v1"]).as_deref(),
            Some("https://r.example:5000/v2/a/b/manifests/v1")
        );
        assert_eq!(located("[::1]:5000", "a", &["x"]).as_deref(), Some("https://[::1]:5000/v2/a/x"));
        assert_eq!(
            located("h", "a", &["manifests", "v?x#y/z"]).as_deref(),
            Some("https://h/v2/a/manifests/v%3Fx%23y%2Fz")
        );
        for repository in ["../x", "a/../b", "a//b", "", "/", ".", ".\t./x"] {
            assert_eq!(located("h", repository, &["manifests", "v"]), None, "{repository}");
        }
        for host in ["u@h", "u:p@h", "h/x", "h?x", "h#x", "", "h:99999", "h x"] {
            assert_eq!(located(host, "a", &["manifests", "v"]), None, "{host}");
        }
    }

    proptest! {
        #[test]
        fn d_006_any_name_stays_below_v2_of_its_host(repository in "\\PC{0,30}", tag in "\\PC{0,20}") {
            if let Ok(location) = Host::new(Site::of("h.example", false)).locate(Scheme::Tls, &repository, &["manifests", &tag]) {
                prop_assert_eq!(location.url.host_str(), Some("h.example"));
                prop_assert!(location.url.path().starts_with("/v2/"));
                prop_assert!(location.url.query().is_none() && location.url.fragment().is_none());
                prop_assert_eq!(location.url.path().split('/').count(), 4 + repository.split('/').count());
            }
        }
    }
}
