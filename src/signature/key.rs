//! Public keys, as `openssl pkey -pubout` and `cosign generate-key-pair` write them.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, alg_id};
use webpki::{Error, RawPublicKeyEntity};

/// Bytes of RSA keys of which any signature can be right: no length that is verified is outside, and none of 1536 bits within.
const RSA_BYTES: std::ops::Range<usize> = 256..1100;

/// A public key that a user believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    name: String,
    /// RFC 5280, 4.1: algorithm and key.
    spki: SubjectPublicKeyInfoDer<'static>,
}

/// Why a key cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It is the other half.
    #[error("it is a private key")]
    Private,
    /// It is something else.
    #[error("it is no public key in PEM")]
    Pem,
    /// There are others beside it.
    #[error("it holds more than one key")]
    Several,
    /// It is of a kind that nothing here can verify.
    #[error("it is neither an ECDSA key (P-256, P-384, P-521) nor an Ed25519 key nor an RSA key of 2048 to 8192 bits")]
    Kind,
}

/// The keys that a user believes, in the order in which they were named. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys(Arc<[Key]>);

impl Default for Keys {
    fn default() -> Self {
        Self([].into())
    }
}

impl FromIterator<Key> for Keys {
    fn from_iter<T: IntoIterator<Item = Key>>(keys: T) -> Self {
        Self(keys.into_iter().collect())
    }
}

impl Keys {
    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Key> {
        self.0.iter()
    }
}

impl Key {
    /// Reads a public key; `name` is how its user calls it.
    pub fn parse(name: &str, pem: &[u8]) -> Result<Self, KeyError> {
        if is_private(pem) {
            return Err(KeyError::Private);
        }
        let mut keys = SubjectPublicKeyInfoDer::pem_slice_iter(pem);
        let spki = keys.next().and_then(Result::ok).ok_or(KeyError::Pem)?;
        if keys.next().is_some() {
            return Err(KeyError::Several);
        }
        // Whoever does not know the algorithm says so, whatever the signature.
        let knows = |algorithm: &&&dyn SignatureVerificationAlgorithm| {
            verify(&spki, **algorithm, b"", b"") == Err(Error::InvalidSignatureForPublicKey)
        };
        let known = algorithms().iter().find(knows).ok_or(KeyError::Kind)?;
        if known.public_key_alg_id() == alg_id::RSA_ENCRYPTION && !RSA_BYTES.contains(&spki.len()) {
            return Err(KeyError::Kind);
        }
        Ok(Self { name: name.to_owned(), spki })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// True if `signature` is one of `message` by this key, in whatever way such a key signs.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        algorithms().iter().any(|algorithm| verify(&self.spki, *algorithm, message, signature).is_ok())
    }
}

fn algorithms() -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    aws_lc_rs::default_provider().signature_verification_algorithms.all
}

fn verify(
    spki: &SubjectPublicKeyInfoDer<'_>,
    algorithm: &dyn SignatureVerificationAlgorithm,
    message: &[u8],
    signature: &[u8],
) -> Result<(), Error> {
    RawPublicKeyEntity::try_from(spki)?.verify_signature(algorithm, message, signature)
}

/// True if the text has a private key in it, of whatever kind.
fn is_private(pem: &[u8]) -> bool {
    let ends = |line: &[u8]| line.starts_with(b"-----BEGIN ") && line.trim_ascii_end().ends_with(b"PRIVATE KEY-----");
    pem.split(|byte| *byte == b'\n').any(ends)
}
