//! Registries: the distribution specification's pull side as a [`crate::source::Source`], and its push side.
//!
//! A mounted image talks to its registry for days, in small ranges, while tokens expire, presigned URLs run out and
//! connections break. Three things follow. Everything learned once is kept: connections, tokens, how a host speaks,
//! where a blob's redirects lead; a range then costs one round trip. Every wait has an end, but none that punishes a
//! transfer for being long. And a broken body is continued at its last byte, so that a reader sees exactly its bytes
//! or an error, never a short stream.
//!
//! | file | concern |
//! |---|---|
//! | `call` | what is asked |
//! | `client` | one request until it is answered: protocol, challenges, redirects |
//! | `repository`, `manifest`, `tags` | [`Repository`], documents by tag and digest, tags to suggest |
//! | `upload`, `push` | blobs in chunks that resume, manifests by tag and digest |
//! | `referrers`, `tag_schema` | what refers to a manifest: the API, and the tag that stands in for it |
//! | `blob`, `range` | ranged reads that resume, and what answers to a range are acceptable |
//! | `course` | following the user's files while a repository is in use |
//! | `route`, `endpoint` | where a repository may be had, and what it is called there |
//! | `places` | which of these is asked first for a blob |
//! | `host` | how one host is named, contacted and spoken to |
//! | `hosts` | what the user's files say about mirrors, certificates and short names |
//! | `challenge`, `grant`, `token` | what a registry demands, what lets a request pass, asking a token server |
//! | `credentials`, `helper`, `secret` | the user's files, helper programs, keeping secrets out of sight |
//! | `redirect`, `address` | where outside data may send us, and what may travel along |
//! | `retry`, `error`, `warning` | what is worth another attempt, what the user sees |
//! | `health`, `pace` | which host to leave in peace for a while, and how fast one may be asked |
//! | `transport`, `link`, `tls` | connection pools, time-outs, bodies; what is special about one host |
//!
//! Trust: the registry is believed in nothing but availability, since whoever asked verifies every byte by digest.
//! Credentials go to the host they are filed under and to the token server it names, and to nobody else: a mirror is asked
//! with its own or without any. A mirror is believed about a tag only if the user lets it resolve tags.
//!
//! Locks: each protects one small table and is held only to read or change it. The exception is a slot of
//! `grant::Grants`, held while its token is fetched, which is its purpose.

mod address;
mod blob;
mod call;
mod challenge;
mod client;
mod course;
mod credentials;
mod encoded;
mod endpoint;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod grant;
mod health;
mod helper;
mod host;
pub mod hosts;
mod link;
mod manifest;
mod pace;
mod places;
mod push;
mod range;
mod redirect;
mod referrers;
mod repository;
mod retry;
mod route;
mod secret;
mod tag_schema;
mod tags;
mod tls;
mod token;
mod transport;
mod upload;
mod warning;

use std::path::PathBuf;
use std::time::Duration;

pub use client::{Client, WeakClient};
pub use host::HostState;
pub use hosts::HostFiles;
pub use repository::{Repository, Selector};
pub use upload::Pushed;

/// How a [`Client`] behaves.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Options {
    /// Speaks plain HTTP to every registry. Without it, only to this machine.
    pub plain_http: bool,
    /// The credential files in the order in which to ask them; missing ones are skipped.
    pub auth_files: Vec<PathBuf>,
    /// The files that say how registries are reached.
    pub hosts: HostFiles,
    /// The value of `User-Agent`.
    pub user_agent: String,
    /// Lets the `urls` of foreign layers lead to private addresses. Without it, an image cannot make this machine
    /// send requests inside its network.
    pub private_urls: bool,
    /// How long a TCP connection may take.
    pub connect_timeout: Duration,
    /// The longest silence of a server, and the time over which a transfer must not be absurdly slow.
    pub stall_timeout: Duration,
    /// How long a credential helper may take.
    pub helper_timeout: Duration,
    /// Attempts without progress before an operation fails, the first included.
    pub attempts: u32,
    /// The pause after the first failed attempt; it doubles with each.
    pub first_pause: Duration,
    /// The longest pause, whatever a server asks for in `Retry-After`.
    pub longest_pause: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            plain_http: false,
            auth_files: Vec::new(),
            hosts: HostFiles::default(),
            user_agent: concat!("ocifs/", env!("CARGO_PKG_VERSION")).to_owned(),
            private_urls: false,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            helper_timeout: Duration::from_secs(30),
            attempts: 5,
            first_pause: Duration::from_millis(300),
            longest_pause: Duration::from_secs(60),
        }
    }
}
