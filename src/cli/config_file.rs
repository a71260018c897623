//! Configuration files: TOML with few keys, where a misspelt one is an error that names file and line.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::mount::{How, Latency, When};
use super::stop::usage;
use super::trust::Whose;
use super::{byte_size, duration};
use crate::daemon::Failure;
use crate::daemon::control::{Fill, Io, OnOutage, TrustIndex};
use crate::oci::Printable;

/// All keys.
const KEYS: [&str; 15] = [
    "cache-dir",
    "cache-size",
    "memory-size",
    "runtime-dir",
    "fill",
    "io",
    "low-latency",
    "on-outage",
    "profile-until",
    "trust-index",
    "index-keys",
    "idle-seconds",
    "plain-http",
    "hosts-dir",
    "registries-conf",
];

/// What one configuration file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ConfigFile {
    pub(super) cache_dir: Option<PathBuf>,
    /// Bytes.
    pub(super) cache_size: Option<u64>,
    /// Bytes.
    pub(super) memory_size: Option<u64>,
    pub(super) runtime_dir: Option<PathBuf>,
    pub(super) fill: Option<Fill>,
    pub(super) io: Option<Io>,
    pub(super) low_latency: Option<bool>,
    pub(super) on_outage: Option<OnOutage>,
    /// Seconds.
    pub(super) profile_until: Option<u32>,
    pub(super) trust_index: Option<TrustIndex>,
    pub(super) index_keys: Option<Vec<PathBuf>>,
    pub(super) idle: Option<Duration>,
    /// Registries as `host[:port]`.
    pub(super) plain_http: Option<Vec<String>>,
    pub(super) hosts_dir: Option<PathBuf>,
    pub(super) registries_conf: Option<PathBuf>,
}

impl ConfigFile {
    /// Reads a file; one that does not exist says nothing.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text, path),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(Self::default())
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(usage(cannot_use(path), "it is not UTF-8 text"))
            }
            Err(error) => Err(usage(cannot_use(path), error)),
        }
    }

    /// Reads `text`, which is the content of `path`.
    pub(super) fn parse(text: &str, path: &Path) -> Result<Self, Failure> {
        let wrong = |offset: usize, problem: fmt::Arguments<'_>| {
            usage(cannot_use(path), format_args!("line {}: {problem}", line_of(text, offset)))
        };
        let table = DeTable::parse(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            let line = text.lines().nth(line_of(text, offset) - 1).unwrap_or_default().trim();
            match error.message() {
                "duplicate key" => wrong(offset, format_args!("{line} sets what was set before")),
                _ => wrong(offset, format_args!("this cannot be understood: {line:.80}"))
                    .hint("a line is KEY = VALUE, with text in quotes, as in fill = \"idle\""),
            }
        })?;
        let mut entries: Vec<_> = table.into_inner().into_iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let mut file = Self::default();
        for (key, value) in entries {
            let start = value.span().start;
            file.set(key.get_ref(), value.into_inner()).map_err(|problem| match problem {
                Problem::Key => wrong(key.span().start, format_args!("there is no key {}", key.get_ref()))
                    .hint(format!("the keys are {}", KEYS.join(", "))),
                Problem::Value(allowed) => wrong(start, format_args!("{} must be {allowed}", key.get_ref()))
                    .hint("`ocifs --help` shows all keys with examples"),
            })?;
        }
        Ok(file)
    }

    fn set(&mut self, key: &str, value: DeValue<'_>) -> Result<(), Problem> {
        let known = KEYS.iter().find(|known| **known == key).ok_or(Problem::Key)?;
        match *known {
            "cache-dir" => self.cache_dir = Some(path(&value)?),
            "cache-size" => self.cache_size = Some(written(&value, "a size such as \"20G\"", byte_size::cache_size)?),
            "memory-size" => {
                self.memory_size = Some(written(&value, "a size such as \"64M\"", byte_size::memory_size)?);
            }
            "runtime-dir" => self.runtime_dir = Some(path(&value)?),
            "fill" => self.fill = Some(word::<When, _>(&value)?),
            "io" => self.io = Some(word::<How, _>(&value)?),
            "low-latency" => self.low_latency = Some(word::<Latency, _>(&value)?),
            "on-outage" => {
                self.on_outage = Some(written(&value, "a policy such as \"wait:5m\"", duration::on_outage)?);
            }
            "profile-until" => {
                self.profile_until = Some(written(&value, "a duration such as \"30s\"", duration::recording)?);
            }
            "trust-index" => self.trust_index = Some(word::<Whose, _>(&value)?),
            "index-keys" => self.index_keys = Some(paths(&value)?),
            "idle-seconds" => self.idle = Some(seconds(&value)?),
            "plain-http" => self.plain_http = Some(hosts(&value)?),
            "hosts-dir" => self.hosts_dir = Some(path(&value)?),
            _ => self.registries_conf = Some(path(&value)?),
        }
        Ok(())
    }

    /// What this file says, and where it is silent what `other` says.
    pub(super) fn or(self, other: Self) -> Self {
        Self {
            cache_dir: self.cache_dir.or(other.cache_dir),
            cache_size: self.cache_size.or(other.cache_size),
            memory_size: self.memory_size.or(other.memory_size),
            runtime_dir: self.runtime_dir.or(other.runtime_dir),
            fill: self.fill.or(other.fill),
            io: self.io.or(other.io),
            low_latency: self.low_latency.or(other.low_latency),
            on_outage: self.on_outage.or(other.on_outage),
            profile_until: self.profile_until.or(other.profile_until),
            trust_index: self.trust_index.or(other.trust_index),
            index_keys: self.index_keys.or(other.index_keys),
            idle: self.idle.or(other.idle),
            plain_http: self.plain_http.or(other.plain_http),
            hosts_dir: self.hosts_dir.or(other.hosts_dir),
            registries_conf: self.registries_conf.or(other.registries_conf),
        }
    }
}

/// What is wrong with an entry.
enum Problem {
    /// There is no such key.
    Key,
    /// The value is none of those that are allowed, which are these.
    Value(String),
}

/// A text that `parse` understands; `example` is one.
fn written<T>(value: &DeValue<'_>, example: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, Problem> {
    let text = value.as_str().ok_or_else(|| Problem::Value(format!("{example}, in quotes")))?;
    parse(text).map_err(|problem| Problem::Value(format!("{example}, not \"{}\": {problem}", Printable::of(text))))
}

/// One of the words that an option takes.
fn word<Word: ValueEnum, T: From<Word>>(value: &DeValue<'_>) -> Result<T, Problem> {
    let found = value.as_str().and_then(|text| Word::from_str(text, false).ok());
    found.map(T::from).ok_or_else(|| {
        let words = Word::value_variants().iter().filter_map(ValueEnum::to_possible_value);
        let words: Vec<_> = words.map(|word| format!("\"{}\"", word.get_name())).collect();
        Problem::Value(words.join(" or "))
    })
}

fn path(value: &DeValue<'_>) -> Result<PathBuf, Problem> {
    let path = value.as_str().map(PathBuf::from).filter(|path| path.is_absolute());
    path.ok_or_else(|| Problem::Value("an absolute path, in quotes".to_owned()))
}

fn paths(value: &DeValue<'_>) -> Result<Vec<PathBuf>, Problem> {
    let each = |value: &Spanned<DeValue<'_>>| path(value.get_ref()).ok();
    let paths = value.as_array().and_then(|array| array.iter().map(each).collect());
    paths.ok_or_else(|| Problem::Value("a list of absolute paths, such as [\"/etc/ocifs/ci.pub\"]".to_owned()))
}

fn seconds(value: &DeValue<'_>) -> Result<Duration, Problem> {
    let number = value.as_integer().and_then(|number| u32::from_str_radix(number.as_str(), number.radix()).ok());
    let seconds = number.ok_or_else(|| Problem::Value("a whole number of seconds, without quotes".to_owned()))?;
    Ok(Duration::from_secs(seconds.into()))
}

fn hosts(value: &DeValue<'_>) -> Result<Vec<String>, Problem> {
    let host = |value: &Spanned<DeValue<'_>>| {
        let text = value.get_ref().as_str().filter(|text| !text.is_empty() && !text.contains('/'));
        text.map(str::to_owned)
    };
    let hosts = value.as_array().and_then(|array| array.iter().map(host).collect());
    hosts.ok_or_else(|| Problem::Value("a list of \"HOST\" or \"HOST:PORT\", such as [\"r.example:5000\"]".to_owned()))
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
        let text = "cache-dir = '/c'\ncache-size = '2G'\nmemory-size = '128M'\nruntime-dir = '/r'\nfill = 'now'\nio = 'cached'\nlow-latency = 'off'\non-outage = 'wait:1h'\nprofile-until = '2m'\n\
                    trust-index = 'registry'\nindex-keys = ['/a.pub', '/b.pub']\n\
                    idle-seconds = 5\nplain-http = ['a:1', 'b']\nhosts-dir = '/h'\nregistries-conf = '/r.conf'\n";
        let expected = ConfigFile {
            cache_dir: Some("/c".into()),
            cache_size: Some(2 << 30),
            memory_size: Some(128 << 20),
            runtime_dir: Some("/r".into()),
            fill: Some(Fill::Now),
            io: Some(Io::Cached),
            low_latency: Some(false),
            on_outage: Some(OnOutage::Wait(Some(3600))),
            profile_until: Some(120),
            trust_index: Some(TrustIndex::Registry),
            index_keys: Some(vec!["/a.pub".into(), "/b.pub".into()]),
            idle: Some(Duration::from_secs(5)),
            plain_http: Some(vec!["a:1".to_owned(), "b".to_owned()]),
            hosts_dir: Some("/h".into()),
            registries_conf: Some("/r.conf".into()),
        };
        assert_eq!(parse(text), Ok(expected));
        assert_eq!(parse(""), Ok(ConfigFile::default()));
        for key in KEYS {
            assert!(text.contains(&format!("{key} = ")), "{key}");
        }
    }

    #[test]
    fn mistakes_name_file_and_line() {
        let cases = [
            ("fill = 'off'\ncachedir = '/c'\n", 2, "there is no key cachedir"),
            ("\n\nfill = 'sometimes'", 3, "fill must be \"off\" or \"idle\" or \"now\""),
            ("fill = 3", 1, "fill must be \"off\" or"),
            (
                "trust-index = 'all'",
                1,
                "trust-index must be \"by-reference\" or \"none\" or \"signed\" or \"registry\"",
            ),
            ("index-keys = ['ci.pub']", 1, "index-keys must be a list of absolute paths, such as"),
            ("io = 'fast'", 1, "io must be \"auto\" or \"passthrough\" or \"cached\""),
            ("low-latency = true", 1, "low-latency must be \"auto\" or \"off\""),
            ("idle-seconds = -1", 1, "idle-seconds must be a whole number of seconds, without quotes"),
            ("idle-seconds = '1'", 1, "idle-seconds must be a whole number of seconds, without quotes"),
            (
                "on-outage = 'wait:ever'",
                1,
                "on-outage must be a policy such as \"wait:5m\", not \"wait:ever\": write it as eio, wait, or",
            ),
            (
                "\nprofile-until = '6m'",
                2,
                "profile-until must be a duration such as \"30s\", not \"6m\": a start is recorded for 5 minutes",
            ),
            ("cache-size = '2'", 1, "cache-size must be a size such as \"20G\", not \"2\": a cache has 1M at least"),
            ("cache-size = 2", 1, "cache-size must be a size such as \"20G\", in quotes"),
            (
                "memory-size = '1M'",
                1,
                "memory-size must be a size such as \"64M\", not \"1M\": decoded data needs 32M at least",
            ),
            ("# one\n[mount]\n", 2, "there is no key mount"),
            ("fill =\n", 1, "this cannot be understood: fill ="),
            ("\nfill = now # yes", 2, "this cannot be understood: fill = now # yes"),
            ("io = 'auto\nfill = 'now'", 1, "this cannot be understood: io = 'auto"),
            ("fill = 'now'\nfill = 'off'", 2, "fill = 'off' sets what was set before"),
            ("\ncache-dir = 'c'", 2, "cache-dir must be an absolute path, in quotes"),
            ("hosts-dir = 'h'", 1, "hosts-dir must be an absolute path, in quotes"),
            ("plain-http = [\n 'a',\n 'http://b',\n]", 1, "plain-http must be a list of \"HOST\" or"),
            ("plain-http = 'a'", 1, "plain-http must be a list"),
            ("zzz = 1\nfill = 1", 1, "there is no key zzz"),
        ];
        for (text, line, problem) in cases {
            let failure = ConfigFile::parse(text, Path::new("/etc/ocifs/config.toml")).expect_err("a mistake");
            assert!(failure.hint.is_some() || text.starts_with("fill = 'now'"), "{text:?} has no hint");
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
