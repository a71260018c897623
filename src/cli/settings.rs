//! What the options mean: the first of flag, environment, the user's file, the system's file and the default decides.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::Global;
use super::byte_size;
use super::config_file::ConfigFile;
use super::environment::Environment;
use super::paths;
use super::stop::usage;
use crate::daemon::Failure;
use crate::daemon::control::{Fill, Io, OnOutage, TrustIndex};
use crate::oci::{Printable, Reference};

/// The system's configuration file.
const SYSTEM_FILE: &str = "/etc/ocifs/config.toml";

/// How long a daemon without a mount and without a client waits before it ends.
const IDLE: Duration = Duration::from_secs(30);

/// The settings of one command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    /// The cache directory, absolute and without symbolic links.
    pub(super) cache_dir: PathBuf,
    /// How large the cache may grow, in bytes; none for the daemon's default.
    pub(super) cache_size: Option<u64>,
    /// How much memory holds decoded data, in bytes; none for the daemon's default.
    pub(super) memory_size: Option<u64>,
    /// The directory of control sockets, likewise.
    pub(super) runtime_dir: PathBuf,
    /// When the rest of an image is fetched.
    pub(super) fill: Fill,
    /// How files are read.
    pub(super) io: Io,
    /// Whether processors are kept from sleeping while programs start, where that pays.
    pub(super) low_latency: bool,
    /// What reads do while a registry does not answer.
    pub(super) on_outage: OnOutage,
    /// How long starts are recorded, in seconds; none until they are quiet.
    pub(super) profile_until: Option<u32>,
    /// Whose indexes are believed.
    pub(super) trust_index: TrustIndex,
    /// The files of keys by which indexes may be signed.
    pub(super) index_keys: Vec<PathBuf>,
    /// How long an idle daemon stays.
    pub(super) idle: Duration,
    /// The tree of `hosts.toml` files, if not containerd's.
    pub(super) hosts_dir: Option<PathBuf>,
    /// `registries.conf`, if not podman's.
    pub(super) registries_conf: Option<PathBuf>,
    /// Registries that speak plain HTTP, as `host[:port]`.
    plain_http: Vec<String>,
}

impl Settings {
    /// Reads the configuration files and settles what they, the environment and the flags say.
    pub(super) fn resolve(global: &Global, environment: &Environment) -> Result<Self, Failure> {
        let user = match environment.config_home() {
            Some(home) => ConfigFile::read(&home.join("ocifs/config.toml"))?,
            None => ConfigFile::default(),
        };
        let system = ConfigFile::read(Path::new(SYSTEM_FILE))?;
        Self::settle(global, environment, user.or(system))
    }

    fn settle(global: &Global, environment: &Environment, file: ConfigFile) -> Result<Self, Failure> {
        let cache_dir = global.cache_dir.clone().or_else(|| environment.path("OCIFS_CACHE_DIR")).or(file.cache_dir);
        let cache_dir = cache_dir.or_else(|| default_cache_dir(environment)).ok_or_else(|| {
            usage("cannot tell where the cache is", "there is no home directory").hint("name it with --cache-dir")
        })?;
        let size = |given: Option<u64>, name: &str, parse: fn(&str) -> Result<u64, String>, of_file: Option<u64>| match (
            given,
            environment.variables.get(name),
        ) {
            (Some(size), _) => Ok(Some(size)),
            (None, Some(text)) => parse(&text.to_string_lossy())
                .map(Some)
                .map_err(|problem| usage(format!("cannot use the value of ${name}"), problem)),
            (None, None) => Ok(of_file),
        };
        let cache_size = size(global.cache_size, "OCIFS_CACHE_SIZE", byte_size::cache_size, file.cache_size)?;
        let memory_size = size(global.memory_size, "OCIFS_MEMORY_SIZE", byte_size::memory_size, file.memory_size)?;
        let runtime_dir =
            global.runtime_dir.clone().or_else(|| environment.path("OCIFS_RUNTIME_DIR")).or(file.runtime_dir);
        let runtime_dir = match runtime_dir.or_else(|| default_runtime_dir(environment)) {
            Some(dir) => settled(&dir)?,
            // Anyone can make names in /tmp, so a link there is not followed.
            None => format!("/tmp/ocifs-{}", environment.user).into(),
        };
        Ok(Self {
            cache_dir: settled(&cache_dir)?,
            cache_size,
            memory_size,
            runtime_dir,
            fill: file.fill.unwrap_or(Fill::Idle),
            io: file.io.unwrap_or_default(),
            low_latency: file.low_latency.unwrap_or(true),
            on_outage: file.on_outage.unwrap_or_default(),
            profile_until: file.profile_until,
            trust_index: file.trust_index.unwrap_or_default(),
            index_keys: file.index_keys.unwrap_or_default(),
            idle: file.idle.unwrap_or(IDLE),
            hosts_dir: file.hosts_dir,
            registries_conf: file.registries_conf,
            plain_http: file.plain_http.unwrap_or_default(),
        })
    }

    /// True if the registry of `reference` is configured to speak plain HTTP.
    pub(super) fn is_plain_http(&self, reference: &Reference) -> bool {
        match reference {
            Reference::Registry(name) => self.plain_http.iter().any(|host| host.eq_ignore_ascii_case(name.host())),
            Reference::Layout(_) | Reference::OciArchive(_) | Reference::DockerArchive(_) => false,
        }
    }
}

/// The absolute path of a directory that the user named.
pub(super) fn settled(dir: &Path) -> Result<PathBuf, Failure> {
    let found = paths::settled(dir);
    nameable(found.map_err(|error| Failure::io(&format!("cannot find {}", Printable::path(dir)), &error))?)
}

/// Fails for a path that the daemon cannot be told of, which understands JSON.
pub(super) fn nameable(path: PathBuf) -> Result<PathBuf, Failure> {
    match path.to_str() {
        Some(_) => Ok(path),
        None => Err(usage(format!("cannot use {}", Printable::path(&path)), "the path is not UTF-8 text")
            .hint("use a path all of whose names are UTF-8 text")),
    }
}

fn default_cache_dir(environment: &Environment) -> Option<PathBuf> {
    match environment.is_root() {
        true => Some("/var/cache/ocifs".into()),
        false => Some(environment.cache_home()?.join("ocifs")),
    }
}

/// Where the session has a place for it; none if it has none.
fn default_runtime_dir(environment: &Environment) -> Option<PathBuf> {
    match environment.is_root() {
        true => Some("/run/ocifs".into()),
        false => Some(environment.xdg("XDG_RUNTIME_DIR").filter(|dir| dir.is_dir())?.join("ocifs")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::Code;

    fn user() -> Environment {
        Environment { home: Some("/home/u".into()), user: 4711, ..Environment::default() }
    }

    fn settle(global: &Global, environment: &Environment, file: &str) -> Settings {
        let file = ConfigFile::parse(file, Path::new("config.toml")).expect("a valid file");
        Settings::settle(global, environment, file).expect("complete settings")
    }

    #[test]
    fn flags_win_over_environment_over_files_over_defaults() {
        let none = Global::default();
        let flag = Global { cache_dir: Some("/flag".into()), ..Global::default() };
        let mut set = user();
        set.variables.insert("OCIFS_CACHE_DIR", "/variable".into());
        set.variables.insert("OCIFS_RUNTIME_DIR", "/no-such/runtime".into());
        let file = "cache-dir = '/file'\nruntime-dir = '/file'";
        assert_eq!(settle(&flag, &set, file).cache_dir, Path::new("/flag"));
        assert_eq!(settle(&none, &set, file).cache_dir, Path::new("/variable"));
        assert_eq!(settle(&none, &user(), file).cache_dir, Path::new("/file"));
        assert_eq!(settle(&none, &set, file).runtime_dir, Path::new("/no-such/runtime"));
        set.variables.remove("OCIFS_CACHE_DIR");
        assert_eq!(settle(&none, &set, "").cache_dir, Path::new("/home/u/.cache/ocifs"));
    }

    #[test]
    fn the_size_of_the_cache_is_settled_like_its_place() {
        let flag = Global { cache_size: Some(1 << 30), ..Global::default() };
        let mut set = user();
        set.variables.insert("OCIFS_CACHE_SIZE", "2G".into());
        set.variables.insert("OCIFS_RUNTIME_DIR", "/no-such/runtime".into());
        let file = "cache-size = '3G'";
        assert_eq!(settle(&flag, &set, file).cache_size, Some(1 << 30));
        assert_eq!(settle(&Global::default(), &set, file).cache_size, Some(2 << 30));
        set.variables.insert("OCIFS_CACHE_SIZE", "2GB".into());
        let wrong = Settings::settle(&Global::default(), &set, ConfigFile::default()).expect_err("no unit");
        assert_eq!((wrong.code, wrong.error.as_str()), (Code::Usage, "cannot use the value of $OCIFS_CACHE_SIZE"));
        assert_eq!(settle(&flag, &set, file).cache_size, Some(1 << 30), "what does not count is not read");
        set.variables.remove("OCIFS_CACHE_SIZE");
        assert_eq!(settle(&Global::default(), &set, file).cache_size, Some(3 << 30));
        assert_eq!(settle(&Global::default(), &set, "").cache_size, None);
        assert_eq!(settle(&Global::default(), &set, "memory-size = '48M'").memory_size, Some(48 << 20));
        set.variables.insert("OCIFS_MEMORY_SIZE", "96M".into());
        assert_eq!(settle(&Global::default(), &set, "memory-size = '48M'").memory_size, Some(96 << 20));
    }

    #[test]
    fn root_has_places_of_the_system_and_users_their_own() {
        let root = settle(&Global::default(), &Environment { user: 0, ..user() }, "");
        assert!(root.cache_dir.ends_with("var/cache/ocifs") && root.runtime_dir.ends_with("run/ocifs"), "{root:?}");
        let runtime = tempfile::tempdir().expect("a directory");
        let mut session = user();
        session.variables.insert("XDG_RUNTIME_DIR", runtime.path().into());
        session.variables.insert("XDG_CACHE_HOME", "/no-such/cache".into());
        let settings = settle(&Global::default(), &session, "");
        assert_eq!(settings.cache_dir, Path::new("/no-such/cache/ocifs"));
        assert!(
            settings.runtime_dir.ends_with(
                runtime
                    .path()
                    .file_name()
                    .expect("a name")
                    .to_str()
                    .map_or_else(PathBuf::new, |name| Path::new(name).join("ocifs"))
            )
        );
    }

    #[test]
    fn without_a_home_the_cache_must_be_named() {
        let nobody = Environment { user: 4711, ..Environment::default() };
        let global = Global { runtime_dir: Some("/r".into()), ..Global::default() };
        let failure = Settings::settle(&global, &nobody, ConfigFile::default()).expect_err("nowhere to put it");
        assert_eq!(failure.hint.as_deref(), Some("name it with --cache-dir"));
    }

    #[test]
    fn a_directory_whose_path_is_no_text_is_refused_by_name() {
        use std::os::unix::ffi::OsStrExt;
        let path = Path::new(std::ffi::OsStr::from_bytes(b"/m\xff"));
        let failure = settled(path).expect_err("it is not UTF-8");
        assert_eq!((failure.code, failure.error.as_str()), (Code::Usage, "cannot use /m\\xff"));
        assert!(failure.hint.is_some());
    }

    #[test]
    fn plain_http_is_by_host_and_port() {
        let global = Global { runtime_dir: Some("/r".into()), ..Global::default() };
        let settings = settle(&global, &user(), "plain-http = ['registry.lan', 'Host:5000']");
        let is_plain = |text: &str| settings.is_plain_http(&text.parse().expect("a reference"));
        assert!(is_plain("registry.lan/a/b:1") && is_plain("host:5000/a"));
        assert!(!is_plain("host/a") && !is_plain("registry.lan:5000/a") && !is_plain("debian") && !is_plain("oci:d"));
    }
}
