//! The arguments about whom to believe about an image: `--trust-index` and `--index-key`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{ValueEnum, ValueHint};

use super::settings::Settings;
use super::stop::usage;
use crate::daemon::control::{IndexKey, TrustIndex};
use crate::daemon::{Code, Failure};
use crate::limits::{KEY_BYTES, KEYS};
use crate::oci::Printable;
use crate::signature::{Key, KeyError};

/// Whose indexes of an image are believed.
#[derive(Debug, Default, clap::Args)]
pub(super) struct TrustArgs {
    /// Whose indexes of the image are believed [default: by the reference]
    ///
    /// An index that lies beside the image in its registry (see `ocifs index`) makes the first mount lazy. By default it is
    /// believed if the reference is a tag, because who can push an index there can also move the tag, and not if the
    /// reference has a digest, which binds no index, unless an --index-key signed it. Whatever is believed is checked as a
    /// whole once the image is complete, and the mount ends if it was wrong. `ocifs status` shows which index came from where,
    /// and why it was believed.
    #[arg(long, value_enum, value_name = "WHOSE")]
    trust_index: Option<Whose>,

    /// Believe indexes that this public key signed, also if the reference has a digest; may be given several times
    ///
    /// The file is in PEM, as `cosign generate-key-pair` and `openssl pkey -pubout` write it; the key is an ECDSA, Ed25519 or RSA
    /// key. An index is signed like an image: `cosign sign --key cosign.key REPOSITORY@DIGEST` with the digest of the artifact
    /// that `ocifs index --push` prints. Certificates and transparency logs are not looked at. Replaces the keys of the
    /// configuration files.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    index_key: Vec<PathBuf>,
}

/// Whose indexes are believed.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum Whose {
    /// Those in the image's repository if the reference is a tag, and those that an --index-key signed
    ByReference,
    /// Nobody's but those that the image's manifest pins by their digests, and those that were imported here: other layers
    /// are streamed once
    None,
    /// Those that an --index-key signed, and those that the manifest pins or that were imported
    Signed,
    /// Those in the image's repository, also if the reference has a digest
    Registry,
}

impl From<Whose> for TrustIndex {
    fn from(whose: Whose) -> Self {
        match whose {
            Whose::ByReference => Self::ByReference,
            Whose::None => Self::None,
            Whose::Signed => Self::Signed,
            Whose::Registry => Self::Registry,
        }
    }
}

impl TrustArgs {
    /// What these and the settings say.
    ///
    /// What a configuration file names is read only where it counts: for images of registries, of which not everything or nothing
    /// is believed.
    pub(super) fn settle(&self, settings: &Settings, is_remote: bool) -> Result<(TrustIndex, Vec<IndexKey>), Failure> {
        let trust = self.trust_index.map_or(settings.trust_index, TrustIndex::from);
        let counts = is_remote && matches!(trust, TrustIndex::ByReference | TrustIndex::Signed);
        let keys = match self.index_key.as_slice() {
            [] if !counts => return Ok((trust, Vec::new())),
            [] => keys(&settings.index_keys)
                .map_err(|failure| failure.hint("a configuration file names it under index-keys"))?,
            named => keys(named)?,
        };
        if trust == TrustIndex::Signed && keys.is_empty() {
            let failure = usage("cannot believe only what is signed", "no key was named");
            return Err(failure.hint("name one with --index-key FILE, or under index-keys in a configuration file"));
        }
        Ok((trust, keys))
    }
}

fn keys(files: &[PathBuf]) -> Result<Vec<IndexKey>, Failure> {
    if files.len() > KEYS {
        return Err(usage("cannot use so many keys", format_args!("{} are named, {KEYS} are allowed", files.len())));
    }
    files.iter().map(|file| key(file)).collect()
}

/// Reads a key. It is checked before a daemon is started for it.
fn key(file: &Path) -> Result<IndexKey, Failure> {
    let name = Printable::path(file).to_string();
    let mut pem = Vec::new();
    let read = File::open(file).and_then(|opened| opened.take(KEY_BYTES).read_to_end(&mut pem));
    read.map_err(|error| {
        let failure = Failure::io(&format!("cannot read the key {name}"), &error);
        // Whoever names a file that is not there has mistyped it; one that may not be read is another matter.
        if failure.code == Code::Denied { failure } else { failure.coded(Code::Usage) }
    })?;
    Key::parse(&name, &pem).map_err(|error| {
        let failure = usage(format!("cannot use the key {name}"), error);
        match error {
            KeyError::Private => {
                failure.hint("name the public key, such as cosign.pub; keep this one where it is used")
            }
            KeyError::Pem => failure.hint("a public key begins with -----BEGIN PUBLIC KEY-----"),
            KeyError::Several => failure.hint("name a file for each key"),
            KeyError::Kind => failure,
        }
    })?;
    // PEM is ASCII, and what stands around it is nobody's business.
    Ok(IndexKey { name, pem: String::from_utf8_lossy(&pem).into_owned() })
}
