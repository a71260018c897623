//! A request as the log and the fault hook see it: what was asked, taken apart once.

use bytes::Bytes;
use hyper::{HeaderMap, Method};

use super::token::TOKEN_PATH;

/// A request that reached the embedded registry.
#[derive(Debug, Clone)]
pub struct Request {
    /// How many requests came before it, over the registry's life.
    pub number: u64,
    /// How many of them had the same method and path: 0 for the first. Scripts that fail the first tries count by it.
    pub attempt: u64,
    /// The method.
    pub method: Method,
    /// The path, percent escapes decoded.
    pub path: String,
    /// The query, as it was sent, without the question mark; may be empty.
    pub query: String,
    /// The headers, credentials included: tests want to know who sent which.
    pub headers: HeaderMap,
    /// What the path means.
    pub endpoint: Endpoint,
    pub(super) body: Bytes,
}

/// What the path of a request means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v2/`, the check for the protocol.
    Base,
    /// A manifest by tag or digest.
    Manifest {
        /// The repository.
        repository: String,
        /// Tag or digest, as written.
        reference: String,
    },
    /// A blob.
    Blob {
        /// The repository.
        repository: String,
        /// The digest, as written.
        digest: String,
    },
    /// The list of tags.
    Tags {
        /// The repository.
        repository: String,
    },
    /// Where uploads begin, or one of them.
    Upload {
        /// The repository.
        repository: String,
        /// The upload; none where they begin.
        session: Option<String>,
    },
    /// What refers to a manifest.
    Referrers {
        /// The repository.
        repository: String,
        /// The digest of the manifest, as written.
        digest: String,
    },
    /// The token endpoint.
    Token,
    /// Anything else: `404`.
    Other,
}

impl Endpoint {
    /// Takes a decoded path apart. The last two components decide, because a repository may be named anything.
    pub(super) fn of(path: &str) -> Self {
        if path == TOKEN_PATH {
            return Self::Token;
        }
        let Some(rest) = path.strip_prefix("/v2").filter(|rest| rest.is_empty() || rest.starts_with('/')) else {
            return Self::Other;
        };
        let rest = rest.trim_start_matches('/');
        if rest.is_empty() {
            return Self::Base;
        }
        if let Some((head, session)) = rest.rsplit_once('/')
            && let Some(repository) = head.strip_suffix("/blobs/uploads")
        {
            let session = (!session.is_empty()).then(|| session.to_owned());
            return Self::Upload { repository: repository.to_owned(), session };
        }
        let mut parts = rest.rsplitn(3, '/');
        match (parts.next(), parts.next(), parts.next()) {
            (Some("list"), Some("tags"), Some(repository)) => Self::Tags { repository: repository.to_owned() },
            (Some(reference), Some("manifests"), Some(repository)) => {
                Self::Manifest { repository: repository.to_owned(), reference: reference.to_owned() }
            }
            (Some(digest), Some("blobs"), Some(repository)) => {
                Self::Blob { repository: repository.to_owned(), digest: digest.to_owned() }
            }
            (Some(digest), Some("referrers"), Some(repository)) => {
                Self::Referrers { repository: repository.to_owned(), digest: digest.to_owned() }
            }
            _ => Self::Other,
        }
    }

    /// The repository, if the request is about one.
    pub fn repository(&self) -> Option<&str> {
        match self {
            Self::Manifest { repository, .. }
            | Self::Blob { repository, .. }
            | Self::Tags { repository }
            | Self::Upload { repository, .. }
            | Self::Referrers { repository, .. } => Some(repository),
            Self::Base | Self::Token | Self::Other => None,
        }
    }
}

impl Request {
    /// The value of a header, if it is there once or more and is text; the first one counts.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The `Range` header.
    pub fn range(&self) -> Option<&str> {
        self.header("range")
    }

    /// True for a request for a manifest.
    pub fn is_manifest(&self) -> bool {
        matches!(self.endpoint, Endpoint::Manifest { .. })
    }

    /// True for a request that changes what the registry holds.
    pub fn is_write(&self) -> bool {
        self.endpoint != Endpoint::Token && !matches!(self.method, Method::GET | Method::HEAD)
    }

    /// True for a request for a blob.
    pub fn is_blob(&self) -> bool {
        matches!(self.endpoint, Endpoint::Blob { .. })
    }

    /// The values of a parameter of the query, decoded, in order.
    pub fn parameters(&self, name: &str) -> Vec<String> {
        form_values(&self.query, name)
    }
}

/// The values of `name` in `application/x-www-form-urlencoded` text.
pub(super) fn form_values(form: &str, name: &str) -> Vec<String> {
    form.split('&')
        .filter_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(&key.replace('+', " ")) == name).then(|| decode(&value.replace('+', " ")))
        })
        .collect()
}

/// Decodes percent escapes; what is not a valid escape stays as it is.
pub(super) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match escaped.filter(|hex| hex.bytes().all(|digit| digit.is_ascii_hexdigit())) {
            Some(hex) => {
                decoded.push(u8::from_str_radix(hex, 16).unwrap_or(b'%'));
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_components_decide_what_a_path_means() {
        assert_eq!(Endpoint::of("/v2/"), Endpoint::Base);
        assert_eq!(Endpoint::of("/v2"), Endpoint::Base);
        for path in ["/", "/v1/", "/v2x/", "/v2/a", "/v2/a/manifests", "/v2/manifests/x", "/v2/tags/list"] {
            assert_eq!(Endpoint::of(path), Endpoint::Other, "{path}");
        }
        let reference = "latest".to_owned();
        let repository = "a/manifests/blobs".to_owned();
        assert_eq!(
            Endpoint::of("/v2/a/manifests/blobs/manifests/latest"),
            Endpoint::Manifest { repository, reference }
        );
        assert_eq!(Endpoint::of("/v2/a/tags/list").repository(), Some("a"));
        let repository = "a/b".to_owned();
        let begin = Endpoint::Upload { repository: repository.clone(), session: None };
        assert_eq!(Endpoint::of("/v2/a/b/blobs/uploads/"), begin);
        let session = Some("7".to_owned());
        assert_eq!(
            Endpoint::of("/v2/a/b/blobs/uploads/7"),
            Endpoint::Upload { repository: repository.clone(), session }
        );
        let digest = "sha256:x".to_owned();
        assert_eq!(Endpoint::of("/v2/a/b/referrers/sha256:x"), Endpoint::Referrers { repository, digest });
    }

    #[test]
    fn forms_and_escapes_decode() {
        assert_eq!(decode("sha256%3Aab%zz%4"), "sha256:ab%zz%4");
        assert_eq!(decode("%é"), "%é");
        assert_eq!(form_values("scope=a+b&x=1&scope=c%3Ad&scope", "scope"), ["a b", "c:d", ""]);
    }
}
