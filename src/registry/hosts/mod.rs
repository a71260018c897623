//! What the user's files say about how a repository is reached: which hosts, in which order, by which connections.
//!
//! Three families of files are in use, and machines have any mix of them: containerd's tree of `hosts.toml` files, the
//! `registries.conf` of podman and skopeo, and directories of certificates. Each has its own parser from text to a value
//! (`hosts_toml`, `registries_conf`, `certs`); this file asks them in order and makes one `Plan` of the answers,
//! which says where it came from. Reading is apart from parsing, and happens at each mount and now and then while it lives
//! (`course`), so that a change needs no restart.
//!
//! Where several speak: a `hosts.toml` for the registry decides alone; then the rule of `registries.conf` with the longest
//! prefix; then the tree's `_default`. A host without certificates of its own in these gets those of its directory in
//! `certs.d`. What is wrong in a file that is asked is an error that names file and line, never a reason to go on without
//! it: a mirror that silently is not used is found by nobody.
//!
//! What `registries.conf` blocks is not contacted, under whichever name it was asked for. Like podman, and unlike its manual,
//! this looks at where a name leads and not at the name: a registry that is blocked is still had from the mirrors in its
//! table, which is how clusters keep their machines off the internet, and a mirror that is blocked by a table of its own is
//! passed over. What a `hosts.toml` says does not count as such a mirror: it was not written for who blocks.

mod certs;
mod hosts_toml;
mod registries_conf;
mod short_names;

use std::io::Read;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::Selector;
use super::endpoint::Capabilities;
use super::host::{Scheme, Site, split_port};
use super::link::Wishes;
use crate::limits::{ENDPOINTS, HOSTS_FILE_BYTES, HOSTS_FILES};
use crate::source::{Error, ErrorKind};

use registries_conf::{Conf, Rule};
pub use short_names::ShortNames;

/// The files that say how registries are reached. Those that do not exist say nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct HostFiles {
    /// Directories with a directory for each registry that holds a `hosts.toml`, in the order in which they are asked.
    pub trees: Vec<PathBuf>,
    /// `registries.conf` and then directories of drop-ins, in the order in which they are read; later ones win.
    pub registries: Vec<PathBuf>,
    /// Directories with a directory of certificates for each host; the first that has one for the host counts.
    pub certificates: Vec<PathBuf>,
}

/// How a repository is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    /// In the order of trying.
    pub(super) places: Vec<Place>,
    /// Where it is written to, if it may be.
    pub(super) push: Option<Place>,
    /// The file this follows from, and what in it; none if no file speaks of it.
    pub(super) rule: Option<String>,
}

/// A host, and what a repository is called there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) site: Site,
    pub(super) repository: String,
    pub(super) ns: Option<String>,
    pub(super) may: Capabilities,
    /// True for the registry itself, which is the last.
    pub(super) is_own: bool,
}

/// Which repository is asked for, and for what of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// The registry as people name it: `docker.io`, `localhost:5000`.
    pub(super) host: &'a str,
    pub(super) repository: &'a str,
    pub(super) selector: &'a Selector,
    /// Speak plain HTTP to the registry, whatever the files say.
    pub(super) plain_http: bool,
}

impl Wanted<'_> {
    /// `docker.io/library/debian:13`, as the prefixes of `registries.conf` are compared with.
    fn text(&self) -> String {
        self.text_at(self.host, self.repository)
    }

    /// The same as it is called at another host.
    fn text_at(&self, host: &str, repository: &str) -> String {
        match self.selector {
            Selector::Tag(tag) => format!("{host}/{repository}:{tag}"),
            Selector::Digest(digest) => format!("{host}/{repository}@{digest}"),
        }
    }

    /// The registry itself, unless a file says otherwise.
    fn itself(&self) -> Place {
        Place {
            site: Site::of(self.host, self.plain_http),
            repository: self.repository.to_owned(),
            ns: None,
            may: Capabilities::ALL,
            is_own: false,
        }
    }
}

/// Asks the files how `wanted` is reached. Blocks.
pub(super) fn plan(files: &HostFiles, wanted: &Wanted<'_>) -> Result<Plan, Error> {
    let rules = registries_conf::read(&files.registries)?;
    let rule = rules.rule_of(&wanted.text());
    let plan = match (hosts_toml::read(&files.trees, wanted.host)?, rule) {
        (Some(tree), Some(rule)) if !tree.is_default && rule.blocked => return Err(blocked(wanted, rule)),
        (Some(tree), rule) if !tree.is_default || rule.is_none() => tree.plan(wanted),
        (_, Some(rule)) => rule.plan(wanted),
        (_, None) => {
            let itself = wanted.itself();
            Plan { places: vec![itself.clone()], push: Some(itself), rule: None }
        }
    };
    certified(files, unblocked(&rules, wanted, plan)?)
}

/// Leaves out what is blocked under the name that it has there.
fn unblocked(rules: &Conf, wanted: &Wanted<'_>, mut plan: Plan) -> Result<Plan, Error> {
    if let Some(own) = plan.places.last_mut() {
        own.is_own = true;
    }
    let blocker = |place: &Place| {
        let rule = rules.rule_of(&wanted.text_at(&place.site.name, &place.repository));
        rule.filter(|rule| rule.blocked)
    };
    let (kept, left_out): (Vec<_>, Vec<_>) = plan.places.into_iter().partition(|place| blocker(place).is_none());
    if kept.is_empty()
        && let Some(rule) = left_out.last().and_then(blocker)
    {
        return Err(blocked(wanted, rule));
    }
    for place in &left_out {
        tracing::debug!(host = place.site.name, "{} is blocked there", wanted.text());
    }
    plan.places = kept;
    plan.push = plan.push.filter(|place| blocker(place).is_none());
    Ok(plan)
}

fn blocked(wanted: &Wanted<'_>, rule: &Rule) -> Error {
    Error::new(ErrorKind::Denied, format!("{} is blocked by {}", wanted.text(), rule.origin()))
}

/// Adds the certificates of the hosts that have none yet.
fn certified(files: &HostFiles, mut plan: Plan) -> Result<Plan, Error> {
    if plan.places.len() > ENDPOINTS {
        let rule = plan.rule.unwrap_or_default();
        let message = format!("{rule} names {} hosts for a repository, at most {ENDPOINTS}", plan.places.len());
        return Err(Error::new(ErrorKind::Misconfigured, message));
    }
    for place in plan.places.iter_mut().chain(&mut plan.push) {
        let site = &mut place.site;
        let speaks_tls = site.schemes.iter().any(|scheme| *scheme != Scheme::Plain);
        if speaks_tls && !site.wishes.has_certificates() {
            let found = certs::find(&files.certificates, &files.trees, &site.name)?;
            site.wishes.authorities = found.authorities;
            site.wishes.identities = found.identities;
        }
        settle(site);
    }
    Ok(plan)
}

/// Makes the schemes and the wishes of a site fit together.
fn settle(site: &mut Site) {
    let is_here = site.is_here();
    if is_here && !site.wishes.authorities.is_empty() && site.schemes.contains(&Scheme::TlsUnverified) {
        // Who names an authority for a registry on this machine wants it to be checked.
        site.schemes = vec![Scheme::Tls];
    } else if site.schemes.contains(&Scheme::TlsUnverified) && (!is_here || site.wishes != Wishes::default()) {
        site.wishes.unverified = true;
    }
    if is_here && site.wishes != Wishes::default() {
        site.wishes.direct = true;
    }
}

/// `HOST[:PORT][/PATH]`, as `registries.conf` names places.
struct Named<'a> {
    host: &'a str,
    path: &'a str,
}

impl<'a> Named<'a> {
    fn of(text: &'a str) -> Self {
        let (host, path) = text.split_once('/').unwrap_or((text, ""));
        Self { host, path }
    }
}

/// Reads a file; none if it does not exist.
fn read(path: &Path) -> Result<Option<String>, Error> {
    let cannot = |why: String| {
        Error::new(ErrorKind::Misconfigured, format!("cannot read the host configuration {}: {why}", path.display()))
    };
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(HOSTS_FILE_BYTES + 1).read_to_end(&mut bytes));
    match read {
        Ok(_) if bytes.len() as u64 > HOSTS_FILE_BYTES => {
            Err(cannot(format!("it is longer than {HOSTS_FILE_BYTES} bytes")))
        }
        Ok(_) => String::from_utf8(bytes).map(Some).map_err(|_| cannot("it is not UTF-8".to_owned())),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(cannot(error.to_string())),
    }
}

/// True if there is no such file, or not even a directory that could hold it.
fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// The files of a directory whose names end in `.extension`, in order; none if it does not exist.
fn files_of(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let cannot = |error: &std::io::Error| {
        let message = format!("cannot read the host configuration in {}", dir.display());
        Error::new(ErrorKind::Misconfigured, format!("{message}: {error}"))
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(cannot(&error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| cannot(&error))?.path();
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        if extensions.contains(&extension) {
            found.push(path);
        }
        if found.len() > HOSTS_FILES {
            let message = format!("{} holds more than {HOSTS_FILES} files", dir.display());
            return Err(Error::new(ErrorKind::Misconfigured, message));
        }
    }
    found.sort();
    Ok(found)
}

/// What is wrong in a file, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wrong {
    /// Where it begins, in bytes, if the parser knows.
    at: Option<usize>,
    problem: String,
}

impl Wrong {
    fn new(at: usize, problem: impl Into<String>) -> Self {
        Self { at: Some(at), problem: problem.into() }
    }

    /// What `read` makes of a value; what is wrong with it is wrong where it stands.
    fn in_value<T, V>(value: Spanned<V>, read: impl FnOnce(V) -> Result<T, String>) -> Result<T, Self> {
        let at = value.span().start;
        read(value.into_inner()).map_err(|problem| Self::new(at, problem))
    }

    /// The error about `file`, whose content is `text`.
    fn of(&self, file: &Path, text: &str) -> Error {
        let line = self.at.map_or_else(String::new, |at| {
            let line = text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1;
            format!(" line {line}:")
        });
        let problem = self.problem.trim_end().replace('\n', "; ");
        let message = format!("cannot use the host configuration {}:{line} {problem}", file.display());
        Error::new(ErrorKind::Misconfigured, message)
    }
}

impl From<toml::de::Error> for Wrong {
    fn from(error: toml::de::Error) -> Self {
        // The value is between these two, and may be a password.
        let parts = error.message().split_once(": ").zip(error.message().rsplit_once(", expected "));
        let problem = match parts {
            Some(((kind, _), (_, expected))) => format!("{kind}, expected {expected}"),
            None => error.message().to_owned(),
        };
        Self { at: error.span().map(|span| span.start), problem }
    }
}

/// A value as errors show it: not if it may have a password in it.
fn shown(text: &str) -> String {
    if text.contains('@') { "what is written there".to_owned() } else { format!("{text:?}") }
}

/// True if `name` is a host, perhaps with a port, and can be the name of a directory.
fn is_host(name: &str) -> bool {
    let (host, _) = split_port(name);
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte);
    !host.is_empty() && name.bytes().all(is_plain) && !matches!(name, "." | "..")
}

#[cfg(test)]
mod tests;
