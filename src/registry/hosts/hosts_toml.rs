//! containerd's tree of host configuration: `TREE/HOST[_PORT_]/hosts.toml` (containerd's docs/hosts.md; B-144).
//!
//! A [`Tree`] is one such file: hosts to ask in the order in which they stand there, and the server that is asked last.
//! Every table has the same fields, which make an [`Entry`]. Paths are relative to the file. Unlike containerd, which logs
//! a file that it cannot read and goes on as if there were none, a mistake is an error here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderName, HeaderValue};
use serde::Deserialize;
use toml::Spanned;

use super::super::host::contact;
use super::super::link::Pair;
use super::super::secret::Secret;
use super::certs::host_dirs;
use super::{Capabilities, Place, Plan, Scheme, Site, Wanted, Wishes, Wrong, is_host, read as read_file, shown};
use crate::source::Error;

/// The directory for registries that have none of their own.
const DEFAULT: &str = "_default";

/// What one file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tree {
    file: PathBuf,
    /// True if it is for all registries that have no file of their own.
    pub(super) is_default: bool,
    hosts: Vec<Entry>,
    /// Asked last; the registry itself if it has no address.
    server: Entry,
}

/// What a table says of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    address: Option<Address>,
    may: Capabilities,
    headers: Vec<(String, Secret)>,
    skip_verify: Option<bool>,
    /// Certificates, time-out and proxy.
    wishes: Wishes,
}

/// `SCHEME://HOST[:PORT][/PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Address {
    is_plain: bool,
    authority: String,
    root: Vec<String>,
}

/// The file for `host`: its own in one of the trees, or else one for all.
///
/// A directory for the host without a `hosts.toml` holds certificates only, and keeps the one for all from counting.
pub(super) fn read(trees: &[PathBuf], host: &str) -> Result<Option<Tree>, Error> {
    if !is_host(host) {
        return Ok(None);
    }
    let mut dirs: Vec<_> = trees.iter().flat_map(|tree| host_dirs(tree, host)).filter(|dir| dir.is_dir()).collect();
    let is_default = dirs.is_empty();
    if is_default {
        dirs = trees.iter().map(|tree| tree.join(DEFAULT)).collect();
    }
    for dir in dirs {
        let file = dir.join("hosts.toml");
        if let Some(text) = read_file(&file)?
            && !text.is_empty()
        {
            let (hosts, server) = parse(&text, &dir).map_err(|wrong| wrong.of(&file, &text))?;
            return Ok(Some(Tree { file, is_default, hosts, server }));
        }
    }
    Ok(None)
}

impl Tree {
    /// How a repository is reached by this file.
    pub(super) fn plan(&self, wanted: &Wanted<'_>) -> Plan {
        let places: Vec<_> = self.hosts.iter().chain([&self.server]).map(|entry| entry.place(wanted)).collect();
        let push = places.iter().find(|place| place.may.push).cloned();
        Plan { places, push, rule: Some(self.file.display().to_string()) }
    }
}

impl Entry {
    fn place(&self, wanted: &Wanted<'_>) -> Place {
        let mut place = Place { may: self.may, ..wanted.itself() };
        let site = &mut place.site;
        if let Some(address) = &self.address {
            // Any name of Docker Hub is where it answers, and needs not be told whose images are wanted (B-146).
            let is_itself = contact(&address.authority) == contact(wanted.host);
            place.ns = (!is_itself).then(|| wanted.host.to_owned());
            *site = Site {
                root: address.root.clone(),
                schemes: self.schemes(address),
                ..Site::of(&address.authority, false)
            };
        } else if self.skip_verify == Some(true) {
            site.schemes.iter_mut().filter(|scheme| **scheme == Scheme::Tls).for_each(|s| *s = Scheme::TlsUnverified);
        }
        site.headers.clone_from(&self.headers);
        site.wishes = self.wishes.clone();
        place
    }

    /// The ways to speak to a host whose address is given. An `http` address with settings for TLS is tried with TLS first,
    /// as containerd does, unless its port says what it speaks.
    fn schemes(&self, address: &Address) -> Vec<Scheme> {
        let tls = if self.skip_verify == Some(true) { Scheme::TlsUnverified } else { Scheme::Tls };
        let is_tls_meant = self.skip_verify.is_some() || self.wishes.has_certificates();
        match address.is_plain {
            false => vec![tls],
            true if is_tls_meant && !address.authority.ends_with(":80") => vec![tls, Scheme::Plain],
            true => vec![Scheme::Plain],
        }
    }
}

/// What stands outside of tables, but for the fields that are also those of a table: flattened into this, they would lose
/// their lines.
#[derive(Deserialize)]
struct Wire {
    server: Option<Spanned<String>>,
    #[serde(default)]
    host: BTreeMap<Spanned<String>, WireHost>,
}

/// The fields of a table; others are containerd's business.
#[derive(Default, Deserialize)]
struct WireHost {
    #[serde(default)]
    capabilities: Vec<Spanned<String>>,
    ca: Option<OneOrMore>,
    client: Option<Clients>,
    skip_verify: Option<bool>,
    #[serde(default)]
    header: BTreeMap<Spanned<String>, OneOrMore>,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<Spanned<String>>,
    proxy: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl OneOrMore {
    fn all(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::More(more) => more,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Clients {
    One(String),
    More(Vec<Client>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    File(String),
    Pair([String; 2]),
}

/// The hosts of a file in order, and its server.
fn parse(text: &str, dir: &Path) -> Result<(Vec<Entry>, Entry), Wrong> {
    let (wire, own): (Wire, WireHost) = (toml::from_str(text)?, toml::from_str(text)?);
    // Tables have an order only in the text.
    let mut tables: Vec<_> = wire.host.into_iter().collect();
    tables.sort_by_key(|(name, _)| name.span().start);
    let hosts = tables.into_iter().map(|(name, table)| entry(Some(name), table, dir)).collect::<Result<_, _>>()?;
    let server = wire.server.filter(|server| !server.get_ref().is_empty());
    Ok((hosts, entry(server, own, dir)?))
}

fn entry(name: Option<Spanned<String>>, wire: WireHost, dir: &Path) -> Result<Entry, Wrong> {
    let wishes = Wishes {
        authorities: wire.ca.map_or_else(Vec::new, OneOrMore::all).iter().map(|file| dir.join(file)).collect(),
        identities: identities(wire.client, dir),
        connect: wire.dial_timeout.map(|text| Wrong::in_value(text, |text| duration(&text))).transpose()?,
        proxy: wire.proxy.map(|text| Wrong::in_value(text, proxy)).transpose()?,
        ..Wishes::default()
    };
    let address = |name| Wrong::in_value(name, |name: String| address(&name, wire.override_path));
    Ok(Entry {
        address: name.map(address).transpose()?,
        may: capabilities(wire.capabilities)?,
        headers: headers(wire.header)?,
        skip_verify: wire.skip_verify,
        wishes,
    })
}

fn capabilities(names: Vec<Spanned<String>>) -> Result<Capabilities, Wrong> {
    if names.is_empty() {
        return Ok(Capabilities::ALL);
    }
    let mut may = Capabilities { pull: false, resolve: false, push: false };
    for name in names {
        Wrong::in_value(name, |name| {
            match name.to_ascii_lowercase().as_str() {
                "pull" => may.pull = true,
                "resolve" => may.resolve = true,
                "push" => may.push = true,
                // Listing what refers to a manifest is trusted like resolving a tag, so that this says nothing new.
                "referrers" => {}
                other => return Err(format!("unknown capability {other:?}; there are pull, resolve and push")),
            }
            Ok(())
        })?;
    }
    Ok(may)
}

fn identities(client: Option<Clients>, dir: &Path) -> Vec<Pair> {
    let pair = |certificate: &str, key: &str| Pair {
        certificate: dir.join(certificate),
        key: (!key.is_empty()).then(|| dir.join(key)),
    };
    match client {
        None => Vec::new(),
        Some(Clients::One(file)) => vec![pair(&file, "")],
        Some(Clients::More(clients)) => {
            let pairs = clients.iter().map(|client| match client {
                Client::File(file) => pair(file, ""),
                Client::Pair([certificate, key]) => pair(certificate, key),
            });
            pairs.collect()
        }
    }
}

fn headers(wire: BTreeMap<Spanned<String>, OneOrMore>) -> Result<Vec<(String, Secret)>, Wrong> {
    let header = |(name, values): (Spanned<String>, OneOrMore)| {
        Wrong::in_value(name, |name| {
            // The value may be a secret, so that it is not shown.
            let wrong = || format!("header {name:?} cannot be sent");
            HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
            let value = values.all().join(", ");
            HeaderValue::from_str(&value).map_err(|_| wrong())?;
            Ok((name, Secret::new(value)))
        })
    };
    wire.into_iter().map(header).collect()
}

/// Takes an address apart; without a scheme it is `https`.
fn address(text: &str, override_path: bool) -> Result<Address, String> {
    let wrong = || format!("{} is not the address of a host, such as https://mirror.example:5000", shown(text));
    let (is_plain, rest) = match text.split_once("://") {
        Some(("http", rest)) => (true, rest),
        Some(("https", rest)) => (false, rest),
        Some(_) => return Err(wrong()),
        None => (false, text),
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if !is_host(authority) || Url::parse(&format!("https://{authority}/")).is_err() {
        return Err(wrong());
    }
    let mut root: Vec<_> = path.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    let is_odd = |part: &String| matches!(part.as_str(), "." | "..") || part.contains(['?', '#', '%', '\\']);
    if root.iter().any(is_odd) || path.contains(char::is_control) {
        return Err(wrong());
    }
    if !override_path && root.last().is_none_or(|last| last != "v2") {
        root.push("v2".to_owned());
    }
    Ok(Address { is_plain, authority: authority.to_ascii_lowercase(), root })
}

fn proxy(text: String) -> Result<String, String> {
    let is_proxy = |url: &Url| {
        matches!(url.scheme(), "http" | "https" | "socks5" | "socks5h") && url.has_host() && url.path().len() <= 1
    };
    match Url::parse(&text) {
        Ok(url) if is_proxy(&url) => Ok(text),
        // It may hold a password.
        _ => Err("the proxy is not an address such as http://proxy:8080".to_owned()),
    }
}

/// A duration as Go writes it: `1s`, `1m30s`, `500ms`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 1s or 500ms");
    let mut rest = text;
    let mut sum = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|letter: char| letter != '.' && !letter.is_ascii_digit()).ok_or_else(wrong)?;
        let number: f64 = rest[..end].parse().map_err(|_| wrong())?;
        rest = &rest[end..];
        let end = rest.find(|letter: char| letter == '.' || letter.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" | "μs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        sum += number * unit;
        rest = &rest[end..];
    }
    match Duration::try_from_secs_f64(sum) {
        Ok(time) if !time.is_zero() => Ok(time),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
#[path = "hosts_toml/tests.rs"]
mod tests;
