//! Why an image cannot be had.

use crate::oci::{Digest, NoMatch};
use crate::{fetch, oci, source, store, tree};

/// A failure to resolve or open an image.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source failed.
    #[error(transparent)]
    Source(#[from] source::Error),
    /// The image has no manifest for the platform.
    #[error(transparent)]
    Platform(#[from] NoMatch),
    /// A manifest or index is malformed, ambiguous or of a kind that cannot be used.
    #[error("manifest {digest} cannot be used")]
    Manifest {
        /// The manifest.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: Box<oci::ManifestError>,
    },
    /// The configuration is malformed or does not fit the manifest.
    #[error("image configuration {digest} cannot be used")]
    Config {
        /// The configuration.
        digest: Digest,
        /// What is wrong with it.
        #[source]
        source: Box<oci::ConfigError>,
    },
    /// An image index nests deeper than anybody needs.
    #[error("image index {0} is nested too deeply")]
    Depth(Digest),
    /// The source must not be asked and the cache does not have it.
    #[error("{0} is not in the cache, and the source may not be asked")]
    Offline(String),
    /// The source must not be asked, and the cache lacks bytes of layers of which it has no index: without one there is no
    /// tree.
    #[error("{} of {count} layers are not in the cache, and the source may not be asked", lacking.len())]
    Lacking {
        /// The layers.
        lacking: Vec<Lack>,
        /// How many layers the image has.
        count: usize,
    },
    /// The layer's uncompressed bytes are not what this image's configuration says.
    #[error(transparent)]
    DiffId(Box<DiffIdMismatch>),
    /// A layer could not be fetched or is rejected.
    #[error(transparent)]
    Fetch(#[from] fetch::Error),
    /// The layers do not merge.
    #[error(transparent)]
    Tree(#[from] tree::Error),
    /// The cache directory failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A task ended without an answer: the daemon is stopping.
    #[error("interrupted")]
    Interrupted,
}

/// A layer of which the cache has not all bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lack {
    /// The layer.
    pub layer: Digest,
    /// Bytes that are not in the cache.
    pub missing: u64,
    /// Length of the layer.
    pub size: u64,
}

/// A layer that the image's configuration describes wrongly.
#[derive(Debug, thiserror::Error)]
#[error("layer {layer} has diffID {found}, but the image configuration says {expected}")]
pub struct DiffIdMismatch {
    /// The layer.
    pub layer: Digest,
    /// What its bytes have.
    pub found: Digest,
    /// What the configuration says.
    pub expected: Digest,
}
