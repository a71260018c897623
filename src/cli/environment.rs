//! The environment of this process as a value, so that what follows from it can be tested without changing it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// The variables that mean something to this program.
const VARIABLES: [&str; 15] = [
    "CONTAINERS_REGISTRIES_CONF",
    "DOCKER_CONFIG",
    "NO_COLOR",
    "OCIFS_CACHE_DIR",
    "OCIFS_CACHE_SIZE",
    "OCIFS_LOG",
    "OCIFS_MEMORY_SIZE",
    "OCIFS_RUNTIME_DIR",
    "REGISTRY_AUTH_FILE",
    "RUST_LOG",
    "TERM",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
];

/// What the user's session says.
#[derive(Debug, Clone, Default)]
pub(super) struct Environment {
    /// Variables by name; those set to nothing count as not set.
    pub(super) variables: BTreeMap<&'static str, OsString>,
    /// The home directory.
    pub(super) home: Option<PathBuf>,
    /// The effective user id.
    pub(super) user: u32,
}

impl Environment {
    /// Reads the environment of this process.
    pub(super) fn of_process() -> Self {
        let variables = VARIABLES.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
        Self {
            variables: variables.filter(|(_, value)| !value.is_empty()).collect(),
            home: std::env::home_dir().filter(|home| home.is_absolute()),
            user: rustix::process::geteuid().as_raw(),
        }
    }

    /// The path in a variable.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.variables.get(name).map(PathBuf::from)
    }

    /// The text in a variable, if it is UTF-8.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.variables.get(name)?.to_str()
    }

    /// A directory of the XDG Base Directory Specification, which has relative paths ignored.
    pub(super) fn xdg(&self, name: &str) -> Option<PathBuf> {
        self.path(name).filter(|path| path.is_absolute())
    }

    /// The directory of the user's configuration files.
    pub(super) fn config_home(&self) -> Option<PathBuf> {
        self.xdg("XDG_CONFIG_HOME").or_else(|| Some(self.home.as_ref()?.join(".config")))
    }

    /// The directory of the user's caches.
    pub(super) fn cache_home(&self) -> Option<PathBuf> {
        self.xdg("XDG_CACHE_HOME").or_else(|| Some(self.home.as_ref()?.join(".cache")))
    }

    /// The directory for temporary files.
    pub(super) fn temporary(&self) -> PathBuf {
        self.path("TMPDIR").unwrap_or_else(|| "/tmp".into())
    }

    /// True for the user that may do anything.
    pub(super) fn is_root(&self) -> bool {
        self.user == 0
    }

    /// True if colours are understood where text goes and the user has not refused them (no-color.org).
    pub(super) fn wants_colour(&self, is_terminal: bool) -> bool {
        is_terminal && !self.variables.contains_key("NO_COLOR") && self.text("TERM") != Some("dumb")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_xdg_directories_are_ignored() {
        let mut environment = Environment { home: Some("/home/u".into()), ..Environment::default() };
        environment.variables.insert("XDG_CACHE_HOME", "relative".into());
        environment.variables.insert("XDG_CONFIG_HOME", "/etc/u".into());
        assert_eq!(environment.cache_home(), Some("/home/u/.cache".into()));
        assert_eq!(environment.config_home(), Some("/etc/u".into()));
    }

    #[test]
    fn colours_are_for_terminals_and_end_with_no_color() {
        let mut environment = Environment::default();
        assert!(environment.wants_colour(true));
        assert!(!environment.wants_colour(false));
        environment.variables.insert("NO_COLOR", "1".into());
        assert!(!environment.wants_colour(true));
    }
}
