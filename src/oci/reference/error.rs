//! What is wrong with a reference, in words that say what to write instead.

use std::borrow::Cow;
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
        Self(without_password(text).chars().take(300).collect())
    }
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{:.200}\"", Printable::of(&self.0))
    }
}

/// The text with the password of `USER:PASSWORD@` left out, as it is written in URLs: no reference has one, and messages
/// end up in logs.
pub fn without_password(text: &str) -> Cow<'_, str> {
    if ["oci:", "oci-archive:", "docker-archive:"].iter().any(|local| text.starts_with(local)) {
        return text.into();
    }
    let start = text.find("://").map_or(0, |scheme| scheme + 3);
    let rest = &text[start..];
    // The first `@` before the path ends the user; the one of a digest comes after the name of a repository.
    let authority = rest.split('/').next().unwrap_or(rest);
    let is_digest =
        |after: &str| after.split_once(':').is_some_and(|(name, _)| name.starts_with("sha") || name == "blake3");
    match authority.rsplit_once('@').filter(|(_, after)| !is_digest(after)).and_then(|(user, _)| user.split_once(':')) {
        Some((user, password)) => {
            let (from, to) = (start + user.len() + 1, start + user.len() + 1 + password.len());
            format!("{}***{}", &text[..from], &text[to..]).into()
        }
        None => text.into(),
    }
}

fn hint_host(host: &Shown) -> &'static str {
    if host.0.parse::<Ipv6Addr>().is_ok() { "; put IPv6 addresses into brackets" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_left_out_and_nothing_else() {
        for (text, shown) in [
            ("https://me:secret@r.example/a", "https://me:***@r.example/a"),
            ("me:sec@ret@r.example:5000/a:1", "me:***@r.example:5000/a:1"),
            ("a:1@sha256:00", "a:1@sha256:00"),
            ("r.example:5000/a:1@sha256:00", "r.example:5000/a:1@sha256:00"),
            ("oci:a@b", "oci:a@b"),
            ("me@r.example/a", "me@r.example/a"),
        ] {
            assert_eq!(without_password(text), shown);
        }
    }
}
