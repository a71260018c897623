//! Finding the signature of an artifact in its repository.
//!
//! cosign keeps them in two places: under a tag that is made of the artifact's digest (`SIGNATURE_SPEC.md`, "Tag-based
//! Discovery"), and as what refers to the artifact (`BUNDLE_SPEC.md`), by API or tag like anything else. Both are looked at, at the
//! same time: two round trips by the tag, three by referrers. Anybody may put what is called a signature there, so each is read,
//! verified and forgotten, few at a time, until one is by a key of the user. What cannot be read is no signature.

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};

use super::Error;
use super::artifact::{EMPTY_TYPE, MANIFEST_TYPE};
use super::discover::{entries, read_blob};
use crate::limits::{PARALLEL_SIGNATURES, SIGNATURE_BYTES, SIGNATURES};
use crate::oci::{Descriptor, Digest, ImageManifest, IndexEntry, Manifest};
use crate::registry::Repository;
use crate::signature::{
    BUNDLE_TYPE_PREFIX, Keys, PREDICATE_ANNOTATION, SIGNATURE_ANNOTATION, SIGNED, SIMPLE_SIGNING_TYPE, Signature,
};
use crate::source::{BoxFuture, Source};

/// A signature of an artifact by one of the keys, with the name of that key; none if there is none. Fails if there may be one
/// where nobody could look.
pub async fn signature(
    repository: &Repository,
    artifact: Digest,
    keys: &Keys,
) -> Result<Option<(Signature, String)>, Error> {
    let looking = Looking { repository, artifact, keys };
    let (tagged, bundles) = tokio::join!(looking.tagged(), looking.bundles());
    match (tagged, bundles) {
        (Ok(Some(found)), _) | (_, Ok(Some(found))) => Ok(Some(found)),
        (Ok(None), Ok(None)) => Ok(None),
        (Err(error), _) | (_, Err(error)) => Err(error),
    }
}

struct Looking<'a> {
    repository: &'a Repository,
    artifact: Digest,
    keys: &'a Keys,
}

type Read<'a> = BoxFuture<'a, Result<Option<Signature>, Error>>;

impl Looking<'_> {
    /// Under the tag.
    async fn tagged(&self) -> Result<Option<(Signature, String)>, Error> {
        let tag = format!("{}-{}.sig", self.artifact.algorithm().name(), self.artifact.hex());
        let Some(document) = self.repository.tagged(&tag).await? else { return Ok(None) };
        // It says nothing that would have to be believed.
        let manifest = match manifest(&document.bytes) {
            Ok(manifest) => manifest,
            Err(error) => {
                self.pass_over(&error);
                return Ok(None);
            }
        };
        let is_payload = |blob: &Descriptor| blob.media_type == SIMPLE_SIGNING_TYPE && blob.size <= SIGNATURE_BYTES;
        let blobs = manifest.layers.into_iter().filter(is_payload).collect();
        self.first(blobs, |blob| Box::pin(self.simple(blob))).await
    }

    async fn simple(&self, blob: Descriptor) -> Result<Option<Signature>, Error> {
        let Some(annotation) = blob.annotations.get(SIGNATURE_ANNOTATION) else { return Ok(None) };
        Ok(Signature::simple(&self.content(&blob).await?, annotation))
    }

    /// Among what refers to the artifact.
    async fn bundles(&self) -> Result<Option<(Signature, String)>, Error> {
        let mut listed = entries(self.repository, &self.artifact, None).await?;
        listed.retain(may_be_signature);
        listed.sort_by_key(|entry| entry.descriptor.digest);
        listed.dedup_by_key(|entry| entry.descriptor.digest);
        self.first(listed, |entry| Box::pin(self.bundle(entry.descriptor))).await
    }

    async fn bundle(&self, listed: Descriptor) -> Result<Option<Signature>, Error> {
        let listed = Descriptor { media_type: MANIFEST_TYPE.to_owned(), ..listed };
        let manifest = manifest(&self.repository.manifest(&listed).await?.bytes)?;
        let is_bundle =
            |blob: &&Descriptor| blob.media_type.starts_with(BUNDLE_TYPE_PREFIX) && blob.size <= SIGNATURE_BYTES;
        let Some(blob) = manifest.layers.iter().find(is_bundle) else { return Ok(None) };
        let text = self.content(blob).await?;
        Signature::of_bundle(&text).map_err(|error| Error::Artifact { digest: blob.digest, why: error.to_string() })
    }

    /// The bytes of a blob, which its descriptor may hold.
    async fn content(&self, blob: &Descriptor) -> Result<Bytes, Error> {
        match &blob.data {
            Some(data) => Ok(data.clone()),
            None => read_blob(self.repository, blob).await,
        }
    }

    /// The first of these that is by one of the keys. A failure of the source counts only if there is none.
    async fn first<'a, T>(
        &'a self,
        mut places: Vec<T>,
        read: impl Fn(T) -> Read<'a>,
    ) -> Result<Option<(Signature, String)>, Error> {
        if places.len() > SIGNATURES {
            tracing::warn!(artifact = %self.artifact, listed = places.len(), "only {SIGNATURES} signatures are looked at");
            places.truncate(SIGNATURES);
        }
        let verifying: Vec<BoxFuture<'_, _>> = places
            .into_iter()
            .map(|place| {
                let reading = read(place);
                Box::pin(async move { Ok(self.verified(reading.await?).await) }) as BoxFuture<'_, _>
            })
            .collect();
        let mut verifying = stream::iter(verifying).buffer_unordered(PARALLEL_SIGNATURES);
        let mut failed = None;
        while let Some(verified) = verifying.next().await {
            match verified {
                Ok(Some(found)) => return Ok(Some(found)),
                Ok(None) => {}
                Err(Error::Source(error)) if error.is_transient() => failed = Some(Error::Source(error)),
                Err(error) => self.pass_over(&error),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// A signature with the key by which it is one of the artifact.
    async fn verified(&self, signature: Option<Signature>) -> Option<(Signature, String)> {
        let (signature, artifact, keys) = (signature?, self.artifact, self.keys.clone());
        let verify = move || {
            let signer = signature.signer(&artifact, &keys)?.to_owned();
            Some((signature, signer))
        };
        tokio::task::spawn_blocking(verify).await.ok().flatten()
    }

    fn pass_over(&self, error: &Error) {
        let error: &dyn std::error::Error = error;
        tracing::debug!(artifact = %self.artifact, error, "what is called a signature is passed over");
    }
}

/// True unless an entry says that it is something else. The library that cosign keeps lists with writes the type of the
/// configuration for that of the artifact, which says nothing.
fn may_be_signature(entry: &IndexEntry) -> bool {
    let kind = entry.artifact_type.as_deref();
    let predicate = entry.descriptor.annotations.get(PREDICATE_ANNOTATION);
    kind.is_some_and(|kind| kind.starts_with(BUNDLE_TYPE_PREFIX) || kind == EMPTY_TYPE)
        && predicate.is_none_or(|predicate| predicate == SIGNED)
        && entry.descriptor.size <= SIGNATURE_BYTES
}

fn manifest(bytes: &[u8]) -> Result<ImageManifest, Error> {
    let digest = Digest::sha256(bytes);
    match Manifest::parse(bytes, MANIFEST_TYPE) {
        Ok(Manifest::Image(manifest)) => Ok(manifest),
        Ok(Manifest::Index(_)) => Err(Error::Artifact { digest, why: "it is an image index".to_owned() }),
        Err(error) => Err(Error::Manifest { digest, source: Box::new(error) }),
    }
}
