//! SOCI's index of an image: a manifest that lists the zTOC of each of its layers.
//!
//! Version 1 lies beside the image, which it names as its subject, like an artifact of ours; anybody who can push can put
//! one there. Version 2 is named by its digest in an annotation of the image's manifest, which so believes it. They have the same
//! form. No type is written where others look for it: it is that of the configuration. Layers that SOCI found too small are
//! not listed.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use serde::Serialize;

use super::Error;
use super::artifact::MANIFEST_TYPE;
use super::discover::list;
use super::wire::WireDescriptor;
use crate::index::soci::SPAN_SIZE;
use crate::limits::{ARTIFACT_BYTES, LAYERS, PARALLEL_ARTIFACTS, ZTOC_BYTES};
use crate::oci::{Descriptor, Digest, Manifest};
use crate::registry::{Repository, Selector};
use crate::source::{BoxFuture, Source};

/// The type of the first version, by which referrers are asked for.
pub const SOCI_TYPE: &str = "application/vnd.amazon.soci.index.v1+json";

/// The type of the second version.
pub(super) const SOCI_V2_TYPE: &str = "application/vnd.amazon.soci.index.v2+json";

/// Annotation of an image's manifest: the digest of its index, version 2.
pub const SOCI_PIN: &str = "com.amazon.soci.index-digest";

/// The type of a zTOC, which is that of anything.
const ZTOC_TYPE: &str = "application/octet-stream";

/// The content of the configuration.
const CONFIG: &[u8] = b"{}";

const LAYER: &str = "com.amazon.soci.image-layer-digest";
const LAYER_TYPE: &str = "com.amazon.soci.image-layer-mediaType";
const SPAN: &str = "com.amazon.soci.span-size";
const TOOL: &str = "com.amazon.soci.build-tool-identifier";

/// SOCI's index of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SociIndex {
    /// The image's manifest; none in version 2.
    pub subject: Option<Descriptor>,
    /// The zTOCs, in the order of the layers.
    pub layers: Vec<SociLayer>,
}

/// The zTOC of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SociLayer {
    /// The layer.
    pub layer: Digest,
    /// Its media type.
    pub media_type: String,
    /// The blob.
    pub ztoc: Descriptor,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
    schema_version: u32,
    media_type: &'a str,
    config: WireDescriptor<'a>,
    layers: Vec<WireDescriptor<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<WireDescriptor<'a>>,
    annotations: BTreeMap<&'a str, &'a str>,
}

impl SociLayer {
    /// The blob of `ztoc`, which is of `layer`.
    pub fn new(layer: &Descriptor, ztoc: &[u8]) -> Self {
        let blob = Descriptor::new(ZTOC_TYPE, Digest::sha256(ztoc), ztoc.len() as u64);
        Self { layer: layer.digest, media_type: layer.media_type.clone(), ztoc: blob }
    }

    fn wire(&self) -> WireDescriptor<'_> {
        let annotations = BTreeMap::from([
            (LAYER, self.layer.to_string()),
            (LAYER_TYPE, self.media_type.clone()),
            (SPAN, SPAN_SIZE.to_string()),
        ]);
        WireDescriptor { annotations, ..WireDescriptor::of(ZTOC_TYPE, &self.ztoc.digest, self.ztoc.size) }
    }
}

impl SociIndex {
    /// The manifest's bytes, as SOCI's own tool writes them: version 1 has a subject, version 2 has none. Nothing in them
    /// tells when or where they were made.
    pub fn to_bytes(&self) -> Bytes {
        let subject = self.subject.as_ref();
        let version = if subject.is_some() { SOCI_TYPE } else { SOCI_V2_TYPE };
        let wire = Wire {
            schema_version: 2,
            media_type: MANIFEST_TYPE,
            config: WireDescriptor::of(version, &Digest::sha256(CONFIG), CONFIG.len() as u64),
            layers: self.layers.iter().map(SociLayer::wire).collect(),
            subject: subject.map(|image| WireDescriptor::of(&image.media_type, &image.digest, image.size)),
            annotations: BTreeMap::from([(TOOL, "ocifs")]),
        };
        serde_json::to_vec(&wire).expect("texts and numbers are JSON").into()
    }

    /// Reads a manifest that must be about `subject`, or about none if the image names it. Blobs that are no zTOCs, such as
    /// SOCI's lists of spans to fetch first, are passed over.
    pub fn parse(bytes: &[u8], subject: &Digest) -> Result<Self, Error> {
        let digest = Digest::sha256(bytes);
        let refuse = |why: String| Error::Artifact { digest, why };
        let manifest = match Manifest::parse(bytes, MANIFEST_TYPE) {
            Ok(Manifest::Image(manifest)) => manifest,
            Ok(Manifest::Index(_)) => return Err(refuse("it is an image index".to_owned())),
            Err(error) => return Err(Error::Manifest { digest, source: Box::new(error) }),
        };
        match (manifest.config.media_type.as_str(), &manifest.subject) {
            (SOCI_TYPE, Some(about)) | (SOCI_V2_TYPE, Some(about)) if about.digest != *subject => {
                return Err(refuse(format!("it is about {}", about.digest)));
            }
            (SOCI_TYPE, None) => return Err(refuse("it is about no image".to_owned())),
            (SOCI_TYPE | SOCI_V2_TYPE, _) => {}
            _ => return Err(refuse("it is of another type".to_owned())),
        }
        let mut seen = HashSet::new();
        let mut layers = Vec::new();
        for blob in manifest.layers.into_iter().filter(|blob| blob.media_type == ZTOC_TYPE) {
            let layer = layer_of(blob).map_err(refuse)?;
            if !seen.insert(layer.layer) || layers.len() == LAYERS {
                return Err(refuse(format!("it has two zTOCs of layer {}, or too many", layer.layer)));
            }
            layers.push(layer);
        }
        Ok(Self { subject: manifest.subject, layers })
    }

    /// The zTOC of `layer`.
    pub fn layer(&self, layer: &Digest) -> Option<&SociLayer> {
        self.layers.iter().find(|found| found.layer == *layer)
    }
}

fn layer_of(blob: Descriptor) -> Result<SociLayer, String> {
    let text = |name: &str| blob.annotations.get(name).cloned();
    let layer = text(LAYER).ok_or_else(|| format!("blob {} is of no layer", blob.digest))?;
    let layer = layer.parse().map_err(|_| format!("blob {} has an unusable {LAYER}", blob.digest))?;
    if blob.size > ZTOC_BYTES {
        return Err(format!("blob {} has {} bytes", blob.digest, blob.size));
    }
    let media_type = text(LAYER_TYPE).unwrap_or_default();
    let ztoc = Descriptor { urls: Vec::new(), data: None, ..blob };
    Ok(SociLayer { layer, media_type, ztoc })
}

/// Finds SOCI's indexes, version 1, of the image `subject`: those with the most zTOCs first, then by digest. One that cannot be
/// read is passed over with a warning.
pub async fn discover_soci(
    repository: &Repository,
    subject: &Digest,
) -> Result<Vec<(Descriptor, SociIndex, Bytes)>, Error> {
    let listed = list(repository, subject, SOCI_TYPE).await?;
    let mut reading: Vec<BoxFuture<'_, Result<_, Error>>> = Vec::new();
    for manifest in listed {
        reading.push(Box::pin(read(repository, manifest, subject)));
    }
    let mut reading = stream::iter(reading).buffer_unordered(PARALLEL_ARTIFACTS);
    let mut found = Vec::new();
    while let Some(index) = reading.next().await {
        match index {
            Ok(index) => found.push(index),
            Err(error) => tracing::warn!(%subject, error = &error as &dyn std::error::Error, "passed over"),
        }
    }
    found.sort_by_key(|(manifest, index, _)| (std::cmp::Reverse(index.layers.len()), manifest.digest));
    Ok(found)
}

async fn read(
    repository: &Repository,
    manifest: Descriptor,
    subject: &Digest,
) -> Result<(Descriptor, SociIndex, Bytes), Error> {
    if manifest.size > ARTIFACT_BYTES {
        let why = format!("it has {} bytes, at most {ARTIFACT_BYTES} are read", manifest.size);
        return Err(Error::Artifact { digest: manifest.digest, why });
    }
    let manifest = Descriptor { media_type: MANIFEST_TYPE.to_owned(), ..manifest };
    let document = repository.manifest(&manifest).await?;
    let index = SociIndex::parse(&document.bytes, subject)?;
    Ok((manifest, index, document.bytes))
}

/// Fetches SOCI's index, version 2, that the image `subject` names by its digest, with its bytes. The annotation does not tell
/// how long it is. One round trip.
pub async fn pinned_soci(
    repository: &Repository,
    digest: Digest,
    subject: &Digest,
) -> Result<(SociIndex, Bytes), Error> {
    let document = repository.select(Selector::Digest(digest)).resolve().await?;
    let size = document.bytes.len() as u64;
    if size > ARTIFACT_BYTES {
        return Err(Error::Artifact { digest, why: format!("it has {size} bytes, at most {ARTIFACT_BYTES} are read") });
    }
    Ok((SociIndex::parse(&document.bytes, subject)?, document.bytes))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn image() -> Descriptor {
        Descriptor::new(MANIFEST_TYPE, Digest::sha256(b"image"), 5)
    }

    fn index() -> SociIndex {
        let layer = |name: &str| {
            let layer =
                Descriptor::new("application/vnd.oci.image.layer.v1.tar+gzip", Digest::sha256(name.as_bytes()), 9);
            SociLayer::new(&layer, format!("zTOC of {name}").as_bytes())
        };
        SociIndex { subject: Some(image()), layers: vec![layer("one"), layer("two")] }
    }

    proptest! {
        #[test]
        fn what_is_read_holds_what_was_written_and_nothing_that_may_not_be(
            names in prop::collection::btree_set("[a-z]{1,8}", 0..20),
            has_subject: bool,
            at: usize,
            bytes in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let layer = |name: &String| {
                let layer = Descriptor::new("application/vnd.oci.image.layer.v1.tar", Digest::sha256(name.as_bytes()), 9);
                SociLayer::new(&layer, format!("zTOC of {name}").as_bytes())
            };
            let index = SociIndex { subject: has_subject.then(image), layers: names.iter().map(layer).collect() };
            let written = index.to_bytes();
            let read = SociIndex::parse(&written, &image().digest).expect("ours");
            prop_assert_eq!(read.to_bytes(), written.clone());
            prop_assert!(!has_subject || SociIndex::parse(&written, &Digest::sha256(b"another")).is_err());
            let mut damaged = written.to_vec();
            let at = at % damaged.len();
            damaged.splice(at..damaged.len().min(at + bytes.len() / 2), bytes);
            if let Ok(read) = SociIndex::parse(&damaged, &image().digest) {
                let distinct: HashSet<_> = read.layers.iter().map(|layer| layer.layer).collect();
                prop_assert_eq!(distinct.len(), read.layers.len());
                prop_assert!(read.layers.iter().all(|layer| layer.ztoc.size <= ZTOC_BYTES));
                prop_assert!(read.subject.is_none_or(|subject| subject.digest == image().digest));
            }
        }
    }

    #[test]
    fn an_index_has_the_form_that_soci_writes() {
        let bytes = index().to_bytes();
        let read = SociIndex::parse(&bytes, &image().digest).expect("ours");
        assert_eq!(read.to_bytes(), bytes);
        assert_eq!(
            read.layer(&Digest::sha256(b"two")).map(|layer| layer.ztoc.digest),
            Some(Digest::sha256(b"zTOC of two"))
        );
        let wire: Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!(wire.get("artifactType"), None, "it is that of the configuration");
        assert_eq!(
            wire["config"],
            json!({
                "mediaType": "application/vnd.amazon.soci.index.v1+json",
                "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
                "size": 2,
            })
        );
        assert_eq!(
            wire["layers"][0]["annotations"],
            json!({
                "com.amazon.soci.image-layer-digest": Digest::sha256(b"one").to_string(),
                "com.amazon.soci.image-layer-mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "com.amazon.soci.span-size": "4194304",
            })
        );
        assert_eq!(wire["layers"][0]["mediaType"], "application/octet-stream");
        assert_eq!(wire["subject"]["digest"], image().digest.to_string());
    }

    #[test]
    fn d_025_indexes_that_say_what_they_may_not_are_refused() {
        let honest: Value = serde_json::from_slice(&index().to_bytes()).expect("JSON");
        let read = |spoil: &dyn Fn(&mut Value)| {
            let mut spoilt = honest.clone();
            spoil(&mut spoilt);
            SociIndex::parse(spoilt.to_string().as_bytes(), &image().digest)
        };
        let refused = |spoil: &dyn Fn(&mut Value)| read(spoil).expect_err("it is refused").to_string();
        let other = Digest::sha256(b"other").to_string();
        assert!(refused(&|index| index["subject"]["digest"] = other.clone().into()).contains("it is about sha256:"));
        assert!(refused(&|index| index["subject"] = Value::Null).contains("cannot be used"));
        assert!(
            refused(&|index| index["config"]["mediaType"] = "text/plain".into()).ends_with("it is of another type")
        );
        let digest = |index: &mut Value, text: &str| index["layers"][0]["annotations"][LAYER] = text.into();
        assert!(refused(&|index| digest(index, "../x")).contains("has an unusable"));
        assert!(refused(&|index| digest(index, &Digest::sha256(b"two").to_string())).contains("it has two zTOCs"));
        assert!(refused(&|index| index["layers"][0]["size"] = (ZTOC_BYTES + 1).into()).contains("bytes"));
        assert!(refused(&|index| index["layers"][0]["annotations"] = json!({})).contains("is of no layer"));
        let prefetch = "application/vnd.amazon.soci.prefetch.v1+json";
        let passed = read(&|index| index["layers"][0]["mediaType"] = prefetch.into()).expect("others are passed over");
        assert_eq!(passed.layers.len(), 1);
    }

    #[test]
    fn the_second_version_has_no_subject_and_another_type() {
        let second = SociIndex { subject: None, ..index() };
        let bytes = second.to_bytes();
        let read = SociIndex::parse(&bytes, &image().digest).expect("the image names it");
        assert_eq!((&read.subject, read.to_bytes()), (&None, bytes.clone()));
        let mut wire: Value = serde_json::from_slice(&bytes).expect("JSON");
        assert_eq!(wire["config"]["mediaType"], "application/vnd.amazon.soci.index.v2+json");
        assert_eq!(wire.get("subject"), None);
        let mut first: Value = serde_json::from_slice(&index().to_bytes()).expect("JSON");
        for index in [&mut wire, &mut first] {
            index["config"]["mediaType"] = Value::Null;
            index["subject"] = Value::Null;
        }
        assert_eq!(wire, first, "nothing else is different");
    }
}
