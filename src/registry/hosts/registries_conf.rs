//! `registries.conf`, version 2, with its drop-ins (containers-registries.conf(5), containers-registries.conf.d(5); B-149).
//!
//! A file is parsed to a [`Conf`], drop-ins are laid over it, and [`Conf::rule_of`] finds the `[[registry]]` table that
//! counts for a reference: the one with the longest prefix. A [`Rule`] says where the names below its prefix really are,
//! and which mirrors have them. Version 1 of the format is refused by name (B-150): it says less, and means other things.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::super::host::{is_docker_hub, usual_name};
use super::{
    Capabilities, Named, Place, Plan, Scheme, Selector, Site, Wanted, Wrong, files_of, is_host, read as read_file,
    shown,
};
use crate::source::Error;

/// What all files say together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Conf {
    rules: Vec<Rule>,
    /// Where short names are looked for, and the file that says so.
    pub(super) search: Option<(Vec<String>, PathBuf)>,
    /// What short names mean.
    pub(super) aliases: BTreeMap<String, String>,
}

/// A `[[registry]]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    file: PathBuf,
    /// As references are written, whichever name of its host the file uses.
    prefix: String,
    /// As the file has it.
    written: String,
    /// What stands in for the prefix; none if nothing does.
    location: Option<String>,
    insecure: bool,
    pub(super) blocked: bool,
    mirrors: Vec<Mirror>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mirror {
    location: String,
    insecure: bool,
    used: Used,
}

/// For which references a mirror is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Used {
    Always,
    ForDigests,
    ForTags,
}

/// Reads files and directories of drop-ins, the later ones over the earlier ones.
pub(super) fn read(paths: &[impl AsRef<Path>]) -> Result<Conf, Error> {
    let mut all = Conf::default();
    for path in paths.iter().map(AsRef::as_ref) {
        let files = if path.is_dir() { files_of(path, &["conf"])? } else { vec![path.to_owned()] };
        for file in files {
            if let Some(text) = read_file(&file)? {
                all.lay_over(parse(&text, &file).map_err(|wrong| wrong.of(&file, &text))?);
            }
        }
    }
    all.aliases.retain(|_, meaning| !meaning.is_empty());
    Ok(all)
}

impl Conf {
    fn lay_over(&mut self, later: Self) {
        self.rules.retain(|rule| later.rules.iter().all(|other| other.prefix != rule.prefix));
        self.rules.extend(later.rules);
        self.search = later.search.or(self.search.take());
        self.aliases.extend(later.aliases);
    }

    /// The rule for a reference `HOST/REPOSITORY:TAG` or `@DIGEST`.
    pub(super) fn rule_of(&self, reference: &str) -> Option<&Rule> {
        let fitting = self.rules.iter().filter(|rule| matched(reference, &rule.prefix).is_some());
        // Of several tables for names of one host, the one for its usual name.
        fitting.max_by_key(|rule| (rule.prefix.len(), rule.written == rule.prefix))
    }
}

/// How much of the reference is what `prefix` stands for, if that fits.
fn matched(reference: &str, prefix: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = Named::of(reference).host;
        let (name, _) = super::split_port(host);
        return (name.len() > domain.len() && name.ends_with(domain)).then_some(name.len());
    }
    let rest = reference.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with([':', '/', '@'])).then_some(prefix.len())
}

impl Rule {
    /// Which file and table this is.
    pub(super) fn origin(&self) -> String {
        format!("{} (registry {})", self.file.display(), self.written)
    }

    /// How a repository is reached by this rule.
    pub(super) fn plan(&self, wanted: &Wanted<'_>) -> Plan {
        let is_tag = matches!(wanted.selector, Selector::Tag(_));
        let mut places = Vec::new();
        for mirror in &self.mirrors {
            // What a mirror is not to say of tags does not keep it from handing out what the registry has said (B-145).
            let may = Capabilities { pull: true, resolve: mirror.used != Used::ForDigests, push: false };
            if is_tag || mirror.used != Used::ForTags {
                places.push(Place { may, ..self.place(wanted, &mirror.location, mirror.insecure) });
            }
        }
        let itself = Place { site: site(wanted.host, self.insecure, wanted.plain_http), ..wanted.itself() };
        let own = match &self.location {
            Some(location) => self.place(wanted, location, self.insecure),
            None => itself.clone(),
        };
        places.push(own);
        // Redirection is for reading only.
        Plan { places, push: Some(itself), rule: Some(self.origin()) }
    }

    /// The place of a repository below `location`.
    fn place(&self, wanted: &Wanted<'_>, location: &str, insecure: bool) -> Place {
        let text = wanted.text();
        let length = matched(&text, &self.prefix).unwrap_or(text.len());
        let moved = format!("{location}{}", &text[length..]);
        let moved = moved.split_once('@').map_or(moved.as_str(), |(name, _)| name);
        // A colon after the last slash begins a tag, one before it a port.
        let name = match moved.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') && name.contains('/') => name,
            _ => moved,
        };
        let Named { host, path } = Named::of(name);
        let is_short = is_docker_hub(host) && !path.contains('/');
        let repository = if is_short { format!("library/{path}") } else { path.to_owned() };
        Place { site: site(host, insecure, false), repository, ns: None, may: Capabilities::ALL, is_own: false }
    }
}

/// A host as it is contacted; with plain HTTP and any certificate if it is `insecure` (B-142).
fn site(host: &str, insecure: bool, plain_http: bool) -> Site {
    let mut site = Site::of(host, plain_http);
    if insecure && site.schemes == [Scheme::Tls] {
        site.schemes = vec![Scheme::TlsUnverified, Scheme::Plain];
    }
    site
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Wire {
    unqualified_search_registries: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    registry: Vec<Spanned<WireRegistry>>,
    #[serde(default)]
    aliases: BTreeMap<String, String>,
    /// What version 1 begins with.
    registries: Option<Spanned<serde::de::IgnoredAny>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct WireRegistry {
    prefix: Option<Spanned<String>>,
    location: Option<Spanned<String>>,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    pull_from_mirror: Option<Spanned<String>>,
    #[serde(default)]
    mirror: Vec<Spanned<WireMirror>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct WireMirror {
    location: Option<Spanned<String>>,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<Spanned<String>>,
}

/// What one file says; an alias for nothing takes away what an earlier file said.
fn parse(text: &str, file: &Path) -> Result<Conf, Wrong> {
    let wire: Wire = toml::from_str(text)?;
    if let Some(old) = wire.registries {
        let problem = "this is version 1 of the format, which is not read; write [[registry]] tables and \
                       unqualified-search-registries (containers-registries.conf(5))";
        return Err(Wrong::new(old.span().start, problem));
    }
    let mut rules: Vec<Rule> = Vec::new();
    for registry in wire.registry {
        let at = registry.span().start;
        let rule = rule(registry, file)?;
        if rules.iter().any(|other| other.written == rule.written) {
            return Err(Wrong::new(at, format!("two tables for {:?}", rule.written)));
        }
        rules.push(rule);
    }
    let host = |host| {
        Wrong::in_value(host, |host: String| match is_host(&host) {
            true => Ok(host),
            false => Err(format!("unqualified-search-registries lists {host:?}, which is no host")),
        })
    };
    let search = wire.unqualified_search_registries;
    let search = search.map(|hosts| hosts.into_iter().map(host).collect::<Result<_, _>>()).transpose()?;
    Ok(Conf { rules, search: search.map(|search| (search, file.to_owned())), aliases: wire.aliases })
}

fn rule(table: Spanned<WireRegistry>, file: &Path) -> Result<Rule, Wrong> {
    let (at, wire) = (table.span().start, table.into_inner());
    let location = location(wire.location)?;
    let written_at = wire.prefix.as_ref().map_or(at, |prefix| prefix.span().start);
    let written = match wire.prefix.map(Spanned::into_inner).filter(|prefix| !prefix.is_empty()) {
        None => location.clone(),
        Some(prefix) => prefix.trim_end_matches('/').to_owned(),
    };
    let prefix = match written.split_once('/') {
        Some((host, path)) => format!("{}/{path}", usual_name(host)),
        None => usual_name(&written),
    };
    if prefix.is_empty() {
        return Err(Wrong::new(at, "a registry needs a prefix or a location"));
    }
    let is_wildcard = prefix.starts_with("*.");
    if location.is_empty() && !is_wildcard {
        let problem = format!("registry {} needs a location, which may be the same", shown(&written));
        return Err(Wrong::new(written_at, problem));
    }
    let host = Named::of(prefix.trim_start_matches("*.")).host;
    if !is_host(host) || (is_wildcard && prefix.contains(['/', '@', ':'])) {
        let problem = format!("{} is no prefix; write HOST[:PORT][/PATH] or *.DOMAIN", shown(&written));
        return Err(Wrong::new(written_at, problem));
    }
    if let Some(misplaced) = wire.pull_from_mirror.filter(|used| !used.get_ref().is_empty()) {
        return Err(Wrong::new(misplaced.span().start, "pull-from-mirror belongs into a [[registry.mirror]] table"));
    }
    let moved = !location.is_empty() && location != written;
    let mirrors = wire.mirror.into_iter().map(|table| mirror(table, wire.mirror_by_digest_only));
    Ok(Rule {
        file: file.to_owned(),
        mirrors: mirrors.collect::<Result<_, _>>()?,
        location: moved.then_some(location),
        prefix,
        written,
        insecure: wire.insecure,
        blocked: wire.blocked,
    })
}

fn mirror(table: Spanned<WireMirror>, is_for_digests: bool) -> Result<Mirror, Wrong> {
    let (at, wire) = (table.span().start, table.into_inner());
    let used = |used: &str| match used {
        "" if is_for_digests => Ok(Used::ForDigests),
        _ if is_for_digests => Err("mirror-by-digest-only and pull-from-mirror exclude each other".to_owned()),
        "" | "all" => Ok(Used::Always),
        "digest-only" => Ok(Used::ForDigests),
        "tag-only" => Ok(Used::ForTags),
        other => Err(format!("pull-from-mirror is all, digest-only or tag-only, not {other:?}")),
    };
    let unsaid = Spanned::new(at..at, String::new());
    let used = Wrong::in_value(wire.pull_from_mirror.unwrap_or(unsaid), |text| used(&text))?;
    let location = location(wire.location)?;
    if location.is_empty() {
        return Err(Wrong::new(at, "a mirror needs a location"));
    }
    Ok(Mirror { location, insecure: wire.insecure, used })
}

/// Checks `HOST[:PORT][/PATH]`; empty if there is none.
fn location(text: Option<Spanned<String>>) -> Result<String, Wrong> {
    let check = |text: String| {
        let text = text.trim_end_matches('/');
        if text.contains("://") {
            let hint = "write HOST[:PORT][/PATH], and insecure = true for plain HTTP";
            return Err(format!("{} has a scheme; {hint}", shown(text)));
        }
        match text.is_empty() || is_host(Named::of(text).host) {
            true => Ok(text.to_owned()),
            false => Err(format!("{} is no location; write HOST[:PORT][/PATH]", shown(text))),
        }
    };
    text.map_or_else(|| Ok(String::new()), |text| Wrong::in_value(text, check))
}

#[cfg(test)]
#[path = "registries_conf/tests.rs"]
mod tests;
