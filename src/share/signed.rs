//! Finding the signatures of an artifact in its repository.
//!
//! cosign keeps them in two places: under a tag that is made of the artifact's digest (`SIGNATURE_SPEC.md`, "Tag-based
//! Discovery"), and as what refers to the artifact (`BUNDLE_SPEC.md`), by API or tag like anything else. Both are looked at, at the
//! same time: two round trips by the tag, three by referrers. What cannot be read is no signature.

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};

use super::Error;
use super::artifact::{EMPTY_TYPE, MANIFEST_TYPE};
use super::discover::{entries, read_blob};
use crate::limits::{PARALLEL_ARTIFACTS, SIGNATURE_BYTES, SIGNATURES};
use crate::oci::{Descriptor, Digest, ImageManifest, IndexEntry, Manifest};
use crate::registry::Repository;
use crate::signature::{BUNDLE_TYPE_PREFIX, Keys, SIGNATURE_ANNOTATION, SIMPLE_SIGNING_TYPE, Signature};
use crate::source::{BoxFuture, Source};

/// The first signature of `artifact` that is by one of the keys, with the name of that key.
pub async fn signature(repository: &Repository, artifact: Digest, keys: &Keys) -> Option<(Signature, String)> {
    let (found, keys) = (signatures(repository, &artifact).await, keys.clone());
    let verified = move || {
        found.into_iter().find_map(|signature| {
            let signer = signature.signer(&artifact, &keys)?.to_owned();
            Some((signature, signer))
        })
    };
    // Many that are wrong take a while.
    tokio::task::spawn_blocking(verified).await.ok().flatten()
}

/// What is said to be signatures of `artifact`, of whomever. Where a place cannot be read, that is told in the log.
async fn signatures(repository: &Repository, artifact: &Digest) -> Vec<Signature> {
    let (tagged, bundles) = tokio::join!(tagged(repository, artifact), bundles(repository, artifact));
    let mut found = Vec::new();
    for place in [tagged, bundles] {
        match place {
            Ok(signatures) => found.extend(signatures),
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(%artifact, error, "signatures cannot be looked for");
            }
        }
    }
    found
}

/// Those under the tag.
async fn tagged(repository: &Repository, artifact: &Digest) -> Result<Vec<Signature>, Error> {
    let tag = format!("{}-{}.sig", artifact.algorithm().name(), artifact.hex());
    let Some(document) = repository.tagged(&tag).await? else { return Ok(Vec::new()) };
    let manifest = manifest(&document.bytes)?;
    let is_payload = |blob: &Descriptor| blob.media_type == SIMPLE_SIGNING_TYPE && blob.size <= SIGNATURE_BYTES;
    let blobs = manifest.layers.into_iter().filter(is_payload).take(SIGNATURES);
    Ok(each(blobs.map(|blob| simple(repository, blob)).collect()).await)
}

async fn simple(repository: &Repository, blob: Descriptor) -> Result<Vec<Signature>, Error> {
    let Some(annotation) = blob.annotations.get(SIGNATURE_ANNOTATION) else { return Ok(Vec::new()) };
    let payload = content(repository, &blob).await?;
    Ok(Signature::simple(&payload, annotation).into_iter().collect())
}

/// Those that refer to the artifact.
async fn bundles(repository: &Repository, artifact: &Digest) -> Result<Vec<Signature>, Error> {
    let mut listed = entries(repository, artifact, None).await?;
    listed.retain(may_be_bundle);
    listed.sort_by_key(|entry| entry.descriptor.digest);
    listed.dedup_by_key(|entry| entry.descriptor.digest);
    listed.truncate(SIGNATURES);
    Ok(each(listed.into_iter().map(|entry| bundle(repository, entry.descriptor)).collect()).await)
}

/// True unless an entry is something else. The library that cosign keeps lists with writes the type of the configuration for that
/// of the artifact, which says nothing.
fn may_be_bundle(entry: &IndexEntry) -> bool {
    let kind = entry.artifact_type.as_deref();
    kind.is_some_and(|kind| kind.starts_with(BUNDLE_TYPE_PREFIX) || kind == EMPTY_TYPE)
        && entry.descriptor.size <= SIGNATURE_BYTES
}

async fn bundle(repository: &Repository, listed: Descriptor) -> Result<Vec<Signature>, Error> {
    let listed = Descriptor { media_type: MANIFEST_TYPE.to_owned(), ..listed };
    let manifest = manifest(&repository.manifest(&listed).await?.bytes)?;
    let is_bundle =
        |blob: &&Descriptor| blob.media_type.starts_with(BUNDLE_TYPE_PREFIX) && blob.size <= SIGNATURE_BYTES;
    let Some(blob) = manifest.layers.iter().find(is_bundle) else { return Ok(Vec::new()) };
    let text = content(repository, blob).await?;
    Signature::of_bundle(&text).map_err(|error| Error::Artifact { digest: blob.digest, why: error.to_string() })
}

fn manifest(bytes: &[u8]) -> Result<ImageManifest, Error> {
    let digest = Digest::sha256(bytes);
    match Manifest::parse(bytes, MANIFEST_TYPE) {
        Ok(Manifest::Image(manifest)) => Ok(manifest),
        Ok(Manifest::Index(_)) => Err(Error::Artifact { digest, why: "it is an image index".to_owned() }),
        Err(error) => Err(Error::Manifest { digest, source: Box::new(error) }),
    }
}

/// The bytes of a blob, which its descriptor may hold.
async fn content(repository: &Repository, blob: &Descriptor) -> Result<Bytes, Error> {
    match &blob.data {
        Some(data) => Ok(data.clone()),
        None => read_blob(repository, blob).await,
    }
}

/// What can be read of these, in their order.
async fn each(reading: Vec<impl Future<Output = Result<Vec<Signature>, Error>> + Send>) -> Vec<Signature> {
    let reading: Vec<BoxFuture<'_, _>> = reading.into_iter().map(|one| Box::pin(one) as _).collect();
    let read = stream::iter(reading).buffered(PARALLEL_ARTIFACTS).collect::<Vec<_>>().await;
    let readable = |read: Result<Vec<Signature>, Error>| {
        read.inspect_err(|error| {
            let error: &dyn std::error::Error = error;
            tracing::warn!(error, "a signature cannot be read");
        })
        .unwrap_or_default()
    };
    read.into_iter().flat_map(readable).collect()
}
