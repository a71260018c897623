//! A private certificate authority, by openssl.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::support::{output_of, temp_dir};

/// An authority that nobody knows, and what it vouches for.
pub(super) struct Authority {
    directory: TempDir,
}

/// A key with its certificate.
pub(super) struct Certified {
    pub(super) key: PathBuf,
    pub(super) certificate: PathBuf,
}

impl Authority {
    pub(super) fn new() -> Self {
        let authority = Self { directory: temp_dir() };
        let made = authority.files("authority");
        output_of(&mut request("/CN=authority of a test", &made));
        authority
    }

    /// The certificate by which to know it.
    pub(super) fn certificate(&self) -> PathBuf {
        self.files("authority").certificate
    }

    /// Vouches for a server or a client of this name.
    pub(super) fn certify(&self, name: &str) -> Certified {
        let (own, made) = (self.files("authority"), self.files(name));
        let mut command = request(&format!("/CN={name}"), &made);
        command.arg("-CA").arg(own.certificate).arg("-CAkey").arg(own.key);
        command.args(["-addext", &format!("subjectAltName=DNS:{name},IP:127.0.0.1")]);
        output_of(command.args(["-addext", "basicConstraints=critical,CA:FALSE"]));
        made
    }

    fn files(&self, name: &str) -> Certified {
        let place = |kind: &str| self.directory.path().join(format!("{name}.{kind}"));
        Certified { key: place("key"), certificate: place("crt") }
    }
}

/// The command that makes a key and its certificate; signed by itself unless more is said.
fn request(subject: &str, made: &Certified) -> Command {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]);
    command.args(["-subj", subject, "-keyout"]).arg(&made.key).arg("-out").arg(&made.certificate);
    command
}
