//! What short names mean: aliases and search registries of `registries.conf`, and the aliases that podman has recorded.
//!
//! A name without a host is one of Docker Hub's to Docker, and whatever the machine's owner configured to podman. Both are
//! followed: an alias, then the one registry in `unqualified-search-registries`, then Docker Hub. Several such registries
//! are no answer, because whoever can register the name at the first of them would decide what is mounted. Where podman
//! asked the user which of them he means, it wrote the answer to a file of its own, which counts before the configuration.

use std::path::Path;

use super::HostFiles;
use super::registries_conf::{self, Conf};
use crate::source::{Error, ErrorKind};

/// What the user's files say of short names.
#[derive(Debug, Default)]
pub struct ShortNames {
    conf: Conf,
}

impl ShortNames {
    /// Reads the files, and the one in which podman has `recorded` aliases. Blocks.
    pub fn read(files: &HostFiles, recorded: Option<&Path>) -> Result<Self, Error> {
        let all: Vec<_> = files.registries.iter().map(|path| path.as_path()).chain(recorded).collect();
        Ok(Self { conf: registries_conf::read(&all)? })
    }

    /// The full name for `reference`, the text of a name in a registry; none if it means what Docker means by it.
    pub fn expand(&self, reference: &str) -> Result<Option<String>, Error> {
        let (name, suffix) = split(reference);
        if is_full(name) {
            return Ok(None);
        }
        if let Some(full) = self.conf.aliases.get(name) {
            return Ok(Some(format!("{full}{suffix}")));
        }
        let Some((search, file)) = &self.conf.search else { return Ok(None) };
        match search.as_slice() {
            [] => Ok(None),
            [host] => Ok(Some(format!("{host}/{reference}"))),
            hosts => {
                let candidates: Vec<_> = hosts.iter().map(|host| format!("{host}/{reference}")).collect();
                let message = format!("{} lists several registries for short names", file.display());
                let hint = format!("write the full name: {}", candidates.join(" or "));
                Err(Error::new(ErrorKind::Ambiguous, message).hint(hint))
            }
        }
    }
}

/// The name, and what follows it: `:TAG`, `@DIGEST` or both.
fn split(reference: &str) -> (&str, &str) {
    let end = reference.find('@').unwrap_or(reference.len());
    let slash = reference[..end].rfind('/').map_or(0, |slash| slash + 1);
    let end = reference[slash..end].find(':').map_or(end, |colon| slash + colon);
    reference.split_at(end)
}

/// True if the name begins with a host, by Docker's rule.
fn is_full(name: &str) -> bool {
    let Some((first, _)) = name.split_once('/') else { return false };
    first == "localhost" || first.contains(['.', ':']) || first.contains(|letter: char| letter.is_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> ShortNames {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("registries.conf");
        std::fs::write(&file, text).expect("a file");
        ShortNames::read(&HostFiles { registries: vec![file], ..HostFiles::default() }, None).expect("sound")
    }

    fn expand(text: &str, reference: &str) -> Option<String> {
        names(text).expand(reference).expect("one meaning")
    }

    #[test]
    fn b_149_an_alias_stands_for_a_name_and_keeps_tag_and_digest() {
        let text =
            "unqualified-search-registries = ['r.example']\n[aliases]\n'fedora' = 'f.example/fedora'\n'a/b' = 'c/d'";
        let digest = format!("fedora:1@sha256:{}", "0".repeat(64));
        assert_eq!(expand(text, "fedora").as_deref(), Some("f.example/fedora"));
        assert_eq!(expand(text, "fedora:41").as_deref(), Some("f.example/fedora:41"));
        assert_eq!(expand(text, &digest), Some(format!("f.example/{digest}")));
        assert_eq!(expand(text, "a/b:x").as_deref(), Some("c/d:x"));
        assert_eq!(expand(text, "fedora-minimal").as_deref(), Some("r.example/fedora-minimal"));
    }

    #[test]
    fn b_149_one_search_registry_is_used_none_means_docker_hub_and_several_are_an_error() {
        let one = "unqualified-search-registries = ['r.example:5000']";
        assert_eq!(expand(one, "debian:13").as_deref(), Some("r.example:5000/debian:13"));
        assert_eq!(expand(one, "test.com:5000").as_deref(), Some("r.example:5000/test.com:5000"), "5000 is a tag");
        for full in ["docker.io/debian", "localhost/a", "h:5000/a", "Foo/a", "h.example/a:1"] {
            assert_eq!(expand(one, full), None, "{full}");
        }
        assert_eq!(expand("", "debian"), None);
        assert_eq!(expand("unqualified-search-registries = []", "debian"), None);
        let several = names("unqualified-search-registries = ['a.example', 'b.example']");
        let error = several.expand("debian:13").expect_err("two meanings");
        assert_eq!(error.kind(), ErrorKind::Ambiguous);
        assert_eq!(error.advice(), Some("write the full name: a.example/debian:13 or b.example/debian:13"));
        assert_eq!(several.expand("b.example/debian").expect("full"), None);
    }
}
