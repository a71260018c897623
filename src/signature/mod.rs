//! Signatures of artifacts as cosign makes them, and the keys that a user believes.
//!
//! A registry holds a signature in one of two forms. Both name the digest of what they are about in the text that is signed, so
//! that one signature cannot stand for another artifact:
//!
//! | form | signed text | by whom |
//! |---|---|---|
//! | simple signing (cosign, `SIGNATURE_SPEC.md`) | the payload as it is | cosign up to 2, podman, skopeo |
//! | bundle (cosign, `BUNDLE_SPEC.md`) | a DSSE envelope around an in-toto statement | cosign since 3 |
//!
//! A [`Signature`] is either, reduced to what is signed and by what. [`Signature::signer`] verifies first and reads what was
//! signed afterwards, so that nothing but the outer shell of it is parsed for strangers. Only keys count, which say whom the user
//! believes; certificates, transparency logs and time stamps, which say who that was and when, are not looked at.
//!
//! Nothing here asks a registry; `share` finds signatures.

mod key;
#[cfg(test)]
mod tests;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

pub use key::{Key, KeyError, Keys};

use crate::oci::Digest;

/// The type of a blob that is a payload of simple signing.
pub const SIMPLE_SIGNING_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// Annotation of such a blob: the signature, in base64.
pub const SIGNATURE_ANNOTATION: &str = "dev.cosignproject.cosign/signature";

/// What the types of all versions of bundles begin with.
pub const BUNDLE_TYPE_PREFIX: &str = "application/vnd.dev.sigstore.bundle";

/// What simple signing calls a signature of something in a registry.
const SIMPLE_KIND: &str = "cosign container image signature";

/// The type of an in-toto statement in an envelope.
const STATEMENT_TYPE: &str = "application/vnd.in-toto+json";

/// What the types of all versions of statements begin with.
const STATEMENT_PREFIX: &str = "https://in-toto.io/Statement/v";

/// Annotation of what refers to an artifact with a bundle: what the statement in it says.
pub const PREDICATE_ANNOTATION: &str = "dev.sigstore.bundle.predicateType";

/// What a statement says that is a signature and nothing more. Others, such as a list of ingredients, are signed with the same
/// key, and do not say that their subject is to be believed.
pub const SIGNED: &str = "https://sigstore.dev/cosign/sign/v1";

/// A signature and what was signed, not verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Signature {
    /// What the payload is, if it was signed in an envelope; none for simple signing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_type: Option<String>,
    #[serde(with = "as_base64")]
    payload: Vec<u8>,
    #[serde(rename = "sig", with = "as_base64")]
    bytes: Vec<u8>,
}

/// The outer shell of a bundle (sigstore/protobuf-specs, `sigstore_bundle.proto`).
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    /// None if it holds a signature of a file.
    dsse_envelope: Option<Envelope>,
}

/// DSSE, "JSON Envelope".
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    #[serde(with = "as_base64")]
    payload: Vec<u8>,
    payload_type: String,
    signatures: [Sig; 1],
}

#[derive(Deserialize)]
struct Sig {
    #[serde(with = "as_base64")]
    sig: Vec<u8>,
}

/// What simple signing signs.
#[derive(Deserialize)]
struct Simple {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    image: SimpleImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SimpleImage {
    docker_manifest_digest: String,
}

/// in-toto, "Statement".
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    predicate_type: String,
}

#[derive(Deserialize)]
struct Subject {
    digest: std::collections::BTreeMap<String, String>,
}

impl Signature {
    /// A signature by simple signing: the payload, and the annotation of its blob. None if that is no base64.
    pub fn simple(payload: &[u8], annotation: &str) -> Option<Self> {
        let bytes = STANDARD.decode(annotation).ok()?;
        Some(Self { payload_type: None, payload: payload.to_vec(), bytes })
    }

    /// The signature in a bundle; none if it holds something else. A bundle has exactly one (`sigstore_bundle.proto`).
    pub fn of_bundle(text: &[u8]) -> Result<Option<Self>, serde_json::Error> {
        let Bundle { media_type, dsse_envelope } = serde_json::from_slice(text)?;
        let Some(Envelope { payload, payload_type, signatures: [Sig { sig }] }) =
            dsse_envelope.filter(|_| media_type.starts_with(BUNDLE_TYPE_PREFIX))
        else {
            return Ok(None);
        };
        Ok(Some(Self { payload_type: Some(payload_type), payload, bytes: sig }))
    }

    /// The name of the key by which this is a signature of `artifact`; none if it is none.
    pub fn signer<'a>(&self, artifact: &Digest, keys: &'a Keys) -> Option<&'a str> {
        let text = match &self.payload_type {
            None => std::borrow::Cow::Borrowed(self.payload.as_slice()),
            Some(kind) => pre_authentication(kind, &self.payload).into(),
        };
        let key = keys.iter().find(|key| key.verifies(&text, &self.bytes))?;
        self.is_about(artifact).then(|| key.name())
    }

    /// True if what was signed is that `artifact` is to be believed, whoever says so.
    pub fn is_about(&self, artifact: &Digest) -> bool {
        match self.payload_type.as_deref() {
            None => is_simple_about(&self.payload, artifact),
            Some(STATEMENT_TYPE) => is_statement_about(&self.payload, artifact),
            Some(_) => false,
        }
    }
}

/// What is signed of an envelope (DSSE, "Signature Definition").
fn pre_authentication(kind: &str, payload: &[u8]) -> Vec<u8> {
    let mut text = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len()).into_bytes();
    text.extend_from_slice(payload);
    text
}

fn is_simple_about(payload: &[u8], artifact: &Digest) -> bool {
    serde_json::from_slice(payload).is_ok_and(|Simple { critical }| {
        critical.kind == SIMPLE_KIND && critical.image.docker_manifest_digest == artifact.to_string()
    })
}

fn is_statement_about(payload: &[u8], artifact: &Digest) -> bool {
    let Ok(Statement { kind, subject, predicate_type }) = serde_json::from_slice(payload) else { return false };
    let (algorithm, hex) = (artifact.algorithm().name(), artifact.hex());
    let is_artifact = |subject: &Subject| subject.digest.get(algorithm) == Some(&hex);
    kind.starts_with(STATEMENT_PREFIX) && predicate_type == SIGNED && subject.iter().any(is_artifact)
}

/// Bytes as JSON, in the usual base64.
mod as_base64 {
    use serde::{Deserialize, Deserializer, Serializer, de};

    use super::{Engine, STANDARD};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        STANDARD.decode(text.as_bytes()).map_err(de::Error::custom)
    }
}
