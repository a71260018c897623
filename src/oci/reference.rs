//! References: what a user names when asking for an image.
//!
//! Names follow Docker's grammar, with its historic short forms (`debian` is `docker.io/library/debian:latest`), and
//! local places follow containers-transports(5): `oci:DIR[:NAME]`, `oci-archive:FILE[:NAME]`,
//! `docker-archive:FILE[:NAME]`. A [`Reference`] is either a [`RegistryName`] or a [`Local`] place, is valid by
//! construction, so that its parts can go into a URL, and its text form reads back as the same value.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{Digest, Printable};

mod error;

pub use error::{ReferenceError, Shown, without_password};

/// An image as the user named it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reference {
    /// An image in a registry: `debian`, `ghcr.io/a/b:1@sha256:…`, `docker://debian`.
    Registry(RegistryName),
    /// An OCI image layout directory: `oci:DIR`.
    Layout(Local),
    /// A tar file that holds an OCI image layout: `oci-archive:FILE`.
    OciArchive(Local),
    /// A tar file as `docker save` writes it: `docker-archive:FILE`.
    DockerArchive(Local),
}

/// A repository on a registry, with the tag or digest of one image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RegistryName {
    host: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A directory or file, and which of its images is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Local {
    path: PathBuf,
    selector: Option<LocalSelector>,
}

/// Which image of a local place is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LocalSelector {
    /// The image of this name: `:NAME`.
    Name(String),
    /// The manifest of this digest: `@sha256:…`.
    Digest(Digest),
    /// The image at this position, counted from zero: `:@N`.
    Index(usize),
}

/// The host that Docker's short names mean.
const DOCKER_HUB: &str = "docker.io";

/// Longest repository name; what Docker's reference grammar allows (B-010).
const REPOSITORY_BYTES: usize = 255;

/// Transports of containers-transports(5) that name places this program cannot read.
const FOREIGN_TRANSPORTS: [&str; 6] = ["containers-storage", "dir", "docker-daemon", "ostree", "sif", "tarball"];

/// Those of them that are never meant as the name of an image.
const LONG_TRANSPORTS: [&str; 2] = ["containers-storage", "docker-daemon"];

fn is_transport(text: &str, name: &str) -> bool {
    text.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'))
}

impl Reference {
    /// True if the reference names a digest, so that it always means the same bytes.
    pub fn is_pinned(&self) -> bool {
        self.digest().is_some()
    }

    /// The digest that the reference names.
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Registry(name) => name.digest.as_ref(),
            Self::Layout(local) | Self::OciArchive(local) | Self::DockerArchive(local) => match &local.selector {
                Some(LocalSelector::Digest(digest)) => Some(digest),
                _ => None,
            },
        }
    }

    /// The same reference as seen from anywhere: a relative path is taken to start at `directory`.
    ///
    /// For handing a reference to a process with another working directory. Fails if the result has no text form.
    pub fn against(self, directory: &Path) -> Result<Self, ReferenceError> {
        let join = |local: Local| {
            let path = directory.join(&local.path);
            match path.to_str() {
                Some(text) if !text.contains(':') => Ok(Local { path, ..local }),
                _ => Err(ReferenceError::Unwritable(Shown::new(&path.to_string_lossy()))),
            }
        };
        match self {
            Self::Registry(name) => Ok(Self::Registry(name)),
            Self::Layout(local) => join(local).map(Self::Layout),
            Self::OciArchive(local) => join(local).map(Self::OciArchive),
            Self::DockerArchive(local) => join(local).map(Self::DockerArchive),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            return parse_local(text, rest, "oci").map(Self::Layout);
        }
        if let Some(rest) = text.strip_prefix("oci-archive:") {
            return parse_local(text, rest, "oci-archive").map(Self::OciArchive);
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            return parse_local(text, rest, "docker-archive").map(Self::DockerArchive);
        }
        // Read as names they would be asked of Docker Hub, which has no such repositories.
        if let Some(transport) = LONG_TRANSPORTS.iter().find(|name| is_transport(text, name)) {
            return Err(ReferenceError::Transport { text: Shown::new(text), transport: (*transport).to_owned() });
        }
        if let Some(rest) = text.strip_prefix("docker://") {
            return rest.parse().map(Self::Registry);
        }
        text.parse().map(Self::Registry).map_err(|error| explain(text, error))
    }
}

/// Replaces the grammar's complaint by what the user most likely meant.
fn explain(text: &str, error: ReferenceError) -> ReferenceError {
    if text.starts_with(['/', '.', '~']) {
        return ReferenceError::Path(Shown::new(text));
    }
    if let Some((scheme, _)) = text.split_once("://") {
        return ReferenceError::Scheme { text: Shown::new(text), scheme: Printable::of(scheme).to_string() };
    }
    match text.split_once(':') {
        Some((transport, _)) if FOREIGN_TRANSPORTS.contains(&transport) => {
            ReferenceError::Transport { text: Shown::new(text), transport: transport.to_owned() }
        }
        _ => error,
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(name) => {
                // A host called `oci` with a port would read back as a layout directory.
                if ["oci:", "oci-archive:", "docker-archive:"].iter().any(|prefix| name.host.starts_with(prefix)) {
                    f.write_str("docker://")?;
                }
                write!(f, "{name}")
            }
            Self::Layout(local) => write!(f, "oci:{local}"),
            Self::OciArchive(local) => write!(f, "oci-archive:{local}"),
            Self::DockerArchive(local) => write!(f, "docker-archive:{local}"),
        }
    }
}

impl RegistryName {
    /// The registry as named, with its port if one was given: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The repository: `library/debian`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` if the text named neither tag nor digest.
    ///
    /// With a digest the tag is for display only: the digest decides (B-006).
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the text names one.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The host to contact: Docker's registry does not live under the name that its images carry.
    pub fn api_host(&self) -> &str {
        if self.host == DOCKER_HUB { "registry-1.docker.io" } else { &self.host }
    }

    /// The same repository, with `digest` in place of whatever the text named; the tag stays for display.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// The shortest text that means the same: `debian:12` for `docker.io/library/debian:12`.
    pub fn familiar(&self) -> String {
        let short = match self.host.as_str() {
            DOCKER_HUB => self.repository.strip_prefix("library/").unwrap_or(&self.repository).to_owned(),
            host => format!("{host}/{}", self.repository),
        };
        format!("{short}{}", self.suffix())
    }

    /// Advice if the name reads like a host without a repository, as `localhost:5000` does (B-003, B-004).
    pub fn advice(&self) -> Option<String> {
        let name = self.repository.strip_prefix("library/").filter(|_| self.host == DOCKER_HUB)?;
        let port = self.tag().filter(|tag| tag.bytes().all(|byte| byte.is_ascii_digit()));
        match port {
            Some(port) if name == "localhost" || name.contains('.') => Some(format!(
                "{name}:{port} means tag {port} of the image {name} on Docker Hub; a registry is named {name}:{port}/IMAGE"
            )),
            None if name.contains('.') => {
                Some(format!("{name} means an image on Docker Hub; a registry is named {name}/IMAGE"))
            }
            _ => None,
        }
    }

    fn suffix(&self) -> String {
        let tag = self.tag.iter().map(|tag| format!(":{tag}"));
        tag.chain(self.digest.iter().map(|digest| format!("@{digest}"))).collect()
    }
}

impl fmt::Display for RegistryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.host, self.repository, self.suffix())
    }
}

impl FromStr for RegistryName {
    type Err = ReferenceError;

    /// Parses `[HOST[:PORT]/]NAME[:TAG][@DIGEST]` as Docker's reference package does.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(ReferenceError::Identifier(Shown::new(text)));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(parse_digest(text, digest)?)),
            None => (text, None),
        };
        let name_start = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_start..].find(':') {
            Some(colon) => (&rest[..name_start + colon], Some(&rest[name_start + colon + 1..])),
            None => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(ReferenceError::Tag { text: Shown::new(text), tag: Shown::new(tag) });
        }
        let (host, repository) = split_host(name);
        if !is_host(host) {
            return Err(ReferenceError::Host { text: Shown::new(text), host: Shown::new(host) });
        }
        if let Some(problem) = repository_problem(&repository) {
            return Err(ReferenceError::Repository {
                text: Shown::new(text),
                repository: Shown::new(&repository),
                problem,
            });
        }
        let tag = match (tag, &digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, None) => Some("latest".to_owned()),
            (None, Some(_)) => None,
        };
        Ok(Self { host: host.to_owned(), repository, tag, digest })
    }
}

/// Splits the host from the repository: the first component is a host only if it cannot be a repository component.
fn split_host(name: &str) -> (&str, String) {
    let (host, repository) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DOCKER_HUB, name),
    };
    match host {
        DOCKER_HUB | "index.docker.io" if !repository.contains('/') => (DOCKER_HUB, format!("library/{repository}")),
        DOCKER_HUB | "index.docker.io" => (DOCKER_HUB, repository.to_owned()),
        _ => (host, repository.to_owned()),
    }
}

fn is_host(host: &str) -> bool {
    let (address, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let Some((address, port)) = rest.split_once(']') else { return false };
            if address.parse::<Ipv6Addr>().is_err() {
                return false;
            }
            (None, port)
        }
        None => {
            let end = host.find(':').unwrap_or(host.len());
            (Some(&host[..end]), &host[end..])
        }
    };
    let port_is_valid = port.is_empty()
        || port.strip_prefix(':').is_some_and(|port| {
            port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
    port_is_valid && address.is_none_or(|name| name.len() <= 253 && name.split('.').all(is_host_label))
}

fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Says what is wrong with a repository name, by the grammar `component ("/" component)*`.
fn repository_problem(repository: &str) -> Option<&'static str> {
    if repository.len() > REPOSITORY_BYTES {
        return Some("it is longer than 255 characters");
    }
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Some("it must be in lower case");
    }
    if !repository.split('/').all(is_component) {
        return Some("its parts are letters and digits, joined by one . or _, by __ or by any number of -");
    }
    None
}

/// `[a-z0-9]+ (separator [a-z0-9]+)*`, where a separator is `.`, `_`, `__` or a run of `-`.
fn is_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends_are_letters =
        component.bytes().next().is_some_and(alphanumeric) && component.bytes().next_back().is_some_and(alphanumeric);
    ends_are_letters
        && component
            .split(|character: char| character.is_ascii_lowercase() || character.is_ascii_digit())
            .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

fn parse_digest(text: &str, digest: &str) -> Result<Digest, ReferenceError> {
    digest.parse().map_err(|problem| ReferenceError::Digest { text: Shown::new(text), problem })
}

impl Local {
    /// The directory or file; it holds no `:`, because there the path ends (containers-transports(5)).
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Which image is meant; none if the place is expected to hold one only.
    pub fn selector(&self) -> Option<&LocalSelector> {
        self.selector.as_ref()
    }
}

fn parse_local(text: &str, rest: &str, transport: &'static str) -> Result<Local, ReferenceError> {
    let no_path = || ReferenceError::NoPath { text: Shown::new(text), transport };
    let unselective = || ReferenceError::Selector(Shown::new(text));
    let (path, selector) = match split_digest(rest) {
        Some((path, digest)) => {
            let path = path.strip_suffix(':').unwrap_or(path);
            if path.contains(':') {
                return Err(unselective());
            }
            (path, Some(LocalSelector::Digest(parse_digest(text, digest)?)))
        }
        None => match rest.split_once(':') {
            None => (rest, None),
            Some((path, name)) => (path, Some(parse_selector(name).ok_or_else(unselective)?)),
        },
    };
    if path.is_empty() || path.contains('\0') {
        return Err(no_path());
    }
    Ok(Local { path: path.into(), selector })
}

/// Splits `…@ALGORITHM:…` at the last `@`, if a known digest algorithm follows; any other `@` belongs to a path or name.
fn split_digest(text: &str) -> Option<(&str, &str)> {
    let (before, after) = text.rsplit_once('@')?;
    let (algorithm, _) = after.split_once(':')?;
    matches!(algorithm, "sha256" | "sha384" | "sha512" | "blake3").then_some((before, after))
}

fn parse_selector(text: &str) -> Option<LocalSelector> {
    match text.strip_prefix('@') {
        Some(index) if index.bytes().all(|byte| byte.is_ascii_digit()) => index.parse().ok().map(LocalSelector::Index),
        Some(_) => None,
        None if text.is_empty() => None,
        None => Some(LocalSelector::Name(text.to_owned())),
    }
}

impl fmt::Display for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        match &self.selector {
            None => Ok(()),
            Some(LocalSelector::Name(name)) => write!(f, ":{name}"),
            Some(LocalSelector::Digest(digest)) => write!(f, "@{digest}"),
            Some(LocalSelector::Index(index)) => write!(f, ":@{index}"),
        }
    }
}

#[cfg(test)]
mod tests;
