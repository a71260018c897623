//! Configuration files: TOML with few keys, where a misspelt one is an error that names file and line.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::stop::usage;
use super::{byte_size, duration};
use crate::daemon::Failure;
use crate::daemon::control::{Fill, Io, OnOutage, TrustIndex};
use crate::oci::Printable;

/// What one configuration file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ConfigFile {
    pub(super) cache_dir: Option<PathBuf>,
    /// Bytes.
    pub(super) cache_size: Option<u64>,
    pub(super) runtime_dir: Option<PathBuf>,
    pub(super) fill: Option<Fill>,
    pub(super) io: Option<Io>,
    pub(super) on_outage: Option<OnOutage>,
    /// Seconds.
    pub(super) profile_until: Option<u32>,
    pub(super) trust_index: Option<TrustIndex>,
    pub(super) idle: Option<Duration>,
    /// Registries as `host[:port]`.
    pub(super) plain_http: Option<Vec<String>>,
    pub(super) hosts_dir: Option<PathBuf>,
    pub(super) registries_conf: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Wire {
    cache_dir: Option<Spanned<PathBuf>>,
    cache_size: Option<Spanned<String>>,
    runtime_dir: Option<Spanned<PathBuf>>,
    fill: Option<Fill>,
    io: Option<Io>,
    on_outage: Option<Spanned<String>>,
    profile_until: Option<Spanned<String>>,
    trust_index: Option<TrustIndex>,
    idle_seconds: Option<u32>,
    plain_http: Option<Vec<Spanned<String>>>,
    hosts_dir: Option<Spanned<PathBuf>>,
    registries_conf: Option<Spanned<PathBuf>>,
}

impl ConfigFile {
    /// Reads a file; one that does not exist says nothing.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(Self::default())
            }
            Err(error) => Err(usage(cannot_use(path), error)),
        }
    }

    /// Reads `text`, which is the content of `path`.
    pub(super) fn parse(text: &str, path: &Path) -> Result<Self, Failure> {
        let wrong = |span: Option<Range<usize>>, problem: &str| {
            let place = span.map_or_else(String::new, |span| format!("line {}: ", line_of(text, span.start)));
            // The parser quotes what stands in the file.
            usage(cannot_use(path), format_args!("{place}{}", problem.trim_end().replace('\n', "; ")))
        };
        let wire: Wire = toml::from_str(text).map_err(|error| wrong(error.span(), error.message()))?;
        let absolute = |key: &str, value: Option<Spanned<PathBuf>>| match value {
            Some(path) if !path.get_ref().is_absolute() => {
                Err(wrong(Some(path.span()), &format!("{key} must be an absolute path")))
            }
            path => Ok(path.map(Spanned::into_inner)),
        };
        let host = |host: Spanned<String>| match host.get_ref() {
            text if text.is_empty() || text.contains('/') => {
                Err(wrong(Some(host.span()), "plain-http lists registries as \"HOST\" or \"HOST:PORT\""))
            }
            _ => Ok(host.into_inner()),
        };
        let until = |text: Spanned<String>| {
            duration::recording(text.get_ref())
                .map_err(|problem| wrong(Some(text.span()), &format!("profile-until: {problem}")))
        };
        let on_outage = |text: Spanned<String>| {
            duration::on_outage(text.get_ref())
                .map_err(|problem| wrong(Some(text.span()), &format!("on-outage: {problem}")))
        };
        let size = |text: Spanned<String>| {
            byte_size::cache_size(text.get_ref())
                .map_err(|problem| wrong(Some(text.span()), &format!("cache-size: {problem}")))
        };
        Ok(Self {
            cache_dir: absolute("cache-dir", wire.cache_dir)?,
            cache_size: wire.cache_size.map(size).transpose()?,
            runtime_dir: absolute("runtime-dir", wire.runtime_dir)?,
            fill: wire.fill,
            io: wire.io,
            on_outage: wire.on_outage.map(on_outage).transpose()?,
            profile_until: wire.profile_until.map(until).transpose()?,
            trust_index: wire.trust_index,
            idle: wire.idle_seconds.map(|seconds| Duration::from_secs(seconds.into())),
            plain_http: wire.plain_http.map(|hosts| hosts.into_iter().map(host).collect()).transpose()?,
            hosts_dir: absolute("hosts-dir", wire.hosts_dir)?,
            registries_conf: absolute("registries-conf", wire.registries_conf)?,
        })
    }

    /// What this file says, and where it is silent what `other` says.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            cache_dir: self.cache_dir.or(other.cache_dir),
            cache_size: self.cache_size.or(other.cache_size),
            runtime_dir: self.runtime_dir.or(other.runtime_dir),
            fill: self.fill.or(other.fill),
            io: self.io.or(other.io),
            on_outage: self.on_outage.or(other.on_outage),
            profile_until: self.profile_until.or(other.profile_until),
            trust_index: self.trust_index.or(other.trust_index),
            idle: self.idle.or(other.idle),
            plain_http: self.plain_http.or(other.plain_http),
            hosts_dir: self.hosts_dir.or(other.hosts_dir),
            registries_conf: self.registries_conf.or(other.registries_conf),
        }
    }
}

fn cannot_use(path: &Path) -> String {
    format!("cannot use the configuration file {}", Printable::path(path))
}

/// The line at `offset`, counted from 1.
fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ConfigFile, String> {
        ConfigFile::parse(text, Path::new("/etc/ocifs/config.toml"))
            .map_err(|failure| format!("{}: {}", failure.error, failure.causes.join(": ")))
    }

    #[test]
    fn every_key_is_read() {
        let text = "cache-dir = '/c'\ncache-size = '2G'\nruntime-dir = '/r'\nfill = 'now'\nio = 'cached'\non-outage = 'wait:1h'\nprofile-until = '2m'\n\
                    trust-index = 'registry'\n\
                    idle-seconds = 5\nplain-http = ['a:1', 'b']\nhosts-dir = '/h'\nregistries-conf = '/r.conf'\n";
        let expected = ConfigFile {
            cache_dir: Some("/c".into()),
            cache_size: Some(2 << 30),
            runtime_dir: Some("/r".into()),
            fill: Some(Fill::Now),
            io: Some(Io::Cached),
            on_outage: Some(OnOutage::Wait(Some(3600))),
            profile_until: Some(120),
            trust_index: Some(TrustIndex::Registry),
            idle: Some(Duration::from_secs(5)),
            plain_http: Some(vec!["a:1".to_owned(), "b".to_owned()]),
            hosts_dir: Some("/h".into()),
            registries_conf: Some("/r.conf".into()),
        };
        assert_eq!(parse(text), Ok(expected));
        assert_eq!(parse(""), Ok(ConfigFile::default()));
    }

    #[test]
    fn mistakes_name_file_and_line() {
        let cases = [
            ("fill = 'off'\ncachedir = '/c'\n", 2, "unknown field `cachedir`"),
            ("\n\nfill = 'sometimes'", 3, "unknown variant `sometimes`"),
            ("io = 'fast'", 1, "unknown variant `fast`"),
            ("idle-seconds = -1", 1, "invalid value"),
            ("on-outage = 'wait:ever'", 1, "on-outage: write it as eio, wait, or wait:DURATION"),
            ("\nprofile-until = '6m'", 2, "profile-until: a start is recorded for 5 minutes at most"),
            ("cache-size = '2'", 1, "cache-size: a cache has 1M at least"),
            ("cache-size = 2", 1, "invalid type"),
            ("# one\n[mount]\n", 2, "unknown field `mount`"),
            ("fill =\n", 1, ""),
            ("\ncache-dir = 'c'", 2, "cache-dir must be an absolute path"),
            ("hosts-dir = 'h'", 1, "hosts-dir must be an absolute path"),
            ("plain-http = [\n 'a',\n 'http://b',\n]", 3, "plain-http lists registries"),
        ];
        for (text, line, problem) in cases {
            let error = parse(text).expect_err("a mistake");
            let start = format!("cannot use the configuration file /etc/ocifs/config.toml: line {line}: {problem}");
            assert!(error.starts_with(&start), "{text:?} gives {error:?}");
        }
    }

    #[test]
    fn the_first_file_wins_key_by_key() {
        let user = parse("fill = 'off'").expect("valid");
        let system = parse("fill = 'now'\nidle-seconds = 1").expect("valid");
        let both = user.or(system);
        assert_eq!((both.fill, both.idle), (Some(Fill::Off), Some(Duration::from_secs(1))));
    }
}
