//! Descriptors: how documents name content (image-spec, descriptor.md).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Digest;

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
