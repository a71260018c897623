//! Finding what others put beside an image.
//!
//! Two round trips: the list of referrers, by API and tag at once because nobody knows beforehand which one the registry
//! has, then the artifacts' manifests, all at once.

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};

use super::artifact::MANIFEST_TYPE;
use super::{ARTIFACT_TYPE, Artifact, Error, LayerBlob};
use crate::limits::{ARTIFACT_BYTES, ARTIFACTS, PARALLEL_ARTIFACTS};
use crate::oci::{Descriptor, Digest, IndexEntry};
use crate::registry::Repository;
use crate::source::{self, BoxFuture, ErrorKind, Source, read_checked};

/// An artifact as it lies in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shared {
    /// The artifact's manifest.
    pub manifest: Descriptor,
    /// What it says.
    pub artifact: Artifact,
    /// The manifest's bytes.
    pub document: Bytes,
}

/// Finds the artifacts of the image `subject`: those with the most indexes first, then those with a profile, then by
/// digest, so that every machine chooses the same.
///
/// Artifacts that cannot be read are passed over with a warning. Empty if there are none.
pub async fn discover(repository: &Repository, subject: &Digest) -> Result<Vec<Shared>, Error> {
    let listed = list(repository, subject, ARTIFACT_TYPE).await?;
    let mut reading: Vec<BoxFuture<'_, Result<Shared, Error>>> = Vec::new();
    for manifest in listed {
        reading.push(Box::pin(open(repository, manifest, subject)));
    }
    let mut reading = stream::iter(reading).buffer_unordered(PARALLEL_ARTIFACTS);
    let mut found = Vec::new();
    while let Some(shared) = reading.next().await {
        match shared {
            Ok(shared) => found.push(shared),
            Err(error) => tracing::warn!(%subject, error = &error as &dyn std::error::Error, "passed over"),
        }
    }
    found.sort_by_key(|shared| {
        let artifact = &shared.artifact;
        (std::cmp::Reverse((artifact.layers.len(), artifact.profile.is_some())), shared.manifest.digest)
    });
    Ok(found)
}

/// The descriptors of the artifacts of a type, each once, ordered by digest: whatever the order of the registry, and where
/// there are more than are looked at, every machine looks at the same.
pub(super) async fn list(
    repository: &Repository,
    subject: &Digest,
    artifact_type: &str,
) -> Result<Vec<Descriptor>, Error> {
    let entries = entries(repository, subject, Some(artifact_type)).await?;
    let mut listed: Vec<_> = entries.into_iter().map(|entry| entry.descriptor).collect();
    listed.sort_by_key(|descriptor| descriptor.digest);
    listed.dedup_by_key(|descriptor| descriptor.digest);
    if listed.len() > ARTIFACTS {
        tracing::warn!(%subject, listed = listed.len(), "only {ARTIFACTS} artifacts of {artifact_type} are looked at");
        listed.truncate(ARTIFACTS);
    }
    Ok(listed)
}

/// What refers to `subject` and is of a type, or of any, by API and tag.
pub(super) async fn entries(
    repository: &Repository,
    subject: &Digest,
    artifact_type: Option<&str>,
) -> Result<Vec<IndexEntry>, Error> {
    let (by_api, by_tag) =
        tokio::join!(repository.referrers(subject, artifact_type), repository.tagged_referrers(subject, artifact_type));
    match (by_api, by_tag) {
        // A registry that got its API later may still have a list under the tag.
        (Ok(by_api), Ok(by_tag)) => Ok(by_api.into_iter().flatten().chain(by_tag).collect()),
        (Ok(Some(by_api)), Err(error)) => {
            tracing::debug!(%error, "the list under the tag is passed over");
            Ok(by_api)
        }
        (Err(error), Ok(by_tag)) => {
            tracing::debug!(%error, "the referrers API is passed over");
            Ok(by_tag)
        }
        (Ok(None) | Err(_), Err(error)) => Err(error.into()),
    }
}

async fn open(repository: &Repository, manifest: Descriptor, subject: &Digest) -> Result<Shared, Error> {
    if manifest.size > ARTIFACT_BYTES {
        let why = format!("it has {} bytes, at most {ARTIFACT_BYTES} are read", manifest.size);
        return Err(Error::Artifact { digest: manifest.digest, why });
    }
    let manifest = Descriptor { media_type: MANIFEST_TYPE.to_owned(), ..manifest };
    let document = match &manifest.data {
        // It has the digest of the descriptor.
        Some(embedded) => embedded.clone(),
        None => repository.manifest(&manifest).await?.bytes,
    };
    let artifact = Artifact::parse(&document, subject)?;
    Ok(Shared { manifest: Descriptor { data: None, ..manifest }, artifact, document })
}

/// Reads a blob of an artifact and checks it.
pub async fn read_blob(repository: &Repository, blob: &Descriptor) -> Result<Bytes, Error> {
    read(repository, blob, blob.size, &blob.digest).await
}

/// Reads the first part of an index and checks it.
pub async fn read_metadata(repository: &Repository, index: &LayerBlob) -> Result<Bytes, Error> {
    read(repository, &index.blob, index.metadata.size, &index.metadata.digest).await
}

async fn read(repository: &Repository, blob: &Descriptor, size: u64, digest: &Digest) -> Result<Bytes, Error> {
    let bytes = read_checked(repository.blob(blob).as_ref(), size, digest).await?;
    bytes.ok_or_else(|| {
        let message = format!("{} sent bytes for {} that have another digest", repository.name(), blob.digest);
        source::Error::new(ErrorKind::Corrupt, message).into()
    })
}
