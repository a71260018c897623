//! Descriptors: how documents name content (image-spec, descriptor.md).

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;

use super::{Digest, DigestError};
use crate::limits;

/// A pointer to content: what it is, how long it is and what its digest must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// The media type as written; layers are recognised by content, not by this.
    pub media_type: String,
    /// The digest the content must have.
    pub digest: Digest,
    /// The exact length of the content in bytes, at most [`crate::limits::BLOB_BYTES`].
    pub size: u64,
    /// Other places where the content may be had (nondistributable layers, B-071).
    pub urls: Vec<String>,
    /// The content itself, embedded; already checked against size and digest (B-057).
    pub data: Option<Bytes>,
    /// Annotations as written.
    pub annotations: BTreeMap<String, String>,
}

/// Why a descriptor is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescriptorError {
    /// The digest is malformed or cannot be verified.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// The size is negative or larger than JSON numbers are exact (B-059).
    #[error("size {0} is out of range")]
    Size(i64),
}

impl Descriptor {
    /// A descriptor of content that is at hand, without annotations.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.into(), digest, size, urls: Vec::new(), data: None, annotations: BTreeMap::new() }
    }
}

/// A descriptor as documents write it; an index adds `platform`, which other places leave out.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct WireDescriptor {
    pub(super) media_type: Option<String>,
    pub(super) digest: String,
    size: i64,
    urls: Option<Vec<String>>,
    data: Option<String>,
    annotations: Option<BTreeMap<String, Option<String>>>,
    pub(super) artifact_type: Option<String>,
    pub(super) platform: Option<super::platform::WirePlatform>,
}

impl WireDescriptor {
    /// Checks everything the descriptor states about itself.
    pub(super) fn into_descriptor(self) -> Result<Descriptor, DescriptorError> {
        let digest: Digest = self.digest.parse()?;
        let size = u64::try_from(self.size)
            .ok()
            .filter(|size| *size <= limits::BLOB_BYTES)
            .ok_or(DescriptorError::Size(self.size))?;
        Ok(Descriptor {
            media_type: self.media_type.unwrap_or_default(),
            digest,
            size,
            urls: self.urls.unwrap_or_default(),
            data: self.data.and_then(|data| embedded(&data, size, &digest)),
            annotations: texts(self.annotations),
        })
    }
}

/// Decodes the `data` field. Content that is not what the descriptor says is left out and fetched as if it were not
/// there: the specification leaves the choice, and the digest decides either way.
fn embedded(data: &str, size: u64, digest: &Digest) -> Option<Bytes> {
    let content = STANDARD.decode(data).ok();
    let content = content.filter(|content| content.len() as u64 == size && digest.matches(content));
    if content.is_none() {
        tracing::debug!(%digest, "the embedded data of a descriptor does not have its size and digest, ignored");
    }
    content.map(Bytes::from)
}

/// A map of texts as Go reads it: a null value is the empty text (C-027).
pub(super) fn texts(map: Option<BTreeMap<String, Option<String>>>) -> BTreeMap<String, String> {
    map.unwrap_or_default().into_iter().map(|(key, text)| (key, text.unwrap_or_default())).collect()
}
