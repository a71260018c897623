//! Where it says how registries are reached: the files of containerd, podman and Docker, unless others are named.
//!
//! Only the paths are sent to the daemon, which reads the files at each mount and while it lives. Short names are the exception: what they
//! mean is part of what the user asks for, so it is settled here, before anybody is asked.

use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::settings::Settings;
use crate::daemon::Failure;
use crate::daemon::control::HostFiles;
use crate::oci::Reference;
use crate::registry::hosts::ShortNames;

/// containerd's tree of `hosts.toml` files.
const TREE: &str = "/etc/containerd/certs.d";

/// The directories of the system's files for podman and skopeo, and of Docker's.
const CONTAINERS: &str = "/etc/containers";
const DOCKER: &str = "/etc/docker";

/// The variable that names a `registries.conf`.
const REGISTRIES_CONF: &str = "CONTAINERS_REGISTRIES_CONF";

/// Files that the user names in place of the usual ones.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Named<'a> {
    pub(super) tree: Option<&'a Path>,
    pub(super) registries: Option<&'a Path>,
}

impl<'a> Named<'a> {
    /// These, and where they name nothing what the configuration file names.
    pub(super) fn or_configured(self, settings: &'a Settings) -> Self {
        Self {
            tree: self.tree.or(settings.hosts_dir.as_deref()),
            registries: self.registries.or(settings.registries_conf.as_deref()),
        }
    }

    /// The `registries.conf` that a variable names, if that counts.
    pub(super) fn by_environment(&self, environment: &Environment) -> Option<PathBuf> {
        environment.path(REGISTRIES_CONF).filter(|_| self.registries.is_none())
    }

    /// The file in which podman records what short names mean to the user, unless other files are named.
    pub(super) fn recorded_aliases(&self, environment: &Environment) -> Option<PathBuf> {
        let cache = match environment.is_root() {
            true => Some("/var/cache".into()),
            false => environment.cache_home(),
        };
        Some(cache.filter(|_| self.registries.is_none())?.join("containers/short-name-aliases.conf"))
    }

    /// All files in order.
    pub(super) fn files(&self, environment: &Environment) -> HostFiles {
        let user = environment.config_home().map(|home| home.join("containers"));
        let certificates = user.iter().map(|user| user.join("certs.d"));
        let system = [CONTAINERS, DOCKER].map(|dir| Path::new(dir).join("certs.d"));
        HostFiles {
            trees: vec![self.tree.unwrap_or(Path::new(TREE)).to_owned()],
            registries: match self.registries {
                Some(file) => vec![file.to_owned()],
                None => registries(environment, user.as_deref()),
            },
            certificates: certificates.chain(system).collect(),
        }
    }
}

/// `registries.conf` and its drop-ins, as podman finds them: a user's file stands in for the system's with its drop-ins, and
/// a variable for both files.
fn registries(environment: &Environment, user: Option<&Path>) -> Vec<PathBuf> {
    let own = user.map(|user| user.join("registries.conf"));
    let own_drop_ins = user.map(|user| user.join("registries.conf.d"));
    let system = Path::new(CONTAINERS);
    let named = environment.path(REGISTRIES_CONF);
    if named.is_none()
        && let Some(own) = own.filter(|own| own.exists())
    {
        return [own].into_iter().chain(own_drop_ins).collect();
    }
    let file = named.unwrap_or_else(|| system.join("registries.conf"));
    [file, system.join("registries.conf.d")].into_iter().chain(own_drop_ins).collect()
}

/// The reference that `text`, which reads as `reference`, means on this machine by these files and those aliases; none if it
/// means what it says.
pub(super) fn expanded(
    text: &str,
    reference: &Reference,
    files: &HostFiles,
    aliases: Option<&Path>,
) -> Result<Option<String>, Failure> {
    if !matches!(reference, Reference::Registry(_)) || text.starts_with("docker://") {
        return Ok(None);
    }
    let names = ShortNames::read(&files.into(), aliases).map_err(|error| Failure::from(&error))?;
    let expanded = names.expand(text).map_err(|error| Failure::from(&error))?;
    // A name that means what it always means is best shown as the user wrote it.
    Ok(expanded.filter(|expanded| expanded.parse::<Reference>().as_ref() != Ok(reference)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(home: &Path, variables: &[(&'static str, &str)]) -> Environment {
        let mut environment = Environment { home: Some(home.to_owned()), ..Environment::default() };
        environment.variables.extend(variables.iter().map(|(name, value)| (*name, (*value).into())));
        environment
    }

    fn shown(paths: &[PathBuf], home: &Path) -> Vec<String> {
        paths.iter().map(|path| path.display().to_string().replace(&home.display().to_string(), "~")).collect()
    }

    #[test]
    fn b_149_a_users_file_stands_in_for_the_systems_and_a_variable_for_both() {
        let home = tempfile::tempdir().expect("a directory");
        let home = home.path();
        let files = |variables| shown(&Named::default().files(&environment(home, variables)).registries, home);
        let system = ["/etc/containers/registries.conf", "/etc/containers/registries.conf.d"];
        let drop_ins = "~/.config/containers/registries.conf.d";
        assert_eq!(files(&[]), [system[0], system[1], drop_ins]);
        assert_eq!(files(&[("CONTAINERS_REGISTRIES_CONF", "/c")]), ["/c", system[1], drop_ins]);
        std::fs::create_dir_all(home.join(".config/containers")).expect("a directory");
        std::fs::write(home.join(".config/containers/registries.conf"), "").expect("a file");
        assert_eq!(files(&[]), ["~/.config/containers/registries.conf", drop_ins]);
        assert_eq!(files(&[("CONTAINERS_REGISTRIES_CONF", "/c")]), ["/c", system[1], drop_ins]);
        assert_eq!(files(&[("XDG_CONFIG_HOME", "/x")]), [system[0], system[1], "/x/containers/registries.conf.d"]);
    }

    #[test]
    fn b_143_certificates_are_looked_for_in_the_users_directory_first() {
        let home = Path::new("/home/u");
        let files = Named::default().files(&environment(home, &[]));
        let expected = ["~/.config/containers/certs.d", "/etc/containers/certs.d", "/etc/docker/certs.d"];
        assert_eq!(shown(&files.certificates, home), expected);
        assert_eq!(shown(&files.trees, home), ["/etc/containerd/certs.d"]);
    }

    #[test]
    fn named_files_are_the_only_ones() {
        let named = Named { tree: Some(Path::new("/t")), registries: Some(Path::new("/r")) };
        let files = named.files(&environment(Path::new("/home/u"), &[("CONTAINERS_REGISTRIES_CONF", "/c")]));
        assert_eq!((files.trees, files.registries), (vec!["/t".into()], vec!["/r".into()]));
    }

    #[test]
    fn b_149_an_alias_that_podman_recorded_counts_before_those_of_the_configuration() {
        let dir = tempfile::tempdir().expect("a directory");
        let conf = dir.path().join("registries.conf");
        let search = "unqualified-search-registries = ['a.example', 'b.example']\n";
        std::fs::write(&conf, format!("{search}[aliases]\nfedora = 'f.example/fedora'\nx = 'f.example/x'"))
            .expect("a file");
        std::fs::create_dir(dir.path().join("containers")).expect("a directory");
        let recorded = "[aliases]\n  app = 'b.example/app'\n  fedora = 'podman.example/fedora'\n  x = ''";
        std::fs::write(dir.path().join("containers/short-name-aliases.conf"), recorded).expect("a file");
        let mut environment = environment(Path::new("/home/u"), &[]);
        environment.user = 7;
        environment.variables.insert("XDG_CACHE_HOME", dir.path().into());
        let file = Named::default().recorded_aliases(&environment);
        let files = HostFiles { registries: vec![conf.clone()], ..HostFiles::default() };
        let expand = |text: &str| expanded(text, &text.parse().expect("a reference"), &files, file.as_deref());
        assert_eq!(expand("app:1").expect("recorded").as_deref(), Some("b.example/app:1"));
        assert_eq!(expand("fedora").expect("recorded").as_deref(), Some("podman.example/fedora"));
        expand("x").expect_err("an alias for nothing takes the other one away");
        let root = Environment { user: 0, ..environment.clone() };
        let system = Path::new("/var/cache/containers/short-name-aliases.conf");
        assert_eq!(Named::default().recorded_aliases(&root).as_deref(), Some(system));
        let named = Named { registries: Some(&conf), tree: None };
        assert_eq!(named.recorded_aliases(&environment), None, "named files are the only ones");
    }

    #[test]
    fn only_short_names_are_expanded_and_only_if_that_changes_what_they_mean() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("registries.conf");
        std::fs::write(&file, "[aliases]\nfedora = 'f.example/fedora'\nalpine = 'docker.io/library/alpine'")
            .expect("a file");
        let files = HostFiles { registries: vec![file], ..HostFiles::default() };
        let expand =
            |text: &str| expanded(text, &text.parse().expect("a reference"), &files, None).expect("one meaning");
        assert_eq!(expand("fedora:41").as_deref(), Some("f.example/fedora:41"));
        for same in ["alpine:3", "debian", "docker://fedora", "oci:fedora", "f.example/fedora"] {
            assert_eq!(expand(same), None, "{same}");
        }
    }
}
