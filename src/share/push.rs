//! Bringing an artifact to a registry, and taking it away.
//!
//! Blobs first, all at once and only those that are not there; then the manifest; then, where the registry did not say
//! that it has noted the subject, the list under the tag. So whatever breaks in between, nobody finds an artifact of
//! which a part is missing, and pushing again sends only what is still missing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde_json::{Value, json};

use super::artifact::{EMPTY, MANIFEST_TYPE};
use super::{Artifact, Error, Format, LayerBlob, PROFILE_TYPE, SociIndex, SociLayer};
use crate::limits::{EMBEDDED_BYTES, PARALLEL_BLOBS};
use crate::oci::{Descriptor, Digest};
use crate::profile::{Origin, Profile};
use crate::registry::{Pushed, Repository, Selector};
use crate::source::{BoxFuture, ErrorKind};

/// An artifact with all its bytes.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// For which program its manifest is.
    pub format: Format,
    /// What it says, in whatever form.
    pub artifact: Artifact,
    /// Its manifest.
    pub manifest: Bytes,
    /// Its blobs, the configuration included, each once.
    pub blobs: Vec<(Digest, Bytes)>,
}

impl Bundle {
    /// Puts together what is known of the image `subject`: its layers' encoded indexes with the lengths of their first
    /// parts, and what its start reads.
    pub fn new(subject: &Descriptor, indexes: &[(Digest, Bytes, u64)], profile: Option<&Profile>) -> Self {
        let layers: Vec<_> =
            indexes.iter().map(|(layer, encoded, metadata)| LayerBlob::new(*layer, encoded, *metadata)).collect();
        let mut blobs = vec![(Digest::sha256(EMPTY), Bytes::from_static(EMPTY))];
        blobs.extend(layers.iter().zip(indexes).map(|(layer, (_, encoded, _))| (layer.blob.digest, encoded.clone())));
        let profile = profile.map(|profile| {
            let text = Bytes::from(anonymous(profile, subject.digest).to_text());
            let blob = Descriptor::new(PROFILE_TYPE, Digest::sha256(&text), text.len() as u64);
            blobs.push((blob.digest, text));
            blob
        });
        let artifact = Artifact { subject: subject.clone(), layers, profile };
        Self { format: Format::Ocifs, manifest: artifact.to_bytes(), artifact, blobs }
    }

    /// Puts together SOCI's index, version 1, of the image `subject` from the zTOCs of its layers.
    pub fn soci(subject: &Descriptor, ztocs: &[(Descriptor, Bytes)]) -> Self {
        Self::of_ztocs(Format::Soci, subject, ztocs)
    }

    /// The same of version 2, which says nothing of the image: a [converted](super::convert) one names it.
    pub fn soci_v2(subject: &Descriptor, ztocs: &[(Descriptor, Bytes)]) -> Self {
        Self::of_ztocs(Format::SociV2, subject, ztocs)
    }

    fn of_ztocs(format: Format, subject: &Descriptor, ztocs: &[(Descriptor, Bytes)]) -> Self {
        let layers: Vec<_> = ztocs.iter().map(|(layer, ztoc)| SociLayer::new(layer, ztoc)).collect();
        let index = SociIndex { subject: (format == Format::Soci).then(|| subject.clone()), layers };
        let mut blobs = vec![(Digest::sha256(EMPTY), Bytes::from_static(EMPTY))];
        blobs.extend(ztocs.iter().map(|(_, ztoc)| (Digest::sha256(ztoc), ztoc.clone())));
        let blob = |(layer, ztoc): &(Descriptor, Bytes)| LayerBlob::new(layer.digest, ztoc, ztoc.len() as u64);
        let artifact = Artifact { subject: subject.clone(), layers: ztocs.iter().map(blob).collect(), profile: None };
        Self { format, manifest: index.to_bytes(), artifact, blobs }
    }

    /// The digest of its manifest.
    pub fn digest(&self) -> Digest {
        Digest::sha256(&self.manifest)
    }

    /// Bytes of its blobs.
    pub fn bytes(&self) -> u64 {
        self.blobs.iter().map(|(_, bytes)| bytes.len() as u64).sum()
    }
}

/// The profile without where and when it was recorded: neither is anybody's business, and without them equal recordings
/// are equal blobs.
fn anonymous(profile: &Profile, image: Digest) -> Profile {
    Profile::new(Origin { image, recorded: 0, mount: "/".into() }, profile.accesses().iter().cloned())
}

/// How far a push has come; read by whoever shows it.
#[derive(Debug, Default)]
pub struct Progress {
    /// Protects the list, which grows once a blob.
    blobs: Mutex<Vec<(u64, Arc<AtomicU64>)>>,
}

/// Sums over the blobs of an artifact.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pushing {
    /// Blobs.
    pub blobs: usize,
    /// Blobs that the registry has.
    pub finished: usize,
    /// Bytes that the registry has.
    pub there: u64,
    /// Bytes in all.
    pub total: u64,
}

impl Progress {
    /// Where it stands now.
    pub fn now(&self) -> Pushing {
        let blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        blobs.iter().fold(Pushing { blobs: blobs.len(), ..Pushing::default() }, |sum, (size, sent)| {
            let sent = sent.load(Ordering::Relaxed);
            let finished = sum.finished + usize::from(sent >= *size);
            Pushing { finished, there: sum.there + sent, total: sum.total + size, ..sum }
        })
    }

    fn add(&self, size: u64) -> Arc<AtomicU64> {
        let sent = Arc::new(AtomicU64::new(0));
        self.blobs.lock().unwrap_or_else(PoisonError::into_inner).push((size, Arc::clone(&sent)));
        sent
    }
}

/// How an artifact can be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// By the registry's referrers API.
    Api,
    /// By the tag that stands in for it.
    Tag,
    /// By an image that names it, once there is one.
    Image,
}

/// What a push did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// The artifact's manifest.
    pub manifest: Digest,
    /// How it can be found.
    pub listed: Listed,
    /// Blobs that were there already.
    pub existed: usize,
    /// Blobs that the registry took from another repository.
    pub mounted: usize,
    /// Blobs that were sent.
    pub sent: usize,
    /// Bytes of those that were sent.
    pub bytes: u64,
}

/// Repositories of one registry that had blobs when that was last seen, so that it can take them from there.
pub type Places = HashMap<Digest, String>;

/// Pushes an artifact. `repository` should be [for pushing](Repository::for_pushing).
pub async fn push(
    repository: &Repository,
    bundle: &Bundle,
    places: &Places,
    progress: &Progress,
) -> Result<Sent, Error> {
    let mut sending: Vec<BoxFuture<'_, Result<(Pushed, u64), Error>>> = Vec::new();
    for (digest, bytes) in &bundle.blobs {
        let sent = progress.add(bytes.len() as u64);
        sending.push(Box::pin(async move {
            let from = places.get(digest).map(String::as_str).filter(|from| *from != repository.path());
            Ok((push_blob(repository, *digest, bytes, from, &sent).await?, bytes.len() as u64))
        }));
    }
    let pushed: Vec<_> = stream::iter(sending).buffer_unordered(PARALLEL_BLOBS).try_collect().await?;
    let digest = bundle.digest();
    let name = Selector::Digest(digest);
    let noted = repository.push_manifest(&name, MANIFEST_TYPE, bundle.manifest.clone()).await?;
    let listed = match bundle.format {
        Format::SociV2 => Listed::Image,
        Format::Ocifs | Format::Soci if noted => Listed::Api,
        Format::Ocifs | Format::Soci => Listed::Tag,
    };
    if listed == Listed::Tag {
        let mut entry = json!({
            "mediaType": MANIFEST_TYPE,
            "digest": digest.to_string(),
            "size": bundle.manifest.len(),
            "artifactType": bundle.format.artifact_type(),
        });
        // Whoever reads the list sees what the registry would have shown.
        let manifest: Value = serde_json::from_slice(&bundle.manifest).unwrap_or_default();
        if let Some(annotations) = manifest.get("annotations") {
            entry["annotations"] = annotations.clone();
        }
        if bundle.format == Format::Ocifs && bundle.manifest.len() as u64 <= EMBEDDED_BYTES {
            // A mount that finds the entry has the artifact as well, a round trip earlier.
            entry["data"] = STANDARD.encode(&bundle.manifest).into();
        }
        repository.add_tagged_referrer(&bundle.artifact.subject.digest, &entry).await?;
    }
    let count = |wanted: Pushed| pushed.iter().filter(|(pushed, _)| *pushed == wanted).count();
    Ok(Sent {
        manifest: digest,
        listed,
        existed: count(Pushed::Existed),
        mounted: count(Pushed::Mounted),
        sent: count(Pushed::Sent),
        bytes: pushed.iter().filter(|(pushed, _)| *pushed == Pushed::Sent).map(|(_, bytes)| bytes).sum(),
    })
}

async fn push_blob(
    repository: &Repository,
    digest: Digest,
    bytes: &Bytes,
    from: Option<&str>,
    sent: &AtomicU64,
) -> Result<Pushed, Error> {
    if repository.has_blob(&digest).await? {
        sent.store(bytes.len() as u64, Ordering::Relaxed);
        return Ok(Pushed::Existed);
    }
    Ok(repository.push_blob(digest, bytes.clone(), from, sent).await?)
}

/// Takes an artifact of `subject` away: out of the list under the tag, and then itself.
///
/// A registry may forbid the second. Once it is in no list nobody finds it, so that is only reported where it was listed
/// by the registry itself. False if it stays without being found.
pub async fn remove(repository: &Repository, subject: &Digest, artifact: &Digest) -> Result<bool, Error> {
    let was_listed = repository.remove_tagged_referrer(subject, artifact).await?;
    match repository.remove_manifest(artifact).await {
        Ok(()) => Ok(true),
        Err(error) if was_listed && error.kind() == ErrorKind::Denied => {
            tracing::debug!(%error, "the artifact stays without being found");
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}
