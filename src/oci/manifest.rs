//! Manifests and image indexes: the documents a reference leads to (image-spec, manifest.md and image-index.md).
//!
//! One document must not read as an index here and as an image elsewhere, so [`Manifest::parse`] decides by everything
//! the bytes say and refuses contradictions (B-043, B-044). It accepts artifacts, because index artifacts are read
//! with it too; [`ImageManifest::check_runnable`] is what an image has to pass before its layers are fetched, and
//! [`ImageManifest::check`] that its configuration belongs to it.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;

use super::descriptor::{WireDescriptor, texts};
use super::json::{self, Keys};
use super::{Descriptor, DescriptorError, Digest, DigestError, ImageConfig, JsonError, Platform, Printable};
use crate::limits;

/// A document that a reference or an index entry leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one per image, and it is taken apart at once")]
pub enum Manifest {
    /// A list of images for several platforms.
    Index(ImageIndex),
    /// One image, or an artifact in the form of one.
    Image(ImageManifest),
}

/// An image index, or Docker's manifest list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageIndex {
    /// The images, in the order written; it decides between equals.
    pub entries: Vec<IndexEntry>,
    /// Digests of entries that were left out because their algorithm cannot be verified here (B-064).
    pub unverifiable: Vec<String>,
    /// Annotations as written.
    pub annotations: BTreeMap<String, String>,
}

/// One image of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// Its manifest, or a nested index.
    pub descriptor: Descriptor,
    /// The platform it is for, if the index says so.
    pub platform: Option<Platform>,
    /// What the entry is, if it is no image.
    pub artifact_type: Option<String>,
}

impl IndexEntry {
    /// True if it says that it is something else than an image.
    pub fn is_artifact(&self) -> bool {
        self.artifact_type.as_deref().is_some_and(|kind| !is_image_config(kind))
    }
}

/// An image manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageManifest {
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// What the manifest is, if it is no image.
    pub artifact_type: Option<String>,
    /// The manifest that this one is about.
    pub subject: Option<Descriptor>,
    /// Annotations as written.
    pub annotations: BTreeMap<String, String>,
}

/// Why a document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The document is longer than [`crate::limits::MANIFEST_BYTES`].
    #[error("manifest of {0} bytes is too long (the limit is {limit})", limit = limits::MANIFEST_BYTES)]
    TooLong(usize),
    /// The document is not JSON of the right shape.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// The document has Docker's first format, which has no digests for what a layer unpacks to (B-042).
    #[error("manifest has the obsolete schema 1, which cannot be verified; push the image again with a current tool")]
    Schema1,
    /// The document has keys of both an index and an image (B-044).
    #[error("manifest is ambiguous: it has the keys of {first} and {second}")]
    Confused {
        /// A key of one form.
        first: &'static str,
        /// A key of another.
        second: &'static str,
    },
    /// The media type and the keys disagree.
    #[error("manifest is called {media_type} but reads as {shape}")]
    Mislabelled {
        /// The media type, escaped.
        media_type: String,
        /// What it reads as.
        shape: &'static str,
    },
    /// The document has a media type that is no image's.
    #[error("manifest type {0} is not supported")]
    Type(String),
    /// The document has neither the keys of an image nor those of an index.
    #[error("document is neither an image manifest nor an image index")]
    Shapeless,
    /// A descriptor is not usable.
    #[error("{place}: {problem}")]
    Descriptor {
        /// Where it stands: `config`, `layers[3]`.
        place: String,
        /// What is wrong with it.
        problem: DescriptorError,
    },
    /// There are more layers or entries than the bounds allow.
    #[error("manifest lists {count} {what}, the limit is {limit}")]
    TooMany {
        /// How many there are.
        count: usize,
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// The configuration is not that of an image (B-061).
    #[error("not a runnable image: its configuration has the type {0}")]
    NotRunnable(String),
    /// A layer has a type that this program cannot read.
    #[error("layer {digest} has the unsupported type {media_type}")]
    Layer {
        /// The layer.
        digest: Digest,
        /// Its type, escaped.
        media_type: String,
    },
    /// The configuration lists another number of layers than the manifest.
    #[error("manifest has {layers} layers but its configuration has {diff_ids} diff ids")]
    DiffIds {
        /// Layers of the manifest.
        layers: usize,
        /// DiffIDs of the configuration.
        diff_ids: usize,
    },
}

impl ManifestError {
    /// True if the document is well-formed but of a kind that this program does not handle.
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::Schema1 | Self::Type(_) | Self::NotRunnable(_) | Self::Layer { .. } => true,
            Self::Descriptor { problem, .. } => {
                matches!(problem, DescriptorError::Digest(DigestError::Unsupported(_)))
            }
            Self::TooLong(_)
            | Self::Json(_)
            | Self::Confused { .. }
            | Self::Mislabelled { .. }
            | Self::Shapeless
            | Self::TooMany { .. }
            | Self::DiffIds { .. } => false,
        }
    }
}

/// What a manifest media type stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaKind {
    /// An index or manifest list.
    Index,
    /// An image manifest.
    Image,
    /// Docker's schema 1, signed or not.
    Schema1,
}

impl MediaKind {
    /// What `media_type` stands for, parameters aside (B-041); none if it says nothing about manifests.
    pub fn of(media_type: &str) -> Option<Self> {
        match essence(media_type) {
            "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json" => {
                Some(Self::Index)
            }
            "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json" => {
                Some(Self::Image)
            }
            "application/vnd.docker.distribution.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v1+prettyjws" => Some(Self::Schema1),
            _ => None,
        }
    }

    /// True for the kinds that can be read here.
    pub fn is_supported(self) -> bool {
        match self {
            Self::Index | Self::Image => true,
            Self::Schema1 => false,
        }
    }
}

/// The media type without its parameters.
fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

/// Keys whose spelling decides what a manifest means.
const KEYS: [&str; 19] = [
    "annotations",
    "architecture",
    "artifactType",
    "config",
    "data",
    "digest",
    "fsLayers",
    "layers",
    "manifests",
    "mediaType",
    "os",
    "os.features",
    "os.version",
    "platform",
    "schemaVersion",
    "size",
    "subject",
    "urls",
    "variant",
];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireManifest {
    artifact_type: Option<String>,
    config: Option<WireDescriptor>,
    layers: Option<Vec<WireDescriptor>>,
    manifests: Option<Vec<WireDescriptor>>,
    subject: Option<WireDescriptor>,
    annotations: Option<BTreeMap<String, Option<String>>>,
}

/// The part of a manifest that decides how the rest is read.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireHead {
    schema_version: Option<i64>,
    media_type: Option<String>,
}

impl Manifest {
    /// Parses a document whose digest has been checked.
    ///
    /// `media_type_hint` is what the descriptor or the server called it, or empty; a hint that is no manifest type
    /// (`text/plain` and the like) says nothing, one that contradicts the bytes is an error.
    pub fn parse(bytes: &[u8], media_type_hint: &str) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > limits::MANIFEST_BYTES {
            return Err(ManifestError::TooLong(bytes.len()));
        }
        let keys = json::scan(bytes, Keys::Exact(&KEYS))?;
        let head: WireHead = serde_json::from_slice(bytes).map_err(JsonError::from)?;
        let kind = kind(&head, &keys, media_type_hint)?;
        let wire: WireManifest = serde_json::from_slice(bytes).map_err(JsonError::from)?;
        match kind {
            MediaKind::Index => wire.into_index().map(Self::Index),
            MediaKind::Image => wire.into_image().map(Self::Image),
            MediaKind::Schema1 => Err(ManifestError::Schema1),
        }
    }
}

/// Decides what a document is: its own media type, else its keys; the hint must not contradict (B-043, B-045).
fn kind(head: &WireHead, keys: &HashSet<String>, hint: &str) -> Result<MediaKind, ManifestError> {
    let has = |key: &'static str| keys.contains(key).then_some(key);
    let schema1 = has("fsLayers");
    let image = has("layers").or(has("config"));
    let index = has("manifests");
    let forms: Vec<&'static str> = [schema1, image, index].into_iter().flatten().collect();
    if let [first, second, ..] = forms[..] {
        return Err(ManifestError::Confused { first, second });
    }
    let stated = head.media_type.as_deref().filter(|media_type| !media_type.is_empty());
    if schema1.is_some() || head.schema_version == Some(1) || stated.and_then(MediaKind::of) == Some(MediaKind::Schema1)
    {
        return Err(ManifestError::Schema1);
    }
    if let Some(version) = head.schema_version.filter(|version| *version != 2) {
        return Err(ManifestError::Type(format!("with schema version {version}")));
    }
    if let Some(stated) = stated
        && MediaKind::of(stated).is_none()
    {
        return Err(ManifestError::Type(shown(stated)));
    }
    let shape = match (image, index) {
        (Some(_), _) => MediaKind::Image,
        (None, Some(_)) => MediaKind::Index,
        (None, None) => return Err(ManifestError::Shapeless),
    };
    for label in [stated.unwrap_or_default(), hint] {
        if MediaKind::of(label).is_some_and(|kind| kind != shape) {
            let shape = if shape == MediaKind::Index { "an image index" } else { "an image manifest" };
            return Err(ManifestError::Mislabelled { media_type: shown(label), shape });
        }
    }
    Ok(shape)
}

impl WireManifest {
    fn into_index(self) -> Result<ImageIndex, ManifestError> {
        let manifests = self.manifests.unwrap_or_default();
        check_count(manifests.len(), "manifests", limits::INDEX_ENTRIES)?;
        let mut index =
            ImageIndex { entries: Vec::new(), unverifiable: Vec::new(), annotations: texts(self.annotations) };
        for (position, mut wire) in manifests.into_iter().enumerate() {
            let platform = wire.platform.take().and_then(super::platform::WirePlatform::into_platform);
            let artifact_type = wire.artifact_type.take();
            let digest = wire.digest.clone();
            match wire.into_descriptor() {
                Ok(descriptor) => index.entries.push(IndexEntry { descriptor, platform, artifact_type }),
                Err(DescriptorError::Digest(DigestError::Unsupported(_))) => index.unverifiable.push(digest),
                Err(problem) => {
                    return Err(ManifestError::Descriptor { place: format!("manifests[{position}]"), problem });
                }
            }
        }
        Ok(index)
    }

    fn into_image(self) -> Result<ImageManifest, ManifestError> {
        let at = |place: String| move |problem| ManifestError::Descriptor { place, problem };
        let layers = self.layers.unwrap_or_default();
        check_count(layers.len(), "layers", limits::LAYERS)?;
        Ok(ImageManifest {
            config: self.config.ok_or(ManifestError::Shapeless)?.into_descriptor().map_err(at("config".to_owned()))?,
            layers: layers
                .into_iter()
                .enumerate()
                .map(|(position, layer)| layer.into_descriptor().map_err(at(format!("layers[{position}]"))))
                .collect::<Result<_, _>>()?,
            artifact_type: self.artifact_type,
            subject: self
                .subject
                .map(|subject| subject.into_descriptor().map_err(at("subject".to_owned())))
                .transpose()?,
            annotations: texts(self.annotations),
        })
    }
}

fn check_count(count: usize, what: &'static str, limit: usize) -> Result<(), ManifestError> {
    if count > limit { Err(ManifestError::TooMany { count, what, limit }) } else { Ok(()) }
}

impl ImageManifest {
    /// Makes sure that this is an image whose layers can be read, judged by media types only (A-189, A-190, B-061).
    pub fn check_runnable(&self) -> Result<(), ManifestError> {
        if !is_image_config(&self.config.media_type) {
            return Err(ManifestError::NotRunnable(shown(&self.config.media_type)));
        }
        self.layers.iter().try_for_each(|layer| {
            check_layer_media_type(&layer.media_type)
                .map_err(|media_type| ManifestError::Layer { digest: layer.digest, media_type })
        })
    }

    /// Makes sure that `config` describes the layers of this manifest, one by one.
    pub fn check(&self, config: &ImageConfig) -> Result<(), ManifestError> {
        let (layers, diff_ids) = (self.layers.len(), config.diff_ids.len());
        if layers == diff_ids { Ok(()) } else { Err(ManifestError::DiffIds { layers, diff_ids }) }
    }
}

/// True if a configuration of this type is that of a container image.
///
/// Besides the two real types there are those that old registries and builders wrote, which Docker accepts as well.
pub(super) fn is_image_config(media_type: &str) -> bool {
    matches!(
        essence(media_type),
        "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
            | "application/octet-stream"
            | "application/json"
            | ""
    )
}

/// Accepts the layer types of the OCI and Docker formats; answers any other type, escaped for a message.
pub fn check_layer_media_type(media_type: &str) -> Result<(), String> {
    let oci = ["application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.nondistributable.v1.tar"];
    let docker =
        ["application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar"];
    let ends_well = |prefixes: [&str; 2], endings: [&str; 3]| {
        prefixes.iter().filter_map(|prefix| essence(media_type).strip_prefix(prefix)).any(|end| endings.contains(&end))
    };
    if ends_well(oci, ["", "+gzip", "+zstd"]) || ends_well(docker, ["", ".gzip", ".zstd"]) {
        Ok(())
    } else {
        Err(shown(media_type))
    }
}

fn shown(media_type: &str) -> String {
    if media_type.is_empty() { "(none)".to_owned() } else { format!("{:.200}", Printable::of(media_type)) }
}

#[cfg(test)]
mod tests;
