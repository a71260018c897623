//! Texts of the help that belong to no single command: the exit codes, the files and the forms of references.

use crate::daemon::Code;

/// What `ocifs --help` says first.
pub(super) const ABOUT: &str = "\
Mounts any container image now and fetches its bytes when they are read.

`ocifs mount REF DIR` shows the complete root file system of an OCI or Docker image, exactly as its publisher pushed \
it, as one read-only tree. Bytes are fetched when they are read, verified before they are served, and kept in a cache \
that all images share.";

/// What `ocifs -h` says last.
pub(super) const AFTER_SHORT: &str = "\
`ocifs COMMAND --help` shows examples, `ocifs help references` how images are named, `ocifs --help` the exit codes.";

/// How images are named.
pub(super) const REFERENCES: &str = "\
How images are named. REF is one of

  NAME[:TAG][@DIGEST]       an image in a registry; docker://NAME is the same
  oci:DIR[:TAG|@DIGEST]     an image in an OCI image layout directory
  oci-archive:FILE[:TAG]    an image in a tar file that holds such a directory
  docker-archive:FILE[:NAME]
                            an image in a tar file as `docker save` writes it,
                            plain or compressed

Names are those of Docker: `debian` means docker.io/library/debian:latest. A reference with a digest always means the \
same bytes; a tag is asked for again each time. A local directory or file with several images needs the name, the \
position (:@0, :@1, ...) or the digest of one.

Examples:
  debian:12
  ghcr.io/owner/name:1.2
  localhost:5000/name@sha256:4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945
  oci:build/image:latest
  docker-archive:saved.tar.gz

Credentials come from the first of these that has some for the registry: --authfile or $REGISTRY_AUTH_FILE alone if \
given; else $XDG_RUNTIME_DIR/containers/auth.json, $XDG_CONFIG_HOME/containers/auth.json, \
$DOCKER_CONFIG/config.json or ~/.docker/config.json, ~/.dockercfg.

Mirrors are those of containerd and podman: HOST/hosts.toml below /etc/containerd/certs.d (or --hosts-dir), then \
registries.conf (--registries-conf, $CONTAINERS_REGISTRIES_CONF, ~/.config/containers/registries.conf or \
/etc/containers/registries.conf, with drop-ins), which also says what short names mean, unless podman has recorded that. Certificates are in HOST:PORT/ \
below ~/.config/containers/certs.d, /etc/containers/certs.d or /etc/docker/certs.d.";

/// The exit codes, in order.
pub(super) const EXIT_CODES: [(u8, &str); 11] = [
    (0, "success"),
    (Code::Other as u8, "a failure not listed below"),
    (Code::Usage as u8, "the command line or a configuration file is wrong"),
    (Code::NotFound as u8, "the image, tag, platform, path or mount does not exist"),
    (Code::Denied as u8, "credentials are missing or do not suffice, or a file may not be accessed"),
    (Code::Unreachable as u8, "the registry cannot be reached, or --offline and the cache does not have it"),
    (Code::BadImage as u8, "the image is damaged, hostile or of a kind that cannot be used"),
    (Code::Mount as u8, "the mount point or /dev/fuse cannot be used"),
    (Code::Busy as u8, "the mount is in use"),
    (Code::Cache as u8, "the cache directory cannot be used, or had damaged objects"),
    (130, "interrupted with Ctrl-C; 128 + N after another signal N"),
];

/// The configuration files with their keys.
pub(super) const FILES: &str = "\
/etc/ocifs/config.toml, then ~/.config/ocifs/config.toml ($XDG_CONFIG_HOME), whose keys win. Options and environment \
variables win over both.

  cache-dir = \"/var/cache/ocifs\"
  cache-size = \"20G\"              # how large the cache may grow
  memory-size = \"64M\"            # how much memory holds decoded data
  runtime-dir = \"/run/ocifs\"
  fill = \"idle\"                   # off, idle or now
  io = \"auto\"                     # auto, passthrough or cached
  low-latency = \"auto\"            # auto or off; see ocifs mount --help
  on-outage = \"wait:5m\"         # wait, wait:DURATION or eio; see ocifs mount --help
  profile-until = \"30s\"          # how long starts are recorded; 0: not at all
  trust-index = \"registry\"        # by-reference, none, signed or registry; see ocifs mount --help
  # index-keys = [\"/etc/ocifs/ci.pub\"] # must exist; public keys whose signed indexes are believed
  idle-seconds = 30               # how long a daemon without mounts waits
  plain-http = [\"r.example:5000\"] # registries that speak plain HTTP
  # hosts-dir = \"/etc/containerd/certs.d\" # must exist; mirrors, as containerd has them
  # registries-conf = \"/etc/containers/registries.conf\" # must exist; mirrors and short names, as podman has them";

/// What `ocifs --help` says last.
pub(super) fn after_long() -> String {
    let codes: Vec<_> = EXIT_CODES.iter().map(|(code, meaning)| format!("  {code:<5}{meaning}")).collect();
    format!(
        "Exit codes:\n{}\n\nConfiguration files:\n{FILES}\n\n`ocifs COMMAND --help` shows examples, `ocifs help \
         references` how images are named.",
        codes.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_of_the_daemon_is_documented() {
        let codes: Vec<_> = EXIT_CODES.iter().map(|(code, _)| *code).collect();
        assert!(codes.is_sorted_by(|one, two| one < two));
        // The match fails to compile when a code is added, so that the table is thought of.
        let documented = |code: Code| match code {
            Code::Other
            | Code::Usage
            | Code::NotFound
            | Code::Denied
            | Code::Unreachable
            | Code::BadImage
            | Code::Mount
            | Code::Busy
            | Code::Cache => codes.contains(&(code as u8)),
        };
        assert!(documented(Code::Other) && documented(Code::Cache));
        assert!(after_long().contains("  130  interrupted"));
    }

    #[test]
    fn the_references_that_help_shows_as_examples_are_references() {
        let (_, examples) = REFERENCES.split_once("Examples:\n").expect("there are examples");
        let examples: Vec<_> = examples.lines().map_while(|line| line.strip_prefix("  ")).collect();
        assert_eq!(examples.len(), 5);
        for example in examples {
            example.parse::<crate::oci::Reference>().expect("an example that works");
        }
    }
}
