//! What is said about the indexes of images: making them, and those that lie beside an image in its registry.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Image;

/// Indexes to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IndexWork {
    /// The image.
    pub image: Image,
    /// For all platforms that the reference names, not only one.
    pub all_platforms: bool,
    /// What a start reads.
    pub profile: IndexProfile,
    /// Put the artifact into the image's repository.
    pub push: bool,
    /// Remove what else lies beside the image once it is there.
    #[serde(default)]
    pub replace: bool,
    /// Write the artifact into this image layout; absolute.
    pub output: Option<PathBuf>,
    /// Whom it is for: `ocifs`, `soci` or `soci-v2`.
    pub format: String,
    /// For `soci-v2`: the tag of the image that names the index.
    #[serde(default)]
    pub tag: Option<String>,
}

/// The profile that goes with an index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IndexProfile {
    /// The one that was recorded here, if there is one.
    Auto,
    /// None.
    None,
    /// This one.
    Text(String),
}

/// Indexes that are to be taken out of a registry.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UnwantedIndexes {
    /// The image.
    pub image: Image,
    /// For which program they are, as in [`IndexWork::format`].
    pub format: String,
    /// The artifact, whomever it is for; all without it.
    pub artifact: Option<String>,
}

/// An image that was indexed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IndexedImage {
    /// Digest of the image's manifest.
    pub digest: String,
    /// Its platform.
    pub platform: String,
    /// Digest of the artifact's manifest.
    pub artifact: String,
    /// Its distinct layers from the bottom.
    pub layers: Vec<IndexedLayer>,
    /// Length of the profile in the artifact.
    pub profile_size: Option<u64>,
    /// What pushing it did.
    pub pushed: Option<PushReport>,
    /// The layout that it was written to.
    pub output: Option<PathBuf>,
    /// The image that names the artifact, where only such a one is believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub converted: Option<ConvertedImage>,
}

/// An image that has the layers of another one, and names its index.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ConvertedImage {
    /// What it is called.
    pub reference: String,
    /// Digest of its manifest.
    pub manifest: String,
    /// Digest of the image index that the reference names.
    pub digest: String,
}

/// A layer that was indexed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IndexedLayer {
    /// Digest of the blob.
    pub digest: String,
    /// Length of the blob.
    pub size: u64,
    /// Length of its index.
    pub index_size: u64,
    /// Bytes of the index that a mount waits for.
    pub metadata_size: u64,
    /// Spans it is divided into.
    pub spans: u32,
    /// True if it was streamed for it now.
    pub was_streamed: bool,
    /// Why it cannot be read lazily, if it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_lazy: Option<String>,
}

/// What pushing an artifact did.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PushReport {
    /// Where it is.
    pub repository: String,
    /// How it can be found: `api`, `tag` or `image`.
    pub listed: String,
    /// Blobs that were there already.
    pub existed: usize,
    /// Blobs that the registry took from another repository.
    pub mounted: usize,
    /// Blobs that were sent.
    pub sent: usize,
    /// Bytes of those.
    pub bytes: u64,
    /// Other artifacts that were removed.
    #[serde(default)]
    pub replaced: usize,
}

/// An index artifact beside an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SharedIndex {
    /// Digest of the artifact's manifest.
    pub digest: String,
    /// For which program it was made: `ocifs`, `soci` or `soci-v2`.
    #[serde(default = "ours")]
    pub format: String,
    /// Digest of the image's manifest.
    pub image: String,
    /// The image's platform.
    pub platform: String,
    /// Distinct layers of the image.
    pub image_layers: usize,
    /// The layers that it has an index of.
    pub layers: Vec<SharedLayer>,
    /// Length of its profile, if it has one.
    pub profile_size: Option<u64>,
    /// True if a mount would believe it.
    pub believed: bool,
    /// Why, or why not.
    pub reason: String,
}

fn ours() -> String {
    "ocifs".to_owned()
}

/// The index of one layer in an artifact.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SharedLayer {
    /// Digest of the layer.
    pub digest: String,
    /// Length of the layer, if it is one of the image.
    pub size: Option<u64>,
    /// Digest of the index.
    pub index: String,
    /// Length of the index.
    pub index_size: u64,
    /// Bytes of the index that a mount waits for.
    pub metadata_size: u64,
}
