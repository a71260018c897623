//! The manifest of an index artifact (image-spec 1.1, manifest.md, "Guidelines for Artifact Usage").
//!
//! It is written in one way only: keys in a fixed order, layers in the order of the image, no time stamps. It may be
//! written by anybody, so reading it believes no size and no digest beyond the bounds of an index.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use serde::Serialize;

use super::wire::WireDescriptor;
use super::{ARTIFACT_TYPE, Error, LAYER_INDEX_TYPE, PROFILE_TYPE, SociLayer};
use crate::limits::{INDEX_BYTES, LAYERS, PROFILE_TEXT_BYTES};
use crate::oci::{Descriptor, Digest, Manifest};

/// The type of the manifest itself.
pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// The type of a configuration that says nothing; its content is [`EMPTY`].
pub(super) const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";

/// The content of an empty configuration.
pub(super) const EMPTY: &[u8] = b"{}";

/// Annotation of a blob: the digest of the layer that it is the index of.
const LAYER: &str = "dev.ocifs.layer.digest";

/// Annotation of a blob: how many bytes of it come before the windows.
const METADATA_SIZE: &str = "dev.ocifs.index.metadata.size";

/// Annotation of a blob: the digest of these bytes, so that they can be believed before the windows are here.
const METADATA_DIGEST: &str = "dev.ocifs.index.metadata.digest";

/// What somebody put beside an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The image's manifest.
    pub subject: Descriptor,
    /// The index of each distinct layer, in the order of the image.
    pub layers: Vec<LayerBlob>,
    /// What a start of the image reads.
    pub profile: Option<Descriptor>,
}

/// The index of one layer as a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerBlob {
    /// The layer.
    pub layer: Digest,
    /// The blob.
    pub blob: Descriptor,
    /// The part of it that is needed before anything can be read.
    pub metadata: Metadata,
}

/// The first part of an encoded index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// Its length in bytes.
    pub size: u64,
    /// Its digest.
    pub digest: Digest,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    schema_version: u32,
    media_type: &'a str,
    artifact_type: &'a str,
    config: WireDescriptor<'a>,
    layers: Vec<WireDescriptor<'a>>,
    subject: WireDescriptor<'a>,
}

impl LayerBlob {
    /// By what the cache keeps what it says: by the digest of the part that is always read and checked, which has the digests
    /// of the rest.
    pub fn claim(&self) -> Digest {
        crate::store::claim_name("shared index", &[&self.metadata.digest, &self.blob.size])
    }

    /// A zTOC, which is read as a whole before anything else.
    pub fn of_ztoc(listed: &SociLayer) -> Self {
        let SociLayer { layer, ztoc, .. } = listed;
        Self { layer: *layer, blob: ztoc.clone(), metadata: Metadata { size: ztoc.size, digest: ztoc.digest } }
    }

    /// The blob of an encoded index whose first `metadata` bytes come before its windows.
    pub fn new(layer: Digest, encoded: &[u8], metadata: u64) -> Self {
        let size = encoded.len() as u64;
        let first = usize::try_from(metadata).unwrap_or(usize::MAX).min(encoded.len());
        Self {
            layer,
            blob: Descriptor::new(LAYER_INDEX_TYPE, Digest::sha256(encoded), size),
            metadata: Metadata { size: first as u64, digest: Digest::sha256(&encoded[..first]) },
        }
    }

    fn wire(&self) -> WireDescriptor<'_> {
        let annotations = BTreeMap::from([
            (LAYER, self.layer.to_string()),
            (METADATA_SIZE, self.metadata.size.to_string()),
            (METADATA_DIGEST, self.metadata.digest.to_string()),
        ]);
        WireDescriptor { annotations, ..WireDescriptor::of(LAYER_INDEX_TYPE, &self.blob.digest, self.blob.size) }
    }
}

impl Artifact {
    /// The manifest's bytes.
    pub fn to_bytes(&self) -> Bytes {
        let layers = self.layers.iter().map(LayerBlob::wire);
        let profile = self.profile.iter().map(|blob| WireDescriptor::of(PROFILE_TYPE, &blob.digest, blob.size));
        let wire = Wire {
            schema_version: 2,
            media_type: MANIFEST_TYPE,
            artifact_type: ARTIFACT_TYPE,
            config: WireDescriptor::of(EMPTY_TYPE, &Digest::sha256(EMPTY), EMPTY.len() as u64),
            layers: layers.chain(profile).collect(),
            subject: WireDescriptor::of(&self.subject.media_type, &self.subject.digest, self.subject.size),
        };
        serde_json::to_vec(&wire).expect("texts and numbers are JSON").into()
    }

    /// Reads a manifest that must be about `subject`. Blobs of other types are for other programs.
    pub fn parse(bytes: &[u8], subject: &Digest) -> Result<Self, Error> {
        let digest = Digest::sha256(bytes);
        let refuse = |why: String| Err(Error::Artifact { digest, why });
        let manifest = match Manifest::parse(bytes, MANIFEST_TYPE) {
            Ok(Manifest::Image(manifest)) => manifest,
            Ok(Manifest::Index(_)) => return refuse("it is an image index".to_owned()),
            Err(error) => return Err(Error::Manifest { digest, source: Box::new(error) }),
        };
        if manifest.artifact_type.as_deref() != Some(ARTIFACT_TYPE) {
            return refuse("it is of another type".to_owned());
        }
        let about = match manifest.subject {
            Some(about) if about.digest == *subject => about,
            Some(about) => return refuse(format!("it is about {}", about.digest)),
            None => return refuse("it is about no image".to_owned()),
        };
        let mut artifact = Self { subject: about, layers: Vec::new(), profile: None };
        let mut seen = HashSet::new();
        for blob in manifest.layers {
            match blob.media_type.as_str() {
                LAYER_INDEX_TYPE => {
                    let found = layer_blob(blob).map_err(|why| Error::Artifact { digest, why })?;
                    if !seen.insert(found.layer) || artifact.layers.len() == LAYERS {
                        return refuse(format!("it has two indexes of layer {}, or too many", found.layer));
                    }
                    artifact.layers.push(found);
                }
                PROFILE_TYPE if blob.size <= PROFILE_TEXT_BYTES as u64 => artifact.profile = Some(blob),
                _ => {}
            }
        }
        Ok(artifact)
    }

    /// The index of `layer`.
    pub fn layer(&self, layer: &Digest) -> Option<&LayerBlob> {
        self.layers.iter().find(|blob| blob.layer == *layer)
    }
}

fn layer_blob(blob: Descriptor) -> Result<LayerBlob, String> {
    let text = |name: &str| blob.annotations.get(name).ok_or_else(|| format!("blob {} lacks {name}", blob.digest));
    let wrong = |name: &str| format!("blob {} has an unusable {name}", blob.digest);
    let layer = text(LAYER)?.parse().map_err(|_| wrong(LAYER))?;
    let size: u64 = text(METADATA_SIZE)?.parse().map_err(|_| wrong(METADATA_SIZE))?;
    let digest = text(METADATA_DIGEST)?.parse().map_err(|_| wrong(METADATA_DIGEST))?;
    if blob.size > INDEX_BYTES || size > blob.size {
        return Err(format!("blob {} has {} bytes, {size} of them before the windows", blob.digest, blob.size));
    }
    let blob = Descriptor { urls: Vec::new(), data: None, ..blob };
    Ok(LayerBlob { layer, blob, metadata: Metadata { size, digest } })
}
