//! Where credentials are looked for: podman's order (B-130), which includes Docker's files.
//!
//! Docker and crane ask Docker's files first (B-131); with a login for one registry in both, podman's counts here.
//! Only the paths are sent to the daemon, which reads the files when a registry asks and never writes them anywhere.

use std::path::{Path, PathBuf};

use super::environment::Environment;

/// The files to look into, in order. A file named by `--authfile` or REGISTRY_AUTH_FILE is the only one (B-132).
pub(super) fn files(explicit: Option<&Path>, environment: &Environment) -> Vec<PathBuf> {
    let explicit = explicit.map(Path::to_owned).or_else(|| environment.path("REGISTRY_AUTH_FILE"));
    if let Some(file) = explicit {
        return vec![file];
    }
    let home = environment.home.as_deref();
    let runtime = environment
        .xdg("XDG_RUNTIME_DIR")
        .map_or_else(|| format!("/run/containers/{}", environment.user).into(), |dir| dir.join("containers"));
    let docker =
        environment.path("DOCKER_CONFIG").or_else(|| Some(home?.join(".docker"))).map(|dir| dir.join("config.json"));
    [
        Some(runtime.join("auth.json")),
        environment.config_home().map(|dir| dir.join("containers/auth.json")),
        docker,
        home.map(|home| home.join(".dockercfg")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The user's runtime directory if there should be one and is not, as under `su` (B-133): the first file is then missing
/// without the user's knowing.
pub(super) fn missing_runtime_dir(environment: &Environment) -> Option<PathBuf> {
    environment.xdg("XDG_RUNTIME_DIR").filter(|dir| !dir.is_dir() && environment.path("REGISTRY_AUTH_FILE").is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(explicit: Option<&str>, variables: &[(&'static str, &str)]) -> Vec<String> {
        let mut environment = Environment { home: Some("/home/u".into()), user: 7, ..Environment::default() };
        environment.variables.extend(variables.iter().map(|(name, value)| (*name, (*value).into())));
        files(explicit.map(Path::new), &environment).iter().map(|path| path.display().to_string()).collect()
    }

    #[test]
    fn b_130_files_are_in_podmans_order() {
        let defaults = [
            "/run/containers/7/auth.json",
            "/home/u/.config/containers/auth.json",
            "/home/u/.docker/config.json",
            "/home/u/.dockercfg",
        ];
        assert_eq!(paths(None, &[]), defaults);
        let variables = [("XDG_RUNTIME_DIR", "/run/user/7"), ("XDG_CONFIG_HOME", "/c"), ("DOCKER_CONFIG", "/d")];
        let moved =
            ["/run/user/7/containers/auth.json", "/c/containers/auth.json", "/d/config.json", "/home/u/.dockercfg"];
        assert_eq!(paths(None, &variables), moved);
    }

    #[test]
    fn b_131_podmans_files_come_before_dockers_unlike_with_crane() {
        let order = paths(None, &[("DOCKER_CONFIG", "/d")]);
        let at = |file: &str| order.iter().position(|path| path == file);
        assert!(at("/home/u/.config/containers/auth.json") < at("/d/config.json"));
    }

    #[test]
    fn b_133_a_runtime_directory_that_is_missing_is_noticed_and_the_other_files_count() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut environment = Environment { home: Some("/home/u".into()), ..Environment::default() };
        assert_eq!(missing_runtime_dir(&environment), None);
        environment.variables.insert("XDG_RUNTIME_DIR", dir.path().into());
        assert_eq!(missing_runtime_dir(&environment), None);
        let gone = dir.path().join("gone");
        environment.variables.insert("XDG_RUNTIME_DIR", gone.clone().into());
        assert_eq!(missing_runtime_dir(&environment), Some(gone));
        assert_eq!(files(None, &environment).len(), 4);
        environment.variables.insert("REGISTRY_AUTH_FILE", "/a".into());
        assert_eq!(missing_runtime_dir(&environment), None, "nobody looks there");
    }

    #[test]
    fn b_132_an_explicit_file_is_the_only_one() {
        assert_eq!(paths(None, &[("REGISTRY_AUTH_FILE", "/a")]), ["/a"]);
        assert_eq!(paths(Some("/b"), &[("REGISTRY_AUTH_FILE", "/a")]), ["/b"]);
    }
}
