//! Directories of certificates, `certs.d/HOST[:PORT]/` (containers-certs.d(5), Docker's "certificates").
//!
//! Each file `*.crt` is an authority, each `*.cert` a client certificate whose key is beside it in `*.key`, or in the same
//! file as containerd has it (B-143). [`find`] looks for the directory, [`sort`] makes certificates of its files.

use std::path::{Path, PathBuf};

use super::super::host::{all_names, split_port};
use super::super::link::Pair;
use super::{files_of, is_absent, is_host};
use crate::source::{Error, ErrorKind};

/// What was found for a host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) authorities: Vec<PathBuf>,
    pub(super) identities: Vec<Pair>,
}

/// The certificates for `host`: in the first of `dirs` that has any, or else of `trees`, which hold them for registries that
/// need nothing else there.
pub(super) fn find(dirs: &[PathBuf], trees: &[PathBuf], host: &str) -> Result<Found, Error> {
    if !is_host(host) {
        return Ok(Found::default());
    }
    let plain = dirs.iter().flat_map(|dir| all_names(host).into_iter().map(|name| dir.join(name)));
    let in_trees = trees.iter().flat_map(|tree| host_dirs(tree, host));
    // A directory with a hosts.toml is spoken for by that.
    let in_trees = in_trees.filter(|dir| !dir.join("hosts.toml").exists());
    for dir in plain.chain(in_trees) {
        let found = sort(files_of(&dir, &["crt", "cert", "key"])?)?;
        if found != Found::default() {
            return Ok(found);
        }
    }
    Ok(Found::default())
}

/// The directories of a tree that may be for `host`, by each of its names: with the port set apart, which can be written
/// everywhere, and plain.
pub(super) fn host_dirs(tree: &Path, host: &str) -> Vec<PathBuf> {
    let apart = match split_port(host) {
        (name, Some(port)) => Some(format!("{name}_{port}_")),
        (_, None) => None,
    };
    apart.into_iter().chain(all_names(host)).map(|name| tree.join(name)).collect()
}

/// Makes certificates of files by their names.
fn sort(files: Vec<PathBuf>) -> Result<Found, Error> {
    let mut found = Found::default();
    let is = |path: &Path, extension: &str| path.extension().is_some_and(|found| found == extension);
    for path in files.iter().filter(|path| is(path, "cert")) {
        let key = path.with_extension("key");
        let key = files.contains(&key).then_some(key);
        found.identities.push(Pair { certificate: path.clone(), key });
    }
    if let Some(key) = files.iter().find(|path| is(path, "key") && !files.contains(&path.with_extension("cert"))) {
        let message = format!("there is no client certificate for the key {}", key.display());
        let hint = format!("it belongs into {}", key.with_extension("cert").display());
        return Err(Error::new(ErrorKind::Misconfigured, message).hint(hint));
    }
    if found.identities.len() > 1 {
        let used = found.identities[0].certificate.display().to_string();
        tracing::warn!(used, "several client certificates for one host, the first is used");
    }
    found.authorities = files.into_iter().filter(|path| is(path, "crt")).collect();
    // A link to nowhere would otherwise be found only when a connection is made.
    for path in &found.authorities {
        if let Err(error) = std::fs::metadata(path)
            && is_absent(&error)
        {
            let message = format!("the certificate {} leads nowhere", path.display());
            return Err(Error::new(ErrorKind::Misconfigured, message));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(dir: &Path, names: &[&str]) {
        for name in names {
            let path = dir.join(name);
            std::fs::create_dir_all(path.parent().expect("below the directory")).expect("a directory");
            std::fs::write(path, "").expect("a file");
        }
    }

    #[test]
    fn b_143_certificates_are_found_by_host_and_port_in_the_first_directory_that_has_some() {
        let dir = tempfile::tempdir().expect("a directory");
        let (user, system, tree) = (dir.path().join("user"), dir.path().join("system"), dir.path().join("tree"));
        touch(
            &system,
            &["h:5000/ca.crt", "h:5000/client.cert", "h:5000/client.key", "h:5000/README", "h/b.crt", "h/a.crt"],
        );
        touch(&tree, &["t_5000_/ca.crt", "spoken.example/hosts.toml", "spoken.example/ca.crt"]);
        let find = |host: &str| find(&[user.clone(), system.clone()], std::slice::from_ref(&tree), host);
        let pair = Pair { certificate: system.join("h:5000/client.cert"), key: Some(system.join("h:5000/client.key")) };
        let both = Found { authorities: vec![system.join("h:5000/ca.crt")], identities: vec![pair] };
        assert_eq!(find("h:5000").expect("sound"), both);
        assert_eq!(find("h").expect("sound").authorities, [system.join("h/a.crt"), system.join("h/b.crt")]);
        assert_eq!(find("t:5000").expect("sound").authorities, [tree.join("t_5000_/ca.crt")]);
        for none in ["h:5001", "other", "../system/h", "spoken.example", ".."] {
            assert_eq!(find(none).expect("sound"), Found::default(), "{none}");
        }
        touch(&user, &["h:5000/mine.crt"]);
        assert_eq!(find("h:5000").expect("sound").authorities, [user.join("h:5000/mine.crt")]);
    }

    #[test]
    fn b_143_a_certificate_may_hold_its_key_and_a_key_needs_a_certificate() {
        let file = |name: &str| PathBuf::from(format!("/h/{name}"));
        let found = sort(vec![file("client.cert")]).expect("both in one");
        assert_eq!(found.identities, [Pair { certificate: file("client.cert"), key: None }]);
        let error = sort(vec![file("client.key")]).expect_err("half a pair");
        assert!(error.to_string().contains("/h/client.key") && error.kind() == ErrorKind::Misconfigured);
    }
}
