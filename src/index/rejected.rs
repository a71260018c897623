//! Why a layer could not be indexed: because it could not be read, or because it is not acceptable.
//!
//! The two are kept apart because the first is worth another try. Among the second, wrong bytes are special: a layer whose
//! size or digest is wrong may be right elsewhere, and what its bytes look like says nothing about the layer.

use crate::oci::Digest;
use crate::{codec, tar};

/// Why a layer could not be indexed.
#[derive(Debug, thiserror::Error)]
pub enum BuildError<E: std::error::Error> {
    /// The compressed bytes could not be had.
    #[error("the layer could not be read")]
    Input(#[source] E),
    /// The layer is not what was promised, or is malformed or hostile; reading it again will not help, except where the
    /// bytes themselves are wrong ([`Rejected::is_wrong_bytes`]).
    #[error(transparent)]
    Rejected(#[from] Rejected),
}

/// Why a layer is rejected.
///
/// What is large is boxed, so that results carrying this stay small.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// There are more bytes than promised.
    #[error("layer {layer} should have {expected} bytes, but {found} or more came")]
    TooLong {
        /// The layer.
        layer: Digest,
        /// What its descriptor says.
        expected: u64,
        /// Bytes that came before reading stopped.
        found: u64,
    },
    /// There are fewer bytes than promised.
    #[error("layer {layer} should have {expected} bytes, but only {found} came")]
    TooShort {
        /// The layer.
        layer: Digest,
        /// What its descriptor says.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// The bytes have another digest.
    #[error("the bytes that came for layer {layer} have digest {found}")]
    WrongDigest {
        /// The layer.
        layer: Digest,
        /// The digest of what came.
        found: Box<Digest>,
    },
    /// The uncompressed stream is not the one that the image's config names.
    #[error("layer {layer} unpacks to {found}, but the image's config names {expected}")]
    WrongDiffId {
        /// The layer.
        layer: Digest,
        /// What the config says.
        expected: Box<Digest>,
        /// The digest of what it unpacks to.
        found: Box<Digest>,
    },
    /// The compressed stream is malformed or of a kind that layers may not have.
    #[error("layer {layer} cannot be decompressed")]
    Codec {
        /// The layer.
        layer: Digest,
        /// What is wrong.
        source: codec::Error,
    },
    /// The tar stream is malformed or holds what layers may not.
    #[error("layer {layer} cannot be read as tar")]
    Tar {
        /// The layer.
        layer: Digest,
        /// What is wrong.
        source: Box<tar::Error>,
    },
    /// The layer passes a bound of [`crate::limits`].
    #[error("layer {layer} is refused: {what}")]
    Limit {
        /// The layer.
        layer: Digest,
        /// Which bound.
        what: &'static str,
    },
}

impl Rejected {
    /// True if the bytes are not those of the named layer (size or digest): another source may have the right ones.
    pub fn is_wrong_bytes(&self) -> bool {
        matches!(self, Self::TooLong { .. } | Self::TooShort { .. } | Self::WrongDigest { .. })
    }
}
