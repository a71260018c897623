//! What is wrong with a reference, in words that say what to write instead.

use std::fmt;
use std::net::Ipv6Addr;

use crate::oci::{DigestError, Printable};

/// Why a text is not a reference; the messages say what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The text is empty.
    #[error("empty image reference; try debian:12, ghcr.io/owner/name or oci:DIRECTORY")]
    Empty,
    /// The text starts with a URL scheme.
    #[error("{text} starts with a URL scheme; write only HOST/NAME[:TAG], without {scheme}://")]
    Scheme {
        /// The reference.
        text: Shown,
        /// What stands before `://`.
        scheme: String,
    },
    /// The text is a path.
    #[error("{0} looks like a path; write oci:DIRECTORY, oci-archive:FILE or docker-archive:FILE")]
    Path(Shown),
    /// The text is 64 hexadecimal digits, which Docker takes for an image id.
    #[error("{0} is an image id, not a name; to name content, write it after NAME@sha256:")]
    Identifier(Shown),
    /// The name has a transport of containers-transports(5) that is not served here.
    #[error("cannot read images from {transport}: in {text}; use docker://, oci:, oci-archive: or docker-archive:")]
    Transport {
        /// The reference.
        text: Shown,
        /// The transport.
        transport: String,
    },
    /// The host part is not a host name or address with an optional port.
    #[error("invalid registry host {host} in {text}{}", hint_host(.host))]
    Host {
        /// The reference.
        text: Shown,
        /// The host part.
        host: Shown,
    },
    /// The repository part breaks the grammar.
    #[error("invalid repository name {repository} in {text}: {problem}")]
    Repository {
        /// The reference.
        text: Shown,
        /// The repository part.
        repository: Shown,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The tag breaks the grammar.
    #[error(
        "invalid tag {tag} in {text}: a tag is 1 to 128 letters, digits, _ . or -, and starts with a letter, digit or _"
    )]
    Tag {
        /// The reference.
        text: Shown,
        /// The tag.
        tag: Shown,
    },
    /// The digest is not valid or its algorithm cannot be verified.
    #[error("in {text}: {problem}")]
    Digest {
        /// The reference.
        text: Shown,
        /// What is wrong with the digest.
        problem: DigestError,
    },
    /// A local reference names no path.
    #[error("{text} names no path; write {transport}:PATH[:NAME]")]
    NoPath {
        /// The reference.
        text: Shown,
        /// The transport.
        transport: &'static str,
    },
    /// What follows the path is no name, position or digest.
    #[error("{0} does not select one image after its path; write :NAME, :@POSITION or @DIGEST, and only one of them")]
    Selector(Shown),
    /// A path cannot be written in a reference.
    #[error("the path {0} holds a colon or is not UTF-8; move the image, or reach it by a symbolic link without one")]
    Unwritable(Shown),
}

/// Outside text kept for a message; it is shown escaped and cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown(String);

impl Shown {
    pub(super) fn new(text: &str) -> Self {
        Self(text.chars().take(300).collect())
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{:.200}\"", Printable::of(&self.0))
    }
}

fn hint_host(host: &Shown) -> &'static str {
    if host.0.parse::<Ipv6Addr>().is_ok() { "; put IPv6 addresses into brackets" } else { "" }
}
